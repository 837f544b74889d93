"""The report as people open it: in a browser, from disk, without a network; and report.json as programs read it."""

import argparse
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import vitrail
from conftest import COLOURS, picture
from vitrail.cli import main
from vitrail.cli.evaluate import with_temperature
from vitrail.data import Images, Preprocess
from vitrail.evaluation import Evaluation, Outcome, evaluate
from vitrail.evaluation.evaluation import open_splits
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.report import SampleSizes, Subject, write_report
from vitrail.report.collect import collect
from vitrail.report.images import embedded
from vitrail.report.page import render_page
from vitrail.report.sprite_sheets import TILES, sheets

HOSTILE = ("<img src=x onerror=window.pwned=1>", "\"><script>window.pwned=1; alert('&amp;')", "blue {{ 7*7 }} https:")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here: apt install chromium"
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose class and file names are markup, some labels of which are wrong; a test image is also in train."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    for split, n in (("train", 40), ("val", 20), ("test", 20)):
        for c, label in enumerate(HOSTILE):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                shown = (c + (i % 7 == 0)) % 3  # a seventh of the labels are wrong: mistakes to look at
                image = picture(list(COLOURS.values())[shown], 10_000 * len(split) + 100 * c + i, (24, 20))
                image.save(root / split / label / f"{i} <b onclick=alert(1)>'.png")
    for split in ("train", "test"):
        copy = np.random.default_rng(5).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(copy).save(root / split / HOSTILE[0] / "copy.png")
    return root


