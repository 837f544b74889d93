"""Parity: tiny random models of every public family, built and saved by the reference library and read by vitrail.

`make parity` writes the measured differences into docs/parity.md.
"""

import importlib.metadata
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from tests.parity_cases import CASES, SIZES, TINY_HF, random_images, randomize_parameters
from torch import Tensor, nn

import vitrail
from vitrail.errors import VitrailError
from vitrail.model.config import ViTConfig
from vitrail.model.vit import ViT
from vitrail.weights.conversion import Layout, export_weights, import_weights
from vitrail.weights.families import hf
from vitrail.weights.layouts import LAYOUTS, count_mismatches, find_layouts
from vitrail.weights.operators import make_position_rows
from vitrail.weights.tensor_files import read_tensors

EXACT = 1e-9
LIMITS = {"float64": EXACT, "float32": 2e-6, "rotary": 2e-6}  # by the dtype in which the reference resizes
LibraryFile = tuple[nn.Module, dict[str, Tensor], ViTConfig, str]
measured: dict[str, dict[str, float]] = {}


@pytest.fixture(scope="module")
def load_case(tmp_path_factory: pytest.TempPathFactory):
    """Returns a function of a case's name -> its model, the tensors in its file, our config, and the file's root."""
    loaded: dict[str, LibraryFile] = {}

    def load(name: str) -> LibraryFile:
        if name not in loaded:
            case, folder = CASES[name], tmp_path_factory.mktemp("reference")
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = randomize_parameters(case.build_model().double()).eval()
                path = case.save(model, folder)
            tensors = read_tensors(path, torch_files=True)
            config = case.read_config(model, folder)
            loaded[name] = model, tensors, config, dict(find_layouts(tensors))[case.layout]
        return loaded[name]

    return load


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_a_family_equals_its_reference(name: str, load_case):
    case = CASES[name]
    model, tensors, config, root = load_case(name)
    vit = ViT(config).double().eval()
    vit.load_state_dict(import_weights(LAYOUTS[case.layout], root, config, tensors))
    for size in case.sizes:
        x = random_images(SIZES[size])
        expected, outputs = case.run(model, x), vit(x)
        assert expected.shape == outputs.shape
        difference = (expected - outputs).abs().max().item()
        measured.setdefault(name, {})[size] = difference
        assert outputs.std() > 1e-3  # a comparison of zeros shows nothing
        is_exact = size == "native" and case.resize_dtype != "rotary"
        assert difference < (EXACT if is_exact else LIMITS[case.resize_dtype]), size


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_exported_weights_load_into_the_reference(name: str, load_case):
    """Exported weights load strictly into a new model of the library, whose outputs are then the same."""
    case = CASES[name]
    model, tensors, config, root = load_case(name)
    layout = LAYOUTS[case.layout]
    ours = import_weights(layout, root, config, tensors)
    written = export_weights(layout, root, config, ours)
    for key, tensor in import_weights(layout, root, config, written).items():
        assert torch.equal(ours[key], tensor), key
    if case.reference != "timm" and case.layout not in ("torchvision", "openai-clip"):
        assert all(layout.is_ignored(key, root) for key in tensors if key not in written)
        return  # test_export_libraries.py loads such exports; only names and shapes are compared here
    state = model.state_dict()
    for key, tensor in written.items():
        assert state[key].shape == tensor.shape, key
    reloaded = case.build_model().double().eval()
    reloaded.load_state_dict({**{key: state[key] for key in state if key not in written}, **written})
    x = random_images(SIZES["native"])
    assert (case.run(reloaded, x) - case.run(model, x)).abs().max() < EXACT


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_a_missing_unknown_or_misshapen_tensor_is_refused(name: str, load_case):
    _, tensors, config, root = load_case(name)
    layout = LAYOUTS[CASES[name].layout]
    for key in [key for key in tensors if not layout.is_ignored(key, root)]:
        others = {other: tensor for other, tensor in tensors.items() if other != key}
        with pytest.raises(VitrailError, match=r"lacks|expected|cannot be made"):
            import_weights(layout, root, config, others)
        with pytest.raises(VitrailError):
            import_weights(layout, root, config, {**others, key + "x": tensors[key]})
        for reshaped in (tensors[key].flatten()[:-1], tensors[key][None], tensors[key].repeat_interleave(2, 0)):
            with pytest.raises(VitrailError):
                import_weights(layout, root, config, {**others, key: reshaped})
    with pytest.raises(VitrailError, match="stray"):
        import_weights(layout, root, config, {**tensors, "stray": torch.zeros(1)})


