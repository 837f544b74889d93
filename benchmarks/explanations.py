"""Scores the explanations of vitrail, captum, grad-cam and torchcam on one classifier and one set of images.

    python benchmarks/explanations.py MODEL DATA [--split test] [--images 200] [--out FOLDER] [--methods a,b] [--peers]

Every method maps the same images and gets the same measures (`vitrail faithfulness`). The peers run as their
documentation describes for a ViT; pixel maps are averaged over each patch. Needs `pip install 'vitrail[dev]'`.
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
from vitrail.explanation.faithfulness import Mapper, evaluate_faithfulness
from vitrail.explanation.figures import save_faithfulness
from vitrail.files import write_json, write_text

# model, normalized images, class indices -> maps (B, H, W) or (B, h, w)
PeerMethod = Callable[[nn.Module, Tensor, list[int]], Tensor]


def captum_method(name: str, **options: object) -> PeerMethod:
    """A captum attribution of the pixels, summed over channels."""

    def attribute(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
        import captum.attr

        attribution = getattr(captum.attr, name)(model).attribute(x.requires_grad_(), target=targets, **options)
        return attribution.sum(dim=1).detach()

    return attribute


def captum_occlusion(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
    """captum's occlusion with a window of one patch; its baseline 0 is the mean color."""
    import captum.attr

    patch = model.config.patch
    window = (3, patch, patch)
    attribution = captum.attr.Occlusion(model).attribute(x, window, strides=window, target=targets)
    return attribution.sum(dim=1).detach()


def tokens_to_grid(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The function (B, T, D) -> (B, D, h, w) that both CAM libraries take."""
    h, w = model.config.grid
    prefix = model.config.prefix_tokens
    return lambda x_BTD: x_BTD[:, prefix:].unflatten(1, (h, w)).permute(0, 3, 1, 2)


def grad_cam_method(name: str) -> PeerMethod:
    """A method of the grad-cam package at the last block's first norm, as in its tutorial."""

    def attribute(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
        import pytorch_grad_cam
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        make = getattr(pytorch_grad_cam, name)
        with make(model, [model.blocks[-1].norm1], reshape_transform=tokens_to_grid(model)) as cam:
            return torch.from_numpy(cam(x.requires_grad_(), [ClassifierOutputTarget(target) for target in targets]))

    return attribute


def torchcam_method(name: str) -> PeerMethod:
    """A method of torchcam at the last block's first norm."""

    def attribute(model: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
        from torchcam import methods

        make = getattr(methods, name)
        with make(model, model.blocks[-1].norm1, reshape_transform=tokens_to_grid(model)) as cam:
            scores = model(x.requires_grad_())
            return cam(targets, scores)[0].detach()

    return attribute


PEER_METHODS: dict[str, PeerMethod] = {
    "captum InputXGradient": captum_method("InputXGradient"),
    "captum IntegratedGradients": captum_method("IntegratedGradients", n_steps=50),
    "captum Occlusion": captum_occlusion,
    "grad-cam GradCAM": grad_cam_method("GradCAM"),
    "grad-cam GradCAMPlusPlus": grad_cam_method("GradCAMPlusPlus"),
    "grad-cam EigenCAM": grad_cam_method("EigenCAM"),
    "torchcam GradCAM": torchcam_method("GradCAM"),
    "torchcam LayerCAM": torchcam_method("LayerCAM"),
}


def peer_mapper(method: PeerMethod) -> Mapper:
    """A peer's method as vitrail's measures call it: pixels and class names -> maps on the patch grid (B, P)."""

    def compute(classifier: vitrail.Classifier, pixels: Tensor, labels: list[str]) -> np.ndarray:
        targets = [classifier.classes.index(label) for label in labels]
        maps = method(classifier.vit, classifier.normalize(pixels), targets).float()
        h, w = classifier.vit.config.grid
        map_B1hw = nn.functional.adaptive_avg_pool2d(maps.unsqueeze(1), (h, w))
        return map_B1hw.flatten(1).cpu().numpy()

    return compute


def format_table(document: dict[str, Any]) -> str:
    """The document as a Markdown table: mean ± half the 95% interval, best or tied in bold, cost in forward passes."""
    measures = document["measures"]
    lines = [
        f"| method | {' | '.join(measure['label'] for measure in measures.values())} | cost |",
        f"| --- | {' | '.join(['---:'] * (len(measures) + 1))} |",
    ]
    for name, row in document["methods"].items():
        cells = []
        for score in (row[measure] for measure in measures):
            interval = score and score["interval"]
            margin = f" ± {(interval[1] - interval[0]) / 2:.3f}" if interval else ""
            text = "-" if score is None else f"{score['mean']:.3f}{margin}"
            cells.append(f"**{text}**" if score and score["best"] else text)
        cost = "" if row["control"] else f"{row['forward_passes']:.1f}"
        lines.append(f"| {'*' + name + '*' if row['control'] else name} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Scores, prints a line for each step, writes explanations.json, .md and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", help="vitrail's methods, separated by commas (default: all)")
    parser.add_argument("--peers", action="store_true", help="also captum, grad-cam and torchcam")
    parser.add_argument("--out", type=Path, default=Path("explanations"))
    arguments = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    classifier = vitrail.load(arguments.model)
    images = open_data(arguments.data, validation=0.1).as_dict()[arguments.split]
    started = time.time()
    faithfulness = evaluate_faithfulness(
        classifier,
        images,
        methods=arguments.methods.split(",") if arguments.methods else None,
        max_images=arguments.images,
        steps=arguments.steps,
        seed=arguments.seed,
        extra_methods={name: peer_mapper(method) for name, method in PEER_METHODS.items()} if arguments.peers else {},
        description=f"{arguments.images} {arguments.split} images of {len(images.classes)} classes, 1 thread",
        on_step=lambda name: print(f"{time.time() - started:7.0f} s  {name}", flush=True),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "explanations.json", faithfulness.to_json())
    write_text(arguments.out / "explanations.md", format_table(faithfulness.to_json()))
    save_faithfulness(faithfulness, arguments.out / "explanations.png")
    print(f"{time.time() - started:7.0f} s  written: {arguments.out}")


if __name__ == "__main__":
    main()
