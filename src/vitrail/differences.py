"""Where two models differ: in their tensors, and in what passes between their parts for the same images.

A model is a classifier, or the model of timm, transformers or torchvision that has the classifier's weights.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vitrail.classifier import Classifier
from vitrail.comparison import EXACT
from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.libraries import LIBRARIES, convert_classifier
from vitrail.exporting.library_format import LoadedModel
from vitrail.files import write_json
from vitrail.installation import install_hint
from vitrail.model.config import to_pair

FORMATS = {library.package: name for name, library in LIBRARIES.items()}  # a library's name -> the export's


@dataclass(frozen=True)
class Difference:
    """How a tensor or an activation differs between two models; no values if one lacks it or the shapes differ."""

    name: str
    first_shape: tuple[int, ...] | None
    second_shape: tuple[int, ...] | None
    max_difference: float | None
    largest: float | None  # the largest absolute value of the first
    is_equal: bool  # within the tolerance

    def to_json(self) -> dict[str, Any]:
        """Returns the difference as the command line prints it."""
        return dict(vars(self))


@dataclass(frozen=True)
class Differences:
    """All tensors and activations of two models, in the order in which the first model computes."""

    tensors: tuple[Difference, ...]  # empty if the second model is another library's
    activations: tuple[Difference, ...]  # empty if the models take images of different shapes

    @property
    def first_tensor(self) -> Difference | None:
        return next((each for each in self.tensors if not each.is_equal), None)

    @property
    def first_activation(self) -> Difference | None:
        return next((each for each in self.activations if not each.is_equal), None)

    def to_json(self) -> dict[str, Any]:
        """Returns the differences as the command line prints them."""
        first, second = self.first_tensor, self.first_activation
        return {
            "first_different_tensor": first.name if first else None,
            "first_different_activation": second.name if second else None,
            "tensors": [each.to_json() for each in self.tensors],
            "activations": [each.to_json() for each in self.activations],
        }


@torch.inference_mode()
def find_differences(
    first: Classifier, second: Classifier | LoadedModel, *, tolerance: float = EXACT.relative
) -> Differences:
    """Compares two models, their activations for two images of noise.

    Differences of at most `tolerance` times the largest value count as equal.
    """
    images_BCHW = torch.randn(2, *image_shape(first), generator=torch.Generator().manual_seed(0))
    ours = record_activations(first.vit.eval(), first.vit, first.vit.config.depth, images_BCHW)
    if isinstance(second, LoadedModel):
        theirs = record_activations(second.module, second.run, first.vit.config.depth, images_BCHW)
        output = ours["output"] / first.temperature if first.vit.config.classes else ours["output"]
        return Differences((), compare_shared({**ours, "output": output}, theirs, tolerance))
    tensors = compare_all(first.vit.state_dict(), second.vit.state_dict(), tolerance)
    if image_shape(first) != image_shape(second):
        return Differences(tensors, ())
    theirs = record_activations(second.vit.eval(), second.vit, second.vit.config.depth, images_BCHW)
    return Differences(tensors, compare_shared(ours, theirs, tolerance))


def image_shape(classifier: Classifier) -> tuple[int, ...]:
    config = classifier.vit.config
    return (config.channels, *to_pair(config.image_size))


def compare_all(first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float) -> tuple[Difference, ...]:
    """Returns a row for each name of either, in the order of the first."""
    names = [*first, *(name for name in second if name not in first)]
    return tuple(compare_one(name, first.get(name), second.get(name), tolerance) for name in names)


def compare_shared(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], tolerance: float
) -> tuple[Difference, ...]:
    """Returns a row for each name of both: a library may have no module for the MLP."""
    return tuple(compare_one(name, first[name], second[name], tolerance) for name in first if name in second)


def compare_one(name: str, first: Tensor | None, second: Tensor | None, tolerance: float) -> Difference:
    shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (first, second)]
    if first is None or second is None or shapes[0] != shapes[1]:
        return Difference(name, shapes[0], shapes[1], None, None, is_equal=False)
    if first.numel() == 0:
        return Difference(name, shapes[0], shapes[1], 0.0, 0.0, is_equal=True)
    largest = first.double().abs().max().item()
    difference = (first.double() - second.double()).abs().max().item()
    return Difference(name, shapes[0], shapes[1], difference, largest, difference <= tolerance * largest)


def record_activations(
    module: nn.Module, run: Callable[[Tensor], Tensor], depth: int, images_BCHW: Tensor
) -> dict[str, Tensor]:
    """Returns the tokens before the first block, of each block what attention, MLP and block return, and the output.

    Works for the ViTs of vitrail, timm, transformers and torchvision: a part is recognized by the name of its class.
    """
    activations: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any = None) -> None:
            value = args if output is None else output
            activations[name] = (value[0] if isinstance(value, tuple) else value).float()

        return hook

    blocks = find_blocks(module, depth)
    with ExitStack() as hooks:
        hooks.callback(blocks[0].register_forward_pre_hook(keep("tokens")).remove)
        for i, block in enumerate(blocks):
            for name, part in [*find_parts(block), ("", block)]:
                hooks.callback(part.register_forward_hook(keep(f"blocks.{i}{name}")).remove)
        activations["output"] = run(images_BCHW).float()
    return activations


def find_blocks(module: nn.Module, depth: int) -> list[nn.Module]:
    """Returns the blocks of a ViT: its first list of `depth` modules that have attention."""
    for each in module.modules():
        if isinstance(each, nn.ModuleList | nn.Sequential) and len(each) == depth and dict(find_parts(each[0])):
            return list(each)
    raise VitrailError(f"{type(module).__name__} has no list of {depth} blocks")


def find_parts(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields attention and MLP of a block."""
    for name, class_words in ((".attn", ("attention",)), (".mlp", ("mlp", "ffn"))):
        for part in block.children():
            if any(word in type(part).__name__.lower() for word in class_words):
                yield name, part
                break


def load_in_library(classifier: Classifier, package: str) -> LoadedModel:
    """Returns the model of timm, transformers or torchvision with the classifier's weights.

    Raises `UsageError` if the library has no such model or is not installed.
    """
    library = LIBRARIES[FORMATS[package]]
    try:
        model = convert_classifier(classifier, library)
    except UsageError as error:
        raise UsageError(error.sentence, "compare with another model or library") from None
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(model.tensors, folder / "model.safetensors", metadata={"format": "pt"})
        for name, document in model.files.items():
            write_json(folder / name, document)
        try:
            return library.load(folder)
        except ImportError:
            raise UsageError(f"{package} is not installed here", install_hint("bench")) from None
