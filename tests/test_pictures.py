"""Figures of explanations: colors, patch edges, texts, and the output in notebooks."""

import re
from colorsys import rgb_to_hsv
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from test_explain import classifier, photos, read_png
from vitrail.evaluation.confusion import CORRECT_SHADES, MISTAKE_SHADES, cell_shade, shade_limits
from vitrail.evaluation.figures import matrix_shades, shade_colors, title_of_matrix
from vitrail.explanation.api import explain_batch
from vitrail.explanation.concentration import border_mask, describe_all, describe_concentration
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
    assert np.ptp(shown[5, 9]) < 1e-6
    assert shown[1, 1, 0] > shown[1, 1, 2] + 0.3
    assert shown[10, 18, 2] > shown[10, 18, 0] + 0.25


PHOTOS = {
    "white": (250, 250, 250), "black": (8, 8, 8), "gray": (128, 128, 128), "red": (190, 30, 30),
    "orange": (230, 120, 20), "yellow": (240, 210, 40), "green": (60, 120, 40), "sky": (140, 190, 240),
    "blue": (50, 90, 200), "brown": (90, 60, 30),
}  # fmt: skip


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB from 0 to 1 -> CIELAB (D65)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.moveaxis(np.cbrt(linear @ matrix.T / (0.9505, 1, 1.089)), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


@pytest.mark.parametrize("photo", PHOTOS)
@pytest.mark.parametrize("method", ["attention", "libragrad"])
def test_marks_stand_out_from_any_photo_and_its_hue_survives(photo, method):
    """The smallest differences are those of blue on sky (41 in CIELAB) and of yellow on white (36 in lightness)."""
    values = np.zeros((3, 5), np.float32)
    values[0, 0], values[2, 4] = 1, -1 if METHODS[method].signed else 0
    color = np.full((12, 20, 3), PHOTOS[photo], np.uint8)
    shown = overlay_map(make_explanation(method, map=values, image=color))
    high, low, zero = to_lab(shown[[1, 10, 5], [1, 18, 9]])
    if METHODS[method].signed:
        assert min(np.linalg.norm(high - zero), np.linalg.norm(low - zero)) > 40
        assert np.linalg.norm(high - low) > 90
        assert high[0] > 45  # orange that is darker is brown
    else:
        assert high[0] - zero[0] > 35
    original = to_lab(color[0, 0] / 255)
    assert zero[0] < max(original[0], 10)
    chroma = np.hypot(*original[1:])
    if chroma > 10:
        assert rgb_to_hsv(*shown[5, 9])[0] == pytest.approx(rgb_to_hsv(*(color[0, 0] / 255))[0])
        assert np.hypot(*zero[1:]) > (0.15 if METHODS[method].signed else 0.4) * chroma


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


def concentrate(values: np.ndarray, content: np.ndarray | None = None) -> Explanation:
    return make_explanation("attention", map=values.astype(np.float32), content=content)


def test_the_picture_says_when_most_of_the_attention_is_on_the_border():
    """More than half of it, and 1.25 times the border's area, which is 28 of 64 patches here."""
    border = border_mask(np.ones((8, 8), bool))
    assert border.sum() == 28
    for share, expected in ((0.5, ""), (0.56, "on the border")):
        values = np.where(border, share / 28, (1 - share) / 36)
        assert describe_concentration(concentrate(values)) == expected
    small = np.where(border_mask(np.ones((5, 5), bool)), 0.79 / 16, 0.21 / 9)  # 16 of 25 patches, times 1.25: 80%
    assert describe_concentration(concentrate(small)) == ""
    assert describe_concentration(concentrate(np.where(border[:3, :3], 1, 0))) == ""  # no center


def test_the_border_of_a_padded_photo_is_that_of_the_photo():
    content = np.zeros((8, 8), bool)
    content[2:6] = True
    ring = border_mask(content)
    assert ring.sum() == 20 and not ring[:2].any() and ring[2].all() and not ring[3, 1:-1].any()
    values = np.where(ring, 1.0, 0.0)
    assert describe_concentration(concentrate(values, content)) == "on the border"


def test_the_picture_says_when_most_of_the_attention_is_on_few_patches(tmp_path):
    """A twentieth of the patches has more than half of it: 3 of 64."""
    values = np.full((8, 8), 0.4 / 61)
    values[3, 3:6] = 0.2
    assert describe_concentration(concentrate(values)) == "on few patches"
    values[3, 5], values[5, 5] = 0.05, 0.15
    assert describe_concentration(concentrate(values)) == "on few patches"
    values[4, 4], values[3, 3] = 0.12, 0.08
    assert describe_concentration(concentrate(values)) == ""
    few = np.zeros((8, 8))
    few[4, 4] = 1
    maps = [concentrate(few), concentrate(values), concentrate(few)]
    assert describe_all(maps) == [
        "in 2 of 3 images more than half of it is on at most 5% of the patches: small objects, or patches that the "
        "model uses as registers"
    ]
    assert any("mostly on few patches" in text for text in panel_texts(maps[0]))
    assert not any("mostly" in text for text in panel_texts(maps[1]))


def test_the_confusion_matrix_has_the_colors_of_the_report():
    style = (files("vitrail.report") / "templates" / "style.css").read_text()
    for kind, shades in (("hit", CORRECT_SHADES), ("miss", MISTAKE_SHADES)):
        written = re.findall(rf"\.{kind}\.l(\d)\{{background:(#\w+)", style)[:7]
        assert [int(number) for number, _ in written] == list(range(7))
        assert tuple(color for _, color in written) == shades
    matrix = np.array([[8, 0, 2], [5, 5, 0], [0, 0, 0]])
    assert matrix_shades(matrix).tolist() == [[6, -1, 2], [4, 4, -1], [-1, -1, -1]]
    assert title_of_matrix(matrix) == "Confusion matrix: 13 of 20 images are correct"
    colors = shade_colors(matrix_shades(matrix), np.eye(3, dtype=bool))
    expected = [CORRECT_SHADES[6], "#ffffff", MISTAKE_SHADES[2], MISTAKE_SHADES[4], CORRECT_SHADES[4]]
    for position, color in zip(((0, 0), (0, 1), (0, 2), (1, 0), (1, 1)), expected, strict=True):
        np.testing.assert_allclose(colors[position], parse_color(color))
    assert [cell_shade(limit + 1e-9) for limit in shade_limits()[:-1]] == [0, 1, 2, 3, 4, 5, 6]


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
