"""Whether what was written answers as the classifier does, asked of the library that will read it."""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.errors import VitrailError
from vitrail.exporting.sample_photos import read_sample_photos

TOLERANCE = 1e-4  # of the largest logit
NOISE = 8  # images of noise that are compared besides the photographs


def timm_answer(folder: Path) -> Callable[[Tensor], Tensor]:
    """timm's own reading of the folder."""
    timm: Any = importlib.import_module("timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return lambda x: model(x)


def hf_answer(folder: Path) -> Callable[[Tensor], Tensor]:
    """transformers' own reading of the folder."""
    hf: Any = importlib.import_module("transformers")
    hf.utils.logging.disable_progress_bar()
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = getattr(hf, architecture).from_pretrained(folder).eval()

    def answer(x: Tensor) -> Tensor:
        said = model(x)
        if "logits" in said:
            return said["logits"]
        if "image_embeds" in said:
            return said["image_embeds"]
        pooled = architecture.startswith(("CLIP", "Siglip"))
        return said["pooler_output"] if pooled else said["last_hidden_state"][:, 0]

    return answer


def torchvision_answer(folder: Path) -> Callable[[Tensor], Tensor]:
    """torchvision's own reading of the folder."""
    import torchvision
    from safetensors.torch import load_file

    document = json.loads((folder / "torchvision.json").read_text(encoding="utf-8"))
    norm = partial(nn.LayerNorm, eps=document["norm_eps"])
    model = torchvision.models.VisionTransformer(**document["arguments"], norm_layer=norm).eval()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return lambda x: model(x)


READERS = {"timm": timm_answer, "hf": hf_answer, "torchvision": torchvision_answer}
PACKAGES = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}


def make_probe_images(classifier: Classifier) -> Tensor:
    """Images as the model sees them, (B, C, H, W), the same each time: noise of every contrast, then photographs."""
    height, width = classifier.preprocess.image_size
    generator = torch.Generator().manual_seed(0)
    contrast = torch.linspace(0.2, 2.0, NOISE).view(-1, 1, 1, 1)
    noise = torch.randn(NOISE, classifier.preprocess.channels, height, width, generator=generator) * contrast
    pixels = torch.stack([*read_sample_photos(classifier).values()])
    return torch.cat([noise, classifier.preprocess.normalize(pixels)])


@torch.inference_mode()
def compare_with_library(classifier: Classifier, form: str, folder: Path) -> dict[str, Any] | None:
    """How far the library's answers are from the classifier's; None where the library is not installed.

    Raises `VitrailError` where they differ by more than `TOLERANCE` of the largest answer.
    """
    try:
        answer = READERS[form](folder)
    except ImportError:
        return None
    images = make_probe_images(classifier)
    ours = classifier.vit.eval()(images.to(classifier.device)).float().cpu()
    if classifier.vit.config.classes:  # the temperature is the head's
        ours = ours / classifier.temperature
    theirs = answer(images).float()
    if theirs.shape != ours.shape:
        raise VitrailError(
            f"{PACKAGES[form]} answers {tuple(theirs.shape)} where the classifier says {tuple(ours.shape)}"
        )
    difference = (theirs - ours).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, ours.abs().max().item()):
        raise VitrailError(
            f"{PACKAGES[form]} does not agree: its answers differ by {difference:.2e}", "nothing was written"
        )
    same = (theirs.argmax(dim=-1) == ours.argmax(dim=-1)).float().mean().item()
    compared_on = f"{NOISE} images of noise and {len(images) - NOISE} photographs"
    return {"compared_on": compared_on, "max_difference": difference, "agreement": same, "images": len(images)}
