"""`vitrail inspect A --against B`: the first tensor and the first activation that differ."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vitrail
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.differences import FORMATS, find_differences, load_in_library

TINY: dict[str, Any] = dict(width=32, depth=3, heads=2, mlp_width=64, patch=8, image_size=32, classes=4)


def make_classifier(**fields: Any) -> vitrail.Classifier:
    torch.manual_seed(0)
    vit = vitrail.ViT(vitrail.ViTConfig(**{**TINY, **fields})).eval().requires_grad_(False)
    for parameter in vit.parameters():
        parameter.normal_(0, 0.2)
    preprocess = Preprocess(image_size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    return vitrail.Classifier(vit, tuple("abcd"), preprocess, temperature=1.5)


def ask(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code = main(["inspect", *map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_changed_tensor_is_the_first_and_so_is_the_activation_behind_it(tmp_path: Path, capsys):
    first, second = make_classifier(), make_classifier()
    second.vit.blocks[1].mlp.fc1.weight[3, 5] += 1
    second.vit.blocks[2].norm1.bias[0] += 1
    first.save(tmp_path / "a.safetensors")
    second.save(tmp_path / "b.safetensors")
    code, answer = ask(capsys, tmp_path / "a.safetensors", "--against", tmp_path / "b.safetensors")
    assert code == 1
    assert answer["first_different_tensor"] == "blocks.1.mlp.fc1.weight"
    assert answer["first_different_activation"] == "blocks.1.mlp"
    assert [row["name"] for row in answer["tensors"] if not row["is_equal"]] == [
        "blocks.1.mlp.fc1.weight",
        "blocks.2.norm1.bias",
    ]
    (row,) = (row for row in answer["tensors"] if row["name"] == "blocks.1.mlp.fc1.weight")
    assert row["max_difference"] == pytest.approx(1) and row["first_shape"] == [64, 32]
    assert main(["inspect", str(tmp_path / "a.safetensors"), "--against", str(tmp_path / "b.safetensors")]) == 1
    assert "2 of 44 tensors differ; the first is blocks.1.mlp.fc1.weight" in capsys.readouterr().out


def test_equal_files_and_the_tolerance(tmp_path: Path, capsys):
    first, second = make_classifier(), make_classifier()
    second.vit.head.weight *= 1.001
    first.save(tmp_path / "a.safetensors")
    second.save(tmp_path / "b.safetensors")
    assert ask(capsys, tmp_path / "a.safetensors", "--against", tmp_path / "a.safetensors")[0] == 0
    code, answer = ask(capsys, tmp_path / "a.safetensors", "--against", tmp_path / "b.safetensors")
    assert code == 1 and answer["first_different_activation"] == "output"
    both = (tmp_path / "a.safetensors", "--against", tmp_path / "b.safetensors", "--tolerance", "0.01")
    assert ask(capsys, *both)[0] == 0
    assert ask(capsys, tmp_path / "a.safetensors", "--tolerance", "0.01")[0] == 2


def test_models_of_other_shapes():
    deeper = find_differences(make_classifier(), make_classifier(depth=4))
    missing = [row for row in deeper.tensors if row.first_shape is None]
    assert missing and all(row.name.startswith("blocks.3.") for row in missing)
    larger = find_differences(make_classifier(), make_classifier(image_size=64))
    (grid,) = (row for row in larger.tensors if row.name == "position.grid")
    assert larger.activations == () and grid.second_shape == (8, 8, 32) and not grid.is_equal


@pytest.mark.parametrize("package", FORMATS)
def test_the_same_weights_in_another_library_differ_where_we_change_them(package: str):
    classifier = make_classifier()
    theirs = load_in_library(classifier, package)
    answer = find_differences(classifier, theirs)
    assert answer.first_activation is None and len(answer.activations) >= 3 * 2 + 2
    changed = replace(classifier, vit=make_classifier().vit)
    changed.vit.blocks[1].attn.proj.bias[0] += 1
    first = find_differences(changed, theirs).first_activation
    assert first is not None and first.name == "blocks.1.attn"
    assert first.max_difference == pytest.approx(1, abs=1e-4)


def test_a_model_that_a_library_does_not_have():
    with pytest.raises(vitrail.UsageError, match="torchvision has no") as error:
        load_in_library(make_classifier(layer_scale=1e-3), "torchvision")
    assert "export" not in error.value.hint
