"""Scores vitrail's explanations beside captum's, grad-cam's and torchcam's, on one classifier and one set of images.

    python benchmarks/explanations.py MODEL DATA [--split test] [--images 200] [--out FOLDER] [--methods a,b] [--rivals]

Every method maps the same images and is scored by the same measures (`vitrail faithfulness`). The rivals run as their
documentation says for a ViT; pixel maps are summed over each patch. Needs `pip install 'vitrail[dev]'`.
"""

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vitrail
from vitrail.data.open import open_data
from vitrail.explanation.faithfulness import evaluate_faithfulness
from vitrail.explanation.figures import save_faithfulness
from vitrail.files import write_json, write_text

Rival = Callable[[nn.Module, Tensor, list[int]], Tensor]  # model, normalised images, classes -> (B, H, W) or (B, h, w)


def captum_method(name: str, **options: object) -> Rival:
    """A captum attribution of the pixels, summed over channels."""

    def run(model: nn.Module, x: Tensor, numbers: list[int]) -> Tensor:
        import captum.attr

        found = getattr(captum.attr, name)(model).attribute(x.requires_grad_(), target=numbers, **options)
        return found.sum(dim=1).detach()

    return run


def occlusion(model: nn.Module, x: Tensor, numbers: list[int]) -> Tensor:
    """captum's occlusion with a window of one patch; its baseline 0 is the mean colour."""
    import captum.attr

    p = model.config.patch
    window = (3, p, p)
    found = captum.attr.Occlusion(model).attribute(x, window, strides=window, target=numbers)
    return found.sum(dim=1).detach()


def tokens_to_grid(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """(B, T, D) -> (B, D, h, w), as both CAM libraries want it."""
    h, w = model.config.grid
    prefix = model.config.prefix_tokens
    return lambda x_BTD: x_BTD[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)


def grad_cam_method(name: str) -> Rival:
    """A method of the grad-cam package at the last block's first norm, as its tutorial has it."""

    def run(model: nn.Module, x: Tensor, numbers: list[int]) -> Tensor:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        make = getattr(pytorch_grad_cam, name)
        with make(model, [model.blocks[-1].norm1], reshape_transform=tokens_to_grid(model)) as cam:
            return torch.from_numpy(cam(x.requires_grad_(), [ClassifierOutputTarget(n) for n in numbers]))

    return run


def torchcam_method(name: str) -> Rival:
    """A method of torchcam at the last block's first norm."""

    def run(model: nn.Module, x: Tensor, numbers: list[int]) -> Tensor:
        from torchcam import methods

        make = getattr(methods, name)
        with make(model, model.blocks[-1].norm1, reshape_transform=tokens_to_grid(model)) as cam:
            scores = model(x.requires_grad_())
            return cam(numbers, scores)[0].detach()

    return run


RIVALS: dict[str, Rival] = {
    "captum InputXGradient": captum_method("InputXGradient"),
    "captum IntegratedGradients": captum_method("IntegratedGradients", n_steps=50),
    "captum Occlusion": occlusion,
    "grad-cam GradCAM": grad_cam_method("GradCAM"),
    "grad-cam GradCAMPlusPlus": grad_cam_method("GradCAMPlusPlus"),
    "grad-cam EigenCAM": grad_cam_method("EigenCAM"),
    "torchcam GradCAM": torchcam_method("GradCAM"),
    "torchcam LayerCAM": torchcam_method("LayerCAM"),
}


def mapper(rival: Rival) -> Callable[[vitrail.Classifier, Tensor, list[str]], np.ndarray]:
    """A rival as vitrail's measures call it: pixels and class names in, a map on the patch grid out."""

    def map_of(classifier: vitrail.Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        numbers = [classifier.classes.index(label) for label in labels]
        found = rival(classifier.vit, classifier.normalize(pixels), numbers).float()
        h, w = classifier.vit.config.grid
        on_grid = nn.functional.adaptive_avg_pool2d(found.unsqueeze(1), (h, w))
        return on_grid.flatten(1).cpu().numpy()

    return map_of


def markdown(document: dict[str, Any]) -> str:
    """The document as a table: mean ± half the 95 % interval, best or tied in bold, cost in forward passes."""
    measures = list(document["measures"])
    lines = [
        f"| method | {' | '.join(measures)} | cost |",
        f"| --- | {' | '.join(['---:'] * (len(measures) + 1))} |",
    ]
    for name, row in document["methods"].items():
        cells = []
        for score in (row[measure] for measure in measures):
            half = 0 if score is None else (score["interval"][1] - score["interval"][0]) / 2
            text = "-" if score is None else f"{score['mean']:.3f} ± {half:.3f}"
            cells.append(f"**{text}**" if score and score["best"] else text)
        cost = "" if row["control"] else f"{row['forward_passes']:.1f}"
        lines.append(f"| {'*' + name + '*' if row['control'] else name} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Scores, prints a line per row as it is done, writes explanations.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", help="separated by commas; all unless said")
    parser.add_argument("--rivals", action="store_true", help="also captum, grad-cam and torchcam")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    asked = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    classifier = vitrail.load(asked.model)
    images = open_data(asked.data, validation=0.1).as_dict()[asked.split]
    began = time.time()
    found = evaluate_faithfulness(
        classifier,
        images,
        methods=asked.methods.split(",") if asked.methods else None,
        max_images=asked.images,
        steps=asked.steps,
        seed=asked.seed,
        extra_methods={name: mapper(rival) for name, rival in RIVALS.items()} if asked.rivals else {},
        description=f"{asked.images} {asked.split} images of {images.classes[0]} ... {images.classes[-1]}, 1 thread",
        on_step=lambda name: print(f"{time.time() - began:7.0f} s  {name}", flush=True),
    )
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "explanations.json", found.to_json())
    write_text(asked.out / "explanations.md", markdown(found.to_json()))
    save_faithfulness(found, asked.out / "explanations.png")
    print(f"{time.time() - began:7.0f} s  written: {asked.out}")


if __name__ == "__main__":
    main()
