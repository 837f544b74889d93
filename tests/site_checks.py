"""Checks of the built documentation site: `make test-docs`. They need build/docs, which `make docs` writes."""

import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from bs4 import BeautifulSoup

ROOT = Path(__file__).parent.parent
BUILT = ROOT / "build" / "docs"
SITE = BUILT / "html"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
CHAPTERS = sorted(path.stem for path in (ROOT / "docs" / "learn").glob("*.py"))
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 375, "height": 800}}


def read(page: str) -> BeautifulSoup:
    return BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def documents() -> dict[str, BeautifulSoup]:
    return {page: read(page) for page in PAGES}


def test_every_chapter_has_a_page_and_an_entry_in_the_list(documents: dict[str, BeautifulSoup]):
    assert CHAPTERS
    listed = {link["href"] for link in documents["learn/index.html"].select("article .toctree-wrapper a")}
    assert {f"{chapter}.html" for chapter in CHAPTERS} <= {link.partition("#")[0] for link in listed}


def test_every_internal_link_leads_to_a_page_and_an_anchor(documents: dict[str, BeautifulSoup]):
    anchors = {page: {tag["id"] for tag in document.select("[id]")} for page, document in documents.items()}
    broken = []
    for page, document in documents.items():
        for tag in document.select("a[href]"):
            address, anchor = urldefrag(tag["href"])
            if urlsplit(address).scheme:
                continue
            path = (SITE / page).parent / unquote(address) if address else SITE / page
            target = path.resolve().relative_to(SITE.resolve()).as_posix()
            if not path.is_file() or (anchor and target in anchors and unquote(anchor) not in anchors[target]):
                broken.append(f"{page}: {tag['href']}")
    assert not broken, broken


def test_no_page_loads_anything_from_elsewhere(documents: dict[str, BeautifulSoup]):
    for page, document in documents.items():
        for tag in document.select("[src], link[rel=stylesheet], link[rel=preload], link[rel=icon]"):
            address = tag.get("src") or tag.get("href")
            assert not urlsplit(address).netloc, f"{page}: {address}"
    for path in SITE.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        assert "url(http" not in text and "@import" not in text, path


def test_every_picture_says_what_it_shows(documents: dict[str, BeautifulSoup]):
    for page, document in documents.items():
        for picture in document.select("article img"):
            description = picture.get("alt", "")
            assert len(description) > 20 and not description.endswith((".png", ".webp")), (
                f"{page}: {picture.get('src')}: {description!r}"
            )


def executed_chapters() -> dict[str, Any]:
    """Returns the executed notebooks of the newest cache, by the name of the chapter."""
    import sqlite3

    cache = max((BUILT / "cache").iterdir(), key=lambda folder: folder.stat().st_mtime)
    with sqlite3.connect(cache / "global.db") as database:
        rows = database.execute("select uri, hashkey from nbcache order by accessed").fetchall()
    return {
        Path(uri).stem: json.loads((cache / "executed" / key / "base.ipynb").read_text(encoding="utf-8"))
        for uri, key in rows
    }


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_test_of_an_exercise_fails_first_and_passes_with_the_solution(chapter: str):
    cells = [cell for cell in executed_chapters()[chapter]["cells"] if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    exercises = [i for i, each in enumerate(tags) if "raises-exception" in each]
    solutions = [i for i, each in enumerate(tags) if "solution" in each]
    assert 2 <= len(exercises) == len(solutions) <= 3
    for exercise, solution in zip(exercises, solutions, strict=True):
        assert exercise < solution
        test = "".join(cells[exercise]["source"]).strip().splitlines()[-1].split("(")[0]
        (error,) = (each for each in cells[exercise]["outputs"] if each["output_type"] == "error")
        assert error["ename"] == "AssertionError" and error["evalue"], f"{test} must fail with a hint"
        assert f"{test}(solved_" in "".join(cells[solution]["source"]).replace("Solved", "solved_")
        text = "".join("".join(each.get("text", "")) for each in cells[solution]["outputs"])
        assert "passes its test" in text
        assert not [each for each in cells[solution]["outputs"] if each["output_type"] == "error"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site, served on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.fail("no Chromium here: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-quic"])
        yield browser
        browser.close()


def open_tab(browser: Any, address: str, **options: Any) -> Any:
    """An empty tab; `complaints` collects console messages, script errors and requests that leave the site."""
    tab = browser.new_context(**options).new_page()
    tab.set_default_timeout(120_000)
    tab.complaints = []
    tab.on("console", lambda message: tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    local = (address, "data:", "blob:")
    tab.on("request", lambda request: request.url.startswith(local) or tab.complaints.append(request.url))
    return tab


@pytest.mark.timeout(900)  # all pages, and axe is slow beside other work
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_page_opens_without_errors_and_is_accessible(browser: Any, address: str, width: str, scheme: str):
    from axe_playwright_python.sync_playwright import Axe

    tab, axe = open_tab(browser, address, viewport=WIDTHS[width], color_scheme=scheme), Axe()
    # Dark colors and narrow pages differ in style only: the long tables are checked once.
    pages = PAGES if (width, scheme) == ("desktop", "light") else [page for page in PAGES if "learn/" in page]
    problems = []
    for page in pages:
        tab.goto(f"{address}/{page}")
        if width == "phone" and tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
            problems.append(f"{page}: is wider than the screen")
        for violation in axe.run(tab).response["violations"]:
            problems.append(f"{page}: {violation['id']}: {violation['nodes'][0]['html'][:150]}")
    if (width, scheme) == ("phone", "light"):
        for page in set(PAGES) - set(pages):
            tab.goto(f"{address}/{page}")
            if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                problems.append(f"{page}: is wider than the screen")
    assert not problems + tab.complaints, "\n".join(problems + tab.complaints)


def test_a_search_for_attention_finds_the_chapter(browser: Any, address: str):
    tab = open_tab(browser, address)
    tab.goto(f"{address}/learn/index.html")
    tab.locator("input[name=q]").fill("attention")
    tab.locator("input[name=q]").press("Enter")
    tab.locator("#search-results a[href*='learn/attention.html']").first.wait_for()
    assert tab.complaints == []


def test_the_live_page_of_a_chapter_reads_digits_in_the_browser(browser: Any, address: str):
    """Its logits for an example are PyTorch's, it reads most of the digits that are opened, and it asks nobody."""
    tab = open_tab(browser, address)
    tab.goto(f"{address}/learn/ship.html")
    tab.locator("#live-page").scroll_into_view_if_needed()
    page = tab.frame_locator("#live-page")
    page.get_by_text("Answered in").wait_for()
    frame = tab.locator("#live-page").element_handle().content_frame()
    example = frame.evaluate("vitrail.info.examples[0]")
    assert frame.evaluate("vitrail.numbers().logits") == pytest.approx(example["logits"], abs=1e-3)
    right = 0
    for digit in range(10):
        page.locator("#file").set_input_files(ROOT / "examples" / "digits" / f"{digit}.png")
        page.locator("#gallery button[data-source=own]").wait_for()
        frame.wait_for_function("name => vitrail.numbers().image === name", arg=f"{digit}.png")
        predicted = frame.evaluate("vitrail.numbers().predicted")
        assert page.locator("#top-classes button").first.inner_text().startswith(predicted)
        right += predicted == str(digit)
    assert right >= 8
    assert tab.complaints == []
