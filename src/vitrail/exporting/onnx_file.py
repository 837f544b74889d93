"""Reads and validates an ONNX file that vitrail wrote, without running it.

The file must be complete, unchanged, and contain its weights. Its metadata hold one JSON document under the key
`vitrail`: that of an artifact (weights/artifact.py), and `exported`, how the file was made and verified.
"""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.files import refuse_lfs_pointer
from vitrail.installation import install_hint
from vitrail.weights.artifact import MAX_DOCUMENT_BYTES, Artifact, parse_artifact, parse_strict_json
from vitrail.weights.upgrade import rename_keys

MAX_BYTES = 2 << 30  # of a protobuf message, the container of ONNX
EXPORTED_KEYS = {  # of format 1 -> today's
    "alone_difference": "batch_difference",
    "lost": "accuracy_drop",
    "lost_interval": "accuracy_drop_interval",
}


def import_onnx() -> tuple[Any, Any]:
    """Returns onnx and onnxruntime; raises `UsageError` if one is not installed."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", install_hint("export")) from None
    return onnx, onnxruntime


def read_onnx_bytes(path: Path) -> bytes:
    """Returns the bytes of a file; raises `UsageError` if it is missing, `VitrailError` if unreadable or too large."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.stat().st_size >= MAX_BYTES:
        raise VitrailError(f"{path} is larger than 2 GiB, the limit of an ONNX file")
    try:
        return path.read_bytes()
    except OSError as error:
        raise VitrailError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_onnx(data: bytes, path: Path) -> tuple[Artifact, dict[str, Any]]:
    """Returns the classifier without its weights, and how the file was made and verified.

    `path` is for messages. Raises `VitrailError` if vitrail did not write the file, or it is incomplete or changed.
    """
    model = parse_protobuf(data, path)
    text = metadata_text(model, path)
    check_tensors(model, path)
    try:
        document = parse_strict_json(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise VitrailError(f"{path} is not a complete artifact: its metadata are not a JSON object")
    artifact = parse_artifact(document, path, needs_parts=False)  # the graph is complete without them
    if document.get("sha256") != safe_digest(model):
        raise VitrailError(
            f"{path} is damaged or was changed: its weights do not match their checksum", "export it again"
        )
    return artifact, upgrade_exported(document)


def parse_protobuf(data: bytes, path: Path) -> Any:
    refuse_lfs_pointer(path)
    onnx, _ = import_onnx()
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception:  # protobuf's DecodeError, which has no public name
        raise VitrailError(f"{path} is truncated or not an ONNX file", "copy the file again") from None
    return model


def metadata_text(model: Any, path: Path) -> str:
    """Returns the JSON document in the metadata; raises `VitrailError` if there is none or it is too long."""
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if "vitrail" not in metadata and model.graph.node:
        raise VitrailError(
            f"{path} is an ONNX file that vitrail did not write",
            "it lacks the classes and the preprocessing: vitrail export MODEL --format onnx writes them",
        )
    if "vitrail" not in metadata:
        raise VitrailError(f"{path} is truncated or not an ONNX file", "copy the file again")
    text: str = metadata["vitrail"]
    if len(text) > MAX_DOCUMENT_BYTES:
        raise VitrailError(
            f"{path} is not a complete artifact: its metadata are longer than {MAX_DOCUMENT_BYTES:,} bytes"
        )
    return text


def check_tensors(model: Any, path: Path) -> None:
    """Raises `VitrailError` for a tensor in another file or of an unknown type."""
    onnx, _ = import_onnx()
    for tensor in iterate_tensors(model, onnx):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise VitrailError(f"{path} stores the weight {tensor.name!r} in another file, which vitrail does not read")
        if tensor.data_type not in onnx.TensorProto.DataType.values():
            raise VitrailError(f"{path} is damaged: its weight {tensor.name!r} has an unknown type", "export it again")


def iterate_tensors(message: Any, onnx: Any) -> Iterator[Any]:
    """Every tensor of a model, also of graphs inside nodes."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        for child in [value] if hasattr(value, "ListFields") else value:
            yield from iterate_tensors(child, onnx)


def weights_digest(model: Any) -> str:
    """SHA-256 over the names, shapes, types and bytes of a graph's weights, sorted by name."""
    from onnx import numpy_helper

    sha = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        sha.update(f"{tensor.name} {tuple(tensor.dims)} {tensor.data_type}\n".encode())
        sha.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    return sha.hexdigest()


def safe_digest(model: Any) -> str | None:
    """Returns the digest; None if a damaged weight cannot be read."""
    try:
        return weights_digest(model)
    except Exception:  # onnx raises many types of errors for a damaged tensor
        return None


def upgrade_exported(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the document's `exported` with today's keys; empty if the file has none."""
    exported = document.get("exported")
    if not isinstance(exported, dict):
        return {}
    return rename_keys(exported, EXPORTED_KEYS) if document["format"] == 1 else exported


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Returns the content of an ONNX file for `vitrail inspect`; raises the same errors as loading it."""
    data = read_onnx_bytes(path)
    artifact, exported = parse_onnx(data, path)
    onnx, _ = import_onnx()
    graph = onnx.load_model_from_string(data).graph
    tensors = {
        tensor.name: {"shape": list(tensor.dims), "dtype": onnx.TensorProto.DataType.Name(tensor.data_type).lower()}
        for tensor in graph.initializer
    }
    return {
        "file": str(path),
        "kind": "ONNX file of vitrail",
        "bytes": len(data),
        "parameters": sum(math.prod(tensor["shape"]) for tensor in tensors.values()),
        "tensors": tensors,
        **artifact.to_json(),
        "inputs": [port.name for port in graph.input],
        "outputs": [port.name for port in graph.output],
        "exported": exported,
    }
