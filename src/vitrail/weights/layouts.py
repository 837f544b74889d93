"""All layouts by name, and which of them a file has."""

from collections.abc import Iterable, Iterator

from vitrail.weights.conversion import Layout, full_name
from vitrail.weights.families import google, hf, meta, openai, timm, torchvision
from vitrail.weights.operators import Rows

LAYOUTS: dict[str, Layout] = {
    **torchvision.LAYOUTS,
    **google.LAYOUTS,
    **timm.LAYOUTS,
    **meta.LAYOUTS,
    **openai.LAYOUTS,
    **hf.LAYOUTS,
}
REQUIRED = {  # tensors of every ViT, if the layout has a row for them
    "prefix",
    "position.grid",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "blocks.{i}.norm1.weight",
    "blocks.{i}.norm1.bias",
    "blocks.{i}.attn.qkv.weight",
    "blocks.{i}.attn.proj.weight",
    "blocks.{i}.attn.proj.bias",
    "blocks.{i}.norm2.weight",
    "blocks.{i}.norm2.bias",
    "blocks.{i}.mlp.fc1.weight",
    "blocks.{i}.mlp.fc1.bias",
    "blocks.{i}.mlp.fc2.weight",
    "blocks.{i}.mlp.fc2.bias",
}


def find_layouts(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the layouts that a file with these tensor names may have, each with its root.

    They are the layouts whose complete set of names equals the file's. If none does, they are those with the fewest
    names that only one of the two has, so that an error can name what is missing or unknown.
    """
    names = set(names)
    roots = {key: layout.find_root(names) for key, layout in LAYOUTS.items()}
    mismatches = {key: count_mismatches(LAYOUTS[key], root, names) for key, root in roots.items() if root is not None}
    fewest = min(mismatches.values(), default=0)
    return [(key, root) for key, root in roots.items() if root is not None and mismatches[key] == fewest]


def count_mismatches(layout: Layout, root: str, names: set[str]) -> int:
    """Counts the names that the file lacks and those that the layout does not know, for the better kind of MLP."""
    kinds = [layout.rows, layout.rows | layout.swiglu_rows] if layout.swiglu_rows else [layout.rows]
    counts = []
    for rows in kinds:
        expected = list_expected_names(rows, root, names)
        unknown = [name for name in names - expected if not layout.is_ignored(name, root)]
        counts.append(len(unknown) + len(expected - names))
    return min(counts)


def list_expected_names(rows: Rows, root: str, names: set[str]) -> set[str]:
    """Returns the names in a file of these rows: those of all required tensors, and of optional ones that it has."""
    expected: set[str] = set()
    depth = count_blocks(rows, root, names)
    for ours, templates in expand_rows(rows):
        for block in range(depth) if "{i}" in ours else [0]:
            theirs = {full_name(template.replace("{i}", str(block)), root) for template in templates}
            if ours in REQUIRED or theirs & names:
                expected |= theirs
    return expected


def count_blocks(rows: Rows, root: str, names: set[str]) -> int:
    """Counts the blocks in a file: the first index without a norm."""
    (norm,) = dict(expand_rows(rows))["blocks.{i}.norm1.weight"]
    depth = 0
    while full_name(norm.replace("{i}", str(depth)), root) in names:
        depth += 1
    return depth


def expand_rows(rows: Rows) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yields our name and the file's names of each tensor; a row with `{wb}` is a weight and a bias.

    A row for one of the two replaces that half.
    """
    for ours, row in rows.items():
        templates = (row,) if isinstance(row, str) else row.names
        if "{wb}" not in ours:
            yield ours, templates
            continue
        for kind in ("weight", "bias"):
            if (name := ours.replace("{wb}", kind)) not in rows:
                yield name, tuple(template.replace("{wb}", kind) for template in templates)


def is_same_model(first: str, second: str) -> bool:
    """Returns whether two layouts name the same models."""
    return (LAYOUTS[first].alias_of or first) == (LAYOUTS[second].alias_of or second)
