"""Exports a classifier to a .pt2 file: torch's exported program, which needs torch but not vitrail."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import Classifier
from vitrail.console import silence_output
from vitrail.errors import UsageError
from vitrail.exporting.preparation import prepare_document
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import TARGET, ProgramOptions, RunProgram
from vitrail.exporting.program_document import program_document
from vitrail.exporting.program_format import ProgramFormat
from vitrail.exporting.trace import trace_program

DOCUMENT_NAME = "vitrail.json"  # extra file of the .pt2: classes, preprocessing, temperature, origin, preparation


class TorchFormat(ProgramFormat):
    """One file that `torch.export.load` reads."""

    suffix = ".pt2"

    def __init__(self, classifier: Classifier, options: ProgramOptions, probes: Probes):
        super().__init__(classifier, options, probes)
        if options.int8:
            raise UsageError("--int8 is for ONNX and OpenVINO", "use --format onnx, openvino or triton")
        document = {**program_document(classifier, options.unlike), "preparation": prepare_document(classifier)}
        text = json.dumps(document, ensure_ascii=False)
        self.file = BytesIO()
        with silence_output():
            torch.export.save(trace_program(classifier, options), self.file, extra_files={DOCUMENT_NAME: text})
            self.file.seek(0)
            self.module: Any = torch.export.load(self.file).module()

    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        return self.run_module(self.module, pixels_BCHW, output, target_BY)

    def run_module(self, module: Any, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        no_target_BY = torch.zeros(len(pixels_BCHW), len(self.classifier.classes))
        inputs = [no_target_BY if target_BY is None else target_BY] if TARGET in self.options.inputs else []
        outputs: tuple[Tensor, ...] = module(pixels_BCHW, *inputs)
        return outputs[self.options.outputs.index(output)]

    def write(self, path: Path, name: str, exported: dict[str, Any]) -> None:
        path.write_bytes(self.file.getbuffer())

    def read_back(self, path: Path) -> RunProgram:
        with silence_output():
            module = torch.export.load(path).module()
        return lambda pixels, output, target=None: self.run_module(module, pixels, output, target)