@pytest.mark.parametrize("name", CASES)
def test_the_layout_of_a_file_is_the_one_with_the_same_names(name: str, load_case):
    """Only layouts with the same names are found, also if the file has one tensor more."""
    _, tensors, _, root = load_case(name)
    layouts = find_layouts(tensors)
    assert (CASES[name].layout, root) in layouts
    for key, other_root in layouts:
        assert count_mismatches(LAYOUTS[key], other_root, {*tensors}) == 0, key
    assert find_layouts([*tensors, "stray"]) == layouts


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_swapped_tensors_of_equal_shape_change_the_outputs(name: str, load_case):
    """Names and shapes cannot show such an error: the comparison with the reference must."""
    case = CASES[name]
    model, tensors, config, root = load_case(name)
    state = import_weights(LAYOUTS[case.layout], root, config, tensors)
    x = random_images(SIZES["native"])
    expected = case.run(model, x)
    for first, second in (
        ("norm1.weight", "norm2.weight"),
        ("norm1.bias", "attn.proj.bias"),
        ("ls1.gamma", "ls2.gamma"),
    ):
        first, second = f"blocks.1.{first}", f"blocks.1.{second}"
        if first not in state:
            continue
        vit = ViT(config).double().eval()
        vit.load_state_dict({**state, first: state[second], second: state[first]})
        assert (vit(x) - expected).abs().max() > 1e-6
    width = config.width
    qkv = state["blocks.1.attn.qkv.weight"]
    swapped = torch.cat([qkv[width : 2 * width], qkv[:width], qkv[2 * width :]])
    vit = ViT(config).double().eval()
    vit.load_state_dict({**state, "blocks.1.attn.qkv.weight": swapped})
    assert (vit(x) - expected).abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_new_family_needs_rows_a_layout_and_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """CONTRIBUTING promises that these are the only changes: I-JEPA, which vitrail does not include, as an example."""

    def read_ijepa(document: hf.Document, architecture: str, classes: int) -> tuple[str, ViTConfig]:
        return "hf-ijepa", hf.build_config(document, "hf-ijepa", prefix_tokens=0, pool="mean", classes=classes)

    rows = hf.VIT | make_position_rows(hf.POSITIONS)
    layout = Layout("transformers' I-JEPA", "transformers", rows, marks=hf.VIT_MARKS, roots=("ijepa.", ""))
    for layouts in (hf.LAYOUTS, LAYOUTS):
        monkeypatch.setitem(layouts, "hf-ijepa", replace(layout, position=hf.BICUBIC))
    monkeypatch.setitem(hf.READERS, "ijepa", read_ijepa)

    config = transformers.IJepaConfig(**TINY_HF, num_labels=5)
    model = randomize_parameters(transformers.IJepaForImageClassification(config).double()).eval()
    model.float().save_pretrained(tmp_path)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    classifier = vitrail.load(tmp_path)
    x = random_images(SIZES["native"]).float()
    assert (classifier.vit(x) - model(x).logits).abs().max() < 1e-4
    assert find_layouts(read_tensors(tmp_path / "model.safetensors")) == [("hf-ijepa", "ijepa.")]


def test_the_measured_differences_are_written_on_request():
    path = os.environ.get("VITRAIL_PARITY")
    if not path:
        pytest.skip("make parity writes the table")
    packages = ("torch", "torchvision", "timm", "transformers", "open_clip_torch")
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)
    lines = [
        "# Parity",
        "",
        "The largest difference of outputs (logits, or the pooled vector) between vitrail and the library that a",
        "family comes from, on tiny random models (width 32, 3 blocks, patch 8, every parameter random) in float64.",
        "The library builds and saves the model, vitrail reads the file. `make parity` writes this table; the tests",
        "allow 1e-9, or 2e-6 where the library resizes positions or rotates queries in float32 (marked a).",
        "",
        f"Measured with {versions}.",
        "",
        "| family | layout | reference | 32x32, native | 48x48 | 16x16 | 24x40 |",
        "| --- | --- | --- | --: | --: | --: | --: |",
        *(format_row(name, differences) for name, differences in measured.items()),
        "",
        "`-`: the library does not support this size.",
        "",
    ]
    Path(path).write_text("\n".join(lines), encoding="utf-8")


def format_row(name: str, differences: dict[str, float]) -> str:
    """Returns the row of a family in the table."""
    case = CASES[name]
    mark = "" if case.resize_dtype == "float64" else " a"
    cells = [
        f"{differences[size]:.0e}" + (mark if differences[size] > EXACT else "") if size in differences else "-"
        for size in SIZES
    ]
    return f"| {name} | {case.layout} | {case.reference} | {' | '.join(cells)} |"


def test_the_table_in_the_docs_has_every_family():
    text = Path("docs/parity.md").read_text(encoding="utf-8")
    missing = [name for name in CASES if f"| {name} |" not in text]
    assert not missing, "run: make parity"
