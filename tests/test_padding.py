"""Explanations of letterboxed images: no map marks the padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from test_explain import classifier
from vitrail.classifier import Classifier
from vitrail.data.preprocess import Preprocess
from vitrail.explanation.api import explain, explain_batch, explain_with_padding
from vitrail.explanation.faithfulness import method_mapper
from vitrail.explanation.methods import METHODS
from vitrail.explanation.padding import content_patches

PATCH = 4


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", [(32, 32), (20, 32), (21, 32), (32, 9), (64, 31), (200, 40), (7, 300), (33, 32)])
def test_patches_without_any_of_the_photo_are_found(size):
    """Compared with a photo of ones on a canvas of zeros, which is fitted in the same way."""
    preprocess = Preprocess(image_size=(32, 32), mean=(0.4, 0.5, 0.6))
    (found,) = content_patches(preprocess.fit_image(noise(*size))[None], preprocess, (8, 8))
    scale = min(32 / size[0], 32 / size[1])
    height, width = (min(32, max(1, round(edge * scale))) for edge in size)
    photo = np.zeros((32, 32), bool)
    top, left = (32 - height) // 2, (32 - width) // 2
    photo[top : top + height, left : left + width] = True
    assert (found.numpy() == photo.reshape(8, PATCH, 8, PATCH).any(axis=(1, 3))).all()


def test_only_bars_of_letterboxing_are_padding():
    preprocess = Preprocess(image_size=(32, 32))
    gray = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    framed = gray.clone()
    framed[:, 12:20, 12:20] = 0  # an object on a ground of the padding color, which is at all four edges
    one_side = noise(32, 32)
    one_side[:, 20:] = 128
    letterboxed = preprocess.fit_image(noise(16, 32))
    pixels = torch.stack([gray, framed, one_side, letterboxed])
    counts = content_patches(pixels, preprocess, (8, 8)).sum(dim=(1, 2))
    assert counts.tolist() == [64, 64, 64, 32]
    for fit in ("crop", "stretch"):
        assert content_patches(pixels, replace(preprocess, fit=fit), (8, 8)).all()


def padded_batch(clf: Classifier) -> torch.Tensor:
    height, width = clf.preprocess.image_size
    sizes = ((height, 3 * width), (3 * height, width), (height, width))
    return torch.stack([clf.preprocess.fit_image(noise(*size, seed)) for seed, size in enumerate(sizes)])


@pytest.mark.parametrize("method", METHODS)
def test_no_map_marks_padding(method):
    clf = classifier()
    pixels = padded_batch(clf)
    explained = explain_batch(clf, pixels, method=method)
    for explanation in explained[:2]:
        assert explanation.content is not None
        assert not explanation.content.all() and explanation.content.any()
        assert (explanation.map[~explanation.content] == 0).all()
        assert "padding_share" in explanation.to_json()
    assert max(np.abs(explanation.map).max() for explanation in explained) > 0
    assert explained[2].content is None
    assert explained[2].padding_share == 0
    assert "padding_share" not in explained[2].to_json()


def test_the_padded_share_of_attention_is_stated():
    """Compared with the same maps where the bars count as photo, as they do in an exported graph."""
    clf = classifier()
    pixels = padded_batch(clf)
    whole = explain_with_padding(clf, pixels, method="attention")
    assert all(each.content is None for each in whole)
    masked = explain_batch(clf, pixels, method="attention")
    for one, other in zip(whole, masked, strict=True):
        content = other.content_patches
        np.testing.assert_array_equal(other.map[content], one.map[content])
        assert other.padding_share == pytest.approx(one.map[~content].sum() / one.map.sum(), abs=1e-6)
    assert masked[0].padding_share > 0.05
    assert f"of {masked[0].content_patches.sum()} patches" in masked[0].summary


def striped_photo(preprocess: Preprocess, height: int, width: int) -> torch.Tensor:
    """Noise between two bars of the padding color, which are a part of the photo."""
    photo = noise(height, width)
    bar = 3 * height // 8
    photo[:, :bar] = photo[:, height - bar :] = torch.tensor(preprocess.mean_color)[:, None, None]
    return photo


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (20, 32), (21, 32), (32, 9), (200, 40), (33, 32), (31, 32)])
@pytest.mark.parametrize("trim", [(0, 0), (4, 4)])
def test_the_size_of_an_image_says_exactly_what_is_padding(size, trim):
    """Compared with a white photo that is fitted in the same way on a black canvas; its own bars are no padding."""
    preprocess = Preprocess(image_size=(32, 32), mean=(0.0, 0.0, 0.0), trim=trim)
    white = preprocess.fit_image(torch.full((3, *size), 255, dtype=torch.uint8))[0].numpy() > 0
    pixels = preprocess.fit_image(striped_photo(preprocess, *size))[None]
    (found,) = content_patches(pixels, preprocess, (8, 8), [size])
    assert (found.numpy() == white.reshape(8, PATCH, 8, PATCH).any(axis=(1, 3))).all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
def test_a_photo_that_was_not_padded_keeps_its_map(fit, tmp_path):
    """A photo with two bars of the padding color, of twice the model's size, as pixels and as a file."""
    clf = classifier()
    clf.preprocess = replace(clf.preprocess, fit=fit)
    height, width = clf.preprocess.image_size
    photo = striped_photo(clf.preprocess, 2 * height, 2 * width)
    Image.fromarray(photo.permute(1, 2, 0).numpy()).save(tmp_path / "striped.png")
    for image in (photo, tmp_path / "striped.png"):
        explanation = explain(clf, image, method="attention")
        assert explanation.content is None
        assert explanation.map.min() > 0


def test_faithfulness_ranks_patches_on_padding():
    clf = classifier()
    pixels = padded_batch(clf)
    labels = [clf.classes[0]] * len(pixels)
    maps = method_mapper("attention")(clf, pixels, labels)
    expected = [each.map.ravel() for each in explain_with_padding(clf, pixels, method="attention")]
    np.testing.assert_array_equal(maps, expected)
    assert maps.min() > 0
