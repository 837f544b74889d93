"""Parses requests and writes responses of the Open Inference Protocol v2 over REST, with two of Triton's extensions:
binary tensors and classification.

Sources: https://github.com/kserve/open-inference-protocol, and docs/protocol of triton-inference-server/server. These
functions only transform bytes: they do not block and know no model. They raise `RequestError` for an invalid request.
"""

import base64
import binascii
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.serving.errors import bad_request, too_large
from vitrail.serving.settings import Settings

LENGTH_HEADER = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "classification", "statistics", "explanation"]
MAX_INTEGER_DIGITS = 9  # limit for numbers of bytes, images and classes


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client requests; with `class_count`, its best classes as text (Triton's classification)."""

    name: str
    class_count: int | None = None
    binary: bool = False


@dataclass
class InferRequest:
    """A parsed request: image files or pixels (N, H, W, C), and the requested outputs (None: all)."""

    files: list[bytes] = field(default_factory=list)
    pixels: np.ndarray | None = None
    outputs: list[RequestedOutput] | None = None
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def image_count(self) -> int:
        return len(self.files) if self.pixels is None else len(self.pixels)


def parse_request(body: bytes, json_length: str | None, settings: Settings) -> InferRequest:
    """Parses a body; the header `json_length` is the size of its JSON part. Raises `RequestError`."""
    if json_length is None:
        return parse_document(body, b"", settings)
    is_number = json_length.isascii() and json_length.isdecimal() and len(json_length) <= MAX_INTEGER_DIGITS
    if not is_number or int(json_length) > len(body):
        raise bad_request(
            f"Inference-Header-Content-Length is {json_length[:20]!r}, and the body has {len(body)} bytes"
        )
    if int(json_length) == 0:  # Triton's raw binary request: the body is one image, the response has binary tensors
        if not body:
            raise bad_request("the body is empty: send an image file")
        return InferRequest([body], parameters={"binary_data_output": True})
    return parse_document(body[: int(json_length)], body[int(json_length) :], settings)


def parse_document(text: bytes, rest: bytes, settings: Settings) -> InferRequest:
    """Parses the JSON of a request and the binary tensors `rest` that follow it."""
    document = parse_json(text)
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise bad_request("id is not a string")
    parameters = parse_parameters(document.get("parameters"), "the request")
    inputs = require_objects(document.get("inputs"), "inputs")
    if len(inputs) != 1:
        raise bad_request(f"there are {len(inputs)} inputs: send one, either image or pixels")
    request = InferRequest(id=request_id, parameters=parameters)
    if "outputs" in document:
        request.outputs = parse_outputs(document["outputs"], parse_flag(parameters, "binary_data_output"))
    rest = parse_input(inputs[0], rest, request, settings)
    if rest:
        raise bad_request(f"there are {len(rest)} bytes after the last tensor")
    return request


def parse_json(text: bytes) -> dict[str, Any]:
    """Parses a JSON object; raises `RequestError` for anything else, also for JSON that is nested too deeply."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise bad_request("the JSON is nested too deeply") from None
    except (ValueError, UnicodeError):
        raise bad_request("the body is not JSON") from None
    if not isinstance(document, dict):
        raise bad_request("the body is not a JSON object")
    return document


def require_objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Returns the value; raises `RequestError` if it is not a list of objects that have a name."""
    if not isinstance(value, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in value
    ):
        raise bad_request(f"{name} is not a list of objects with names")
    return value


def parse_parameters(value: Any, owner: str) -> dict[str, Any]:
    """Returns the parameters: strings, numbers and booleans by name."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(each, str | bool | int | float) for each in value.values()):
        raise bad_request(f"the parameters of {owner} are not an object of strings, numbers and booleans")
    return value


def parse_flag(parameters: dict[str, Any], name: str) -> bool:
    """Returns a boolean parameter (default: false)."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise bad_request(f"{name} is neither true nor false")
    return value


def parse_count(value: Any, name: str) -> int:
    """Returns a non-negative integer; raises `RequestError` for any other value."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**MAX_INTEGER_DIGITS:
        raise bad_request(f"{name} is not a non-negative integer")
    return value


def parse_outputs(value: Any, binary: bool) -> list[RequestedOutput]:
    """Parses the list of requested outputs; `binary` is the default for their format."""
    outputs = []
    for entry in require_objects(value, "outputs"):
        parameters = parse_parameters(entry.get("parameters"), "an output")
        class_count = parameters.get("classification")
        if class_count is not None and parse_count(class_count, "classification") == 0:
            class_count = None
        is_binary = parse_flag({"binary_data": binary, **parameters}, "binary_data")
        outputs.append(RequestedOutput(entry["name"], class_count, is_binary))
    if len({output.name for output in outputs}) < len(outputs):
        raise bad_request("an output is requested twice")
    return outputs


def parse_input(entry: dict[str, Any], rest: bytes, request: InferRequest, settings: Settings) -> bytes:
    """Parses the only input into `request`; returns the bytes after its binary tensor."""
    if entry["name"] not in INPUTS:
        raise bad_request(f"there is no input {entry['name'][:40]!r}: send image or pixels")
    datatypes, dimensions = INPUTS[entry["name"]]
    datatype = entry.get("datatype")
    if datatype not in datatypes:
        raise bad_request(f"the datatype of {entry['name']} is not {' or '.join(datatypes)}")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise bad_request("the shape is not a list of numbers")
    shape = [parse_count(size, "a dimension of the shape") for size in shape]
    if len(shape) not in dimensions or (datatype == "BYTES" and shape[1:] not in ([], [1])):
        raise bad_request(
            f"the shape of {entry['name']} is {shape}: it must be {'[n]' if datatype == 'BYTES' else '[n, h, w, c]'}"
        )
    if not 1 <= shape[0] <= settings.images_per_request:
        raise too_large(f"there are {shape[0]} images: send 1 to {settings.images_per_request} per request")
    parameters = parse_parameters(entry.get("parameters"), "an input")
    raw = None
    if "binary_data_size" in parameters:
        size = parse_count(parameters["binary_data_size"], "binary_data_size")
        if "data" in entry:
            raise bad_request("an input has both data and binary_data_size")
        if size > len(rest):
            raise bad_request(f"binary_data_size is {size}, but only {len(rest)} bytes are left")
        raw, rest = rest[:size], rest[size:]
    elif "data" not in entry:
        raise bad_request("the input has no data")
    if datatype == "BYTES":
        request.files = (
            split_bytes(raw, shape[0]) if raw is not None else decode_base64_images(entry["data"], shape[0], parameters)
        )
    else:
        request.pixels = parse_pixels(raw, entry.get("data"), shape, datatype, settings)
    return rest


INPUTS = {  # name -> datatypes, allowed numbers of dimensions
    "image": (("BYTES",), (1, 2)),
    "pixels": (("UINT8", "FP32"), (4,)),
}


def split_bytes(raw: bytes, image_count: int) -> list[bytes]:
    """Splits a binary BYTES tensor into its elements; each element follows its length."""
    elements, offset = [], 0
    for _ in range(image_count):
        if offset + 4 > len(raw):
            raise bad_request("the tensor ends before its last image")
        (size,) = struct.unpack_from("<I", raw, offset)
        if size > len(raw) - offset - 4:
            raise bad_request("the length of an image exceeds the tensor")
        elements.append(raw[offset + 4 : offset + 4 + size])
        offset += 4 + size
    if offset < len(raw):
        raise bad_request("the tensor has extra bytes after its last image")
    return elements


def flatten(data: Any) -> Iterable[Any]:
    """Yields the values of nested lists in order, without recursion."""
    stack = [iter([data])]
    while stack:
        for each in stack[-1]:
            if isinstance(each, list):
                stack.append(iter(each))
                break
            yield each
        else:
            stack.pop()


def decode_base64_images(data: Any, image_count: int, parameters: dict[str, Any]) -> list[bytes]:
    """Decodes the image files of a JSON tensor."""
    if parameters.get("content_type", "base64") != "base64":
        raise bad_request("content_type must be base64 for images in JSON")
    texts = list(flatten(data))
    if len(texts) != image_count or not all(isinstance(text, str) for text in texts):
        raise bad_request(f"data must have {image_count} strings, each an image in base64")
    try:
        return [base64.b64decode(text, validate=True) for text in texts]
    except (binascii.Error, ValueError):
        raise bad_request("an image is not valid base64") from None


def parse_pixels(raw: bytes | None, data: Any, shape: Sequence[int], datatype: str, settings: Settings) -> np.ndarray:
    """Returns the pixels (N, H, W, C) of a binary or JSON tensor as uint8, or as float32 with the values of bands."""
    if 0 in shape:
        raise bad_request(f"the shape of pixels is {list(shape)}: it must be [n, h, w, c] with 1 or more channels")
    if shape[1] * shape[2] * max(1, shape[3] / 3) > settings.max_megapixels * 1_000_000:
        raise too_large(f"{shape[2]}x{shape[1]} pixels are above the limit of {settings.max_megapixels} million")
    size = math.prod(shape)
    dtype = np.dtype("<f4" if datatype == "FP32" else np.uint8)
    if raw is not None:
        if len(raw) != size * dtype.itemsize:
            raise bad_request(f"the tensor has {len(raw)} bytes; its shape requires {size * dtype.itemsize}")
        return require_finite(np.frombuffer(raw, dtype).reshape(shape))
    values = list(flatten(data))
    if len(values) != size:
        raise bad_request(f"data has {len(values)} numbers; the shape requires {size}")
    if datatype == "FP32":
        if not all(type(value) in (int, float) for value in values):
            raise bad_request("a value of the pixels is not a number")
        with np.errstate(over="ignore"):
            return require_finite(np.array(values, np.float64).astype(np.float32).reshape(shape))
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise bad_request("a pixel is not an integer from 0 to 255")
    return np.array(values, np.uint8).reshape(shape)


def require_finite(pixels: np.ndarray) -> np.ndarray:
    """Returns the pixels; raises `RequestError` if one of them is not a finite number."""
    if pixels.dtype != np.uint8 and not np.isfinite(pixels).all():
        raise bad_request("a value of the pixels is not a finite number")
    return pixels


@dataclass(frozen=True)
class OutputTensor:
    """An output tensor of a response: an array of floats, or an object array of encoded texts."""

    name: str
    values: np.ndarray
    binary: bool = False

    @property
    def datatype(self) -> str:
        """The data type's name in the protocol."""
        return "BYTES" if self.values.dtype == object else "FP32"

    def to_bytes(self) -> bytes:
        """Returns the binary format: little-endian, in row-major order; each text follows its length."""
        if self.datatype == "FP32":
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        return b"".join(struct.pack("<I", len(text)) + text for text in self.values.ravel())

    def to_list(self) -> list[Any]:
        """Returns the values as a flat list for JSON."""
        flat = self.values.ravel().tolist()
        return [each.decode() for each in flat] if self.datatype == "BYTES" else flat


def format_top_classes(values_NY: np.ndarray, labels: Sequence[str], class_count: int) -> np.ndarray:
    """Returns the `class_count` highest values of each row, best first: `value:index:label`, or `value:index`."""
    best_NK = np.argsort(-values_NY, axis=1, kind="stable")[:, :class_count]
    texts_NK = np.empty(best_NK.shape, object)
    for n, row in enumerate(best_NK.tolist()):
        for k, index in enumerate(row):
            label = f":{labels[index]}" if labels else ""
            texts_NK[n, k] = f"{values_NY[n, index]:f}:{index}{label}".encode()
    return texts_NK


def write_response(
    model: str, version: str, request: InferRequest, outputs: Sequence[OutputTensor], warning: str | None = None
) -> tuple[bytes, dict[str, str]]:
    """Returns body and headers of a response; a warning becomes one of its parameters."""
    entries, tensors = [], []
    for each in outputs:
        entry: dict[str, Any] = {"name": each.name, "shape": list(each.values.shape), "datatype": each.datatype}
        if each.binary:
            tensors.append(each.to_bytes())
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = each.to_list()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    if warning is not None:
        document["parameters"] = {"warning": warning}
    text = json.dumps(document, allow_nan=False).encode()
    if not tensors:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join([text, *tensors]), headers


def select_outputs(request: InferRequest, values: dict[str, np.ndarray], labels: Sequence[str]) -> list[OutputTensor]:
    """Returns the requested outputs of `values`; raises `RequestError` if one does not exist."""
    binary = parse_flag(request.parameters, "binary_data_output")
    requested = request.outputs
    if requested is None:
        requested = [RequestedOutput(name, binary=binary) for name in values]
    tensors = []
    for each in requested:
        if each.name not in values:
            raise bad_request(f"there is no output {each.name[:40]!r}; the outputs are {', '.join(values)}")
        array = values[each.name]
        if each.class_count is not None:
            if array.ndim != 2 or array.dtype == object or (labels and array.shape[1] != len(labels)):
                raise bad_request(f"{each.name} has no row of classes")
            array = format_top_classes(array, labels, each.class_count)
        tensors.append(OutputTensor(each.name, array, each.binary))
    return tensors
