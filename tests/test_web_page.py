"""The page that opens anywhere: its answers are Python's, its controls work with the network off, nothing leaves it."""

import base64
import contextlib
import io
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from serving import Running
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.cli.web_page import find_training_data
from vitrail.data.preprocess import Preprocess
from vitrail.explanation import explain_batch
from vitrail.explanation.inputs import embed_images
from vitrail.exporting.web import render_page
from vitrail.exporting.web.examples import choose_examples, load_examples, png_data_url
from vitrail.exporting.web.graphs import Graphs, pack_graphs, trace_graphs
from vitrail.exporting.web.page import PAGE_MODULES, read_site_file
from vitrail.exporting.web.verify import verify_graphs
from vitrail.model import Rotary
from vitrail.runs.folder import RunFolder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")
QUIET = [
    "--no-sandbox", "--disable-quic", "--disable-background-networking", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip
CLASSES = ("cat", "it's <b>bold</b>", "</script><script>window.pwned=1</script>", "dog", 'a "b" c', "señal")
GRID = (4, 5)


def classifier(seed: int = 0, **options: Any) -> Classifier:
    """A ViT of random weights that is sure of its answers."""
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
    """Smooth noise of several sizes, which no resizing leaves as it is."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    paths = []
    for i, size in enumerate([(40, 32), (93, 57), (31, 118)]):
        small = Image.fromarray(rng.integers(0, 256, (7, 7, 3), dtype=np.uint8))
        paths.append(folder / f"{i} <i>.png")
        small.resize(size, Image.Resampling.BICUBIC).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def written(model: Classifier, noise: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The page as the command line writes it, and what it says."""
    folder = tmp_path_factory.mktemp("page")
    model.save(folder / "it's mine.safetensors")
    words = ["export", str(folder / "it's mine.safetensors"), "--format", "web", "--out", str(folder / "page.html")]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert main([*words, "--examples", *map(str, noise), "--title", "Mine <i>", "--json", "--quiet"]) == 0
    return folder / "page.html", json.loads(said.getvalue())


@pytest.fixture(scope="module")
def file(written: tuple[Path, Any]) -> Path:
    return written[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield opened
        opened.close()


def watched(browser: Any, **options: Any) -> Any:
    """An empty page without a network; `complaints` has everything it says or asks for."""
    context = browser.new_context(**{"offline": True, "viewport": {"width": 1280, "height": 1000}, **options})
    page = context.new_page()
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    ours = ("file:", "data:", "blob:", "http://127.0.0.1")
    page.on("request", lambda request: request.url.startswith(ours) or page.complaints.append(request.url))
    return page


def awake(page: Any, address: str) -> Any:
    page.goto(address)
    page.get_by_text("Answered in").wait_for()
    return page


@dataclass(frozen=True)
class Place:
    """Where the page is, and the images that it shows as examples."""

    address: str
    images: list[Path]
    offline: bool


@pytest.fixture(scope="module", params=["file", "served"])
def place(request, model: Classifier, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The file on disk with the network off, and what `vitrail serve` has at its door."""
    if request.param == "file":
        file = request.getfixturevalue("file")
        yield Place(file.as_uri(), request.getfixturevalue("noise"), offline=True)
        return
    path = tmp_path_factory.mktemp("served") / "mine.safetensors"
    model.save(path)
    photos = Path(str(resources.files("vitrail.exporting.sample_photos")))
    with Running([path]) as server:
        shown = [photos / name for name in ("cat.jpg", "coffee.jpg", "rocket.jpg", "astronaut.jpg")]
        yield Place(f"http://127.0.0.1:{server.port}/", shown, offline=False)


@pytest.fixture(scope="module")
def images(place: Place) -> list[Path]:
    return place.images


@pytest.fixture(scope="module")
def page(browser, place: Place) -> Iterator[Any]:
    """The page, awake; the tests below share it and leave it as it opens."""
    page = awake(watched(browser, offline=place.offline), place.address)
    yield page
    assert page.complaints == []
    assert page.evaluate("window.pwned") is None
    page.context.close()


@pytest.fixture
def fresh(page) -> Any:
    """The shared page, showing its first example as at first."""
    page.evaluate("location.hash = '#image=0'")
    page.locator("#gallery button[data-image='0']").click()
    page.locator("#tab-evidence").click()
    page.get_by_text("Answered in").wait_for()
    settled(page)
    return page


def settled(page: Any) -> None:
    """Until nothing is asked of the model any more."""
    page.evaluate("""async () => {
      const known = () => JSON.stringify([vitrail.numbers(), vitrail.scene().curves.size, document.body.innerText]);
      for (let before = ""; before !== known(); ) {
        before = known();
        await new Promise((done) => setTimeout(done, 250));
      }
    }""")


def numbers(page: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate("vitrail.numbers()")
    return found


def near(theirs: Any, ours: Any) -> bool:
    theirs, ours = np.asarray(theirs, dtype=float).ravel(), np.asarray(ours, dtype=float).ravel()
    return theirs.shape == ours.shape and bool(np.abs(theirs - ours).max() <= 1e-4 * max(1.0, np.abs(ours).max()))


@needs_chromium
def test_answers_attention_and_maps_are_pythons(fresh, model: Classifier, images: list[Path]):
    page = fresh
    for number, path in enumerate(images):
        page.locator(f"#gallery button[data-image='{number}']").click()
        settled(page)
        pixels = model.read_image(path)[None]
        found = numbers(page)
        assert near(found["logits"], model.logits(pixels)[0] * model.temperature)
        best = model.predict(path, top=5)
        assert [row["label"] for row in found["top"]] == [p.label for p in best]
        assert near([row["probability"] for row in found["top"]], [p.probability for p in best])
        explanation = vitrail.explain(model, path)
        assert near(found["map"], explanation.map)
        assert found["summary"].lower() == explanation.summary.lower() + "."
        with torch.no_grad(), vitrail.recording(model.vit) as record:
            model.vit(model.normalize(pixels))
        ours = torch.stack([record.attention(layer)[0] for layer in range(2)])
        assert near(page.evaluate("Array.from(vitrail.scene().attention)"), ours)
    for label in CLASSES[:3]:
        page.locator("#asked").select_option(label=label)
        settled(page)
        assert near(numbers(page)["map"], vitrail.explain(model, images[-1], target=label).map)
    page.locator("#rather").select_option(label="dog")
    settled(page)
    found, explanation = numbers(page), vitrail.explain(model, images[-1], target=(CLASSES[2], "dog"))
    assert near(found["map"], explanation.map)
    assert (found["label"], found["against"]) == (CLASSES[2], "dog")
    assert found["summary"].lower() == explanation.summary.lower() + "."


@needs_chromium
def test_one_hovers_a_patch_by_layer_and_head(fresh, model: Classifier, images: list[Path]):
    page = fresh
    page.locator("#tab-attention").click()
    read = partial(explain_batch, model, model.read_image(images[0])[None], method="attention")
    assert near(numbers(page)["map"], read()[0].map)  # what the answer reads
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)
    row, column = numbers(page)["query"]
    assert column == 2
    assert near(numbers(page)["map"], read(query=(row, column))[0].map)
    page.mouse.move(box["x"] - 20, box["y"])
    assert numbers(page)["query"] is None  # let go of where it was not pinned
    page.mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.75)
    page.mouse.move(box["x"] - 20, box["y"])
    assert numbers(page)["query"] == [row, column]
    for layer, head in ((0, 1), (1, 0), (1, None)):
        page.locator("#layer").fill(str(layer))
        page.locator("#head").fill(str(-1 if head is None else head))
        found = numbers(page)
        assert (found["layer"], found["head"]) == (layer, head)
        assert near(found["map"], read(layer=layer, head=head, query=(row, column))[0].map)
        assert "vitrail explain" in page.locator("#shell").inner_text()
    page.locator("#way-from").click()
    with torch.no_grad(), vitrail.recording(model.vit) as record:
        model.vit(model.normalize(model.read_image(images[0])[None]))
    column_ = record.attention(1)[0].mean(0)[1:, 1 + row * GRID[1] + column]
    assert near(numbers(page)["map"], column_)
    line = page.locator("#python").inner_text()
    assert "record.attention(1)" in line
    page.locator("#way-to").click()
    page.locator("#heads button").nth(1).click()
    assert numbers(page)["head"] == 1
    said = page.locator("#caption").inner_text()
    assert re.match(rf"Layer 1, head 1: row {row}, column {column} attends most to ", said)


@needs_chromium
def test_hiding_leaves_tokens_out(fresh, model: Classifier, images: list[Path]):
    page = fresh
    page.locator("#hide").fill("35")
    settled(page)
    found = numbers(page)["hidden"]
    assert len(found["patches"]) == 7
    scene = embed_images(model, model.read_image(images[0])[None], [None])
    label = model.logits(model.read_image(images[0])[None])[0].argmax()
    order = vitrail.explain(model, images[0]).map.ravel().argsort()[::-1]
    assert sorted(found["patches"]) == sorted(order[:7].tolist())

    def left(hidden: list[int]) -> float:
        keep = torch.tensor([[p for p in range(20) if p not in set(hidden)]])
        return float((scene.logits_of_patches(keep) / model.temperature).softmax(1)[0, label])

    assert found["probability"] == pytest.approx(left(found["patches"]), abs=1e-4)
    orders = page.evaluate("vitrail.scene().chances")
    assert len({tuple(order) for order in orders}) == 5
    assert near(found["at_random"], [left(order[:7]) for order in orders])
    assert page.locator("#value-named").inner_text() == f"{100 * found['probability']:.1f}\u00a0%"
    assert "Over all steps" in page.locator("#curve-said").inner_text()
    page.locator("#hide").fill("95")
    settled(page)
    assert len(numbers(page)["hidden"]["patches"]) == 19  # one always stays


@needs_chromium
def test_the_layers_are_the_lens(fresh, model: Classifier, images: list[Path]):
    page = fresh
    page.locator("#tab-layers").click()
    for layer in range(2):
        page.locator("#strip button").nth(layer).click()
        ours = vitrail.explain(model, images[0], method="logit_lens", layer=layer)
        assert near(numbers(page)["map"], ours.map)
    answers = numbers(page)["answers"]
    assert near(answers[-1], numbers(page)["logits"])
    assert page.locator("#strip b").last.inner_text() == numbers(page)["predicted"]


@needs_chromium
def test_an_own_image_comes_in_by_every_way(fresh, model: Classifier, images: list[Path], tmp_path: Path):
    page = fresh
    grey_alpha = tmp_path / "seen through.png"
    Image.merge("LA", [Image.open(images[1]).convert("L")] * 2).save(grey_alpha)
    sideways = tmp_path / "sideways.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(images[1]).save(sideways, exif=exif)
    for path in (images[1], grey_alpha, sideways):
        page.locator("#file").set_input_files(path)
        page.locator("#gallery button[data-image=own]").wait_for()
        settled(page)
        assert numbers(page)["image"] == path.name
        worst = 0.15 if path is grey_alpha else 0  # two roundings of transparency
        ours = model.logits(model.read_image(path)[None])[0] * model.temperature
        assert near(numbers(page)["logits"], ours) or np.abs(numbers(page)["logits"] - ours.numpy()).max() < worst
    give = """([event, bytes, type]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([Uint8Array.from(bytes)], event + ".png", { type }));
      const options = { bubbles: true, cancelable: true };
      const made = event === "paste" ? new ClipboardEvent(event, { ...options, clipboardData: transfer })
        : new DragEvent(event, { ...options, dataTransfer: transfer });
      document.body.dispatchEvent(made);
    }"""
    for event, path in (("drop", images[2]), ("paste", images[1])):
        page.evaluate(give, [event, list(path.read_bytes()), "image/png"])
        page.wait_for_timeout(100)
        settled(page)
        assert numbers(page)["image"] == f"{event}.png"
        assert near(numbers(page)["logits"], model.logits(model.read_image(path)[None])[0] * model.temperature)
    page.evaluate(give, ["drop", [1, 2, 3], "image/png"])
    page.get_by_text("is not an image that this browser can read").wait_for()
    assert numbers(page)["image"] == "paste.png"  # what was there stays
    page.locator("#camera").click()
    page.locator("#video").wait_for()
    page.evaluate("""new Promise((done) => {
      const video = document.getElementById("video");
      video.videoWidth ? done() : (video.onloadeddata = done);
    })""")
    page.locator("#take-it").click()
    page.get_by_text("camera.png").first.wait_for()
    assert page.locator("#problem").inner_text() == ""
    page.locator("#camera").click()
    page.locator("#leave").click()
    assert not page.locator("#taking").is_visible()


@needs_chromium
def test_an_image_that_comes_late_does_not_replace_what_was_chosen_since(fresh, images: list[Path]):
    page = fresh
    page.evaluate(
        """(bytes) => {
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([Uint8Array.from(bytes)], "late.png", { type: "image/png" }));
          document.body.dispatchEvent(new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer }));
          document.querySelector("#gallery button[data-image='1']").click();
        }""",
        list(images[2].read_bytes()),
    )
    settled(page)
    assert numbers(page)["image"] == images[1].name
    page.locator("#file").set_input_files(images[2])
    page.locator("#gallery button[data-image=own]").wait_for()
    settled(page)
    assert numbers(page)["image"] == images[2].name
    page.evaluate("""for (const image of ["own", "1"]) {
      document.querySelector(`#gallery button[data-image="${image}"]`).click();
    }""")
    settled(page)
    assert numbers(page)["image"] == images[1].name


@needs_chromium
def test_the_keyboard_does_it_all(fresh):
    page = fresh
    page.locator("#pane").focus()
    for key in ("a", "ArrowRight", "ArrowRight", "ArrowUp"):
        page.keyboard.press(key)
    assert numbers(page)["query"] == [1, 3]
    assert "row 1, column 3" in page.locator("#spoken").inner_text()
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
    settled(page)
    assert len(numbers(page)["hidden"]["patches"]) == 1
    assert page.locator("#veil").input_value() == "0"
    page.keyboard.press("p")
    page.locator("#tab-evidence").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#attention").is_visible()
    assert page.evaluate("document.activeElement.id") == "tab-attention"


@needs_chromium
def test_a_view_is_kept_and_sent(fresh, browser, model: Classifier, images: list[Path], place: Place):
    page = fresh
    page.locator("#top button").nth(2).click()
    settled(page)
    label = numbers(page)["label"]
    with page.expect_download() as given:
        page.locator("#json").click()
    document = json.loads(Path(given.value.path()).read_text())
    ours = vitrail.explain(model, images[0], target=label).to_json()
    assert near(document["map"], ours["map"])
    assert {k: document[k] for k in ("label", "predicted", "against", "method", "signed")} == {
        k: ours[k] for k in ("label", "predicted", "against", "method", "signed")
    }
    with page.expect_download() as given:
        page.locator("#png").click()
    picture = np.asarray(Image.open(given.value.path()).convert("RGB"))
    assert picture.shape[1] == 2000
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 200
    python = page.locator("#python").inner_text()
    explanation = eval(python.replace(repr(images[0].name), "path").replace(f'"{images[0].name}"', "path"), {
        "path": images[0], "vitrail": type("v", (), {"load": staticmethod(lambda name: model)}),
    })  # fmt: skip
    assert explanation.label == label
    page.wait_for_timeout(300)
    shown = page.evaluate("location.hash")
    page.locator("#file").set_input_files(images[1])
    page.locator("#gallery button[data-image=own]").wait_for()
    settled(page)
    own = numbers(page)["logits"]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#link").click()
    page.get_by_text("Copied").wait_for()
    link = page.evaluate("navigator.clipboard.readText()")
    page.evaluate(f"location.hash = {json.dumps(shown)}")
    settled(page)
    assert numbers(page)["label"] == label
    assert near(numbers(page)["map"], document["map"])
    page.evaluate("location.hash = '#image=99&view=nonsense&class=nobody&layer=77&head=x&patch=-3&hide=1e9'")
    settled(page)
    assert numbers(page)["label"] == model.predict(images[0])[0].label
    other = awake(watched(browser, offline=place.offline), link)
    settled(other)
    assert near(numbers(other)["logits"], own)  # a small image travels in the link itself
    assert other.complaints == []
    other.context.close()


@needs_chromium
def test_examples_are_drawn_before_the_model_is_there(browser, model: Classifier, noise: list[Path], file: Path):
    page = watched(browser)
    page.add_init_script("window.Worker = class { postMessage() {} }")  # one that never answers
    page.goto(file.as_uri())
    page.locator("#top button").first.wait_for()
    explanation = vitrail.explain(model, noise[0])
    assert page.locator("#answer").inner_text() == f"{explanation.label} {explanation.probability:.0%}".replace(
        "%", "\u00a0%"
    )
    assert page.locator("#caption").inner_text().lower() == explanation.summary.lower() + "."
    page.locator("#tab-attention").click()
    assert "waking up" in page.locator("#caption").inner_text()
    assert page.complaints == []
    page.context.close()


@needs_chromium
def test_where_the_model_cannot_run_it_is_said(browser, file: Path, model: Classifier, noise: list[Path]):
    page = watched(browser)
    page.add_init_script(
        "delete window.DecompressionStream; window.Worker = class { constructor() { throw new Error('none here') } }"
    )
    own = base64.urlsafe_b64encode(model.read_image(noise[1]).numpy().tobytes()).decode().rstrip("=")
    page.goto(f"{file.as_uri()}#image=px:{own}")
    page.evaluate("vitrail.opened")
    assert page.locator("#problem").inner_text() == "The model cannot run in this browser: none here"
    assert page.locator("#top button").count() == 5  # of the first example, as the image in the link has no answer
    page.evaluate("location.hash = '#image=px:!'")
    settled(page)
    assert page.locator("#problem").inner_text() == "The image in this link is damaged."
    page.context.close()


@needs_chromium
def test_it_is_accessible_and_fits_a_phone(browser, file: Path):
    from axe_playwright_python.sync_playwright import Axe

    page = watched(browser, bypass_csp=True, reduced_motion="reduce")  # else the page's policy forbids the checker
    awake(page, file.as_uri())
    for width, scheme, views in ((1280, "light", ("attention", "layers", "evidence")), (360, "dark", ("evidence",))):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)
        for view in views:
            page.locator(f"#tab-{view}").click()
            found = Axe().run(page)
            assert found.violations_count == 0, found.generate_report()
    for view in ("attention", "layers", "evidence"):
        page.locator(f"#tab-{view}").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.context.close()


@needs_chromium
def test_the_same_bytes_are_served(browser, file: Path, model: Classifier, noise: list[Path]):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/" else 404)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(file.read_bytes())

        def log_message(self, *said: object) -> None:
            asked.append(self.path)

    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = awake(watched(browser, offline=False), f"http://127.0.0.1:{server.server_port}/")
    assert near(numbers(page)["logits"], model.logits(model.read_image(noise[0])[None])[0] * model.temperature)
    page.context.close()
    server.shutdown()
    server.server_close()
    assert asked == ["/"]
    assert page.complaints == []


FITS = [
    (fit, engine, interpolation, crop)
    for fit in ("pad", "crop", "stretch")
    for engine in ("torch", "pillow", "transformers")
    for interpolation, crop in (("bilinear", 1.0), ("bicubic", 0.875))
]


@needs_chromium
def test_images_are_fitted_as_python_fits_them(page):
    rng = np.random.default_rng(3)
    for n, (fit, engine, interpolation, crop) in enumerate(FITS):
        channels = 1 if n % 4 == 0 else 3
        part = dict(fit=fit, engine=engine, interpolation=interpolation, crop_fraction=crop)
        preprocess = Preprocess(image_size=(30, 24), mean=(0.3,) * channels, std=(0.5,) * channels, **part)
        for h, w in ((97, 61), (13, 55), (200, 9)):
            pixels = torch.from_numpy(rng.integers(0, 256, (channels, h, w), dtype=np.uint8))
            theirs = page.evaluate(
                """([planes, height, width, how]) =>
                  Array.from(vitrail.fitted({ planes: Uint8Array.from(planes), height, width }, how).planes)""",
                [pixels.flatten().tolist(), h, w, preprocess.to_json()],
            )
            away = np.abs(np.array(theirs) - preprocess.fit_image(pixels).flatten().numpy().astype(int))
            assert away.max() <= (0 if exact() or engine == "pillow" else 1), (part, h, w, away.max())


@needs_chromium
def test_an_image_too_thin_to_be_cropped_is_refused(page):
    said = page.evaluate(
        """([width, height, how]) => {
          try { vitrail.fitted({ planes: new Uint8Array(width * height), height, width }, how); }
          catch (error) { return error.message; }
        }""",
        [100_000, 1, Preprocess(image_size=(30, 24), fit="crop", mean=(0.5,), std=(0.5,)).to_json()],
    )
    assert said == "100000x1 pixels are too thin: a crop would enlarge them to 3000000x30"


def exact() -> bool:
    """Whether torch resizes in whole numbers here, as Pillow does, or in floats."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def test_nothing_leads_outside_and_names_are_text(file: Path, model: Classifier):
    text = file.read_text(encoding="utf-8")
    assert len(text.encode()) < 12e6
    ours = text[: text.index('<script type="text/plain" id="runtime">')]
    assert not re.findall(r"@import|<link (?!rel=\"icon\" href=\"data:)|<iframe|src=\"(?!data:)|url\((?!data:)", ours)
    assert set(re.findall(r"https?://[^\s\"'<>]+", ours)) <= {"http://www.w3.org/2000/svg"}
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
def test_every_kind_of_vit_agrees_or_is_refused(options: dict[str, Any]):
    other = classifier(seed=1, **options)
    pixels = [example.pixels for example in choose_examples(other)]  # photographs, as it knows no data
    assert len(pixels) == 4
    models = trace_graphs(other)
    graphs, halved = pack_graphs(models), pack_graphs(models, half=True)
    assert max(verify_graphs(other, graphs, pixels)["relative"].values()) < 1e-4
    assert len(halved.weights) < 0.55 * len(graphs.weights)
    found = verify_graphs(other, halved, pixels)
    assert 1e-5 < max(found["relative"].values()) < 2e-2
    with pytest.raises(VitrailError, match="does not agree"):
        verify_graphs(other, Graphs(halved.graphs, halved.weights), pixels)
    spoilt = np.frombuffer(graphs.weights, dtype=np.float32).copy()
    spoilt[: len(spoilt) // 2] *= 1.01
    with pytest.raises(VitrailError, match="does not agree"):
        verify_graphs(other, Graphs(graphs.graphs, spoilt.tobytes()), pixels)


def test_the_command(written: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, document = written
    assert document["file"] == str(out)
    assert document["bytes"] == out.stat().st_size
    assert document["max_difference"] < 1e-4
    assert document["agreement"] == 1
    assert document["examples"] == 3
    text = out.read_text(encoding="utf-8")
    assert "Mine &lt;i&gt;" in text
    about = json.loads(re.search(r'id="about">(.*?)</script>', text, re.DOTALL)[1])
    assert about["model"] == "it's mine.safetensors"  # and not in whose home it lies
    assert str(out.parent) not in text
    before = out.read_bytes()
    model = str(out.with_name("it's mine.safetensors"))

    def refused(*words: object, code: int = 2) -> dict[str, str]:
        assert main(["export", model, *map(str, words), "--json", "--quiet"]) == code
        said: dict[str, str] = json.loads(capsys.readouterr().out)
        return said

    assert "exists already" in refused("--format", "web", "--out", out)["error"]
    assert out.read_bytes() == before
    other = tmp_path / "b.html"
    said = refused("--format", "web", "--out", other, "--max-size-mb", 5)
    assert "MB, more than 5" in said["error"]
    assert "--max-size-mb" in said["hint"]
    assert "--precision is not for" in refused("--format", "timm", "--out", other, "--precision", "fp16")["error"]
    assert "--int8 is not for" in refused("--format", "web", "--out", other, "--int8")["error"]
    assert (
        "no such file" in refused("--format", "web", "--out", other, "--examples", tmp_path / "n.png", code=1)["error"]
    )
    assert not other.exists()


def test_examples_are_images_that_training_kept_back(run: vitrail.Run, colours: Path):
    found = choose_examples(run.classifier, data=RunFolder(run.folder).data_source)
    assert len(found) == 8
    assert {example.truth for example in found} == set(run.classifier.classes)
    kept = [run.classifier.read_image(path) for path in sorted((colours / "test").rglob("*.png"))]
    assert all(any(torch.equal(example.pixels, pixels) for pixels in kept) for example in found)
    assert choose_examples(run.classifier, data="gone/away")[0].name == "cat.jpg"
    assert RunFolder(colours).data_source is None


def test_a_model_that_is_a_name_takes_no_examples_from_the_folder_it_is_named_in(
    run: vitrail.Run, colours: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(run.folder)
    assert find_training_data(".") == find_training_data("classifier.safetensors") == str(colours)
    assert find_training_data("cifar10-small") is None


def test_a_model_without_classes_is_refused():
    with pytest.raises(UsageError, match="has no classes"):
        render_page(classifier(classes=0))


def test_the_picture_in_the_page_is_what_the_model_sees(model: Classifier, noise: list[Path]):
    example = load_examples(model, noise)[1]
    shown = Image.open(io.BytesIO(base64.b64decode(png_data_url(example.pixels).split(",")[1])))
    assert np.array_equal(np.asarray(shown), model.read_image(noise[1]).permute(1, 2, 0).numpy())


def test_modules_import_what_others_export():
    """The page joins them into one scope, where a wrong import would not show."""
    sources = {f"{name}.js": read_site_file(f"{name}.js") for name in PAGE_MODULES}
    given = {}
    for name, source in sources.items():
        simple = re.findall(r"^export (?:async )?(?:function|class|const|let) ([\w$]+)", source, re.M)
        several = re.findall(r"^export const [\[{]([^\]}]*)[\]}] =", source, re.M)
        given[name] = {*simple, *(word for words in several for word in re.findall(r"[\w$]+", words))}
    everything = [word for words in given.values() for word in words]
    assert len(everything) == len(set(everything)) > 60
    for name, source in sources.items():
        body = re.sub(r"^import .*?;\n", "", source, flags=re.M | re.S)
        for words, other in re.findall(r'^import \{(.*?)\} from "\./(.*?)";', source, re.M | re.S):
            wanted = set(re.findall(r"[\w$]+", words))
            assert wanted <= given[other], (name, other, wanted - given[other])
            assert all(re.search(rf"(?<![\w$]){re.escape(word)}(?![\w$])", body) for word in wanted), (name, other)
