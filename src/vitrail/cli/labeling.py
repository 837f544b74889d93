"""`vitrail predict --rank-for-labeling`: which images to label next."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import load_in_precision, require_classifier
from vitrail.tasks import refuse_task

if TYPE_CHECKING:
    from vitrail.cli.images import InputImage
    from vitrail.image_documents import LabelingRow


def rank_images(arguments: argparse.Namespace, images: list[InputImage]) -> Answer:
    """Returns the images to label, in order, with what is predicted for them now."""
    import torch

    from vitrail.batching import BatchHalver
    from vitrail.cli.images import read_input_batches
    from vitrail.evaluation.labeling import rank_for_labeling

    classifier = require_classifier(load_in_precision(arguments), arguments.model, "--rank-for-labeling")
    classifier.require_classes()
    refuse_task(classifier.task, "labeling")
    halve, outputs = BatchHalver(), []
    paths: list[str] = []
    unreadable: list[dict[str, Any]] = []
    for batch in read_input_batches(classifier, images, arguments.batch_size):
        names = [str(path) for path in batch.paths]
        unreadable += [{"path": names[i], "error": reason} for i, reason in batch.errors.items()]
        if readable := batch.readable:
            outputs += halve(classifier.logits_and_features, batch.pixels_BCHW)
            paths += [names[i] for i in readable]
    rows: list[LabelingRow] = []
    lines: list[Any] = []
    if outputs:
        logits_NY, features_ND = (torch.cat([part.cpu() for part in each]) for each in zip(*outputs, strict=True))
        order = rank_for_labeling(logits_NY.numpy(), features_ND.numpy(), arguments.rank_for_labeling, classifier.task)
        for i in order.tolist():
            predicted = classifier.answers.predict(logits_NY[i], 2)
            rows.append(
                {"path": paths[i], "top": [{"label": p.label, "probability": p.probability} for p in predicted]}
            )
            classes = ", ".join(f"{each.label} {each.probability:.1%}" for each in predicted)
            lines.append(f"{paths[i]}: {classes or 'no label'}")
    lines += [f"{each['path']}: unreadable: {each['error']}" for each in unreadable]
    document = {"ranking": rows, "images": len(paths), "unreadable_files": unreadable}
    return Answer(document, lines, code=1 if unreadable else 0)
