"""Reads and validates an OpenVINO model that vitrail wrote, without OpenVINO.

A model is two files: NAME.xml describes the graph, NAME.bin has the weights. The runtime information of the graph has
an entry `vitrail` with the JSON documents of an ONNX file (onnx_file.py), and the SHA-256 of the .bin file.
"""

import hashlib
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.exporting.program import DISTANCE, LOGITS, PIXELS
from vitrail.files import refuse_lfs_pointer
from vitrail.weights.artifact import MAX_DOCUMENT_BYTES, Artifact, parse_artifact, parse_strict_json

SECTION, DOCUMENT = "vitrail", "document"  # path of the document in the runtime information
MAX_GRAPH_BYTES = 256 << 20
DAMAGED_HINT = "export it again"


@dataclass(frozen=True)
class OpenvinoModel:
    """The two files of a model, and what they say about it."""

    graph: bytes
    weights: bytes
    artifact: Artifact
    exported: dict[str, Any]  # how the file was made and verified
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def read_openvino(path: Path) -> OpenvinoModel:
    """Returns the content of a model, of which `path` is the .xml file.

    Raises `UsageError` if a file is missing, `VitrailError` if vitrail did not write it, or it is damaged or changed.
    """
    weights_path = path.with_suffix(".bin")
    for each in (path, weights_path):
        if not each.is_file():
            beside = f" beside {path.name}: an OpenVINO model is two files" if each is weights_path else ""
            raise UsageError(f"there is no file {each}{beside}")
        refuse_lfs_pointer(each)
    if path.stat().st_size > MAX_GRAPH_BYTES:
        raise VitrailError(f"{path} is larger than {MAX_GRAPH_BYTES >> 20} MiB, too large for the graph of a ViT")
    try:
        graph, weights = path.read_bytes(), weights_path.read_bytes()
    except OSError as error:
        raise VitrailError(f"{path} cannot be read: {error.strerror or error}") from None
    root = parse_graph(graph, path)
    document = read_document(root, path)
    artifact = parse_artifact(document, path, needs_parts=False)  # the graph is complete without them
    if document.get("sha256") != hashlib.sha256(weights).hexdigest():
        raise VitrailError(f"{weights_path} is damaged or was changed: it does not match its checksum", DAMAGED_HINT)
    exported = document.get("exported")
    inputs, outputs = find_ports(root)
    check_ports(inputs, outputs, artifact, path)
    return OpenvinoModel(
        graph, weights, artifact, exported if isinstance(exported, dict) else {}, tuple(inputs), tuple(outputs)
    )


def parse_graph(graph: bytes, path: Path) -> ElementTree.Element:
    """Returns the root of the graph; raises `VitrailError` if it is not one."""
    try:
        root = ElementTree.fromstring(graph)
    except (ElementTree.ParseError, LookupError, ValueError):  # the last two for its encoding
        root = None
    if root is None or root.tag != "net":
        raise VitrailError(f"{path} is truncated or not the graph of an OpenVINO model", "copy the file again")
    return root


def read_document(root: ElementTree.Element, path: Path) -> dict[str, Any]:
    """Returns the JSON document of the runtime information; raises `VitrailError` if there is none."""
    entry = root.find(f"rt_info/{SECTION}/{DOCUMENT}")
    if entry is None:
        raise VitrailError(
            f"{path} is an OpenVINO model that vitrail did not write",
            "it lacks the classes and the preprocessing: vitrail export MODEL --format openvino writes them",
        )
    text = entry.get("value", "")
    try:
        document = parse_strict_json(text) if len(text) <= MAX_DOCUMENT_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise VitrailError(f"{path} is not a complete artifact: its metadata are not a JSON object", DAMAGED_HINT)
    return document


def find_ports(root: ElementTree.Element) -> tuple[dict[str, tuple[str, list[str]]], dict[str, list[str]]]:
    """Returns type and shape without the batch of the inputs, and this shape of the outputs, by name, in order."""
    inputs: dict[str, tuple[str, list[str]]] = {}
    outputs: dict[str, list[str]] = {}
    for layer in root.iterfind("layers/layer"):
        if layer.get("type") == "Parameter" and (data := layer.find("data")) is not None:
            shape = data.get("shape", "").split(",")[1:]
            inputs[layer.get("name", "")] = (data.get("element_type", ""), shape)
        elif layer.get("type") == "Result":
            dims = [dim.text or "" for dim in layer.iterfind("input/port/dim")]
            outputs[layer.get("output_names", "")] = dims[1:]
    return inputs, outputs


def check_ports(
    inputs: dict[str, tuple[str, list[str]]], outputs: dict[str, list[str]], artifact: Artifact, path: Path
) -> None:
    """Raises `VitrailError` if the graph's inputs and outputs differ from those that the metadata describe."""
    preprocess = artifact.preprocess
    element = "u8" if preprocess.values == "uint8" else "f32"
    pixels = (element, [str(each) for each in (preprocess.channels, *preprocess.image_size)])
    width = str(artifact.config.classes or artifact.config.pooled_width)
    if (
        inputs.get(PIXELS) != pixels
        or outputs.get(LOGITS) != [width]
        or (DISTANCE in outputs) != (artifact.unlike is not None)
    ):
        raise VitrailError(f"{path} contains another model than its metadata describe", DAMAGED_HINT)


def inspect_openvino(path: Path) -> dict[str, Any]:
    """Returns the content of a model for `vitrail inspect`; raises the same errors as loading it."""
    model = read_openvino(path)
    constants: dict[str, dict[str, Any]] = {}
    parameters = 0
    for layer in ElementTree.fromstring(model.graph).iterfind("layers/layer"):
        if layer.get("type") == "Const" and (data := layer.find("data")) is not None:
            shape = [int(each) for each in data.get("shape", "").split(",") if each.strip()]
            constants[layer.get("name", "")] = {"shape": shape, "dtype": data.get("element_type", "")}
            count = 1
            for each in shape:
                count *= each
            parameters += count
    return {
        "file": str(path),
        "kind": "OpenVINO model of vitrail",
        "bytes": len(model.graph) + len(model.weights),
        "parameters": parameters,
        "tensors": constants,
        **model.artifact.to_json(),
        "inputs": list(model.inputs),
        "outputs": list(model.outputs),
        "exported": model.exported,
    }
