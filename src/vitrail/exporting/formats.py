"""The registry of program formats, and the export of a program: build, verify, write, read back.

To add a format, write a subclass of `ProgramFormat` and add it to `PROGRAM_FORMATS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitrail.classifier import Classifier
from vitrail.errors import UsageError, VitrailError, did_you_mean
from vitrail.exporting.onnx_format import OnnxFormat
from vitrail.exporting.openvino_format import OpenvinoFormat
from vitrail.exporting.probes import Probes
from vitrail.exporting.program import LOGITS, ProgramOptions
from vitrail.exporting.program_format import ProgramFormat
from vitrail.exporting.result import ExportResult
from vitrail.exporting.torch_format import TorchFormat
from vitrail.exporting.triton_format import TritonFormat
from vitrail.exporting.verify import verify_program
from vitrail.files import write_atomically, write_folder_atomically, write_pair_atomically

PROGRAM_FORMATS: dict[str, type[ProgramFormat]] = {
    "onnx": OnnxFormat,
    "openvino": OpenvinoFormat,
    "torch": TorchFormat,
    "triton": TritonFormat,
}


def export_program(
    classifier: Classifier,
    format: str,
    out: str | Path,
    options: ProgramOptions,
    probes: Probes,
    on_batch: Callable[[int], object] = lambda images: None,
) -> ExportResult:
    """Writes a program whose outputs are the classifier's, or nothing.

    Raises `UsageError` if `out` exists, a package is missing, or the options do not suit; `VitrailError` with the
    numbers if the program does not agree.
    """
    check_request(format, out, int8=options.int8)
    program_format, path = PROGRAM_FORMATS[format], Path(out)
    options.check(classifier)
    program = program_format(classifier, options, probes)
    verification = verify_program(classifier, program.run, probes, options, on_batch)
    int8 = program.measure_int8(probes.first_pixels(classifier)) if options.int8 else None
    exported = {**vars(options), **verification.to_json(), **(int8 or {})}

    def write(temporary: Path) -> None:
        program.write(temporary, path.name, exported)
        check_read_back(program, temporary, probes)

    if program_format.weights_suffix:
        write_pair_atomically(path, program_format.weights_suffix, write)
    elif program_format.suffix:
        write_atomically(path, write)
    else:
        with write_folder_atomically(path) as temporary:
            write(temporary)
    size = program.model_file(path).stat().st_size
    return ExportResult(path, format, options.outputs, verification, size, int8)


def check_request(format: str, out: str | Path, *, int8: bool = False) -> None:
    """Raises `UsageError` for an unknown format, for a path that it cannot be written to, and for a missing package."""
    if format not in PROGRAM_FORMATS:
        raise UsageError(f"there is no format {format!r}", did_you_mean(format, PROGRAM_FORMATS))
    PROGRAM_FORMATS[format].check_path(Path(out))
    PROGRAM_FORMATS[format].check_packages(int8=int8)


@torch.inference_mode()
def check_read_back(program: ProgramFormat, path: Path, probes: Probes) -> None:
    """Raises `VitrailError` if the written program does not give exactly the logits of the program in memory."""
    pixels = probes.first_pixels(program.classifier)
    logits: Any = program.read_back(path)(pixels, LOGITS)
    if not torch.equal(logits, program.run(pixels, LOGITS)):
        raise VitrailError(f"{path} does not give the same logits after writing", "nothing was written")
