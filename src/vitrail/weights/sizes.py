"""The sizes of ViTs that the field has names for."""

from typing import Any

# width, depth, heads, mlp_width: Ti and S from DeiT (arXiv 2012.12877), B, L and H from the paper (table 1)
SIZES: dict[str, dict[str, int]] = {
    name: dict(zip(("width", "depth", "heads", "mlp_width"), numbers, strict=True))
    for name, numbers in {
        "Ti": (192, 12, 3, 768),
        "S": (384, 12, 6, 1536),
        "B": (768, 12, 12, 3072),
        "L": (1024, 24, 16, 4096),
        "H": (1280, 32, 16, 5120),
    }.items()
}


def rows() -> list[dict[str, Any]]:
    """Each size with its parameters at 224 pixels, patch 16 (H: 14), 1000 classes."""
    import torch

    from vitrail.model import ViT, ViTConfig

    found = []
    for name, size in SIZES.items():
        patch = 14 if name == "H" else 16
        with torch.device("meta"):
            vit = ViT(ViTConfig.from_json({**size, "patch": patch, "classes": 1000}))
        found.append({"size": name, **size, "patch": patch, "parameters": sum(p.numel() for p in vit.parameters())})
    return found
