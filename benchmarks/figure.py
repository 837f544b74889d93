"""Draws the README's figure: test images with two likely classes, and the evidence for each of the two.

    python benchmarks/figure.py MODEL DATA --out docs/explanations-small.png

The candidates are the first 1,000 test images in an order drawn by --seed. The figure takes one image of each true
class that has the largest probability, of at least 0.5, while another class has at least 0.1. No map is looked at for
the choice.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import vitrail
from vitrail.data.images import Images
from vitrail.data.open import open_data
from vitrail.explanation.api import explain_batch
from vitrail.explanation.figures import new_figure, save_figure, set_title, show_image
from vitrail.explanation.render import AGAINST_COLOR, FOR_COLOR, overlay_map, to_rgb


def choose_ambiguous_images(
    classifier: vitrail.Classifier, images: Images, seed: int, count: int
) -> tuple[torch.Tensor, list[str], list[str]]:
    """Pixels, first (true) and second class of `count` images of different classes."""
    order = np.random.default_rng(seed).permutation(len(images))[:1000]
    pixels = images.load_batch(classifier.preprocess, order)
    probability, top = classifier.logits(pixels).softmax(dim=1).topk(2)
    by_class: dict[int, int] = {}
    for i, index in enumerate(order):
        label = int(images.labels[index])
        if top[i, 0] == label and probability[i, 0] >= 0.5 and probability[i, 1] >= 0.1:
            by_class.setdefault(label, i)
    chosen = list(by_class.values())[:count]
    first, second = ([classifier.classes[int(top[i, rank])] for i in chosen] for rank in (0, 1))
    return pixels[chosen], first, second


def main() -> None:
    """Draws and writes the figure."""
    from matplotlib.patches import Patch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("explanations.png"))
    arguments = parser.parse_args()
    classifier = vitrail.load(arguments.model)
    images = open_data(arguments.data).as_dict()["test"]
    pixels, first, second = choose_ambiguous_images(classifier, images, arguments.seed, 8)
    explanations = [explain_batch(classifier, pixels, target=labels) for labels in (first, second)]
    figure = new_figure(12.6, 9.6, layout="constrained")
    grid = figure.subplots(4, 6)
    for i in range(len(pixels)):
        row, left = i % 4, 3 * (i // 4)
        show_image(grid[row, left], to_rgb(explanations[0][i].image))
        for column, explained in enumerate(explanations, start=1):
            show_image(grid[row, left + column], overlay_map(explained[i]))
            title = f"{explained[i].label}?  {explained[i].probability:.0%}"
            set_title(grid[row, left + column], title, size=12)
    signs = [
        Patch(color=FOR_COLOR, label="evidence for the class"),
        Patch(color=AGAINST_COLOR, label="evidence against it"),
    ]
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    figure.legend(handles=signs, loc="outside lower center", ncols=2, frameon=False, fontsize=12)
    save_figure(figure, arguments.out, dpi=80)


if __name__ == "__main__":
    main()
