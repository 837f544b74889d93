"""Converts the tensors of a ViT between vitrail's names and those of another library's file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from vitrail.errors import VitrailError
from vitrail.model.config import Learned, ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.assemble import make_vit_of_plugin
from vitrail.weights.config_json import model_parts
from vitrail.weights.operators import Copy, Operator, Rows

Library = Literal["timm", "transformers", "torchvision", "google", "meta", "open_clip"]
Fill = Callable[[str], str]  # a template -> a name
REPLACEABLE_PARTS = ("position", "pool", "head")
UNSAVED = "the model cannot be saved: "


@dataclass(frozen=True)
class Layout:
    """How a library names the tensors of one kind of ViT.

    The tables map our names to names or operators. In them `{i}` is the index of a block and `{wb}` is `weight` or
    `bias`. Names are relative to the file's root (`vit.`, `visual.`); a leading `/` marks a name outside the root. A
    row applies if our model has the tensor. Names are those in files; transformers 5 uses others in memory.
    """

    description: str  # for messages
    library: Library
    rows: Rows
    swiglu_rows: Rows = field(default_factory=dict)  # replace rows of a model whose MLP is SwiGLU
    marks: tuple[str, ...] = ()  # names that every such file has: a fast test before the complete one
    roots: tuple[str, ...] = ("",)  # prefixes that the ViT's names may have in a larger model
    ignored: tuple[str, ...] = ()  # patterns of tensors that a classifier does not use: a decoder, a text tower
    position: Learned = Learned()  # how the family resizes learned positions
    alias_of: str = ""  # the layout that names the same models in another way

    def find_root(self, names: Iterable[str]) -> str | None:
        """Returns the first root under which all marks exist, or None."""
        names = set(names)
        for root in self.roots:
            if all(full_name(mark, root) in names for mark in self.marks):
                return root
        return None

    def is_ignored(self, name: str, root: str) -> bool:
        """Returns whether a tensor of the file is not part of the classifier."""
        return any(fnmatchcase(name, full_name(pattern, root)) for pattern in self.ignored)


def full_name(name: str, root: str) -> str:
    """Returns the name of a tensor in the file for a name in a table."""
    return name[1:] if name.startswith("/") else root + name


def find_operator(name: str, layout: Layout, config: ViTConfig) -> tuple[Operator, Fill] | None:
    """Returns the operator for one of our tensors and a function that fills templates, or None if there is none."""
    rows = layout.rows | layout.swiglu_rows if config.mlp == "swiglu" else layout.rows
    stem, _, kind = name.rpartition(".")
    parts = name.split(".")
    block = parts[1] if parts[0] == "blocks" else ""
    template = f"blocks.{{i}}.{name.split('.', 2)[2]}" if block else name
    weight_or_bias = template.rpartition(".")[0] + ".{wb}" if stem else template
    row = rows.get(template, rows.get(weight_or_bias))
    if row is None:
        return None
    operator = Copy(row) if isinstance(row, str) else row
    return operator, lambda text: text.replace("{i}", block).replace("{wb}", kind)


@lru_cache(maxsize=512)
def meta_vit(config: ViTConfig) -> ViT:
    """Returns a ViT on the meta device, without memory; raises `VitrailError` for impossible sizes.

    A part of a plugin that cannot be made on the meta device is made on the CPU.
    """
    try:
        with torch.device("meta"):
            return ViT(config)
    except (RuntimeError, TypeError):  # the number of elements overflows
        if model_parts(config):  # or a part of a plugin needs values of tensors
            return make_vit_of_plugin(config)
        raise VitrailError("its config describes a model that no machine can hold") from None


def meta_state_dict(config: ViTConfig) -> dict[str, Tensor]:
    """Returns the state dict of `meta_vit`."""
    return meta_vit(config).state_dict()


def check_described(vit: ViT) -> None:
    """Raises `VitrailError` naming what the config of a model does not describe: loading would change the model.

    Compares names and shapes of all tensors, and the types of the parts that a user may replace: a part without tensors
    would otherwise be lost without an error.
    """
    expected, actual = (
        {(f"tensor {name}", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
        | {(f"part {name}", type(getattr(model, name))) for name in REPLACEABLE_PARTS}
        for model in (meta_vit(vit.config), vit)
    )
    different = {name for name, _ in expected ^ actual}
    if different:
        first = min(different, key=lambda name: (name.startswith("part"), name))  # a tensor says more
        hint = 'register your part, vitrail.register("pool", "gem", GeM), and name it in the config'
        raise VitrailError(f"{UNSAVED}its config does not describe the {first}", hint)


def import_weights(layout: Layout, root: str, config: ViTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the file's tensors to our state dict; every tensor of both must be accounted for.

    Raises `VitrailError` naming a tensor that is missing, unknown or of another shape.
    """
    check_depth(layout, root, config, tensors)
    used: set[str] = set()
    state: dict[str, Tensor] = {}
    for name, expected in meta_state_dict(config).items():
        operator, fill = require_operator(name, layout, config)

        def get(template: str, fill: Fill = fill) -> Tensor:
            theirs = full_name(fill(template), root)
            used.add(theirs)
            return get_tensor(theirs, tensors, layout)

        try:
            tensor = operator.import_tensor(get, config)
        except (ValueError, RuntimeError, IndexError, TypeError) as error:  # the file's tensor has another shape
            hint = f"read as {layout.description}"
            raise VitrailError(f"{name} cannot be made: {fill(str(error))}", hint) from None
        if tensor.shape != expected.shape:
            raise VitrailError(
                f"{name} would be {tuple(tensor.shape)}, expected {tuple(expected.shape)}",
                f"read as {layout.description}",
            )
        state[name] = tensor.contiguous()
    check_unknown(layout, [name for name in tensors if name not in used and not layout.is_ignored(name, root)])
    return state


