"""A classifier in an ONNX file, run by ONNX Runtime: the same reading, the same answers, another machine room.

A file is looked at before it is run: it must be one that we wrote, whole, unchanged, and carry its weights itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.classifier import BaseClassifier, check_finite
from vitrail.data.preprocess import Preprocess
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.exporting.program import LOGITS, PIXELS, TARGET
from vitrail.machine import parse_device
from vitrail.weights.artifact import MAX_DOCUMENT_BYTES, Artifact, parse_artifact, parse_strict_json

MAX_BYTES = 2 << 30  # bytes that a protobuf message, which an ONNX file is, can hold
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}


@dataclass
class OnnxClassifier(BaseClassifier):
    """What turns image files into labels, its logits computed by ONNX Runtime; `outputs` names all that it gives."""

    session: Any = field(repr=False)
    classes: tuple[str, ...]
    preprocess: Preprocess
    temperature: float = 1.0
    origin: dict[str, Any] = field(default_factory=dict)
    exported: dict[str, Any] = field(default_factory=dict)  # how the file was made and how far it agreed

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, device: str = "cpu") -> OnnxClassifier:
        """The classifier in an ONNX file that vitrail wrote, run with so many threads (else as many as torch uses).

        Raises `VitrailError` saying what is wrong with the file, `UsageError` where there is none or no runtime.
        """
        data = read_onnx_bytes(Path(path))
        artefact, exported = parse_onnx(data, Path(path))
        session = create_session(data, Path(path), threads, device)
        check_signature(session, artefact, Path(path))
        return cls(session, artefact.classes, artefact.preprocess, artefact.temperature, artefact.origin, exported)

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the graph gives, by name: the logits first."""
        return tuple(output.name for output in self.session.get_outputs())

    def logits(self, pixels_BCHW: Tensor) -> Tensor:
        """uint8 pixels of the model's size -> logits (B, Y) in float32, divided by the temperature.

        Raises `NotFinite` where an answer is not a finite number.
        """
        return check_finite(self.run(pixels_BCHW, LOGITS))

    def run(self, pixels_BCHW: Tensor, output: str, target_BY: Tensor | None = None) -> Tensor:
        """One output of the graph, which is in `outputs`; a map is of what counts in `target_BY`: 1 for a class."""
        feed = {PIXELS: pixels_BCHW.cpu().contiguous().numpy()}
        if TARGET in {each.name for each in self.session.get_inputs()}:
            nothing_BY = torch.zeros(len(pixels_BCHW), len(self.classes))
            feed[TARGET] = (nothing_BY if target_BY is None else target_BY.cpu().float()).numpy()
        try:
            return torch.from_numpy(self.session.run([output], feed)[0])
        except Exception as error:  # the runtime's own, which are no OSError nor ValueError
            raise VitrailError(f"ONNX Runtime cannot run the model ({first_line(error)})") from None


def import_onnx() -> tuple[Any, Any]:
    """onnx and onnxruntime; raises `UsageError` where one is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", "pip install 'vitrail[export]'") from None
    return onnx, onnxruntime


def read_onnx_bytes(path: Path) -> bytes:
    """The file; raises `UsageError` where there is none, `VitrailError` where it cannot be read or is too large."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.stat().st_size >= MAX_BYTES:
        raise VitrailError(f"{path} is larger than 2 GiB, which no ONNX file of one piece is")
    try:
        return path.read_bytes()
    except OSError as error:
        raise VitrailError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_onnx(data: bytes, path: Path) -> tuple[Artifact, dict[str, Any]]:
    """What the file says of itself and of its making; raises `VitrailError` for what is not ours or not whole."""
    onnx, _ = import_onnx()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, which lives in a module of its own
        raise VitrailError(f"{path} is cut short or no ONNX file", "copy the file again") from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "vitrail" not in metadata:
        whole = bool(model.graph.node)
        raise VitrailError(
            f"{path} is {'an ONNX file that vitrail did not write' if whole else 'cut short or no ONNX file'}",
            "it lacks the classes and the preprocessing: vitrail export MODEL --format onnx writes them" if whole
            else "copy the file again",
        )  # fmt: skip
    if len(metadata["vitrail"]) > MAX_DOCUMENT_BYTES:
        raise VitrailError(
            f"{path} is not a whole artefact: its description is longer than {MAX_DOCUMENT_BYTES:,} bytes"
        )
    for tensor in iterate_tensors(model, onnx):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise VitrailError(f"{path} keeps the weight {tensor.name!r} in another file, which is not read")
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise VitrailError(f"{path} is damaged: its weight {tensor.name!r} is of no known type", "export it again")
    try:
        document = parse_strict_json(metadata["vitrail"])
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise VitrailError(f"{path} is not a whole artefact: its description is not a JSON object")
    artefact = parse_artifact(document, path)
    try:
        found = weights_digest(model)
    except Exception:  # onnx raises whatever the damage to a weight brings up
        found = None
    if found is None or document.get("sha256") != found:
        raise VitrailError(
            f"{path} is damaged or was changed: its weights are not those that vitrail wrote", "export it again"
        )
    exported = document.get("exported")
    return artefact, exported if isinstance(exported, dict) else {}


