"""What the makers of cards share: preprocessing, differences from the defaults, and shapes of a file's tensors."""

from dataclasses import MISSING, fields
from typing import Any

from vitrail.model.config import ViTConfig
from vitrail.weights.config_json import config_to_json, position_to_json
from vitrail.weights.conversion import export_weights, meta_state_dict
from vitrail.weights.layouts import LAYOUTS

Row = dict[str, Any]  # a card as JSON
SIZES = {
    "tiny": dict(width=192, depth=12, heads=3, mlp_width=768),
    "small": dict(width=384, depth=12, heads=6, mlp_width=1536),
    "base": dict(width=768, depth=12, heads=12, mlp_width=3072),
    "large": dict(width=1024, depth=24, heads=16, mlp_width=4096),
    "huge": dict(width=1280, depth=32, heads=16, mlp_width=5120),
    "giant": dict(width=1536, depth=40, heads=24, mlp_width=4096),
    "so400m": dict(width=1152, depth=27, heads=16, mlp_width=4304),
    "splus": dict(width=384, depth=12, heads=6, mlp_width=1536),
    "hplus": dict(width=1280, depth=32, heads=20, mlp_width=5120),
}
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
INTERPOLATIONS = ("bilinear", "bicubic")


def make_preprocess(
    size: int, resize: int, interpolation: str, norm: dict[str, Any], *, stretch: bool = False, engine: str = "pillow"
) -> dict[str, Any]:
    """Returns the preprocessing of a card: images are resized to `resize`, then the center of `size` is cropped."""
    if interpolation not in INTERPOLATIONS:
        raise ValueError(interpolation)
    return {
        "image_size": [size, size],
        "fit": "stretch" if stretch else "crop",
        "crop_fraction": size / resize,
        "interpolation": interpolation,
        "engine": engine,
        **norm,
    }


def find_differences(config: ViTConfig, layout: str) -> dict[str, Any]:
    """Returns the fields of a config that differ from the defaults and from the layout's position."""
    defaults = {f.name: f.default for f in fields(ViTConfig) if f.default is not MISSING}
    document = config_to_json(config)
    document.pop("position")
    differences = {name: value for name, value in document.items() if value != defaults[name]}
    position = position_to_json(config.position)
    if position != position_to_json(LAYOUTS[layout].position):
        differences["position"] = position
    return differences


def list_shapes(layout: str, config: ViTConfig) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the tensors in a file of this layout and config."""
    root = LAYOUTS[layout].roots[0]
    tensors = export_weights(LAYOUTS[layout], root, config, meta_state_dict(config))
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