def require_operator(name: str, layout: Layout, config: ViTConfig) -> tuple[Operator, Fill]:
    """Returns what `find_operator` finds; raises `VitrailError` if the layout has no such tensor."""
    if (operator_and_fill := find_operator(name, layout, config)) is None:
        raise VitrailError(f"{layout.description} has no tensor for {name}")
    return operator_and_fill


def get_tensor(name: str, tensors: Mapping[str, Tensor], layout: Layout) -> Tensor:
    """Returns a tensor of the file; one of 8 or 16 bits in float32, so that sums of two are not rounded.

    Raises `VitrailError` if it is missing, or has NaN or infinity.
    """
    if name not in tensors:
        raise VitrailError(f"the file lacks the tensor {name}", f"it was read as {layout.description}")
    tensor = tensors[name]
    check_finite(name, tensor)
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor


def check_finite(name: str, tensor: Tensor) -> None:
    """Raises `VitrailError` if a tensor has NaN or infinity."""
    if tensor.is_meta or not tensor.is_floating_point():
        return
    values = tensor.float() if tensor.itemsize < 4 else tensor
    if values.sum().isfinite() or values.isfinite().all():  # a sum is faster to test, but may overflow
        return
    raise VitrailError(
        f"the tensor {name} has {int((~values.isfinite()).sum())} values that are NaN or infinite",
        "the file is damaged, or its training diverged: use an earlier checkpoint",
    )


def check_depth(layout: Layout, root: str, config: ViTConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raises `VitrailError` if the last block is missing, before a model of a claimed depth is built."""
    operator_and_fill = find_operator(f"blocks.{config.depth - 1}.norm1.weight", layout, config)
    if operator_and_fill and isinstance(operator_and_fill[0], Copy):
        operator, fill = operator_and_fill
        get_tensor(full_name(fill(operator.names[0]), root), tensors, layout)


def check_unknown(layout: Layout, names: Iterable[str]) -> None:
    """Raises `VitrailError` if the file has tensors that the layout does not know."""
    if unknown := sorted(names):
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise VitrailError(
            f"the file has tensors that {layout.description} does not have: {', '.join(unknown[:5])}{more}",
            "is it another architecture? vitrail inspect shows what the file looks like",
        )


def export_weights(layout: Layout, root: str, config: ViTConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts our state dict to the file's tensors; raises `VitrailError` naming a tensor that has no counterpart."""
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for name, tensor in state.items():
        operator, fill = require_operator(name, layout, config)
        try:
            exported = operator.export_tensor(tensor, config)
        except ValueError as error:
            raise VitrailError(f"{name} {error}, so it cannot be written as {layout.description}") from None
        for template, piece in exported.items():
            pieces.setdefault(full_name(fill(template), root), []).append(piece)
    return {name: concatenate(ordered).contiguous() for name, ordered in pieces.items()}


def concatenate(pieces: list[tuple[int, Tensor]]) -> Tensor:
    """Returns the pieces of one tensor in their order, concatenated along the rows."""
    tensors = [tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])]
    return torch.cat(tensors, dim=max(0, tensors[0].ndim - 2)) if len(tensors) > 1 else tensors[0]
