"""Puts a run's classifier into the package with a card of its scores: python tools/make_bundled.py RUN DATA NAME

RUN may also be an artifact or the name of a bundled classifier. DATA are images that were used neither for training nor
for any choice. Weights are stored in float16, and the scores are those of the file as written.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import vitrail
from vitrail.evaluation import evaluate, open_scored_images
from vitrail.evaluation.evaluation import Evaluation

BUNDLED = Path(__file__).parent.parent / "src" / "vitrail" / "weights" / "bundled_files"
MAX_BYTES = 6 << 20


def write_card(name: str, classifier: vitrail.Classifier, evaluation: Evaluation, size: int) -> str:
    """Returns the card in Markdown; `size` is the file's size in bytes."""
    config, recipe = classifier.vit.config, classifier.origin["recipe"]
    low, high = evaluation.accuracy_interval
    scores = evaluation.to_json()
    parameters = sum(parameter.numel() for parameter in classifier.vit.parameters())
    height, width = classifier.preprocess.image_size
    return "\n".join(
        [
            f"# {name}",
            "",
            f"A ViT of width {config.width} and depth {config.depth} ({parameters:,} parameters, patch {config.patch}, "
            f"{width}x{height} pixels, {size / 2**20:.1f} MiB in float16), trained from scratch on the CIFAR-10 "
            "training images alone.",
            "",
            f"**{evaluation.accuracy:.2%} of the {evaluation.images:,} test images** (95% interval {low:.1%} to "
            f"{high:.1%}); no choice was made on these images. Expected calibration error {scores['ece']:.3f} with "
            f"temperature {classifier.temperature:.2f}, fitted on validation images.",
            "",
            f"Recipe `{recipe['name']}` with {recipe['epochs']} epochs, `initial_image_scale` "
            f"{recipe['initial_image_scale']}, seed {recipe['seed']}; one run, not the best of several.",
            "",
            *make_class_table(scores),
            "",
            f"Most confused: {list_confusions(scores)}.",
            "",
            "Use it to try `predict`, `explain`, `faithfulness`, `export` and `serve` without a download, for teaching "
            "and for tests.",
            "",
            "Do not use it for camera photographs (it was trained on 32x32 pixels with one centered object), for "
            "anything but these ten classes (it assigns one of them to every image, often with high confidence), or "
            "for decisions that matter.",
            "",
        ]
    )


def make_class_table(scores: dict[str, Any]) -> list[str]:
    """Returns a table of the images, recall and precision of each class."""
    return [
        "| class | test images | recall | precision |",
        "| --- | --: | --: | --: |",
        *(
            f"| {label} | {row['images']} | {row['recall']:.1%} | {row['precision']:.1%} |"
            for label, row in scores["per_class"].items()
        ),
    ]


def list_confusions(scores: dict[str, Any]) -> str:
    """Returns the five most frequent confusions."""
    rows = scores["most_confused"][:5]
    return ", ".join(f"{row['true']} predicted as {row['predicted']} ({row['images']})" for row in rows)


def main(run: str, data: str, name: str) -> None:
    """Writes the artifact and its card; both are complete before either is in the package."""
    with tempfile.TemporaryDirectory(dir=BUNDLED.parent) as temporary:
        path = Path(temporary, f"{name}.safetensors")
        vitrail.load(run).save(path, half=True)
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise SystemExit(f"{name} has {size:,} bytes, more than {MAX_BYTES:,}")
        classifier = vitrail.load(path)
        scored = open_scored_images(classifier, data)
        card = path.with_suffix(".md")
        evaluation = evaluate(classifier, scored.images, description=scored.description, optimistic=scored.optimistic)
        card.write_text(write_card(name, classifier, evaluation, size), encoding="utf-8")
        for file in (path, card):
            file.replace(BUNDLED / file.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
