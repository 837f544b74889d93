"""A classifier -> a .pt2 file: torch's own exported program, which needs torch but not vitrail."""

import json
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.errors import UsageError
from vitrail.exporting.program import LOGITS, TARGET, ProgramOptions
from vitrail.exporting.result import ExportResult, new_path
from vitrail.exporting.trace import trace_program
from vitrail.exporting.verify import Probes, check_tolerance, compare_program, verify_extra_outputs
from vitrail.files import write_atomically
from vitrail.weights.artifact import Artifact

DOCUMENT = "vitrail.json"  # beside the program in the file: classes, preprocessing, temperature, origin


def export_torch(
    classifier: Classifier,
    out: str | Path,
    extras: ProgramOptions,
    check: Probes,
    tick: Callable[[int], object] = lambda n: None,
) -> ExportResult:
    """Writes a file that `torch.export.load` reads and that answers as the classifier does, or nothing.

    Raises `UsageError` where `out` exists, `VitrailError` with the figures where the program does not agree.
    """
    path = new_path(out, ".pt2")
    extras.check(classifier)
    if extras.int8:
        raise UsageError("--int8 is for ONNX files", "use --format onnx or triton")
    artefact = Artifact(
        classifier.vit.config, classifier.classes, classifier.preprocess, classifier.temperature, classifier.origin
    )
    with silence_output():
        whole = BytesIO()
        document = json.dumps(artefact.to_json(), ensure_ascii=False)
        torch.export.save(trace_program(classifier, extras), whole, extra_files={DOCUMENT: document})
        whole.seek(0)
        run = Loaded(torch.export.load(whole).module(), extras, len(classifier.classes))
    agreed = compare_program(classifier, lambda pixels: run(pixels, LOGITS), check, tick)
    check_tolerance(agreed, exact=True)
    agreed = replace(agreed, other_differences=verify_extra_outputs(classifier, run, check, extras))
    write_atomically(path, lambda aside: aside.write_bytes(whole.getbuffer()))
    return ExportResult(path, "torch", extras.outputs, agreed, path.stat().st_size)


class Loaded:
    """A program as it was read back: pixels -> one of its outputs."""

    def __init__(self, module: Any, extras: ProgramOptions, classes: int):
        self.module = module
        self.extras = extras
        self.classes = classes

    def __call__(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        nothing_BY = torch.zeros(len(pixels_BCHW), self.classes)
        given = [nothing_BY if target_BY is None else target_BY] if TARGET in self.extras.inputs else []
        answers: tuple[Tensor, ...] = self.module(pixels_BCHW, *given)
        return answers[self.extras.outputs.index(output)]
