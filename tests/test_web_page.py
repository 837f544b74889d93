"""The web page: its outputs equal Python's, its controls work offline, and nothing leaves it."""

import base64
import contextlib
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from serving import TIMEOUT_S, RunningServer
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.cli.web_page import find_training_data
from vitrail.data.preprocess import Preprocess
from vitrail.explanation.api import explain_batch
from vitrail.explanation.inputs import embed_images
from vitrail.explanation.measures import area_under_curve, remaining_counts
from vitrail.exporting.web import bundle, render_page
from vitrail.exporting.web.examples import choose_examples, load_examples, png_data_url
from vitrail.exporting.web.graphs import Graphs, pack_graphs, trace_graphs
from vitrail.exporting.web.verify import verify_graphs
from vitrail.model.config import Rotary
from vitrail.runs.folder import RunFolder
from vitrail.tasks import MULTI_LABEL

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
BROWSER_OPTIONS = [
    "--no-sandbox", "--disable-quic", "--disable-background-networking", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip
CLASSES = ("cat", "it's <b>bold</b>", "</script><script>window.pwned=1</script>", "dog", 'a "b" c', "señal")
GRID = (4, 5)


def classifier(seed: int = 0, **options: Any) -> Classifier:
    """A ViT with random weights and large logits."""
    tiny: dict[str, Any] = dict(
        width=32, depth=2, heads=2, mlp_width=64, patch=8, image_size=(32, 40), classes=len(CLASSES), pool="cls"
    )
    config = ViTConfig(**{**tiny, **options})
    torch.manual_seed(seed)
    vit = ViT(config).eval()
    with torch.no_grad():
        for name, parameter in vit.named_parameters():
            if parameter.ndim > 1 and not name.startswith("head"):
                parameter.normal_(0, 0.25)
            elif name == "head.weight":
                parameter.normal_(0, 0.5)
    mean = (0.5,) * config.channels
    size = (32, 40) if config.image_size == (32, 40) else (config.image_size,) * 2
    preprocess = Preprocess(image_size=size, mean=mean, std=(0.25,) * config.channels)
    names = CLASSES[: config.classes]
    return Classifier(vit.requires_grad_(False), names, preprocess, temperature=1.3)


@pytest.fixture(scope="module")
def model() -> Classifier:
    return classifier()


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth noise of several sizes, all of which need resizing."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(40, 32), (93, 57), (31, 118)]):
        small = Image.fromarray(generator.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        paths.append(folder / f"{i} <i>.png")
        small.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def written(model: Classifier, noise: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The page that the command line writes, and its JSON output."""
    folder = tmp_path_factory.mktemp("page")
    model.save(folder / "it's mine.safetensors")
    arguments = ["export", str(folder / "it's mine.safetensors"), "--format", "web", "--out", str(folder / "page.html")]
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main([*arguments, "--examples", *map(str, noise), "--title", "Mine <i>", "--json", "--quiet"]) == 0
    return folder / "page.html", json.loads(output.getvalue())


@pytest.fixture(scope="module")
def file(written: tuple[Path, Any]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=BROWSER_OPTIONS)
        yield browser
        browser.close()


def open_tab(browser: Any, **options: Any) -> Any:
    """An empty offline tab; `complaints` collects console messages, errors and requests to the network."""
    context = browser.new_context(**{"offline": True, "viewport": {"width": 1280, "height": 1000}, **options})
    context.set_default_timeout(1000 * TIMEOUT_S)
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    local = ("file:", "data:", "blob:", "http://127.0.0.1")
    page.on("request", lambda request: request.url.startswith(local) or page.complaints.append(request.url))
    return page


def load_page(page: Any, address: str) -> Any:
    page.goto(address)
    page.get_by_text("Answered in").wait_for()
    return page


@dataclass(frozen=True)
class Site:
    """The address of a page, and its example images."""

    address: str
    images: list[Path]
    offline: bool


@pytest.fixture(scope="module", params=["file", "served"])
def site(request, model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The file on disk, offline, and the page that `vitrail serve` returns for /."""
    if request.param == "file":
        file = request.getfixturevalue("file")
        yield Site(file.as_uri(), request.getfixturevalue("noise"), offline=True)
        return
    path = tmp_path_factory.mktemp("served") / "mine.safetensors"
    model.save(path)
    photos = Path(str(resources.files("vitrail.exporting.sample_photos")))
    with RunningServer([path]) as server:
        examples = [photos / name for name in ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")]
        yield Site(f"http://127.0.0.1:{server.port}/", examples, offline=False)


@pytest.fixture(scope="module")
def images(site: Site) -> list[Path]:
    return site.images


@pytest.fixture(scope="module")
def page(browser, site: Site) -> Iterator[Any]:
    """The page with its model loaded; the tests below share it."""
    page = load_page(open_tab(browser, offline=site.offline), site.address)
    yield page
    assert page.complaints == []
    assert page.evaluate("window.pwned") is None
    page.context.close()


@pytest.fixture
def reset_page(page) -> Any:
    """The shared page, with its first example in the first view."""
    page.evaluate("location.hash = '#image=0'")
    page.locator("#gallery button[data-source='0']").click()
    page.locator("#tab-evidence").click()
    page.get_by_text("Answered in").wait_for()
    wait_until_idle(page)
    return page


def wait_until_idle(page: Any) -> None:
    """Waits until the model has no more requests."""
    page.evaluate("""async () => {
      const { getState, numbers } = vitrail;
      const content = () => JSON.stringify([numbers(), getState().image.curves, document.body.innerText]);
      for (let before = ""; before !== content(); ) {
        before = content();
        await new Promise((done) => setTimeout(done, 250));
      }
    }""")


def numbers(page: Any) -> dict[str, Any]:
    document: dict[str, Any] = page.evaluate("vitrail.numbers()")
    return document


def is_close(actual: Any, expected: Any) -> bool:
    actual, expected = np.asarray(actual, dtype=float).ravel(), np.asarray(expected, dtype=float).ravel()
    largest = max(1.0, np.abs(expected).max())
    return actual.shape == expected.shape and bool(np.abs(actual - expected).max() <= 1e-4 * largest)


@needs_chromium
def test_logits_attention_and_maps_equal_pythons(reset_page, model: Classifier, images: list[Path]):
    page = reset_page
    for number, path in enumerate(images):
        page.locator(f"#gallery button[data-source='{number}']").click()
        wait_until_idle(page)
        pixels = model.read_image(path)[None]
        document = numbers(page)
        assert is_close(document["logits"], model.logits(pixels)[0] * model.temperature)
        predictions = model.predict(path, top=5)
        assert [row["label"] for row in document["top"]] == [p.label for p in predictions]
        assert is_close([row["probability"] for row in document["top"]], [p.probability for p in predictions])
        explanation = vitrail.explain(model, path)
        assert is_close(document["map"], explanation.map)
        assert document["summary"].lower() == explanation.summary.lower() + "."
        with torch.no_grad(), vitrail.recording(model.vit) as record:
            model.vit(model.normalize(pixels))
        attention = torch.stack([record.attention(layer)[0] for layer in range(2)])
        assert is_close(page.evaluate("Array.from(vitrail.getState().image.attention)"), attention)
    for label in CLASSES[:3]:
        page.locator("#label").select_option(label=label)
        wait_until_idle(page)
        assert is_close(numbers(page)["map"], vitrail.explain(model, images[-1], target=label).map)
    page.locator("#against").select_option(label="dog")
    wait_until_idle(page)
    document, explanation = numbers(page), vitrail.explain(model, images[-1], target=(CLASSES[2], "dog"))
    assert is_close(document["map"], explanation.map)
    assert (document["label"], document["against"]) == (CLASSES[2], "dog")
    assert document["summary"].lower() == explanation.summary.lower() + "."


@needs_chromium
def test_attention_of_a_patch_by_layer_and_head(reset_page, model: Classifier, images: list[Path]):
    page = reset_page
    page.locator("#tab-attention").click()
    explain = partial(explain_batch, model, model.read_image(images[0])[None], method="attention")
    assert is_close(numbers(page)["map"], explain()[0].map)  # the attention of the prediction
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)
    row, column = numbers(page)["query"]
    assert column == 2
    assert is_close(numbers(page)["map"], explain(query=(row, column))[0].map)
    page.mouse.move(box["x"] - 20, box["y"])
    assert numbers(page)["query"] is None  # the patch was not pinned
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)
    page.mouse.move(box["x"] - 20, box["y"])
    assert numbers(page)["query"] == [row, column]
    for layer, head in ((0, 1), (1, 0), (1, None)):
        page.locator("#layer").fill(str(layer))
        page.locator("#head").fill(str(-1 if head is None else head))
        document = numbers(page)
        assert (document["layer"], document["head"]) == (layer, head)
        assert is_close(document["map"], explain(layer=layer, head=head, query=(row, column))[0].map)
        assert "vitrail explain" in page.locator("#shell").inner_text()
    page.locator("#direction-from").click()
    with torch.no_grad(), vitrail.recording(model.vit) as record:
        model.vit(model.normalize(model.read_image(images[0])[None]))
    received = record.attention(1)[0].mean(0)[1:, 1 + row * GRID[1] + column]
    assert is_close(numbers(page)["map"], received)
    assert "record.attention(1)" in page.locator("#python").inner_text()
    page.locator("#viewer").press("Escape")  # no patch: the attention of the prediction has one direction
    assert numbers(page)["query"] is None
    assert numbers(page)["direction"] == "to"
    assert "half of it goes to" in page.locator("#caption").inner_text()
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)
    page.mouse.move(box["x"] - 20, box["y"])
    assert numbers(page)["direction"] == "from"
    page.locator("#direction-to").click()
    page.locator("#heads button").nth(1).click()
    assert numbers(page)["head"] == 1
    caption = page.locator("#caption").inner_text()
    assert re.match(rf"Layer 1, head 1: row {row}, column {column} attends most to ", caption)


@needs_chromium
def test_hidden_patches_are_left_out(reset_page, model: Classifier, images: list[Path]):
    page = reset_page
    page.locator("#hide").fill("35")
    wait_until_idle(page)
    hidden = numbers(page)["hidden"]
    assert len(hidden["patches"]) == 7
    inputs = embed_images(model, model.read_image(images[0])[None], [None])
    label = model.logits(model.read_image(images[0])[None])[0].argmax()
    order = vitrail.explain(model, images[0]).map.ravel().argsort()[::-1]
    assert sorted(hidden["patches"]) == sorted(order[:7].tolist())

    def probability_without(patches: list[int]) -> float:
        keep = torch.tensor([[p for p in range(20) if p not in set(patches)]])
        return float((inputs.logits_of_patches(keep) / model.temperature).softmax(1)[0, label])

    assert hidden["probability"] == pytest.approx(probability_without(hidden["patches"]), abs=1e-4)
    orders = page.evaluate("vitrail.getState().image.randomOrders")
    assert len({tuple(order) for order in orders}) == 5
    assert is_close(hidden["at_random"], [probability_without(order[:7]) for order in orders])
    assert page.locator("#value-map").inner_text() == f"{100 * hidden['probability']:.1f}\u00a0%"
    assert "over all steps" in page.locator("#curve-summary").inner_text()
    page.locator("#hide").fill("95")
    wait_until_idle(page)
    assert len(numbers(page)["hidden"]["patches"]) == 19  # one always remains


@needs_chromium
def test_the_area_under_a_curve_of_uneven_steps_is_pythons(browser):
    curve, remaining = np.random.default_rng(0).random((1, 13)), remaining_counts(20, 12)
    code = (resources.files("vitrail.exporting.web") / "site" / "occlusion.js").read_text()
    module = "import('data:text/javascript,' + encodeURIComponent(code))"
    page = open_tab(browser)
    area = page.evaluate(
        f"async ([code, fractions, values]) => (await {module}).areaUnderCurve(fractions, values)",
        [code, [(20 - n) / 20 for n in remaining], curve[0].tolist()],
    )
    assert area == pytest.approx(area_under_curve(curve, remaining)[0], abs=1e-12)
    page.context.close()


@needs_chromium
def test_the_layers_tab_is_the_logit_lens(reset_page, model: Classifier, images: list[Path]):
    page = reset_page
    page.locator("#tab-layers").click()
    for layer in range(2):
        page.locator("#layers-list button").nth(layer).click()
        explanation = vitrail.explain(model, images[0], method="logit_lens", layer=layer)
        assert is_close(numbers(page)["map"], explanation.map)
    layer_logits = numbers(page)["layer_logits"]
    assert is_close(layer_logits[-1], numbers(page)["logits"])
    assert page.locator("#layers-list b").last.inner_text() == numbers(page)["predicted"]


@needs_chromium
def test_an_own_image_can_be_opened_dropped_pasted_or_photographed(
    reset_page, model: Classifier, images: list[Path], tmp_path: Path
):
    page = reset_page
    gray_alpha = tmp_path / "transparent.png"
    Image.merge("LA", [Image.open(images[1]).convert("L")] * 2).save(gray_alpha)
    sideways = tmp_path / "sideways.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images[1]).save(sideways, exif=exif)
    for path in (images[1], gray_alpha, sideways):
        page.locator("#file").set_input_files(path)
        page.locator("#gallery button[data-source=own]").wait_for()
        wait_until_idle(page)
        assert numbers(page)["image"] == path.name
        tolerance = 0.15 if path is gray_alpha else 0  # transparency is rounded twice
        expected = model.logits(model.read_image(path)[None])[0] * model.temperature
        logits = numbers(page)["logits"]
        assert is_close(logits, expected) or np.abs(logits - expected.numpy()).max() < tolerance
    send = """([event, bytes, type]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(bytes)], event + ".png", { type }));
      const options = { bubbles: true, cancelable: true };
      const created = event === "paste" ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
        : new DragEvent(event, { ...options, dataTransfer: transfer });
      document.body.dispatchEvent(created);
    }"""
    for event, path in (("drop", images[2]), ("paste", images[1])):
        page.evaluate(send, [event, list(path.read_bytes()), "image/png"])
        page.wait_for_timeout(100)
        wait_until_idle(page)
        assert numbers(page)["image"] == f"{event}.png"
        assert is_close(numbers(page)["logits"], model.logits(model.read_image(path)[None])[0] * model.temperature)
    page.evaluate(send, ["drop", [1, 2, 3], "image/png"])
    page.get_by_text("is not an image that this browser can read").wait_for()
    assert numbers(page)["image"] == "paste.png"  # the image before stays
    page.locator("#camera").click()
    page.locator("#video").wait_for()
    page.evaluate("""new Promise((done) => {
      const video = document.getElementById("video");
      video.videoWidth ? done() : (video.onloadeddata = done);
    })""")
    page.locator("#take-picture").click()
    page.get_by_text("camera.png").first.wait_for()
    assert page.locator("#error").inner_text() == ""
    opened = page.evaluate("""async () => {
      const original = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      let count = 0;
      navigator.mediaDevices.getUserMedia = (options) => (count++, original(options));
      document.getElementById("camera").click();
      document.getElementById("camera").click(); // before the person has answered
      await new Promise((done) => setTimeout(done, 200));
      return count;
    }""")
    assert opened == 1
    page.locator("#video").wait_for()
    page.locator("#close-camera").click()
    assert not page.locator("#camera-dialog").is_visible()


@needs_chromium
def test_an_image_that_loads_late_does_not_replace_a_newer_choice(reset_page, images: list[Path]):
    page = reset_page
    page.evaluate(
        """(bytes) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([Uint8Array.from(bytes)], "late.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
          document.querySelector("#gallery button[data-source='1']").click();
        }""",
        list(images[2].read_bytes()),
    )
    wait_until_idle(page)
    assert numbers(page)["image"] == images[1].name
    page.locator("#file").set_input_files(images[2])
    page.locator("#gallery button[data-source=own]").wait_for()
    wait_until_idle(page)
    assert numbers(page)["image"] == images[2].name
    page.evaluate("""for (const image of ["own", "1"]) {
      document.querySelector(`#gallery button[data-source="${image}"]`).click();
    }""")
    wait_until_idle(page)
    assert numbers(page)["image"] == images[1].name
    page.locator("#gallery button[data-source=own]").click()
    wait_until_idle(page)
    assert numbers(page)["image"] == images[2].name


@needs_chromium
def test_the_keyboard_controls_everything(reset_page):
    page = reset_page
    page.locator("#viewer").focus()
    for key in ("a", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert numbers(page)["query"] == [1, 3]
    assert "row 1, column 3" in page.locator("#announcement").inner_text()
    page.keyboard.press("[")
    page.keyboard.press(".")
    assert (numbers(page)["layer"], numbers(page)["head"]) == (0, 0)
    page.keyboard.press("Escape")
    assert numbers(page)["query"] is None
    page.keyboard.press("e")
    page.keyboard.press("2")
    assert numbers(page)["label"] == numbers(page)["top"][1]["label"]
    page.keyboard.press("+")
    page.keyboard.press("p")
    wait_until_idle(page)
    assert len(numbers(page)["hidden"]["patches"]) == 1
    assert page.locator("#map-opacity").input_value() == "0"
    page.keyboard.press("p")
    page.locator("#tab-evidence").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#attention").is_visible()
    assert page.evaluate("document.activeElement.id") == "tab-attention"


@needs_chromium
def test_a_view_is_saved_and_shared(reset_page, browser, model: Classifier, images: list[Path], site: Site):
    page = reset_page
    page.locator("#top-classes button").nth(2).click()
    wait_until_idle(page)
    label = numbers(page)["label"]
    with page.expect_download() as download:
        page.locator("#json").click()
    document = json.loads(Path(download.value.path()).read_text())
    expected = vitrail.explain(model, images[0], target=label).to_json()
    assert is_close(document["map"], expected["map"])
    assert {k: document[k] for k in ("label", "predicted", "against", "method", "signed")} == {
        k: expected[k] for k in ("label", "predicted", "against", "method", "signed")
    }
    with page.expect_download() as download:
        page.locator("#png").click()
    picture = np.asarray(Image.open(download.value.path()).convert("RGB"))
    assert picture.shape[1] == 2000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    python = page.locator("#python").inner_text()
    names = {"path": images[0], "vitrail": SimpleNamespace(load=lambda name: model, explain=vitrail.explain)}
    explanation = eval(python.replace(f'"{images[0].name}"', "path"), names)
    assert explanation.label == label
    page.wait_for_timeout(300)
    address = page.evaluate("location.hash")
    page.locator("#file").set_input_files(images[1])
    page.locator("#gallery button[data-source=own]").wait_for()
    wait_until_idle(page)
    own_logits = numbers(page)["logits"]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#link").click()
    page.get_by_text("Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    page.evaluate(f"location.hash = {json.dumps(address)}")
    wait_until_idle(page)
    assert numbers(page)["label"] == label
    assert is_close(numbers(page)["map"], document["map"])
    page.evaluate("location.hash = '#image=99&view=nonsense&class=unknown&layer=77&head=x&patch=-3&hide=1e9'")
    wait_until_idle(page)
    assert numbers(page)["label"] == model.predict(images[0])[0].label
    other = load_page(open_tab(browser, offline=site.offline), link)
    wait_until_idle(other)
    assert is_close(numbers(other)["logits"], own_logits)  # the link contains a small image
    assert other.complaints == []
    other.context.close()


@needs_chromium
def test_examples_are_drawn_before_the_model_has_loaded(browser, model: Classifier, noise: list[Path], file: Path):
    page = open_tab(browser)
    page.add_init_script("window.Worker = class { postMessage() {} }")  # it never responds
    page.goto(file.as_uri())
    page.locator("#top-classes button").first.wait_for()
    explanation = vitrail.explain(model, noise[0])
    assert page.locator("#prediction").inner_text() == f"{explanation.label} {explanation.probability:.0%}".replace(
        "%", "\u00a0%"
    )
    assert page.locator("#caption").inner_text().lower() == explanation.summary.lower() + "."
    page.locator("#tab-attention").click()
    assert "when the model has loaded" in page.locator("#caption").inner_text()
    assert page.complaints == []
    page.context.close()


@needs_chromium
def test_an_error_is_shown_if_the_model_cannot_run(browser, file: Path, model: Classifier, noise: list[Path]):
    page = open_tab(browser)
    page.add_init_script(
        "delete window.DecompressionStream; window.Worker = class { constructor() { throw new Error('none here') } }"
    )
    own = base64.urlsafe_b64encode(model.read_image(noise[1]).numpy().tobytes()).decode().rstrip("=")
    page.goto(f"{file.as_uri()}#image=px:{own}")
    page.evaluate("vitrail.opened")
    assert page.locator("#error").inner_text() == "The model cannot run in this browser: none here"
    assert page.locator("#top-classes button").count() == 5  # of the first example: the own image has no logits
    for damaged in ("!", own[:40]):  # no base64, and a link that was cut
        page.evaluate("location.hash = '#image=0'")
        page.wait_for_function("document.getElementById('error').textContent === ''")
        page.evaluate(f"location.hash = '#image=px:{damaged}'")
        page.get_by_text("The image in this link is damaged.").wait_for()
    page.context.close()


@needs_chromium
def test_a_worker_that_fails_is_reported_and_answers_nothing_more(browser, file: Path):
    page = open_tab(browser)
    page.add_init_script(
        "window.Worker = class { postMessage() { setTimeout(() => {"
        " this.onerror({ message: 'gone', preventDefault() {} }); this.onmessage({ data: { outputs: {} } }); }) } }"
    )
    page.goto(file.as_uri())
    page.evaluate("vitrail.opened")
    assert page.locator("#error").inner_text() == "The model cannot run in this browser: gone"
    assert not page.complaints
    page.context.close()


@needs_chromium
def test_the_attention_of_the_prediction_weights_tokens_as_attention_pooling_does(
    browser, noise: list[Path], tmp_path: Path
):
    other = classifier(seed=2, depth=2, prefix_tokens=0, pool="map")
    (tmp_path / "page.html").write_bytes(render_page(other, noise[:1]))
    page = load_page(open_tab(browser), (tmp_path / "page.html").as_uri())
    page.locator("#tab-attention").click()
    explanation = explain_batch(other, other.read_image(noise[0])[None], method="attention")[0]
    assert is_close(numbers(page)["map"], explanation.map)
    page.context.close()


@needs_chromium
def test_a_page_of_several_labels_lists_those_above_their_thresholds(
    browser, model: Classifier, noise: list[Path], tmp_path: Path
):
    strict, lax = (0.9, 0.75, 0.9, 0.97, 0.6, 0.7), (0.02,) * len(CLASSES)
    several = [replace(model, task=MULTI_LABEL, thresholds=thresholds) for thresholds in (strict, lax)]
    for number, labeled in enumerate(several):
        (tmp_path / f"{number}.html").write_bytes(render_page(labeled, noise))
        page = load_page(open_tab(browser), (tmp_path / f"{number}.html").as_uri())
        for i, path in enumerate(noise):
            page.locator(f"#gallery button[data-source='{i}']").click()
            wait_until_idle(page)
            prediction, explanation = labeled.predict(path), vitrail.explain(labeled, path)
            shown = ", ".join(f"{each.label} {100 * each.probability:.0f}\u00a0%" for each in prediction)
            assert page.locator("#prediction").inner_text() == (shown or "no label")
            document = numbers(page)
            assert document["labels"] == list(prediction.labels)
            assert document["predicted"] == explanation.predicted
            assert {each["label"]: each["probability"] for each in document["top"]} == pytest.approx(
                {each["label"]: prediction.probabilities[each["label"]] for each in document["top"]}, abs=1e-5
            )
            rows = page.locator("#top-classes button").all()
            above = [row.locator(".name").inner_text() for row in rows if row.get_attribute("data-predicted") == "true"]
            assert above == list(prediction.labels) and len(rows) == max(5, len(above))
            assert is_close(document["map"], explanation.map)
            assert document["summary"].lower() == explanation.summary.lower() + "."
        with page.expect_download() as download:
            page.locator("#png").click()
        assert np.asarray(Image.open(download.value.path()).convert("RGB")).shape[1] == 2000
        assert page.complaints == [] and page.evaluate("window.pwned") is None
        page.context.close()
    counts = [[len(labeled.predict(path).labels) for path in noise] for labeled in several]
    assert counts == [[0, 1, 1], [6, 6, 6]]


@needs_chromium
def test_it_is_accessible_and_fits_a_phone(browser, file: Path):
    from axe_playwright_python.sync_playwright import Axe

    page = open_tab(browser, bypass_csp=True, reduced_motion="reduce")  # the page's policy forbids the checker
    load_page(page, file.as_uri())
    for width, scheme, views in ((1280, "light", ("attention", "layers", "evidence")), (360, "dark", ("evidence",))):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        for view in views:
            page.locator(f"#tab-{view}").click()
            results = Axe().run(page)
            assert results.violations_count == 0, results.generate_report()
    for view in ("attention", "layers", "evidence"):
        page.locator(f"#tab-{view}").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.context.close()


@needs_chromium
def test_the_page_works_over_http_without_further_requests(browser, file: Path, model: Classifier, noise: list[Path]):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(file.read_bytes())

        def log_message(self, *_: object) -> None:
            paths.append(self.path)

    paths: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = load_page(open_tab(browser, offline=False), f"http://127.0.0.1:{server.server_port}/")
    assert is_close(numbers(page)["logits"], model.logits(model.read_image(noise[0])[None])[0] * model.temperature)
    page.context.close()
    server.shutdown()
    server.server_close()
    assert paths == ["/"]
    assert page.complaints == []


FITS = [
    (fit, engine, interpolation, crop)
    for fit in ("pad", "crop", "stretch")
    for engine in ("torch", "pillow", "transformers")
    for interpolation, crop in (("bilinear", 1.0), ("bicubic", 0.875))
]


@needs_chromium
def test_images_are_resized_to_the_same_bits_as_in_python(page):
    generator = np.random.default_rng(3)
    for n, (fit, engine, interpolation, crop) in enumerate(FITS):
        channels = 1 if n % 4 == 0 else 3
        options = dict(fit=fit, engine=engine, interpolation=interpolation, crop_fraction=crop, trim=(n % 3, n % 2))
        preprocess = Preprocess(image_size=(30, 24), mean=(0.3,) * channels, std=(0.5,) * channels, **options)
        for h, w in ((97, 61), (13, 55), (200, 9)):
            pixels = torch.from_numpy(generator.integers(0, 256, (channels, h, w), dtype=np.uint8))
            planes = page.evaluate(
                """([planes, height, width, preprocess]) => {
                  const image = { planes: Uint8Array.from(planes), height, width };
                  return Array.from(vitrail.fitImage(image, preprocess).planes);
                }""",
                [pixels.flatten().tolist(), h, w, preprocess.to_json()],
            )
            difference = np.abs(np.array(planes) - preprocess.fit_image(pixels).flatten().numpy().astype(int))
            assert difference.max() <= (0 if resizes_in_integers() or engine == "pillow" else 1), (
                options,
                h,
                w,
                difference.max(),
            )


@needs_chromium
def test_an_image_that_is_fitted_is_not_cropped_again(page):
    """As when it is chosen in the gallery once more."""
    preprocess = Preprocess(image_size=(30, 24), fit="crop", crop_fraction=0.875, mean=(0.5,), std=(0.5,))
    once, twice = page.evaluate(
        """(preprocess) => {
          const image = { planes: Uint8Array.from({ length: 2400 }, (_, i) => (37 * i) % 256), height: 60, width: 40 };
          const once = vitrail.fitImage(image, preprocess);
          return [once, vitrail.fitImage(once, preprocess)].map(({ planes }) => Array.from(planes));
        }""",
        preprocess.to_json(),
    )
    assert once == twice


@needs_chromium
@pytest.mark.parametrize("size", [(64, 64), (40, 80)])
def test_bars_that_are_a_part_of_the_photo_are_no_padding(reset_page, model: Classifier, tmp_path: Path, size):
    page = reset_page
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    bar = 3 * size[0] // 8
    pixels[:bar] = pixels[-bar:] = model.preprocess.mean_color
    Image.fromarray(pixels).save(tmp_path / "bars.png")
    page.locator("#file").set_input_files(tmp_path / "bars.png")
    page.locator("#gallery button[data-source=own]").wait_for()
    wait_until_idle(page)
    expected = vitrail.explain(model, tmp_path / "bars.png", target=numbers(page)["label"])
    assert is_close(numbers(page)["map"], expected.map.tolist())
    assert (np.array(numbers(page)["map"]) != 0).reshape(
        expected.map.shape
    ).tolist() == expected.content_patches.tolist()


@needs_chromium
def test_an_image_too_thin_to_be_cropped_is_refused(page):
    message = page.evaluate(
        """([width, height, preprocess]) => {
          try { vitrail.fitImage({ planes: new Uint8Array(width * height), height, width }, preprocess); }
          catch (error) { return error.message; }
        }""",
        [100_000, 1, Preprocess(image_size=(30, 24), fit="crop", mean=(0.5,), std=(0.5,)).to_json()],
    )
    assert message == "100000x1 pixels are too thin: a crop would enlarge them to 3000000x30"


def resizes_in_integers() -> bool:
    """Whether torch resizes in integers on this CPU, as Pillow does, or in floats."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def test_the_page_has_no_external_links_and_escapes_names(file: Path, model: Classifier):
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 12e6
    own_part = text[: text.index('<script type="text/plain" id="runtime">')]
    assert not re.findall(
        r"@import|<link (?!rel=\"icon\" href=\"data:)|<iframe|src=\"(?!data:)|url\((?!data:)", own_part
    )
    assert set(re.findall(r"https?://[^\s\"'<>]+", own_part)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text
    for name in CLASSES[1:3]:
        assert name not in text


@pytest.mark.parametrize(
    "options",
    [
        dict(depth=1, prefix_tokens=3, position=Rotary(), mlp="swiglu", pool="cls+mean", qk_norm=True, classes=2),
        dict(depth=1, prefix_tokens=0, pool="map", channels=1, image_size=16, head="mlp", pre_norm=True, classes=1),
    ],
)
def test_every_kind_of_vit_agrees_or_is_an_error(options: dict[str, Any]):
    other = classifier(seed=1, **options)
    pixels = [example.pixels for example in choose_examples(other)]  # photographs: the classifier has no training data
    assert len(pixels) == 4
    models = trace_graphs(other)
    graphs, half_graphs = pack_graphs(models), pack_graphs(models, half=True)
    relative = verify_graphs(other, graphs, pixels)["relative"]
    assert max(relative.values()) < 1e-4 and "attention map" in relative
    assert len(half_graphs.weights) < 0.55 * len(graphs.weights)
    verification = verify_graphs(other, half_graphs, pixels)
    assert 1e-5 < max(verification["relative"].values()) < 2e-2
    with pytest.raises(VitrailError, match="does not agree"):
        verify_graphs(other, Graphs(half_graphs.graphs, half_graphs.weights), pixels)
    changed = np.frombuffer(graphs.weights, dtype=np.float32).copy()
    changed[: len(changed) // 2] *= 1.01
    with pytest.raises(VitrailError, match="does not agree"):
        verify_graphs(other, Graphs(graphs.graphs, changed.tobytes()), pixels)


def test_the_command(written: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, document = written
    assert document["file"] == str(out)
    assert document["bytes"] == out.stat().st_size
    assert document["max_difference"] < 1e-4
    assert document["agreement"] == 1
    assert document["examples"] == 3
    text = out.read_text(encoding="utf-8")
    assert "Mine &lt;i&gt;" in text
    info = json.loads(re.search(r'id="info">(.*?)</script>', text, re.DOTALL)[1])
    assert info["model"] == "it's mine.safetensors"  # without its folder
    assert str(out.parent) not in text
    before = out.read_bytes()
    model = str(out.with_name("it's mine.safetensors"))

    def run_failing(*arguments: object, code: int = 2) -> dict[str, str]:
        assert main(["export", model, *map(str, arguments), "--json", "--quiet"]) == code
        output: dict[str, str] = json.loads(capsys.readouterr().out)
        return output

    assert "already exists" in run_failing("--format", "web", "--out", out)["error"]
    assert out.read_bytes() == before
    other = tmp_path / "b.html"
    output = run_failing("--format", "web", "--out", other, "--max-size-mb", 5)
    assert "MB, more than 5" in output["error"]
    assert "--max-size-mb" in output["hint"]
    assert "--precision is not for" in run_failing("--format", "timm", "--out", other, "--precision", "fp16")["error"]
    assert "--int8 is not for" in run_failing("--format", "web", "--out", other, "--int8")["error"]
    assert (
        "no such file"
        in run_failing("--format", "web", "--out", other, "--examples", tmp_path / "n.png", code=1)["error"]
    )
    assert not other.exists()


def test_examples_are_held_out_images(run: vitrail.Run, colors: Path):
    examples = choose_examples(run.classifier, data=RunFolder(run.folder).data_source)
    assert len(examples) == 8
    assert {example.truth for example in examples} == {(name,) for name in run.classifier.classes}
    test_images = [run.classifier.read_image(path) for path in sorted((colors / "test").rglob("*.png"))]
    assert all(any(torch.equal(example.pixels, pixels) for pixels in test_images) for example in examples)
    assert choose_examples(run.classifier, data="missing/folder")[0].name == "cat.jpg"
    assert RunFolder(colors).data_source is None


def test_a_model_name_is_not_mistaken_for_a_run_folder(run: vitrail.Run, colors: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run.folder)
    assert find_training_data(".") == find_training_data("classifier.safetensors") == str(colors)
    assert find_training_data("cifar10-small") is None


def test_a_model_without_classes_is_an_error():
    with pytest.raises(UsageError, match="has no classes"):
        render_page(classifier(classes=0))


def test_the_example_in_the_page_is_the_models_input(model: Classifier, noise: list[Path]):
    example = load_examples(model, noise)[1]
    image = Image.open(io.BytesIO(base64.b64decode(png_data_url(example.pixels).split(",")[1])))
    assert np.array_equal(np.asarray(image), model.read_image(noise[1]).permute(1, 2, 0).numpy())


def test_modules_are_bundled_after_their_imports(monkeypatch: pytest.MonkeyPatch):
    sources = {
        "main.js": 'import { square } from "./views/area.js";\nsquare(two);\n',
        "views/area.js": 'import { two } from "../numbers.js";\nexport function square(x) { return x ** two; }\n',
        "numbers.js": "export const two = 2;\n",
    }
    monkeypatch.setattr(bundle, "read_site_file", sources.__getitem__)
    script = bundle.bundle_modules("main.js")
    assert [line for line in script.splitlines() if line.startswith("// ")] == [
        "// numbers.js", "// views/area.js", "// main.js",
    ]  # fmt: skip
    assert "const { two } = module_numbers;" in script
    assert "return { square };" in script
    assert "import" not in script
    assert "export" not in script
    sources["numbers.js"] += 'import { square } from "./views/area.js";\n'
    with pytest.raises(ValueError, match=r"views/area.js -> numbers.js -> views/area.js"):
        bundle.bundle_modules("main.js")
