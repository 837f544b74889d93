"""Advice to start from pretrained weights, early overfitting, and names of cards without their library."""

from pathlib import Path

import pytest

import vitrail
from vitrail.cli import main
from vitrail.errors import UsageError
from vitrail.report.findings import overfitting
from vitrail.training.advice import ADVISED_CARD, FEW_IMAGES, advise_pretrained_weights, describe_overfitting
from vitrail.weights.cards import find_card


def rows(train: list[float], validation: list[float]) -> list[dict]:
    return [
        {"epoch": i, "train_accuracy": t, "validation_accuracy": v, "validation_loss": 1 - v}
        for i, (t, v) in enumerate(zip(train, validation, strict=True), 1)
    ]


def test_few_images_are_advised_to_start_from_weights():
    assert find_card(ADVISED_CARD).name == ADVISED_CARD
    assert advise_pretrained_weights(FEW_IMAGES, "photos") is None
    advice = advise_pretrained_weights(245, "my photos")
    assert advice and "245 training images are few" in advice
    assert advice.endswith(f"vitrail train 'my photos' --from {ADVISED_CARD}")


def test_check_advises_weights_for_few_images(make_folder, capsys):
    folder = make_folder("few", 12, ("warm", "cold"))
    main(["check", str(folder)])
    assert f"--from {ADVISED_CARD}" in capsys.readouterr().out


def test_early_overfitting_is_described():
    overfitted = rows([0.6, 0.8, 0.9, 0.95, 1.0, 1.0], [0.6, 0.73, 0.7, 0.65, 0.62, 0.61])
    sentence = describe_overfitting(overfitted)
    assert sentence and "the best epoch on validation was 2 of 6" in sentence
    assert "training accuracy is 100.0% and validation accuracy 61.0%" in sentence
    finding = overfitting({"training_metrics": overfitted})
    assert finding and (finding.level, finding.section, finding.text) == ("warning", "training", sentence)
    assert describe_overfitting(rows([0.6, 0.8, 0.9, 0.95], [0.6, 0.7, 0.75, 0.76])) is None  # the best is the last
    assert describe_overfitting(rows([0.6, 0.7, 0.7, 0.7], [0.6, 0.73, 0.7, 0.65])) is None  # no gap
    assert describe_overfitting([]) is None
    assert describe_overfitting([{"penalty": 0.1, "validation_accuracy": 0.5}]) is None


@pytest.mark.parametrize("name", ["vit_b_16", "vit_small_patch14_dinov2.lvd142m"])
def test_a_card_without_its_library_is_suggested(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    library = "torchvision" if name == "vit_b_16" else "timm"
    with pytest.raises(UsageError) as caught:
        vitrail.load(name)
    assert caught.value.hint == f"did you mean {library}/{name}?"
