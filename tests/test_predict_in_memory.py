"""`Classifier.predict` and `embed`: many images of any kinds, in batches, with errors by index, and as frames."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

import vitrail
from vitrail import ImagePrediction, Predictions, UsageError, console
from vitrail.data.decode import ImageError, ImageUnreachable
from vitrail.data.image_input import to_pixels
from vitrail.data.images import Images
from vitrail.evaluation.features import extract_features

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 40, 50, 3), np.uint8)
MAX_ROUNDING = 2e-6  # of logits up to 5, between batch sizes; measured: 7.2e-7


@pytest.fixture(scope="module")
def clf() -> vitrail.Classifier:
    return vitrail.load("cifar10-small")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = [folder / f"{i}.png" for i in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def test_the_same_pixels_have_the_same_logits_to_the_last_bit(clf: vitrail.Classifier, files: list[Path]):
    expected = clf.predict(files)
    tensor = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    forms = {
        "names": [str(path) for path in files],
        "bytes": [path.read_bytes() for path in files],
        "PIL images": [Image.open(path) for path in files],
        "arrays": list(PIXELS),
        "one array": PIXELS,
        "floats": PIXELS / 255,
        "tensors": list(tensor),
        "one tensor": tensor,
        "floats in a tensor": tensor / 255,
        "half precision": [(tensor[0] / 255).half(), *tensor[1:]],
        "a generator": (path for path in files),
        "an array of names": np.array([str(path) for path in files]),
        "all kinds": [files[0], files[1].read_bytes(), Image.open(files[2]), PIXELS[3], tensor[4], tensor[5] / 255],
    }
    for name, images in forms.items():
        predictions = clf.predict(images)
        assert isinstance(predictions, Predictions)
        if name != "half precision":  # 11 bits: not every one of 256 values survives
            assert torch.equal(predictions.logits, expected.logits), name
        assert predictions.labels == expected.labels, name


def test_one_image_has_one_result(clf: vitrail.Classifier, files: list[Path]):
    result = clf.predict(files[0], top=3)
    assert isinstance(result, ImagePrediction)
    assert (result.label, result.probability) == (result[0].label, result[0].probability)
    assert [each.probability for each in result] == sorted(result.probabilities.values(), reverse=True)[:3]
    assert tuple(result.probabilities) == clf.classes and sum(result.probabilities.values()) == pytest.approx(1)
    assert result.path == str(files[0]) and result.error is None
    assert clf.predict(PIXELS[0], top=3) == result == list(result) and result != clf.predict(PIXELS[1], top=3)


def test_another_batch_size_changes_logits_by_rounding_only(clf: vitrail.Classifier):
    alone = clf.predict(PIXELS, batch_size=1)
    for size in (2, 4, 64):
        together = clf.predict(PIXELS, batch_size=size)
        torch.testing.assert_close(together.logits, alone.logits, rtol=0, atol=MAX_ROUNDING)
        assert torch.equal(clf.predict(PIXELS, batch_size=size).logits, together.logits)


def test_the_images_beside_one_do_not_change_how_it_is_read(clf: vitrail.Classifier):
    """A black float image, a gray one, and one as large as the number of channels, in every company."""
    images = [np.zeros((40, 50, 3), np.float32), PIXELS[0, ..., 0], torch.from_numpy(PIXELS[0, :, :, 0]), PIXELS[1]]
    alone = torch.stack([clf.predict(image).logits for image in images])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]):
        together = clf.predict([images[i] for i in order]).logits
        torch.testing.assert_close(together, alone[order], rtol=0, atol=MAX_ROUNDING)
    assert torch.equal(to_pixels(images[1], 3), to_pixels(images[2], 3))


BAD = {
    "a missing file": (Path("nowhere.png"), r"images\[2\] \(nowhere.png\): there is no such file"),
    "bytes of no image": (b"no image", r"images\[2\]: "),
    "channels first": (PIXELS[0].transpose(2, 0, 1), r"images\[2\]: an array must be .*not \(3, 40, 50\)"),
    "normalized": (torch.full((3, 20, 20), -0.5), r"images\[2\]: floats must be from 0 to 1"),
    "a batch": (PIXELS, r"images\[2\]: an array must be"),
    "integers": (np.zeros((8, 8), np.int64), r"images\[2\]: pixels must be uint8 or floats from 0 to 1, not int64"),
}


@pytest.mark.parametrize("case", BAD)
def test_an_image_that_cannot_be_read_is_named_by_its_index_or_skipped(case: str, clf: vitrail.Classifier):
    image, sentence = BAD[case]
    images = [PIXELS[0], PIXELS[1], image, PIXELS[3]]
    with pytest.raises(ImageError, match=f"^{sentence}"):
        clf.predict(images, batch_size=2)
    with pytest.raises(ImageError, match=f"^{sentence}"):
        clf.embed(images)
    predictions = clf.predict(images, batch_size=2, on_error="skip")
    assert len(predictions) == 4 and list(predictions.errors) == [2]
    assert predictions.labels == [*clf.predict(PIXELS[:2]).labels, None, clf.predict(PIXELS[3]).label]
    skipped = predictions[2]
    assert list(skipped) == [] and skipped.error == predictions.errors[2] and skipped.probabilities == {}
    with pytest.raises(ImageError, match=r"not|must|no such"):
        _ = skipped.label
    assert predictions.logits[2].isnan().all() and predictions[1:3].errors == {1: skipped.error}
    assert "1 skipped" in repr(predictions)


def test_a_failing_disk_is_never_skipped(clf: vitrail.Classifier, monkeypatch: pytest.MonkeyPatch):
    def fail(image: object, channels: int, name: str) -> torch.Tensor:
        raise ImageUnreachable(name, "Input/output error")

    monkeypatch.setattr("vitrail.classifier.to_pixels", fail)
    with pytest.raises(ImageUnreachable, match=r"images\[0\]: Input/output error"):
        clf.predict([PIXELS[0]], on_error="skip")


@pytest.mark.parametrize("wrong", [None, 5, {"a": 1}, {1}])
def test_what_cannot_be_an_image_is_refused(wrong: object, clf: vitrail.Classifier):
    with pytest.raises(UsageError, match=f"^an image cannot be a {type(wrong).__name__}"):
        clf.predict(wrong)
    with pytest.raises(UsageError, match=rf"^images\[1\] cannot be a {type(wrong).__name__}"):
        clf.predict([PIXELS[0], wrong], on_error="skip")


def test_wrong_options_are_named(clf: vitrail.Classifier):
    with pytest.raises(UsageError, match="on_error is 'ignore'"):
        clf.predict([PIXELS[0]], on_error="ignore")
    with pytest.raises(UsageError, match="batch_size is 0"):
        clf.predict([PIXELS[0]], batch_size=0)
    with pytest.raises(ImageError, match=r"several gray images are \(n, h, w, 1\)"):
        clf.predict(PIXELS[..., 0])
    assert torch.equal(clf.predict(PIXELS[..., :1]).logits, clf.predict(list(PIXELS[..., 0])).logits)


def test_memory_holds_one_batch_of_pixels(clf: vitrail.Classifier):
    """A generator is read as far as the batch that is computed."""
    read: list[int] = []
    computed: list[int] = []

    def generate() -> Iterator[np.ndarray]:
        for i in range(6):
            read.append(i)
            yield PIXELS[i]

    class Watching(vitrail.Classifier):
        def logits(self, pixels_BCHW: torch.Tensor) -> torch.Tensor:
            computed.append(len(read))
            return super().logits(pixels_BCHW)

    watching = Watching(clf.vit, clf.classes, clf.preprocess)
    assert len(watching.predict(generate(), batch_size=2)) == 6
    assert computed == [2, 4, 6]


def test_long_lists_have_a_progress_bar(clf: vitrail.Classifier, monkeypatch: pytest.MonkeyPatch):
    def shown(**options: int | bool) -> str:
        screen = io.StringIO()
        monkeypatch.setattr(console, "stderr", console.Console(file=screen, force_terminal=True, width=100))
        clf.predict(PIXELS, **options)
        return screen.getvalue()

    assert "predicting" in shown(batch_size=2) and "6/6" in shown(batch_size=2)
    assert shown(batch_size=6) == shown(batch_size=2, progress=False) == ""


def test_no_images_are_no_predictions(clf: vitrail.Classifier):
    empty = clf.predict([])
    assert len(empty) == 0 and empty.labels == [] and empty.logits.shape == (0, 10) and empty == []
    assert clf.embed([]).shape == (0, clf.vit.config.pooled_width)
    assert list(empty.to_pandas().columns) == list(clf.predict(PIXELS).to_pandas().columns)


def test_embeddings_are_those_of_probe_and_of_the_head(clf: vitrail.Classifier, files: list[Path]):
    features = clf.embed(files)
    assert features.shape == (6, clf.vit.config.pooled_width) and features.dtype == torch.float32
    torch.testing.assert_close(clf.vit.head(features) / clf.temperature, clf.predict(files).logits)
    images = Images(torch.from_numpy(PIXELS).permute(0, 3, 1, 2), [*"abcdef"], np.zeros(6, np.int64), ("x",))
    assert torch.equal(features, torch.from_numpy(extract_features(clf, images, cache=False)))
    assert torch.equal(features, clf.embed(PIXELS)) and clf.embed(files[0]).shape == (1, features.shape[1])
    torch.testing.assert_close(clf.embed(PIXELS, batch_size=2), features, rtol=0, atol=MAX_ROUNDING)


def test_frames_have_the_columns_of_prediction_files(clf: vitrail.Classifier, files: list[Path]):
    predictions = clf.predict([files[0], PIXELS[1], b"no image"], top=2, on_error="skip")
    pandas, polars = predictions.to_pandas(), predictions.to_polars()
    columns = ["path", "label", "probability", "label_2", "probability_2", "unlike", "error"]
    assert list(pandas.columns) == polars.columns == columns
    assert list(pandas["path"].isna()) == [False, True, True] and list(pandas["label"].isna()) == [False, False, True]
    assert polars["probability_2"].dtype == pl.Float64 and polars["probability_2"][2] is None
    assert pandas["label"][1] == polars["label"][1] == predictions[1].label
    assert pandas["probability"][0] == polars["probability"][0] == predictions[0].probability
    assert polars["error"].to_list() == [None, None, predictions.errors[2]]
    no_error = predictions[:2]
    assert no_error.to_polars().schema == polars.schema and list(no_error.to_pandas().dtypes) == list(pandas.dtypes)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_missing_library_is_named_with_its_extra(
    library: str, clf: vitrail.Classifier, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=f"to_{library} needs {library} .*pip install .*{library}"):
        getattr(clf.predict([PIXELS[0]]), f"to_{library}")()
