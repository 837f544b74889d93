"""Measures how fast the exported web page is in a browser, offline and from disk; takes a picture of it.

    vitrail export runs/x --format web --out page.html
    python benchmarks/web_page.py page.html [--repeats 7] [--picture docs/page.webp]

Needs Debian's Chromium and playwright. The page measures the times itself: first contentful paint as the browser
reports it, a hover from the pointer event to the first frame after the map is drawn.
"""

import argparse
import io
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

FIRST_PAINT_MS = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
MEASURE_HOVERS = """() => {
  window.hovers = [];
  document.getElementById("viewer").addEventListener("pointermove", () => {
    const start = performance.now();
    requestAnimationFrame(() => setTimeout(() => window.hovers.push(performance.now() - start)));
  }, true);
}"""
MEASURE_MODEL = """async () => {
  await vitrail.modelReady;
  const model = vitrail.getModel();
  const { pixels } = vitrail.getState().image;
  const target = new Float32Array(vitrail.info.classes.length);
  target[0] = 1;
  const [rows, columns] = vitrail.info.grid;
  const everySecond = Array.from({ length: Math.floor((rows * columns) / 2) }, (_, i) => 2 * i);
  const half = Array.from({ length: 6 }, () => everySecond);
  const medians = {};
  for (const [name, run] of [["inspect", () => model.inspect(pixels)], ["map", () => model.map(pixels, target)],
                             ["subset", () => model.subset(pixels, half)]]) {
    const times = [];
    for (let i = 0; i < 9; i++) {
      const start = performance.now();
      await run();
      times.push(performance.now() - start);
    }
    medians[name] = times.sort((a, b) => a - b)[4];
  }
  return medians;
}"""


def main() -> None:
    """Loads the page several times and prints a Markdown table of the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--picture", type=Path, metavar="FILE.webp")
    parser.add_argument("--view", default="#image=0", help="the page's URL fragment for the picture")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
    address = arguments.page.resolve().as_uri()
    times: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for _ in range(arguments.repeats):
            context = browser.new_context(offline=True, viewport={"width": 1280, "height": 1060})
            page = context.new_page()
            for name, value in measure_load(page, address).items():
                times.setdefault(name, []).append(value)
            context.close()
        if arguments.picture:
            take_picture(browser.new_context(offline=True, viewport={"width": 1280, "height": 1060}).new_page(),
                 address + arguments.view, arguments.picture)  # fmt: skip
        browser.close()
    print(f"{arguments.page.stat().st_size / 1e6:.2f} MB, {arguments.repeats} loads, {os.cpu_count()} CPU cores, "
          f"load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| time of | median | minimum | maximum |\n| --- | ---: | ---: | ---: |")
    for name, values in times.items():
        print(f"| {name} | {statistics.median(values):.0f} ms | {min(values):.0f} | {max(values):.0f} |")


def measure_load(page: Page, address: str) -> dict[str, float]:
    """Loads the page once; returns milliseconds by name."""
    page.goto(address, wait_until="commit")
    page.get_by_text("Answered in").wait_for(timeout=120_000)
    times = {"first contentful paint": float(page.evaluate(FIRST_PAINT_MS))}
    times["model ready, since navigation"] = float(page.evaluate("performance.now()"))
    model: dict[str, Any] = page.evaluate(MEASURE_MODEL)
    times |= {
        "logits, attention and logit lens of an image": model["inspect"],
        "map of a class": model["map"],
        "logits with half of the patches, for six sets of patches": model["subset"],
    }
    page.locator("#tab-attention").click()
    page.evaluate(MEASURE_HOVERS)
    box = page.locator("#canvas").bounding_box()
    assert box
    for step in range(24):
        across, down = 0.1 + 0.8 * (step % 6) / 6, 0.4 + step / 45
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        page.wait_for_timeout(40)
    hovers = page.evaluate("window.hovers")
    times["hover, median"], times["hover, slowest of 24"] = statistics.median(hovers), max(hovers)
    return times


def take_picture(page: Page, address: str, out: Path) -> None:
    """Writes a picture of the page, at a size for the README."""
    page.goto(address)
    page.get_by_text("over all steps").wait_for(timeout=120_000)
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").save(out, "WEBP", quality=86, method=6)


if __name__ == "__main__":
    main()
