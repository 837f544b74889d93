"""Names of tensors without the prefixes of the wrappers in which people train a model.

torch.compile writes `_orig_mod.`, DataParallel `module.`, Lightning the attribute that holds the model (`model.`), and
each of them may be inside another.
"""

from collections.abc import Iterable

from torch import Tensor

from vitrail.console import log
from vitrail.errors import VitrailError
from vitrail.weights.layouts import LAYOUTS

MARKERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # removed wherever they are
MAX_WRAPPERS = 5  # prefixes before a model
LORA_MARK = ".lora_"
MERGE_HINT = "merge them first with peft: model.merge_and_unload().save_pretrained(FOLDER)"


def strip_wrappers(tensors: dict[str, Tensor], file: object) -> dict[str, Tensor]:
    """Returns the tensors of the model in a file, under the names that the model's library gives them.

    Tensors beside the model, such as those of a loss, are left out and named on stderr. A file without a ViT stays as
    it is. Raises `VitrailError` if the file has several models, or LoRA updates that are not merged.
    """
    if any(LORA_MARK in name for name in tensors):
        raise VitrailError(f"{file} has LoRA updates that are not merged into the model", MERGE_HINT)
    plain = {remove_markers(name): tensor for name, tensor in tensors.items()}
    if len(plain) < len(tensors):
        raise VitrailError(f"{file} has several tensors for one name", "save the state dict of one model")
    prefixes = find_models(plain)
    if len(prefixes) > 1:
        names = ", ".join(prefix.rstrip(".") for prefix in prefixes)
        raise VitrailError(f"{file} has several models: {names}", "save the state dict of one of them")
    if not prefixes:
        return plain
    (prefix,) = prefixes
    if others := [name for name in plain if not name.startswith(prefix)]:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        log(f"{file}: the model is {prefix.rstrip('.')}; left out: {', '.join(others[:3])}{more}")
    return {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}


def remove_markers(name: str) -> str:
    """Returns a name without the markers of torch.compile and of wrapped blocks."""
    for marker in MARKERS:
        name = name.replace(marker, "")
    return name


def find_models(names: Iterable[str], depth: int = MAX_WRAPPERS) -> list[str]:
    """Returns the prefixes under which a file has the names of a ViT; the empty one if it is not wrapped."""
    names = set(names)
    if not names or any(layout.find_root(names) is not None for layout in LAYOUTS.values()):
        return [""] if names else []
    if depth == 0:
        return []
    groups: dict[str, set[str]] = {}
    for name in names:
        first, dot, rest = name.partition(".")
        if dot:
            groups.setdefault(first + dot, set()).add(rest)
    return [prefix + inner for prefix, group in sorted(groups.items()) for inner in find_models(group, depth - 1)]
