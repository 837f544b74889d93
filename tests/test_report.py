"""The report in a browser, opened from disk without a network, and report.json."""

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
from conftest import COLORS, drawing, picture
from serving import TIMEOUT_S
from vitrail.cli import main
from vitrail.cli.evaluate import choose_report_folder, fit_on_validation
from vitrail.data.images import Images
from vitrail.data.preprocess import Preprocess
from vitrail.evaluation import Evaluation, Outcome, evaluate
from vitrail.evaluation.evaluation import open_splits
from vitrail.evaluation.metrics import confusion_matrix
from vitrail.report import SampleSizes, Subject, write_report
from vitrail.report.calibration import recommend_target
from vitrail.report.charts import property_chart
from vitrail.report.collect import collect
from vitrail.report.embedding import collect_embedding
from vitrail.report.findings import calibration
from vitrail.report.page import render_page
from vitrail.report.sample import read_sample, select_images
from vitrail.report.sprite_sheets import TILES_PER_SHEET, make_sheets, sprite_position
from vitrail.runs import run_report

HOSTILE = ("<img src=x onerror=window.pwned=1>", "\"><script>window.pwned=1; alert('&amp;')", "blue {{ 7*7 }} https:")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="no Chromium here: apt install chromium"
)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose class and file names are markup. Some labels are wrong, and one test image is also in train."""
    root = tmp_path_factory.mktemp("hostile") / "data"
    for split, n in (("train", 40), ("val", 20), ("test", 20)):
        for c, label in enumerate(HOSTILE):
            (root / split / label).mkdir(parents=True)
            for i in range(n):
                color = (c + (i % 7 == 0)) % 3  # every seventh label is wrong, so there are mistakes
                image = picture(list(COLORS.values())[color], 10_000 * len(split) + 100 * c + i, (24, 20))
                image.save(root / split / label / f"{i} <b onclick=alert(1)>'.png")
    for split in ("train", "test"):
        duplicate = np.random.default_rng(5).integers(0, 256, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(duplicate).save(root / split / HOSTILE[0] / "duplicate.png")
    return root


@pytest.fixture(scope="session")
def reported(hostile: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.Run:
    """A run with a whole report: a training of seconds leaves time for the cheap parts only."""
    out = tmp_path_factory.mktemp("reported") / "run"
    with pytest.MonkeyPatch.context() as patch, drawing(True):
        patch.setattr(run_report, "TRAINING_FRACTION", 1000)
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
    flags = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield chromium
        chromium.close()


def open_page(browser: Any, path: Path, **options: Any) -> Any:
    """Opens the page without a network; `complaints` lists console messages, errors and external requests."""
    context = browser.new_context(offline=True, **options)
    context.set_default_timeout(1000 * TIMEOUT_S)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or page.complaints.append(request.url)
    )
    page.goto(path.as_uri())
    return page


def mean_color(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).mean(0)


@needs_chromium
def test_a_cell_of_the_matrix_shows_its_images(browser, reported: vitrail.Run, document, hostile: Path):
    page = open_page(browser, reported.folder / "report.html", viewport={"width": 1200, "height": 900})
    assert not page.locator("#cell").is_visible()
    cells, classes = document["confusion"]["cells"], document["classes"]
    number, cell = next((n, c) for n, c in enumerate(cells) if c["true"] != c["predicted"])
    button = page.locator(f'.matrix [data-cell="{number}"]')
    assert button.inner_text() == str(cell["images"])
    button.click()
    dialog = page.locator("#cell")
    assert dialog.is_visible()
    title = page.locator("#cell-title").inner_text()
    assert title == f"{classes[cell['true']]} predicted as {classes[cell['predicted']]}"
    items = dialog.locator("li")
    assert items.count() == len(cell["thumbnails"]) == cell["images"]
    for i, thumbnail in list(enumerate(cell["thumbnails"]))[:5]:
        row = document["thumbnails"]["images"][thumbnail]
        assert items.nth(i).locator(".path").inner_text() == Path(row["path"]).name
        pixels = np.asarray(Image.open(row["path"]).convert("RGB"))
        displayed = mean_color(items.nth(i).locator(".thumb").screenshot())
        original = reported.classifier.read_image(row["path"]).float().mean(dim=(1, 2)).numpy()
        assert np.abs(displayed - original).max() < 14, (displayed, original, pixels.shape)
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
def test_the_page_is_accessible_and_fits_a_phone(browser, reported: vitrail.Run, scheme: str):
    from axe_playwright_python.sync_playwright import Axe

    for width in (360, 1280):
        size = {"width": width, "height": 800}
        page = open_page(
            browser, reported.folder / "report.html", viewport=size, color_scheme=scheme, bypass_csp=True
        )  # otherwise the page's security policy forbids the script of axe
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        result = Axe().run(page)
        assert result.violations_count == 0, result.generate_report()
        page.locator(".matrix .cell").first.click()
        assert page.locator("#cell").is_visible()
        assert page.evaluate("document.querySelector('#cell').scrollWidth <= innerWidth")
        result = Axe().run(page)
        assert result.violations_count == 0, result.generate_report()
        page.context.close()


@needs_chromium
def test_names_are_shown_as_text_and_run_no_script(browser, reported: vitrail.Run):
    page = open_page(browser, reported.folder / "report.html")
    body = page.locator("body").inner_text()
    assert all(name in body for name in HOSTILE)
    assert page.locator("main img").count() == 1  # the embedding map; no image from a name
    assert page.locator("[onerror], [onclick]").count() == 0
    assert page.evaluate("window.pwned") is None
    assert page.complaints == []
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    page.context.close()


def test_the_page_has_no_external_address(page_text: str):
    text = page_text
    for name in HOSTILE:  # one has an address in its name
        text = text.replace(name, "")
    assert not re.findall(
        r"https?://|@import|<link|<iframe|<object|src=\"(?!data:)|href=\"(?!#)|url\((?!data:|#)", text
    )
    assert "default-src 'none'" in text


def test_names_are_escaped_in_the_file(page_text: str):
    for name in HOSTILE[:2]:
        assert name not in page_text
    assert "<b onclick" not in page_text
    assert "{{ 7*7 }}" in page_text  # a name is not a template
    assert page_text.count("</script>") == 2


def test_every_number_of_the_page_is_in_the_json(page_text: str, document):
    numbers: list[float] = []

    def collect_numbers(value: Any) -> None:
        if isinstance(value, dict | list):
            for each in value.values() if isinstance(value, dict) else value:
                collect_numbers(each)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers.append(value)

    collect_numbers(document)
    in_document = (
        {f"{100 * v:.1f}" for v in numbers} | {f"{100 * v:.0f}" for v in numbers} | {f"{v:.2f}" for v in numbers}
    )
    main_text = page_text[page_text.index("<main") : page_text.index("</main>")]
    sentences = r'<svg class="chart".*?</svg>|<ul class="findings">.*?</ul>|<section id="caveats">.*?</section>'
    main_text = re.sub(sentences, "", main_text, flags=re.DOTALL)
    shown = re.findall(r">([\d.]+)%", main_text)
    assert len(shown) > 20
    assert [number for number in shown if number not in in_document] == []


def test_the_numbers_equal_those_of_the_evaluation(reported: vitrail.Run, document, hostile: Path):
    evaluation = vitrail.evaluate(reported.classifier, hostile)
    assert document["summary"]["accuracy"] == reported.result["test"]["accuracy"] == evaluation.accuracy
    assert document["summary"]["images"] == 61
    assert document["confusion"]["matrix"] == confusion_matrix(evaluation.outcome).tolist()
    assert sum(cell["images"] for cell in document["confusion"]["cells"]) == 61
    stored = reported.classifier.origin["calibration"]
    assert stored["fitted_on"] == "validation"
    assert stored["images"] == 60
    assert document["calibration"]["temperature"] == stored["temperature"] == reported.classifier.temperature != 1
    assert document["calibration"]["is_stored"]
    assert document["calibration"]["after"]["nll"] == pytest.approx(evaluation.outcome.loss)
    assert stored["nll_after"] < stored["nll_before"]
    assert len(document["training_metrics"]) == 4


def test_the_planted_duplicate_is_found_and_mistakes_have_both_maps(document):
    section = document["near_duplicates"]
    assert section["pairs_with_splits"]["train"] >= 1
    assert section["images_in_training"] >= 1
    pair = next(
        row for row in section["examples"] if {i["path"].rsplit("/", 1)[-1] for i in row["images"]} == {"duplicate.png"}
    )
    assert {image["split"] for image in pair["images"]} == {"train", "test"}
    assert document["mistakes"]
    losses = [row["loss"] for row in document["mistakes"]]
    assert losses == sorted(losses, reverse=True)
    for row in document["mistakes"]:
        assert row["true"]["class"] != row["predicted"]["class"]
        assert row["predicted"]["map"] != row["true"]["map"]
        assert np.abs(row["predicted"]["map"]).shape == tuple(document["attribution"]["grid"])
    assert document["label_errors"]["suspected"] == 0
    assert "too few to tell wrong labels from mistakes" in document["label_errors"]["reason"]  # 61 images
    table = document["faithfulness"]
    assert {"libragrad", "random"} <= table["methods"].keys()
    assert document["properties"]["by"]["size"]["bins"][0]["images"] == 61
    assert document["provenance"]["command"].startswith("vitrail evaluate ")
    for row in document["attribution"]["classes"]:
        assert np.sum(row["map"]) == pytest.approx(1, abs=0.01)


def test_the_page_is_rendered_from_the_json_and_the_pictures_only(reported: vitrail.Run, hostile: Path):
    split, parts = open_splits(reported.classifier, hostile)
    evaluation = evaluate(reported.classifier, parts[split])
    subject = Subject(reported.classifier, parts[split], evaluation, split=split, splits=parts)
    document, pictures = collect(subject, SampleSizes(faithfulness=0, corruptions=10))
    reloaded = json.loads(json.dumps(document, allow_nan=False))
    assert render_page(reloaded, pictures) == render_page(document, pictures)
    assert "Accuracy under corruption" in render_page(document, pictures)
    assert "vitrail faithfulness" in render_page(document, pictures)


def test_evaluate_writes_a_report_and_never_replaces_one(
    reported: vitrail.Run, hostile: Path, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = ["evaluate", str(reported.folder), str(hostile), "--report", "--json", "--quiet"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["report"] == "reports/run/report.html"
    assert {"temperature", "brier", "loss", "ece"} <= document.keys()
    first = Path("reports/run/report.json").read_text()
    written = json.loads(first)
    assert written["summary"]["accuracy"] == document["accuracy"]
    assert len(written["training_metrics"]) == 4
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "reports/run-2/report.html"
    assert Path("reports/run/report.json").read_text() == first
    assert main([*arguments, "--out", "reports/run"]) == 2
    assert "has a report already" in json.loads(capsys.readouterr().out)["error"]
    assert main(["evaluate", str(reported.folder), str(hostile), "--corruptions", "--json"]) == 2
    assert "--corruptions adds to the report" in json.loads(capsys.readouterr().out)["error"]


def test_fit_temperature_changes_only_the_temperature(reported: vitrail.Run, hostile: Path, tmp_path: Path, capsys):
    plain = replace(reported.classifier, temperature=1.0, origin={**reported.classifier.origin, "calibration": None})
    plain.origin.pop("calibration")
    plain.save(tmp_path / "plain.safetensors")
    arguments = ["evaluate", str(tmp_path / "plain.safetensors"), str(hostile), "--json"]
    assert main(arguments) == 0
    before = json.loads(capsys.readouterr().out)
    assert before["temperature"] == 1
    assert main([*arguments, "--fit-temperature"]) == 0
    after = json.loads(capsys.readouterr().out)
    calibrated = vitrail.load(tmp_path / "plain.safetensors")
    assert after["temperature"] == calibrated.temperature == pytest.approx(reported.classifier.temperature)
    assert [p["label"] for p in before["predictions"]] == [p["label"] for p in after["predictions"]]
    assert before["loss"] != after["loss"]
    for name, tensor in plain.vit.state_dict().items():
        assert torch.equal(tensor, calibrated.vit.state_dict()[name])
    picture_path = before["predictions"][0]["path"]
    assert main(["predict", str(tmp_path / "plain.safetensors"), picture_path, "--json"]) == 0
    top = json.loads(capsys.readouterr().out)["predictions"][0]["top"][0]
    assert top["probability"] == pytest.approx(after["predictions"][0]["probability"], abs=1e-6)


def test_the_temperature_is_never_fitted_on_the_scored_images(reported: vitrail.Run, make_folder, tmp_path, capsys):
    folder = make_folder("test-only", {"test": 4}, classes=HOSTILE)
    reported.classifier.save(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    assert main(["evaluate", str(tmp_path / "a.safetensors"), str(folder), "--fit-temperature", "--json"]) == 2
    assert "no validation images" in json.loads(capsys.readouterr().out)["error"]
    assert (tmp_path / "a.safetensors").read_bytes() == content


def test_fit_temperature_does_not_change_a_foreign_file(reported: vitrail.Run, hostile: Path, tmp_path: Path):
    file = tmp_path / "theirs.safetensors"
    save_file({"head.weight": torch.zeros(3, 2)}, file)
    content = file.read_bytes()
    namespace = argparse.Namespace(
        model=str(file), data=str(hostile), skip_unreadable=False, batch_size=64, fit_temperature=True, fit_unlike=True
    )
    with pytest.raises(vitrail.UsageError, match="not an artifact that can be changed"):
        fit_on_validation(reported.classifier, namespace)
    assert file.read_bytes() == content


def random_subject(n: int, classes: int, shape: tuple[int, int, int] = (3, 16, 16), right: float = 0.7) -> Subject:
    """Returns a subject with random predictions of a tiny untrained ViT; a fraction `right` of them is correct."""
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
    evaluation = Evaluation(outcome, "random images")
    return Subject(classifier, images, evaluation, model_path="random/model", command="none")


@pytest.mark.parametrize(
    ("n", "classes", "shape", "right"),
    [
        (3, 2, (3, 16, 16), 1.0),  # few images, no mistake
        (1, 2, (1, 8, 8), 0.0),  # one image, misclassified
        (90, 40, (1, 16, 16), 0.5),  # too many classes for a matrix; gray
        (40, 3, (3, 16, 32), 0.7),  # not square
    ],
)
def test_reports_of_unusual_sets(n: int, classes: int, shape, right: float, tmp_path: Path):
    subject = random_subject(n, classes, shape, right)
    document = write_report(subject, tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == json.loads(json.dumps(document))
    assert ('<table class="matrix"' in text) == (classes <= 30)
    assert "there are no validation images" in text
    assert document["skipped_parts"].keys() == (set() if n >= 30 else {"faithfulness"})
    assert ("Not measured: at least 30 images are needed" in text) == (document["faithfulness"] is None) == (n < 30)
    if right == 1:
        assert "all images are classified correctly" in text
    if classes > 30:
        assert document["confusion"]["matrix"] is None
        assert len(document["confusion"]["cells"]) <= 60
        assert text.count('class="pair"') == len(document["confusion"]["cells"])


def test_equal_classes_with_few_images_get_no_verdict():
    """Ten maps of one image each used to give intervals of zero width, and alarms about the border."""
    subject = random_subject(40, 10)
    document, pictures = collect(subject, SampleSizes(faithfulness=0, embedding=10, attribution=10))
    section = document["attribution"]
    assert [row["images"] for row in section["classes"]] == [1] * 10
    for row in section["classes"]:
        assert row["border_share_interval"] is None
        assert not row["is_suspicious"]
    assert not section["is_suspicious"]
    findings = {row["section"]: row for row in document["findings"]}
    assert "attribution" not in findings
    assert findings["classes"]["text"] == "The classes are not compared, since most have fewer than 20 images."
    assert "fewer than 20 images get none" in render_page(document, pictures)


def test_verdicts_need_intervals_that_support_them():
    calibrated = {
        "ece": 0.06,
        "ece_corrected": 0.01,
        "ece_interval": [0.0, 0.02],
        "confidence_bias_interval": [-0.03, 0.02],
    }
    section = {"before": calibrated, "after": None, "is_stored": True, "reason": None, "loss_decrease_interval": (0, 0)}
    assert calibration({"calibration": section}) == (
        "ok",
        "No calibration error is visible on these images; it is at most 2.0\u00a0points (95% interval).",
        "calibration",
    )
    vague = {**calibrated, "ece_interval": [0.0, 0.08]}
    assert calibration({"calibration": {**section, "before": vague}}).level == "note"
    wrong = {**calibrated, "ece_interval": [0.05, 0.09], "confidence_bias_interval": [0.04, 0.08]}
    finding = calibration({"calibration": {**section, "before": wrong}})
    assert finding.level == "warning"
    assert finding.text.startswith("The model is overconfident; its calibration error is")
    stored = {**section, "after": calibrated, "temperature": 2.0}
    assert calibration({"calibration": {**stored, "loss_decrease_interval": (0.1, 0.2)}}).level == "ok"
    assert calibration({"calibration": {**stored, "loss_decrease_interval": (-0.1, 0.2)}}).level == "ok"
    harmful = calibration({"calibration": {**stored, "loss_decrease_interval": (-0.2, -0.1)}})
    assert harmful.level == "warning"
    assert "raises the loss" in harmful.text


def test_a_threshold_is_recommended_only_with_a_guarantee():
    row = {"target_accuracy": 0.95, "guaranteed_accuracy": 0.951}
    old = {"target_accuracy": 0.9, "guaranteed_accuracy": None}  # of an earlier version
    assert recommend_target([old, row], accuracy=0.8) == 0.95
    assert recommend_target([old], accuracy=0.8) is None


def test_a_report_of_a_model_with_an_old_threshold_says_that_it_has_no_guarantee(reported: vitrail.Run, hostile: Path):
    row = {"target_accuracy": 0.9, "threshold": 0.5, "coverage": 0.8, "accuracy": 0.91}
    stored = reported.classifier.origin["calibration"] | {"thresholds": [row]}
    classifier = replace(reported.classifier, origin=reported.classifier.origin | {"calibration": stored})
    split, parts = open_splits(classifier, hostile)
    subject = Subject(classifier, parts[split], evaluate(classifier, parts[split]), split=split, splits=parts)
    document, pictures = collect(subject, SampleSizes(faithfulness=0, embedding=10, attribution=8))
    assert document["selective_prediction"]["recommended"] is None
    assert "chose it, without a guarantee" in render_page(document, pictures)


def test_bars_of_accuracy_begin_at_zero():
    bins = [{"from": 0, "to": 1, "images": 50, "accuracy": a, "interval": [a - 0.1, a + 0.1]} for a in (0.8, 0.4)]
    chart = str(property_chart("size", bins, 0.6))
    high, low = (float(height) for height in re.findall(r'class="bar[^>]*height="([\d.]+)"', chart))
    assert high == pytest.approx(2 * low, rel=0.01)


def test_corruptions_of_a_large_model_use_fewer_images():
    subject = random_subject(3, 2)
    assert SampleSizes.for_model(subject.classifier, corruptions=True).corruptions == 2000
    config = vitrail.ViTConfig(width=768, depth=12, heads=12, mlp_width=3072, patch=16, image_size=224, classes=2)
    with torch.device("meta"):
        large = replace(subject.classifier, vit=vitrail.ViT(config), preprocess=Preprocess(image_size=(224, 224)))
    assert 100 <= SampleSizes.for_model(large, corruptions=True).corruptions < 1000


def test_the_report_folder_has_the_whole_name_of_a_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/photos-v1.2").mkdir(parents=True)
    Path("weights.v2.safetensors").touch()
    for model, folder in (("runs/photos-v1.2", "photos-v1.2"), ("weights.v2.safetensors", "weights.v2")):
        assert choose_report_folder(argparse.Namespace(model=model, out=None)) == Path("reports", folder)


def test_near_duplicates_are_not_searched_if_the_scored_images_are_too_many():
    subject = random_subject(40, 2)
    subject = replace(subject, splits={"train": random_subject(10, 2).images})
    document, pictures = collect(subject, SampleSizes(faithfulness=0, near_duplicates=20, embedding=10, attribution=8))
    assert document["near_duplicates"]["compared_images"] == {}
    assert document["near_duplicates"]["skipped_splits"] == ["test", "train"]
    assert "near-duplicates" not in {row["section"] for row in document["findings"]}
    assert any("Near-duplicates were not searched in test and train" in sentence for sentence in document["caveats"])
    assert "Not searched: 40 test images are too many." in render_page(document, pictures)


def test_points_of_the_embedding_map_are_where_their_images_are():
    subject = random_subject(30, 3, right=1.0)
    # equal images have equal positions: all but one of each color must move
    colors = torch.tensor(list(COLORS.values()), dtype=torch.uint8)
    pixels = colors[torch.from_numpy(subject.images.labels)].view(30, 3, 1, 1).expand(30, 3, 16, 16)
    images = Images(pixels, subject.images.names, subject.images.labels, subject.images.classes)
    subject = replace(subject, images=images)
    outcome, preprocess = subject.evaluation.outcome, subject.classifier.preprocess
    sample = read_sample(images, preprocess, select_images(outcome, SampleSizes()), [])
    document, pictures = collect_embedding(subject.classifier, outcome, sample)
    drawn = np.asarray(Image.open(io.BytesIO(pictures["embedding"])).convert("RGB")).astype(int)
    for point in document["points"]:
        pixel = drawn[int(point["y"] * drawn.shape[0]), int(point["x"] * drawn.shape[1])]
        assert np.abs(pixel - colors[point["true"]].numpy()).max() < 30, point


def test_each_image_has_at_most_one_thumbnail():
    subject = random_subject(80, 4)
    document, pictures = collect(subject, SampleSizes(faithfulness=0, thumbnails=25, embedding=10, attribution=8))
    sheet = document["thumbnails"]
    assert sheet["tiles"] == len(sheet["images"]) == 25
    shown = [n for cell in document["confusion"]["cells"] for n in cell["thumbnails"]]
    assert max(shown) < 25
    picture = Image.open(io.BytesIO(pictures["images-0"]))
    assert picture.size == (16 * sheet["columns"], 16 * sheet["rows"][0])


def test_many_tiles_need_several_sheets():
    rng = np.random.default_rng(0)
    colors = rng.integers(0, 256, (TILES_PER_SHEET + 40, 1, 1, 3), dtype=np.uint8)
    layout, files = make_sheets("x", np.broadcast_to(colors, (TILES_PER_SHEET + 40, 8, 8, 3)))
    assert layout["files"] == ["x-0", "x-1"]
    for tile in (0, 33, TILES_PER_SHEET - 1, TILES_PER_SHEET, TILES_PER_SHEET + 39):
        at = sprite_position(layout, tile)
        sheet = np.asarray(Image.open(io.BytesIO(files[at["file"]])).convert("RGB")).astype(float)
        rows = layout["rows"][layout["files"].index(at["file"])]
        x = round(at["x"] / 100 * (layout["columns"] - 1)) * 8 + 4
        y = round(at["y"] / 100 * (rows - 1)) * 8 + 4
        assert np.abs(sheet[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1)) - colors[tile, 0, 0]).max() < 40


def test_a_large_model_on_a_cpu_has_smaller_samples():
    subject = random_subject(3, 2)
    small = SampleSizes.for_model(subject.classifier)
    assert small == SampleSizes()
    config = vitrail.ViTConfig(width=768, depth=12, heads=12, mlp_width=3072, patch=16, image_size=224, classes=2)
    with torch.device("meta"):
        vit = vitrail.ViT(config)
    large = SampleSizes.for_model(replace(subject.classifier, vit=vit, preprocess=Preprocess(image_size=(224, 224))))
    assert large.attribution < small.attribution


@pytest.mark.usefixtures("pictures")
def test_no_report_with_make_report_false(make_folder, tmp_path: Path):
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
