"""Figures of explanations: colors, patch edges, texts, and the output in notebooks."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from test_explain import classifier, photos, read_png
from vitrail.explanation.api import explain_batch
from vitrail.explanation.explanation import Explanation
from vitrail.explanation.figures import draw_panels, save_layers, save_methods, save_overlay
from vitrail.explanation.methods import METHODS
from vitrail.explanation.render import (
    AGAINST_COLOR,
    FOR_COLOR,
    color_limits,
    enlarge_map,
    overlay_map,
    parse_color,
    scale_map,
)


def make_explanation(method: str = "libragrad", **changes) -> Explanation:
    return replace(explain_batch(classifier(), photos(1), method=method, target="cat")[0], **changes)


def explanation_with_map(values: np.ndarray, method: str = "libragrad") -> Explanation:
    return make_explanation(method, map=values, image=np.full((12, 20, 3), 128, np.uint8))


def test_a_signed_overlay_is_orange_for_blue_against_and_gray_at_zero():
    values = np.zeros((3, 5), np.float32)
    values[0, 0], values[2, 4] = 2.0, -2.0
    shown = overlay_map(explanation_with_map(values))
    for position, color in (((1, 1), FOR_COLOR), ((10, 18), AGAINST_COLOR)):
        mixed = shown[position]
        assert np.corrcoef(mixed, parse_color(color))[0, 1] > 0.99
    np.testing.assert_allclose(shown[5, 9], 128 / 255, atol=1e-6)
    assert shown[1, 1, 0] > shown[1, 1, 2] + 0.3
    assert shown[10, 18, 2] > shown[10, 18, 0] + 0.25


def test_the_two_colors_are_distinct_for_color_blind_readers():
    """Machado, Oliveira & Fernandes 2009: severe protanopia, deuteranopia, tritanopia, on linear light."""
    blind = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    linear = [
        np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for c in (parse_color(FOR_COLOR), parse_color(AGAINST_COLOR))
    ]
    for matrix in blind.values():
        one, other = (np.array(matrix) @ color for color in linear)
        assert np.abs(one - other).max() > 0.2


@pytest.mark.parametrize("signed", [False, True])
def test_color_limits_cover_98_percent_and_are_symmetric_for_signed_maps(signed):
    values = np.random.default_rng(0).normal(1, 1, (20, 20))
    values[0, 0] = 500
    low, high = color_limits(values, signed)
    assert high < 5
    assert (values > high).mean() <= 0.011
    assert low == -high if signed else low == pytest.approx(np.percentile(values, 1))
    assert np.abs(scale_map(values, signed)).max() == 1
    assert scale_map(np.zeros((3, 3)), signed).max() == 0


def test_patches_are_plain_squares_unless_smoothed():
    values = np.arange(15.0).reshape(3, 5)
    plain, smooth = enlarge_map(values, 12, 20), enlarge_map(values, 12, 20, smooth=True)
    assert plain.shape == smooth.shape == (12, 20)
    assert (plain == np.repeat(np.repeat(values, 4, 0), 4, 1)).all()
    assert len(np.unique(smooth)) > 100
    assert smooth.min() >= values.min() and smooth.max() <= values.max()
    assert np.corrcoef(plain.ravel(), smooth.ravel())[0, 1] > 0.95


def panel_texts(explanation: Explanation) -> list[str]:
    """All texts of the panels, tick labels included."""
    figure = draw_panels(explanation)
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.findobj(match=lambda o: hasattr(o, "get_text"))]


def test_the_panels_show_class_probability_method_and_scale():
    texts = panel_texts(explanation_with_map(np.linspace(-2, 1, 15).reshape(3, 5)))
    assert any(re.fullmatch(r"(predicted \w+; )?cat  [\d.]+%", text) for text in texts)
    assert {"libragrad", "evidence for cat", "against  ←  cat  →  for"} <= set(texts)
    numbers = [float(text.replace("−", "-")) for text in texts if re.fullmatch(r"[−-]?\d+\.\d+", text)]
    assert min(numbers) <= -1 and max(numbers) >= 1  # the scale is symmetric about zero
    texts = panel_texts(make_explanation("attention", layer=1, head=2))
    assert {"attention, layer 1, head 2", "share of attention", "where the model looks"} <= set(texts)
    texts = panel_texts(make_explanation(against="dog"))
    assert {"evidence for cat rather than dog", "dog  ←  →  cat"} <= set(texts)


def test_a_query_patch_has_a_frame():
    clf = classifier()
    explanation = explain_batch(clf, photos(1), method="attention", query=(2, 1))[0]
    for axes in draw_panels(explanation).axes[:3]:
        (frame,) = axes.patches
        assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((3.5, 7.5), 4, 4)
    assert not draw_panels(make_explanation()).axes[0].patches


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_every_method_is_drawn_in_every_format(method, kind, tmp_path):
    explanation = make_explanation(method)
    for name, save in (("panels", explanation.save), ("overlay", lambda path: save_overlay(explanation, path))):
        path = save(tmp_path / f"{name}.{kind}")
        if kind == "png":
            assert len(np.unique(read_png(path))) > 20
        else:
            assert path.read_text().startswith("<?xml")
    assert read_png(save_overlay(explanation, tmp_path / "one.png")).shape[:2] == (264, 440)


def test_smoothing_changes_the_picture_and_not_the_map(tmp_path):
    explanation = make_explanation()
    before = explanation.map.copy()
    plain, smooth = (read_png(explanation.save(tmp_path / f"{s}.png", smooth=s)) for s in (False, True))
    assert (plain != smooth).any()
    assert (explanation.map == before).all()


def test_strips_of_layers_and_methods_have_one_overlay_each(tmp_path):
    clf = classifier()
    layers = [explain_batch(clf, photos(1), method="logit_lens", layer=layer)[0] for layer in range(3)]
    every = [explain_batch(clf, photos(1), method=method)[0] for method in METHODS]
    assert read_png(save_layers(layers, tmp_path / "layers.png")).shape[1] > 3 * 200
    assert read_png(save_methods(every, tmp_path / "methods.png")).shape[0] > 2 * 240


class ParsedHtml(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_a_notebook_shows_the_picture_and_a_sentence():
    explanation = make_explanation()
    with Image.open(BytesIO(explanation._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    page = ParsedHtml(explanation._repr_html_())
    (source,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert source["src"].startswith("data:image/png;base64,iVBOR")
    assert source["alt"] == page.text == explanation.summary


def test_a_label_cannot_write_html():
    explanation = make_explanation(label='"><script>alert(1)</script>')
    page = ParsedHtml(explanation._repr_html_())
    assert [tag for tag, _ in page.tags] == ["figure", "img", "figcaption"]
    assert "<script>" in page.text


def test_the_summary_describes_the_map():
    values = np.full((6, 6), -1.0)
    values[4:6, 0] = 3, 5
    explanation = make_explanation(map=values, probability=0.731)
    assert explanation.summary == (
        "evidence for cat (73%, libragrad): half of it is in 1 of 36 patches, most in the lower left (100%)"
    )
    assert make_explanation(map=-np.ones((3, 5))).summary.endswith("nothing in the image")
