"""ViTs of other libraries in the size of a config: with a class token and random weights."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor, nn

from vitrail.errors import UsageError
from vitrail.model.config import ViTConfig, to_pair


def timm_vit(config: ViTConfig) -> nn.Module:
    """timm's VisionTransformer."""
    from timm.models.vision_transformer import VisionTransformer

    model: nn.Module = VisionTransformer(
        img_size=to_pair(config.image_size),
        patch_size=config.patch,
        in_chans=config.channels,
        num_classes=config.classes,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp_width / config.width,
    )
    return model


def torchvision_vit(config: ViTConfig) -> nn.Module:
    """torchvision's VisionTransformer, for square color images only."""
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(
        image_size=square_image_size(config, "torchvision"),
        patch_size=config.patch,
        num_layers=config.depth,
        num_heads=config.heads,
        hidden_dim=config.width,
        mlp_dim=config.mlp_width,
        num_classes=max(config.classes, 1),
    )
    return model


class LogitsOnly(nn.Module):
    """A model of transformers that takes images and returns logits, instead of named arguments and outputs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BY: Tensor = self.model(pixel_values=image_BCHW).logits
        return logits_BY


def transformers_vit(config: ViTConfig) -> nn.Module:
    """transformers' ViTForImageClassification with fused attention, its default."""
    from transformers import ViTConfig as PeerConfig
    from transformers import ViTForImageClassification

    return LogitsOnly(
        ViTForImageClassification(
            PeerConfig(
                hidden_size=config.width,
                num_hidden_layers=config.depth,
                num_attention_heads=config.heads,
                intermediate_size=config.mlp_width,
                image_size=to_pair(config.image_size),
                patch_size=config.patch,
                num_channels=config.channels,
                num_labels=max(config.classes, 1),  # type: ignore[call-arg]
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            )
        )
    )


def vit_pytorch_vit(config: ViTConfig) -> nn.Module:
    """vit-pytorch's ViT."""
    from vit_pytorch import ViT as PeerViT

    model: nn.Module = PeerViT(
        image_size=to_pair(config.image_size),
        patch_size=config.patch,
        num_classes=max(config.classes, 1),
        dim=config.width,
        depth=config.depth,
        heads=config.heads,
        mlp_dim=config.mlp_width,
        channels=config.channels,
        dim_head=config.width // config.heads,
    )
    return model


def square_image_size(config: ViTConfig, library: str) -> int:
    """Returns the height and width of a square color image; raises `UsageError` for other images."""
    height, width = to_pair(config.image_size)
    if height != width or config.channels != 3:
        raise UsageError(f"{library} takes only square color images")
    return height


PEERS: dict[str, Callable[[ViTConfig], nn.Module]] = {  # by package name
    "timm": timm_vit,
    "torchvision": torchvision_vit,
    "transformers": transformers_vit,
    "vit-pytorch": vit_pytorch_vit,
}


def find_installed_peers(config: ViTConfig) -> tuple[list[str], dict[str, str]]:
    """Returns the peers that have a ViT for this config, and the reason for each one that does not."""
    available, missing = [], {}
    for name in PEERS:
        try:
            version(name)
            if name == "torchvision":
                square_image_size(config, name)
        except PackageNotFoundError:
            missing[name] = f"not installed (pip install {name})"
        except UsageError as error:
            missing[name] = error.sentence
        else:
            available.append(name)
    return available, missing
