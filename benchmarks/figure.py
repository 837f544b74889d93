"""Draws the README's figure: test images on which a classifier wavers, with what speaks for each of its two answers.

    python benchmarks/figure.py MODEL DATA --out docs/explanations-small.png

From the first test images in an order drawn by --seed, the figure takes one of each class whose true class is the
likeliest while a second one has at least a tenth of the probability. Nothing is chosen by how its map looks.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import vitrail
from vitrail.data.open import open_data
from vitrail.explanation import explain_batch
from vitrail.explanation.figures import new_figure, save_figure, set_title, show_image
from vitrail.explanation.render import AGAINST_COLOR, FOR_COLOR, overlay_map, to_rgb


def wavering(
    classifier: vitrail.Classifier, images, seed: int, count: int
) -> tuple[torch.Tensor, list[str], list[str]]:
    """Pixels, first answers (the truth) and second answers of `count` images of different classes."""
    order = np.random.default_rng(seed).permutation(len(images))[:1000]
    pixels = images.load_batch(classifier.preprocess, order)
    chance, best = classifier.logits(pixels).softmax(dim=1).topk(2)
    chosen: dict[int, int] = {}
    for i, number in enumerate(order):
        label = int(images.labels[number])
        if best[i, 0] == label and chance[i, 0] >= 0.5 and chance[i, 1] >= 0.1:
            chosen.setdefault(label, i)
    places = list(chosen.values())[:count]
    names = [[classifier.classes[int(best[i, rank])] for i in places] for rank in (0, 1)]
    return pixels[places], names[0], names[1]


def main() -> None:
    """Draws and writes it."""
    from matplotlib.patches import Patch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("explanations.png"))
    asked = parser.parse_args()
    classifier = vitrail.load(asked.model)
    pixels, first, second = wavering(classifier, open_data(asked.data).as_dict()["test"], asked.seed, 8)
    maps = [explain_batch(classifier, pixels, target=names) for names in (first, second)]
    figure = new_figure(12.6, 9.6, layout="constrained")
    grid = figure.subplots(4, 6)
    for i in range(len(pixels)):
        row, left = i % 4, 3 * (i // 4)
        show_image(grid[row, left], to_rgb(maps[0][i].image))
        for column, found in enumerate(maps, start=1):
            show_image(grid[row, left + column], overlay_map(found[i]))
            set_title(grid[row, left + column], f"{found[i].label}?  {found[i].probability:.0%}", size=12)
    signs = [
        Patch(color=FOR_COLOR, label="speaks for the class"),
        Patch(color=AGAINST_COLOR, label="speaks against it"),
    ]
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    save_figure(figure, asked.out, dpi=80)


if __name__ == "__main__":
    main()
