"""ViTs of timm and transformers that are in memory, saved as these libraries save them."""

from pathlib import Path

from torch import nn

from vitrail.errors import UsageError

HINT = (
    "give a ViT, or a Vision Transformer of timm or transformers; weights of torchvision load from a file, as "
    "torchvision/vit_b_16@FILE"
)


def save_module(module: nn.Module, folder: Path) -> Path:
    """Saves a model of another library into a folder, with its own saving function; returns what to load.

    Raises `UsageError` for a module of another kind.
    """
    library = type(module).__module__.partition(".")[0]
    if library == "timm":
        from timm.models import save_for_hf

        save_for_hf(module, str(folder), safe_serialization=True)
        return folder
    if library == "transformers":
        from transformers import PreTrainedModel

        if isinstance(module, PreTrainedModel):
            module.save_pretrained(str(folder))
            return folder
    kind = f"{type(module).__module__}.{type(module).__name__}"
    raise UsageError(f"vitrail knows no Vision Transformer of type {kind}", HINT)
