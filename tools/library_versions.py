"""Compares vitrail with folders that versions of timm and transformers saved; writes docs/library-versions.md.

    python -m tools.library_versions save OUT       with each version, in an environment of its own
    python -m tools.library_versions compare OUT    with vitrail: reads all folders below OUT and writes the table

`save` imports neither vitrail nor the tests. Another version needs no environment of its own if it is unpacked into a
folder that comes first on PYTHONPATH: pip install --no-deps --target FOLDER timm==1.0.20.
"""

import inspect
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

DOCUMENT = Path(__file__).parent.parent / "docs/library-versions.md"
TINY_TIMM: dict[str, Any] = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "img_size": 32}
TIMM_MODELS: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {},
    "vit_base_patch16_siglip_224": {},
    "vit_base_patch16_clip_224": {},
    "deit3_base_patch16_224": {},
    "deit_tiny_distilled_patch16_224": {},
    "vit_small_patch14_reg4_dinov2": {},
    "vit_giant_patch14_dinov2": {},
    "vit_medium_patch16_gap_240": {},
    "vit_small_patch16_dinov3": {"dynamic_img_size": False},
}
TINY_HF: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8,
}  # fmt: skip
HF_MODELS = (
    "ViTForImageClassification", "DeiTForImageClassification", "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification", "DINOv3ViTModel", "CLIPVisionModel", "SiglipVisionModel",
)  # fmt: skip


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Fills every parameter with random numbers, so that a tensor in the wrong place shows."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


def save_outputs(folder: Path, library: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    np.savez(folder / "outputs.npz", library=library, inputs=inputs.numpy(), outputs=outputs.detach().numpy())


def save_timm_models(out: Path) -> None:
    """Saves each model as users of this version do: arguments must be named before timm recorded them."""
    import timm

    records = "data_config" in inspect.signature(timm.models.save_for_hf).parameters
    for name, options in TIMM_MODELS.items():
        arguments = {**TINY_TIMM, **options}
        model = randomize(timm.create_model(name, num_classes=5, **arguments))
        named: dict[str, Any] = {} if records else {"model_args": arguments}
        folder = out / f"timm-{timm.__version__}-{name}"
        timm.models.save_for_hf(model, folder, safe_serialization=True, **named)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        save_outputs(folder, f"timm {timm.__version__}", x, model(x))


def save_hf_models(out: Path) -> None:
    """Saves each model with `save_pretrained`."""
    import transformers

    for name in HF_MODELS:
        model_class = getattr(transformers, name)
        config = model_class.config_class(**TINY_HF)
        for field, value in (("intermediate_size", 64), ("mlp_ratio", 2)):
            if hasattr(config, field):
                setattr(config, field, value)
        model = randomize(model_class(config))
        folder = out / f"transformers-{transformers.__version__}-{name}"
        model.save_pretrained(folder)
        x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        result = model(x)
        pooled = name in ("CLIPVisionModel", "SiglipVisionModel")
        outputs = result.logits if "logits" in result else result.pooler_output if pooled else None
        outputs = result.last_hidden_state[:, 0] if outputs is None else outputs
        save_outputs(folder, f"transformers {transformers.__version__}", x, outputs)


@torch.inference_mode()
def compare(out: Path) -> None:
    """Loads every folder with vitrail and writes the largest difference of outputs for each model and version."""
    import vitrail

    differences: dict[str, dict[str, float]] = {}
    for file in sorted(out.glob("*/outputs.npz")):
        saved = np.load(file)
        library = str(saved["library"])
        model = file.parent.name.removeprefix(library.replace(" ", "-") + "-")
        assert saved["outputs"].std() > 1e-2, file  # a comparison of constants shows nothing
        outputs = vitrail.load(file.parent).vit(torch.from_numpy(saved["inputs"])).numpy()
        differences.setdefault(model, {})[library] = float(np.abs(outputs - saved["outputs"]).max())
    versions = sorted({library for row in differences.values() for library in row})
    lines = [
        "# Folders of several versions of timm and transformers",
        "",
        "Small random models, saved by the library (`save_for_hf`, `save_pretrained`) and read by vitrail: the largest",
        "difference of outputs, in float32. `python -m tools.library_versions` makes the folders, each version in an",
        "environment of its own, and this table. timm records a model's arguments itself in its current version; with",
        "earlier ones they must be named (`model_args`), as they are here.",
        "",
        f"| model | {' | '.join(versions)} |",
        f"| --- |{' --: |' * len(versions)}",
        *(
            f"| {model} | {' | '.join(f'{row[v]:.0e}' if v in row else '-' for v in versions)} |"
            for model, row in differences.items()
        ),
        "",
    ]
    DOCUMENT.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


def main(verb: str, out: str, *libraries: str) -> None:
    warnings.simplefilter("ignore")
    if verb == "compare":
        compare(Path(out))
    for library in libraries or (("timm", "transformers") if verb == "save" else ()):
        {"timm": save_timm_models, "transformers": save_hf_models}[library](Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
