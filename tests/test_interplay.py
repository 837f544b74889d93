"""ViT under Lightning, Accelerate and the Trainer of transformers; torch.compile, torch.export and torch.func."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vitrail
from vitrail.model.config import Rotary, SinCos

PAGE = (Path(__file__).parent.parent / "docs" / "interplay.md").read_text(encoding="utf-8")
SECTIONS = {
    part.partition("\n")[0]: part.partition("```python\n")[2].partition("```")[0] for part in PAGE.split("\n## ")
}
SETUP = next(iter(SECTIONS.values()))
Play = Callable[[str], dict[str, Any]]
TINY: dict[str, Any] = dict(width=16, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, classes=3)


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Play]:
    """Runs the block of a section of docs/interplay.md after the first one; returns its globals, with `before`."""
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    def run(section: str) -> dict[str, Any]:
        torch.manual_seed(0)
        values: dict[str, Any] = {}
        exec(compile(SETUP, "docs/interplay.md", "exec"), values)
        values["before"] = copy.deepcopy(values["vit"]).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the other library
            exec(compile(SECTIONS[section], "docs/interplay.md", "exec"), values)
        return values

    yield run
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".safetensors"]


def check_trained(values: dict[str, Any], tmp_path: Path) -> None:
    """Every parameter with elements moved, and the ViT is still a classifier that is saved and loaded."""
    before, after = values["before"].state_dict(), values["vit"].state_dict()
    assert after.keys() == before.keys()
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items() if tensor.numel())
    clf = vitrail.Classifier(values["vit"].cpu(), ("a", "b", "c"), vitrail.Preprocess(image_size=(16, 16)))
    clf.save(tmp_path / "saved" / "vit.safetensors")
    assert torch.equal(
        vitrail.load(tmp_path / "saved" / "vit.safetensors").vit.state_dict()["norm.bias"], after["norm.bias"]
    )


def test_every_section_is_tested():
    tests = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{title}"' in tests for title in list(SECTIONS)[1:])


@pytest.mark.parametrize(
    ("library", "section"),
    [("lightning", "Lightning"), ("accelerate", "Accelerate"), ("transformers", "The Trainer of transformers")],
)
def test_other_trainers_train_it(library: str, section: str, play: Play, tmp_path: Path):
    pytest.importorskip(library)
    if library == "transformers":
        pytest.importorskip("accelerate")  # which its Trainer needs
    (tmp_path / "saved").mkdir()
    values = play(section)
    check_trained(values, tmp_path)
    if "predictions" in values:
        with torch.no_grad():
            expected = values["vit"].eval()(values["images"])
        torch.testing.assert_close(torch.as_tensor(values["predictions"]), expected, atol=1e-5, rtol=1e-4)


def test_torch_transforms_give_the_same_numbers(play: Play):
    values = play("torch.compile, torch.export, torch.func")
    vit, images, labels = values["vit"], values["images"], values["labels"]
    with torch.no_grad():
        expected = vit(images)
        torch.testing.assert_close(values["exported"](images), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values["exported"](images[:5]), expected[:5], atol=1e-5, rtol=1e-4)
    for i in (0, 7):
        vit.zero_grad()
        F.cross_entropy(vit(images[i : i + 1]), labels[i : i + 1]).backward()
        for name, parameter in vit.named_parameters():
            torch.testing.assert_close(values["gradients"][name][i], parameter.grad, atol=1e-6, rtol=1e-4)


VARIANTS: list[dict[str, Any]] = [
    {"position": Rotary(), "pool": "map", "qk_norm": True, "layer_scale": 0.1, "drop_path": 0.2, "dropout": 0.1},
    {"position": SinCos(), "pool": "mean", "prefix_tokens": 0, "mlp": "swiglu", "head": "mlp", "pre_norm": True},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=range(len(VARIANTS)))
def test_every_kind_of_vit_is_one_graph(fields: dict[str, Any]):
    """torch.compile without a break (`fullgraph`), torch.export, and the gradient of each image alone by vmap."""
    torch.manual_seed(0)
    vit, images = vitrail.ViT(vitrail.ViTConfig(**{**TINY, **fields})).eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = vit(images)
        torch._dynamo.reset()
        compiled = torch.compile(vit, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), expected, atol=1e-5, rtol=1e-4)
        exported = torch.export.export(vit, (images,)).module()
        torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=1e-4)
    vit.train()
    torch.compile(vit, fullgraph=True, backend="aot_eager")(images).square().sum().backward()
    assert all(parameter.grad is not None for parameter in vit.parameters() if parameter.numel())
    parameters = {name: parameter.detach() for name, parameter in vit.named_parameters()}

    def loss_of_one(parameters: dict[str, torch.Tensor], image_CHW: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(vit, parameters, (image_CHW[None],)).square().sum()

    one_by_one = torch.func.vmap(torch.func.grad(loss_of_one), in_dims=(None, 0), randomness="different")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        gradients = one_by_one(parameters, images)
    assert all(gradients[name].shape == (3, *tensor.shape) for name, tensor in parameters.items())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
