"""Pictures of explanations: what their colours say, where their edges are, and what notebooks show."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from test_explain import classifier, opened, photos
from vitrail.explanation import METHODS, Explanation, explain_batch
from vitrail.explanation.figures import draw_panels, save_layers, save_methods, save_overlay
from vitrail.explanation.render import (
    AGAINST_COLOR,
    FOR_COLOR,
    color_limits,
    enlarge_map,
    overlay_map,
    parse_color,
    scale_map,
)


def an_explanation(method: str = "libragrad", **changes) -> Explanation:
    return replace(explain_batch(classifier(), photos(1), method=method, target="cat")[0], **changes)


def with_map(values: np.ndarray, method: str = "libragrad") -> Explanation:
    return an_explanation(method, map=values, image=np.full((12, 20, 3), 128, np.uint8))


def test_a_signed_overlay_is_orange_for_and_blue_against_and_bare_at_zero():
    values = np.zeros((3, 5), np.float32)
    values[0, 0], values[2, 4] = 2.0, -2.0
    shown = overlay_map(with_map(values))
    for place, colour in (((1, 1), FOR_COLOR), ((10, 18), AGAINST_COLOR)):
        mixed = shown[place]
        assert np.corrcoef(mixed, parse_color(colour))[0, 1] > 0.99
    np.testing.assert_allclose(shown[5, 9], 128 / 255, atol=1e-6)
    assert shown[1, 1, 0] > shown[1, 1, 2] + 0.3
    assert shown[10, 18, 2] > shown[10, 18, 0] + 0.25


def test_the_two_colours_are_apart_for_colour_blind_eyes_and_in_grey():
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
        one, other = (np.array(matrix) @ colour for colour in linear)
        assert np.abs(one - other).max() > 0.2


@pytest.mark.parametrize("signed", [False, True])
def test_limits_hold_98_percent_and_a_signed_scale_is_even_about_zero(signed):
    values = np.random.default_rng(0).normal(1, 1, (20, 20))
    values[0, 0] = 500
    low, high = color_limits(values, signed)
    assert high < 5
    assert (values > high).mean() <= 0.011
    assert low == -high if signed else low == pytest.approx(np.percentile(values, 1))
    assert np.abs(scale_map(values, signed)).max() == 1
    assert scale_map(np.zeros((3, 3)), signed).max() == 0


def test_patches_are_squares_unless_smoothing_is_asked_for():
    values = np.arange(15.0).reshape(3, 5)
    plain, smooth = enlarge_map(values, 12, 20), enlarge_map(values, 12, 20, smooth=True)
    assert plain.shape == smooth.shape == (12, 20)
    assert (plain == np.repeat(np.repeat(values, 4, 0), 4, 1)).all()
    assert len(np.unique(smooth)) > 100
    assert smooth.min() >= values.min() and smooth.max() <= values.max()
    assert np.corrcoef(plain.ravel(), smooth.ravel())[0, 1] > 0.95


def words(explanation: Explanation) -> list[str]:
    """Every word that the panels show, tick labels included."""
    figure = draw_panels(explanation)
    figure.draw_without_rendering()
    return [text.get_text() for axes in figure.axes for text in axes.findobj(match=lambda o: hasattr(o, "get_text"))]


def test_the_panels_say_class_probability_method_and_have_a_numbered_scale():
    said = words(with_map(np.linspace(-2, 1, 15).reshape(3, 5)))
    assert any(re.fullmatch(r"(predicted \w+; )?cat  [\d.]+%", text) for text in said)
    assert {"libragrad", "evidence for cat", "against  ←  cat  →  for"} <= set(said)
    numbers = [float(text.replace("−", "-")) for text in said if re.fullmatch(r"[−-]?\d+\.\d+", text)]
    assert min(numbers) <= -1 and max(numbers) >= 1  # the scale is even about zero
    said = words(an_explanation("attention", layer=1, head=2))
    assert {"attention, layer 1, head 2", "share of attention", "where the model looks"} <= set(said)
    said = words(an_explanation(against="dog"))
    assert {"evidence for cat rather than dog", "dog  ←  →  cat"} <= set(said)


def test_a_query_patch_is_framed():
    clf = classifier()
    found = explain_batch(clf, photos(1), method="attention", query=(2, 1))[0]
    for axes in draw_panels(found).axes[:3]:
        (frame,) = axes.patches
        assert (frame.get_xy(), frame.get_width(), frame.get_height()) == ((3.5, 7.5), 4, 4)
    assert not draw_panels(an_explanation()).axes[0].patches


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_every_method_is_drawn_in_every_format(method, kind, tmp_path):
    found = an_explanation(method)
    for name, save in (("panels", found.save), ("overlay", lambda path: save_overlay(found, path))):
        path = save(tmp_path / f"{name}.{kind}")
        if kind == "png":
            assert len(np.unique(opened(path))) > 20
        else:
            assert path.read_text().startswith("<?xml")
    assert opened(save_overlay(found, tmp_path / "one.png")).shape[:2] == (264, 440)


def test_smoothing_changes_the_picture_and_not_the_map(tmp_path):
    found = an_explanation()
    before = found.map.copy()
    plain, smooth = (opened(found.save(tmp_path / f"{s}.png", smooth=s)) for s in (False, True))
    assert (plain != smooth).any()
    assert (found.map == before).all()


def test_strips_of_layers_and_methods_have_a_picture_for_each(tmp_path):
    clf = classifier()
    layers = [explain_batch(clf, photos(1), method="logit_lens", layer=layer)[0] for layer in range(3)]
    every = [explain_batch(clf, photos(1), method=method)[0] for method in METHODS]
    assert opened(save_layers(layers, tmp_path / "layers.png")).shape[1] > 3 * 200
    assert opened(save_methods(every, tmp_path / "methods.png")).shape[0] > 2 * 240


class Found(HTMLParser):
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
    found = an_explanation()
    with Image.open(BytesIO(found._repr_png_())) as picture:
        assert picture.format == "PNG"
        assert picture.width > 600
    page = Found(found._repr_html_())
    (source,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert source["src"].startswith("data:image/png;base64,iVBOR")
    assert source["alt"] == page.text == found.summary


def test_a_label_cannot_write_html():
    found = an_explanation(label='"><script>alert(1)</script>')
    page = Found(found._repr_html_())
    assert [tag for tag, _ in page.tags] == ["figure", "img", "figcaption"]
    assert "<script>" in page.text


def test_the_summary_says_where_the_evidence_is():
    values = np.full((6, 6), -1.0)
    values[4:6, 0] = 3, 5
    found = an_explanation(map=values, probability=0.731)
    assert found.summary == (
        "evidence for cat (73%, libragrad): half of it is in 1 of 36 patches, most in the lower left (100%)"
    )
    assert an_explanation(map=-np.ones((3, 5))).summary.endswith("nothing in the image")
