"""Puts a run's classifier into the package, with a card of what it scored: python tools/make_box.py RUN DATA NAME

DATA are the images that neither trained it nor chose anything of it. The weights are kept in float16, and it is the
file as written that is scored.
"""

import sys
import tempfile
from pathlib import Path

import vitrail
from vitrail.evaluation import evaluate, open_scored_images
from vitrail.evaluation.evaluation import Evaluation

BOX = Path(__file__).parent.parent / "src" / "vitrail" / "weights" / "bundled_files"
MOST = 6 << 20  # bytes


def card(name: str, classifier: vitrail.Classifier, scores: Evaluation, size: int) -> str:
    """What is to be known of it, in Markdown."""
    config, origin = classifier.vit.config, classifier.origin
    recipe = origin["recipe"]
    low, high = scores.accuracy_interval
    numbers = scores.to_json()
    parameters = sum(parameter.numel() for parameter in classifier.vit.parameters())
    height, width = classifier.preprocess.image_size
    lines = [
        f"# {name}",
        "",
        f"A plain ViT of {config.width}x{config.depth} ({parameters:,} parameters, patch {config.patch}, "
        f"{width}x{height} pixels, {size / 2**20:.1f} MiB in float16), trained from nothing on the CIFAR-10 training "
        "images alone.",
        "",
        f"**{scores.accuracy:.2%} of the {scores.images:,} test images** (95 % interval {low:.1%} to {high:.1%}), on "
        f"which nothing was chosen. Expected calibration error {numbers['ece']:.3f}, with temperature "
        f"{classifier.temperature:.2f}, fitted on validation images.",
        "",
        f"Recipe `{recipe['name']}` with {recipe['epochs']} epochs, `initial_image_scale` "
        f"{recipe['initial_image_scale']}, seed {recipe['seed']}; one run, not the best of several.",
        "",
        "| class | test images | found | right when named |",
        "| --- | --: | --: | --: |",
        *(
            f"| {label} | {row['images']} | {row['recall']:.1%} | {row['precision']:.1%} |"
            for label, row in numbers["per_class"].items()
        ),
        "",
        "Most confused: "
        + ", ".join(
            f"{row['true']} taken for {row['predicted']} ({row['images']})" for row in numbers["most_confused"][:5]
        )
        + ".",
        "",
        "Good for: trying `predict`, `explain`, `faithfulness`, `export`, `serve` without a download; teaching; tests.",
        "",
        "Not good for: photographs as cameras make them (it has seen 32x32 pixels with one thing in the middle), "
        "anything but these ten classes (a picture of anything else is still given one of them, often surely), "
        "decisions that matter to somebody.",
        "",
    ]
    return "\n".join(lines)


def main(run: str, data: str, name: str) -> None:
    """Writes the artefact and its card; neither is in the package before both are made."""
    with tempfile.TemporaryDirectory(dir=BOX.parent) as aside:
        path = Path(aside, f"{name}.safetensors")
        vitrail.load(run).save(path, half=True)
        size = path.stat().st_size
        if size > MOST:
            raise SystemExit(f"{name} has {size:,} bytes, more than {MOST:,}")
        classifier = vitrail.load(path)
        images, said = open_scored_images(classifier, data)
        about = path.with_suffix(".md")
        about.write_text(card(name, classifier, evaluate(classifier, images, description=said), size), encoding="utf-8")
        for made in (path, about):
            made.replace(BOX / made.name)


if __name__ == "__main__":
    main(*sys.argv[1:])