@pytest.fixture(scope="session")
def reported(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.Run:
    """A run with its report."""
    out = tmp_path_factory.mktemp("reported") / "run"
    return vitrail.train(hostile, out=out, epochs=4, width=32, depth=2, heads=2, mlp_width=64, patch=4)


@pytest.fixture(scope="session")
def document(reported: vitrail.Run) -> dict[str, Any]:
    return json.loads((reported.folder / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def page_text(reported: vitrail.Run) -> str:
    return (reported.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    assert CHROMIUM, "no Chromium here: apt install chromium"
    quiet = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)
        yield opened
        opened.close()


def opened(browser: Any, path: Path, **options: Any) -> Any:
    """The page without a network; `complaints` has everything it said or asked for."""
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or page.complaints.append(request.url)
    )
    page.goto(path.as_uri())
    return page


def mean_colour(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).mean(0)


@needs_chromium
def test_a_cell_of_the_matrix_opens_the_images_behind_it(browser, reported: vitrail.Run, document, hostile: Path):
    page = opened(browser, reported.folder / "report.html", viewport={"width": 1200, "height": 900})
    assert not page.locator("#cell").is_visible()
    cells, classes = document["confusion"]["cells"], document["classes"]
    number, cell = next((n, c) for n, c in enumerate(cells) if c["true"] != c["predicted"])
    button = page.locator(f'.matrix [data-cell="{number}"]')
    assert button.inner_text() == str(cell["images"])
    button.click()
    dialog = page.locator("#cell")
    assert dialog.is_visible()
    title = page.locator("#cell-title").inner_text()
    assert title == f"{classes[cell['true']]} taken for {classes[cell['predicted']]}"
    shown = dialog.locator("li")
    assert shown.count() == len(cell["shown"]) == cell["images"]
    for place, thumbnail in list(enumerate(cell["shown"]))[:5]:
        row = document["thumbnails"]["images"][thumbnail]
        assert shown.nth(place).locator(".path").inner_text() == Path(row["path"]).name
        pixels = np.asarray(Image.open(row["path"]).convert("RGB"))
        seen = mean_colour(shown.nth(place).locator(".thumb").screenshot())
        own = reported.classifier.read_image(row["path"]).float().mean(dim=(1, 2)).numpy()
        assert np.abs(seen - own).max() < 14, (seen, own, pixels.shape)
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert button.evaluate("b => b === document.activeElement")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.locator("#close").click()
    assert not dialog.is_visible()
    assert page.complaints == []
    assert page.evaluate("window.pwned") is None
    page.context.close()


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(browser, reported: vitrail.Run, scheme: str):
    from axe_playwright_python.sync_playwright import Axe

    for width in (360, 1280):
        size = {"width": width, "height": 800}
        page = opened(
            browser, reported.folder / "report.html", viewport=size, color_scheme=scheme, bypass_csp=True
        )  # the page's own policy forbids every script but its own, so also the checker's
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.locator(".matrix .cell").first.click()
        assert page.locator("#cell").is_visible()
        assert page.evaluate("document.querySelector('#cell').scrollWidth <= innerWidth")
        found = Axe().run(page)
        assert found.violations_count == 0, found.generate_report()
        page.context.close()


@needs_chromium
def test_names_are_text_and_nothing_runs(browser, reported: vitrail.Run):
    page = opened(browser, reported.folder / "report.html")
    body = page.locator("body").inner_text()
    assert all(name in body for name in HOSTILE)
    assert page.locator("main img").count() == 1  # the map of alike images; none of those that the names ask for
    assert page.locator("[onerror], [onclick]").count() == 0
    assert page.evaluate("window.pwned") is None
    assert page.complaints == []
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    page.context.close()


def test_no_address_leads_outside(page_text: str):
    text = page_text
    for name in HOSTILE:  # the one with an address in its name
        text = text.replace(name, "")
    assert not re.findall(
        r"https?://|@import|<link|<iframe|<object|src=\"(?!data:)|href=\"(?!#)|url\((?!data:|#)", text
    )
    assert "default-src 'none'" in text


def test_names_are_escaped_in_the_file(page_text: str):
    for name in HOSTILE[:2]:
        assert name not in page_text
    assert "<b onclick" not in page_text
    assert "{{ 7*7 }}" in page_text  # a template in a name stays a name
    assert page_text.count("</script>") == 2


def test_every_number_of_the_page_is_in_the_json(page_text: str, document):
    numbers: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                walk(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append(value)

    walk(document)
    known = {f"{100 * v:.1f}" for v in numbers} | {f"{100 * v:.0f}" for v in numbers} | {f"{v:.2f}" for v in numbers}
    main_text = page_text[page_text.index("<main") : page_text.index("</main>")]
    sentences = r'<svg class="chart".*?</svg>|<ul class="findings">.*?</ul>|<section id="limits">.*?</section>'
    main_text = re.sub(sentences, "", main_text, flags=re.DOTALL)
    shown = re.findall(r">([\d.]+)\u00a0%", main_text)
    assert len(shown) > 30
    assert [number for number in shown if number not in known] == []


def test_the_numbers_are_those_of_the_evaluation(reported: vitrail.Run, document, hostile: Path):
    evaluation = vitrail.evaluate(reported.classifier, hostile)
    assert document["summary"]["accuracy"] == reported.result["test"]["accuracy"] == evaluation.accuracy
    assert document["summary"]["images"] == 61
    assert document["confusion"]["matrix"] == confusion_matrix(evaluation.outcome).tolist()
    assert sum(cell["images"] for cell in document["confusion"]["cells"]) == 61
    known = reported.classifier.origin["calibration"]
    assert known["fitted_on"] == "validation"
    assert known["images"] == 60
    assert document["calibration"]["temperature"] == known["temperature"] == reported.classifier.temperature != 1
    assert document["calibration"]["kept"]
    assert document["calibration"]["after"]["nll"] == pytest.approx(evaluation.outcome.loss)
    assert known["nll_after"] < known["nll_before"]
    assert len(document["curves"]) == 4


def test_the_planted_copy_is_found_and_mistakes_have_both_maps(document):
    copies = document["copies"]
    assert copies["across"]["train"] >= 1
    assert copies["seen_in_training"] >= 1
    pair = next(row for row in copies["shown"] if {i["path"].rsplit("/", 1)[-1] for i in row["images"]} == {"copy.png"})
    assert {image["split"] for image in pair["images"]} == {"train", "test"}
    assert document["mistakes"]
    losses = [row["loss"] for row in document["mistakes"]]
    assert losses == sorted(losses, reverse=True)
    for row in document["mistakes"]:
        assert row["true"]["class"] != row["predicted"]["class"]
        assert row["predicted"]["map"] != row["true"]["map"]
        assert np.abs(row["predicted"]["map"]).shape == tuple(document["looks"]["grid"])
    assert document["labels"]["suspected"] > 0
    table = document["faithfulness"]
    assert {"libragrad", "random"} <= table["methods"].keys()
    assert document["properties"]["by"]["size"]["rows"][0]["images"] == 61
    assert document["made"]["command"].startswith("vitrail evaluate ")
    for row in document["looks"]["classes"]:
        assert np.sum(row["map"]) == pytest.approx(1, abs=0.01)


def test_the_page_is_made_from_the_json_and_the_pictures_alone(reported: vitrail.Run, hostile: Path):
    split, parts = open_splits(reported.classifier, hostile)
    evaluation = evaluate(reported.classifier, parts[split])
    subject = Subject(reported.classifier, parts[split], evaluation, split=split, parts=parts)
    document, pictures = collect(subject, SampleSizes(scored=0, corruptions=10))
    again = json.loads(json.dumps(document, allow_nan=False))
    assert render_page(again, pictures) == render_page(document, pictures)
    assert "When images get worse" in render_page(document, pictures)
    assert "vitrail faithfulness" in render_page(document, pictures)


def test_evaluate_writes_a_report_and_replaces_none(
    reported: vitrail.Run, hostile: Path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", str(reported.folder), str(hostile), "--report", "--json", "--quiet"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == "reports/run/report.html"
    assert {"temperature", "brier", "nll", "ece"} <= document.keys()
    first = Path("reports/run/report.json").read_text()
    written = json.loads(first)
    assert written["summary"]["accuracy"] == document["accuracy"]
    assert len(written["curves"]) == 4
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "reports/run-2/report.html"
    assert Path("reports/run/report.json").read_text() == first
    assert main([*words, "--out", "reports/run"]) == 2
    assert "has a report already" in json.loads(capsys.readouterr().out)["error"]
    assert main(["evaluate", str(reported.folder), str(hostile), "--corruptions", "--json"]) == 2
    assert "part of the report" in json.loads(capsys.readouterr().out)["error"]


def test_fit_temperature_changes_the_temperature_alone(reported: vitrail.Run, hostile: Path, tmp_path: Path, capsys):
    plain = replace(reported.classifier, temperature=1.0, origin={**reported.classifier.origin, "calibration": None})
    plain.origin.pop("calibration")
    plain.save(tmp_path / "plain.safetensors")
    words = ["evaluate", str(tmp_path / "plain.safetensors"), str(hostile), "--json"]
    assert main(words) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["temperature"] == 1
    assert main([*words, "--fit-temperature"]) == 0
    after = json.loads(capsys.readouterr().out)
    mended = vitrail.load(tmp_path / "plain.safetensors")
    assert after["temperature"] == mended.temperature == pytest.approx(reported.classifier.temperature)
    assert [p["label"] for p in before["predictions"]] == [p["label"] for p in after["predictions"]]
    assert before["nll"] != after["nll"]
    for name, tensor in plain.vit.state_dict().items():
        assert torch.equal(tensor, mended.vit.state_dict()[name])
    picture_path = before["predictions"][0]["path"]
    assert main(["predict", str(tmp_path / "plain.safetensors"), picture_path, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["predictions"][0]["top"][0]
    assert said["probability"] == pytest.approx(after["predictions"][0]["probability"], abs=1e-6)


def test_the_temperature_is_never_fitted_on_what_is_scored(reported: vitrail.Run, make_folder, tmp_path, capsys):
    folder = make_folder("test-only", {"test": 4}, classes=HOSTILE)
    reported.classifier.save(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert main(["evaluate", str(tmp_path / "a.safetensors"), str(folder), "--fit-temperature", "--json"]) == 2
    assert "no validation images" in json.loads(capsys.readouterr().out)["error"]
    assert (tmp_path / "a.safetensors").read_bytes() == content


def test_fit_temperature_leaves_alone_what_is_not_ours(reported: vitrail.Run, hostile: Path, tmp_path: Path):
    file = tmp_path / "theirs.safetensors"
    save_file({"head.weight": torch.zeros(3, 2)}, file)
    content = file.read_bytes()
    asked = argparse.Namespace(model=str(file), data=str(hostile), skip_unreadable=False, batch=64)
    with pytest.raises(vitrail.UsageError, match="no artefact of yours"):
        with_temperature(reported.classifier, asked)
    assert file.read_bytes() == content


def made_up(n: int, classes: int, shape: tuple[int, int, int] = (3, 16, 16), right: float = 0.7) -> tuple[Subject, int]:
    """A subject whose answers are drawn, on a tiny untrained ViT."""
    rng = np.random.default_rng(n)
    names = tuple(f"class {i}" for i in range(classes))
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes))
    logits[np.arange(n), np.where(rng.random(n) < right, labels, (labels + 1) % classes)] += 6
    pixels = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = Images(pixels, [f"{i}.png" for i in range(n)], labels, names)
    config = vitrail.ViTConfig(
        width=16, depth=1, heads=2, mlp_width=16, patch=4, image_size=shape[1:], channels=shape[0], classes=classes
    )
    middle = (0.5,) * shape[0]
    preprocess = Preprocess(image_size=shape[1:], mean=middle, std=middle)
    classifier = vitrail.Classifier(vitrail.ViT(config).requires_grad_(False), names, preprocess)
    outcome = Outcome(images.names, labels, logits, names)
    return Subject(classifier, images, Evaluation(outcome, "made up"), model="made/up", command="none"), n


@pytest.mark.parametrize(
    ("n", "classes", "shape", "right"),
    [
        (3, 2, (3, 16, 16), 1.0),  # nearly nothing, nothing mistaken
        (1, 2, (1, 8, 8), 0.0),  # one image, mistaken
        (90, 40, (1, 16, 16), 0.5),  # too many classes for a matrix; grey
        (40, 3, (3, 16, 32), 0.7),  # not square
    ],
)
def test_odd_sets_have_reports_too(n: int, classes: int, shape, right: float, tmp_path: Path):
    subject, _ = made_up(n, classes, shape, right)
    document = write_report(subject, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(document))
    assert ('<table class="matrix"' in text) == (classes <= 30)
    assert "there are no validation images" in text
    assert document["left_out"].keys() == (set() if n >= 30 else {"faithfulness"})
    assert ("Not tried here: it takes 30 images" in text) == (document["faithfulness"] is None) == (n < 30)
    if right == 1:
        assert "every image is classified rightly" in text
    if classes > 30:
        assert document["confusion"]["matrix"] is None
        assert len(document["confusion"]["cells"]) <= 60
        assert text.count('class="pair"') == len(document["confusion"]["cells"])


def test_copies_are_not_said_to_be_absent_where_the_scored_images_are_too_many_to_compare():
    subject, _ = made_up(40, 2)
    subject = replace(subject, parts={"train": made_up(10, 2)[0].images})
    document, pictures = collect(subject, SampleSizes(scored=0, compared=20, embedded=10, maps=8))
    assert document["copies"]["looked_at"] == {}
    assert document["copies"]["left_out"] == ["test", "train"]
    assert "copies" not in {row["part"] for row in document["findings"]}
    assert any("Copies were not looked for in test and train" in sentence for sentence in document["limits"])
    assert "Not looked for: 40 test images are too many." in render_page(document, pictures)


def test_points_lie_where_their_images_are_drawn():
    subject, n = made_up(30, 3, right=1.0)
    colours = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)  # alike images: all but one of a colour must move
    pixels = colours[torch.from_numpy(subject.images.labels)].view(n, 3, 1, 1).expand(n, 3, 16, 16)
    images = Images(pixels, subject.images.names, subject.images.labels, subject.images.classes)
    document, pictures = embedded(replace(subject, images=images), SampleSizes())
    drawn = np.asarray(Image.open(io.BytesIO(pictures["embedding"])).convert("RGB")).astype(int)
    for point in document["points"]:
        seen = drawn[int(point["y"] * drawn.shape[0]), int(point["x"] * drawn.shape[1])]
        assert np.abs(seen - colours[point["true"]].numpy()).max() < 30, point


def test_thumbnails_are_each_there_once_and_within_bounds():
    subject, _ = made_up(80, 4)
    document, pictures = collect(subject, SampleSizes(scored=0, thumbnails=25, embedded=10, maps=8))
    sheet = document["thumbnails"]
    assert sheet["tiles"] == len(sheet["images"]) == 25
    shown = [n for cell in document["confusion"]["cells"] for n in cell["shown"]]
    assert max(shown) < 25
    picture = Image.open(io.BytesIO(pictures["images-0"]))
    assert picture.size == (16 * sheet["columns"], 16 * sheet["rows"][0])


def test_many_tiles_take_several_sheets():
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (TILES + 40, 1, 1, 3), dtype=np.uint8)
    layout, files = sheets("x", np.broadcast_to(colours, (TILES + 40, 8, 8, 3)))
    assert layout["files"] == ["x-0", "x-1"]
    from vitrail.report.page import place

    for tile in (0, 33, TILES - 1, TILES, TILES + 39):
        at = place(layout, tile)
        opened = np.asarray(Image.open(io.BytesIO(files[at["file"]])).convert("RGB")).astype(float)
        rows = layout["rows"][layout["files"].index(at["file"])]
        x = round(at["x"] / 100 * (layout["columns"] - 1)) * 8 + 4
        y = round(at["y"] / 100 * (rows - 1)) * 8 + 4
        assert np.abs(opened[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1)) - colours[tile, 0, 0]).max() < 40


def test_a_large_model_on_a_cpu_is_not_explained_for_hours():
    subject, _ = made_up(3, 2)
    small = SampleSizes.for_model(subject.classifier)
    assert small == SampleSizes()
    config = vitrail.ViTConfig(width=768, depth=12, heads=12, mlp_width=3072, patch=16, image_size=224, classes=2)
    with torch.device("meta"):
        vit = vitrail.ViT(config)
    large = SampleSizes.for_model(replace(subject.classifier, vit=vit, preprocess=Preprocess(image_size=(224, 224))))
    assert large.maps < small.maps


def test_no_report_when_none_is_wanted(make_folder, tmp_path: Path):
    run = vitrail.train(
        make_folder("plain", 8),
        out=tmp_path / "run",
        epochs=1,
        width=16,
        depth=1,
        heads=2,
        mlp_width=16,
        report=False,
    )
    assert not (run.folder / "report.html").exists()
    assert (run.folder / "confusion.png").exists()
