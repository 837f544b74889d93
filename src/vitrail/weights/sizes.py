"""The sizes of ViTs that have common names."""

from typing import Any

# width, depth, heads, mlp_width: Ti and S from DeiT (arXiv 2012.12877), B, L and H from the paper (table 1), So400m
# from SigLIP (arXiv 2305.13035), g from DINOv2 (arXiv 2304.07193; its MLP is SwiGLU)
SIZES: dict[str, dict[str, int]] = {
    name: dict(zip(("width", "depth", "heads", "mlp_width"), numbers, strict=True))
    for name, numbers in {
        "Ti": (192, 12, 3, 768),
        "S": (384, 12, 6, 1536),
        "B": (768, 12, 12, 3072),
        "L": (1024, 24, 16, 4096),
        "So400m": (1152, 27, 16, 4304),
        "H": (1280, 32, 16, 5120),
        "g": (1536, 40, 24, 4096),
    }.items()
}


def get_size_name(config: dict[str, Any]) -> str:
    """Returns the common name of a config's size with its patch (`S/14`), or `{width}x{depth}/{patch}`."""
    shape = (config["width"], config["depth"])
    names = [name for name, size in SIZES.items() if (size["width"], size["depth"]) == shape]
    return f"{names[0] if names else '{width}x{depth}'.format(**config)}/{config['patch']}"


def list_sizes() -> list[dict[str, Any]]:
    """Returns each size with its number of parameters at 224 pixels, 1000 classes and the patch in use for it."""
    import torch

    from vitrail.model.config import ViTConfig
    from vitrail.model.vit import ViT

    rows = []
    for name, size in SIZES.items():
        patch = 14 if name in ("So400m", "H", "g") else 16
        fields: dict[str, Any] = {**size, "patch": patch, "mlp": "swiglu" if name == "g" else "gelu"}
        with torch.device("meta"):
            vit = ViT(ViTConfig(**fields, classes=1000))
        rows.append({"size": name, **size, "patch": patch, "parameters": sum(p.numel() for p in vit.parameters())})
    return rows
