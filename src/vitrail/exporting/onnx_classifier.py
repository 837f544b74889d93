"""A classifier in an ONNX file, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.exporting.onnx_file import import_onnx, parse_onnx, read_onnx_bytes
from vitrail.exporting.program import DISTANCE, PIXELS
from vitrail.exporting.program_classifier import ProgramClassifier
from vitrail.machine import parse_device
from vitrail.weights.artifact import Artifact

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}


@dataclass
class OnnxClassifier(ProgramClassifier):
    """A classifier whose logits ONNX Runtime computes."""

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, device: str = "cpu") -> OnnxClassifier:
        """Loads an ONNX file that vitrail wrote; `threads` defaults to torch's number of threads.

        Raises `VitrailError` for a damaged or foreign file, `UsageError` if the file or the runtime is missing.
        """
        data = read_onnx_bytes(Path(path))
        artifact, exported = parse_onnx(data, Path(path))
        session = create_session(data, Path(path), threads, device)
        check_signature(session, artifact, Path(path))
        return cls.from_artifact(session, artifact, exported)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(output.name for output in self.session.get_outputs())

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(port.name for port in self.session.get_inputs())

    def run_session(self, feed: dict[str, Any], outputs: Sequence[str]) -> list[Tensor]:
        try:
            return [torch.from_numpy(each) for each in self.session.run(list(outputs), feed)]
        except Exception as error:  # ONNX Runtime's exceptions share no public base class
            raise VitrailError(f"ONNX Runtime cannot run the model ({first_line(error)})") from None


def create_session(data: bytes, path: Path, threads: int | None, device: str) -> Any:
    """Returns an ONNX Runtime session; raises `VitrailError` if the graph is invalid, `UsageError` for the options."""
    _, ort = import_onnx()
    provider = PROVIDERS.get(parse_device(device).type)
    if provider not in ort.get_available_providers():
        raise UsageError(f"ONNX Runtime has no device {device!r} here", "leave out --device to use the CPU")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep: docs/adr/0004
    options.log_severity_level = 4  # errors arrive as exceptions
    try:
        return ort.InferenceSession(data, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no public base class
        raise VitrailError(f"ONNX Runtime cannot load {path} ({first_line(error)})", "export it again") from None


def check_signature(session: Any, artifact: Artifact, path: Path) -> None:
    """Raises `VitrailError` if the graph's inputs and outputs differ from those that the metadata describe."""
    inputs = {port.name: (port.type, port.shape[1:]) for port in session.get_inputs()}
    pixel_type = "uint8" if artifact.preprocess.values == "uint8" else "float"
    pixels = (f"tensor({pixel_type})", [artifact.preprocess.channels, *artifact.preprocess.image_size])
    logits = session.get_outputs()[0]
    width = artifact.config.classes or artifact.config.pooled_width
    has_unlike = DISTANCE in {port.name for port in session.get_outputs()}
    if (
        has_unlike != (artifact.unlike is not None)
        or inputs.get(PIXELS) != pixels
        or logits.type != "tensor(float)"
        or logits.shape[1:] != [width]
    ):
        raise VitrailError(f"{path} contains another model than its metadata describe", "export it again")