def inspect_onnx(path: Path) -> dict[str, Any]:
    """What the file is, as `vitrail inspect` says it; raises as loading does."""
    data = read_onnx_bytes(path)
    artefact, exported = parse_onnx(data, path)
    onnx, _ = import_onnx()
    graph = onnx.load_model_from_string(data).graph
    tensors = {
        tensor.name: {"shape": list(tensor.dims), "dtype": onnx.TensorProto.DataType.Name(tensor.data_type).lower()}
        for tensor in graph.initializer
    }
    return {
        "file": str(path),
        "kind": "ONNX file of vitrail's",
        "bytes": len(data),
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "tensors": tensors,
        **artefact.to_json(),
        "inputs": [each.name for each in graph.input],
        "outputs": [each.name for each in graph.output],
        "exported": exported,
    }


def iterate_tensors(message: Any, onnx: Any) -> Iterator[Any]:
    """Every tensor in a model, in graphs within graphs too."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for described_field, value in message.ListFields():
        if described_field.message_type is None:
            continue
        parts = [value] if hasattr(value, "ListFields") else value
        for part in parts:
            yield from iterate_tensors(part, onnx)


def weights_digest(model: Any) -> str:
    """SHA-256 over the weights of a graph: names, shapes, types and bytes, in the order of names."""
    from onnx import numpy_helper

    sha = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        sha.update(f"{tensor.name} {tuple(tensor.dims)} {tensor.data_type}\n".encode())
        sha.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    return sha.hexdigest()


def create_session(data: bytes, path: Path, threads: int | None, device: str) -> Any:
    """A session of ONNX Runtime on this graph; raises `VitrailError` where it does not take it."""
    _, ort = import_onnx()
    provider = PROVIDERS.get(parse_device(device).type)
    if provider not in ort.get_available_providers():
        raise UsageError(f"ONNX Runtime has no device {device!r} here", "leave --device out to use the processor")
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; it must be at least 1")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads sleep: docs/adr/0004
    options.log_severity_level = 4  # what it has to say comes as an exception
    try:
        return ort.InferenceSession(data, options, providers=[provider])
    except Exception as error:  # the runtime's own, which are no OSError nor ValueError
        raise VitrailError(f"ONNX Runtime does not take {path} ({first_line(error)})", "export it again") from None


def check_signature(session: Any, artefact: Artifact, path: Path) -> None:
    """Raises `VitrailError` where the graph does not take and give what the file says."""
    taken = {each.name: (each.type, each.shape[1:]) for each in session.get_inputs()}
    pixels = ("tensor(uint8)", [artefact.preprocess.channels, *artefact.preprocess.image_size])
    given = session.get_outputs()[0]
    answers = artefact.config.classes or artefact.config.pooled_width
    if taken.get(PIXELS) != pixels or given.type != "tensor(float)" or given.shape[1:] != [answers]:
        raise VitrailError(f"{path} describes another model than the one in it", "export it again")
