"""How fast the web page is, in a browser, from disk, with the network off; and a picture of it.

    vitrail export runs/x --format web --out page.html
    python benchmarks/web_page.py page.html [--repeats 7] [--picture docs/page.webp]

Needs Debian's Chromium and playwright. Times are the page's own: first paint as the browser reports it, a hover from
the pointer's event to the frame after the window is drawn.
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

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
HOVER = """() => {
  window.hovers = [];
  document.getElementById("pane").addEventListener("pointermove", () => {
    const start = performance.now();
    requestAnimationFrame(() => setTimeout(() => window.hovers.push(performance.now() - start)));
  }, true);
}"""
ASK = """async () => {
  const { image } = vitrail.scene();
  const model = await vitrail.waking;
  const target = new Float32Array(vitrail.about.classes.length).fill(0);
  target[0] = 1;
  const one = Array.from({ length: vitrail.scene().chances[0].length / 2 }, (_, i) => 2 * i);
  const half = Array.from({ length: 6 }, () => one);
  const found = {};
  for (const [name, ask] of [["look", () => model.look(image)], ["map", () => model.map(image, target)],
                             ["hide", () => model.keep(image, half)]]) {
    const times = [];
    for (let i = 0; i < 9; i++) {
      const start = performance.now();
      await ask();
      times.push(performance.now() - start);
    }
    found[name] = times.sort((a, b) => a - b)[4];
  }
  return found;
}"""


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--picture", type=Path, metavar="FILE.webp")
    parser.add_argument("--view", default="#image=2&hide=30", help="what the picture shows, as addresses say it")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    flags = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
    address = arguments.page.resolve().as_uri()
    seen: dict[str, list[float]] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        for _ in range(arguments.repeats):
            context = browser.new_context(offline=True, viewport={"width": 1280, "height": 1060})
            page = context.new_page()
            for name, value in measured(page, address).items():
                seen.setdefault(name, []).append(value)
            context.close()
        if arguments.picture:
            take(browser.new_context(offline=True, viewport={"width": 1280, "height": 1060}).new_page(),
                 address + arguments.view, arguments.picture)  # fmt: skip
        browser.close()
    print(f"{arguments.page.stat().st_size / 1e6:.2f} MB, {arguments.repeats} loads, {os.cpu_count()} CPU cores, "
          f"load average {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| what | median | from | to |\n| --- | ---: | ---: | ---: |")
    for name, values in seen.items():
        print(f"| {name} | {statistics.median(values):.0f} ms | {min(values):.0f} | {max(values):.0f} |")


def measured(page: Page, address: str) -> dict[str, float]:
    """One load: milliseconds by name."""
    page.goto(address, wait_until="commit")
    page.get_by_text("Answered in").wait_for(timeout=120_000)
    found = {"first paint": float(page.evaluate(PAINT))}
    found["model awake, after the page was asked for"] = float(page.evaluate("performance.now()"))
    asked: dict[str, Any] = page.evaluate(ASK)
    found |= {
        "answer, attention and lens of an image": asked["look"],
        "map of a class": asked["map"],
        "half the patches hidden, by the map and five times at random": asked["hide"],
    }
    page.locator("#tab-attention").click()
    page.evaluate(HOVER)
    box = page.locator("#canvas").bounding_box()
    assert box
    for step in range(24):
        across, down = 0.1 + 0.8 * (step % 6) / 6, 0.4 + step / 45
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        page.wait_for_timeout(40)
    hovers = page.evaluate("window.hovers")
    found["hover, median"], found["hover, slowest of 24"] = statistics.median(hovers), max(hovers)
    return found


def take(page: Page, address: str, out: Path) -> None:
    """A picture of the page as it opens, at the size of a README."""
    page.goto(address)
    page.get_by_text("Over all steps").wait_for(timeout=120_000)
    page.wait_for_timeout(500)
    shot = Image.open(io.BytesIO(page.screenshot()))
    shot.convert("RGB").save(out, "WEBP", quality=86, method=6)


if __name__ == "__main__":
    main()
