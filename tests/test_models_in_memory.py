"""Models in memory: ViTs, and those of timm and transformers, taken over with their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import vitrail
from vitrail.errors import UsageError, VitrailError
from vitrail.model.config import Rotary, ViTConfig
from vitrail.model.vit import ViT

OPTIONS: dict[str, Any] = {"epochs": 1, "report": False, "check": False, "workers": 0}
CONFIG = ViTConfig(image_size=16, patch=4, width=24, depth=2, heads=2, mlp_width=48, classes=3, position=Rotary())


def make_timm() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2)


def make_transformers() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=32, num_labels=4
    )
    return transformers.ViTForImageClassification(config)


def make_torchvision(representation_size: int | None = None) -> nn.Module:
    return torchvision.models.VisionTransformer(
        32, 8, 2, 2, 32, 48, num_classes=4, representation_size=representation_size
    )


@pytest.mark.parametrize("make", [make_timm, make_transformers, make_torchvision, lambda: make_torchvision(32)])
def test_a_model_of_another_library_keeps_its_logits_and_is_trained(make, colors: Path, tmp_path: Path):
    torch.manual_seed(0)
    theirs = make().eval()
    ours = vitrail.load(theirs)
    assert ours.origin["source"] == f"{type(theirs).__module__}.{type(theirs).__name__}"
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(images)
        expected = getattr(expected, "logits", expected)
        assert (ours.vit(images) - expected).abs().max() < 1e-5
    run = vitrail.train(colors, model=theirs, out=tmp_path / "run", image_size=32, **OPTIONS)
    assert run.classifier.classes == ("blue", "green", "red")
    assert vitrail.load(run.folder).vit.config == run.classifier.vit.config


def test_a_vit_and_its_config_are_trained(colors: Path, tmp_path: Path):
    torch.manual_seed(0)
    vit = ViT(CONFIG)
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    assert vitrail.load(vit).classes == ("0", "1", "2")
    run = vitrail.train(colors, model=vit, out=tmp_path / "vit", **OPTIONS)
    assert run.classifier.vit.config == CONFIG
    assert all(torch.equal(tensor, before[name]) for name, tensor in vit.state_dict().items())  # a copy was trained
    from_config = vitrail.train(colors, model=CONFIG, out=tmp_path / "config", **OPTIONS)
    assert from_config.classifier.vit.config == CONFIG
    assert from_config.classifier.origin.get("from") is None
    with pytest.raises(VitrailError, match="was started from a classifier in Python"):
        vitrail.train(colors, out=tmp_path / "vit", resume=True, **OPTIONS)
    again = vitrail.train(colors, model=vit, out=tmp_path / "vit", resume=True, **OPTIONS)
    assert again.result == run.result


def test_another_module_is_refused(colors: Path, tmp_path: Path):
    with pytest.raises(UsageError, match=r"no Vision Transformer of type torch.nn.*Linear"):
        vitrail.train(colors, model=nn.Linear(3, 4), out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
    timm = pytest.importorskip("timm")
    for module in (timm.create_model("resnet10t"), torchvision.models.resnet18()):
        with pytest.raises(UsageError, match=r"(ViT|Vision Transformer).*vitrail.register\(.model."):
            vitrail.load(module)


class MaxPool(nn.Module):
    """A pool without parameters."""

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        return x_BTD.amax(1)


def test_a_part_without_tensors_that_the_config_does_not_describe_is_not_lost(colors: Path, tmp_path: Path):
    classifier = vitrail.load(ViT(CONFIG))
    classifier.save(tmp_path / "before.safetensors")
    classifier.vit.pool = MaxPool()
    with pytest.raises(VitrailError, match="its config does not describe the part pool"):
        classifier.save(tmp_path / "after.safetensors")
    assert not (tmp_path / "after.safetensors").exists()
    with pytest.raises(VitrailError, match="its config does not describe the part pool"):
        vitrail.train(colors, model=classifier, out=tmp_path / "run", **OPTIONS)
    assert not (tmp_path / "run").exists()
