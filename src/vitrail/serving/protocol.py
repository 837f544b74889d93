"""The Open Inference Protocol v2 over REST, with Triton's binary tensors and classification: bytes in, bytes out.

https://github.com/kserve/open-inference-protocol, and docs/protocol of triton-inference-server/server. Nothing here
waits, reads a file or knows a model; whatever makes no sense is a `Refusal` that says what.
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
MAX_DIGITS = 9  # a longer number of bytes, images or classes is no number of these


@dataclass(frozen=True)
class RequestedOutput:
    """An output that is asked for; with `classes` as its so many best classes, as text."""

    name: str
    classes: int | None = None
    binary: bool = False


@dataclass
class InferRequest:
    """A request: image files, or pixels (n, h, w, C), and what of the answer is wanted (None: everything)."""

    files: list[bytes] = field(default_factory=list)
    pixels: np.ndarray | None = None
    outputs: list[RequestedOutput] | None = None
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many."""
        return len(self.files) if self.pixels is None else len(self.pixels)


def parse_request(body: bytes, length: str | None, settings: Settings) -> InferRequest:
    """A body -> what is asked; `length` is the header that says how much of it is JSON. Raises `Refusal`."""
    if length is None:
        return parse_document(body, b"", settings)
    if not (length.isascii() and length.isdecimal() and len(length) <= MAX_DIGITS) or int(length) > len(body):
        raise bad_request(f"Inference-Header-Content-Length is {length[:20]!r}, and the body has {len(body)} bytes")
    if int(length) == 0:  # the body is the only image, and the answer's tensors are bytes
        if not body:
            raise bad_request("the body is empty: send an image file")
        return InferRequest([body], parameters={"binary_data_output": True})
    return parse_document(body[: int(length)], body[int(length) :], settings)


def parse_document(text: bytes, rest: bytes, settings: Settings) -> InferRequest:
    """The JSON of a request, and the raw tensors behind it."""
    document = parse_json(text)
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise bad_request("id is not text")
    parameters = parse_parameters(document.get("parameters"), "the request")
    inputs = require_objects(document.get("inputs"), "inputs")
    if len(inputs) != 1:
        raise bad_request(f"there are {len(inputs)} inputs: send one, image or pixels")
    asked = InferRequest(id=name, parameters=parameters)
    if "outputs" in document:
        asked.outputs = parse_outputs(document["outputs"], parse_flag(parameters, "binary_data_output"))
    rest = parse_input(inputs[0], rest, asked, settings)
    if rest:
        raise bad_request(f"{len(rest)} bytes follow the last tensor")
    return asked


def parse_json(text: bytes) -> dict[str, Any]:
    """A JSON object; raises `Refusal` for anything else, however deep or damaged."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise bad_request("the JSON is nested too deep") from None
    except (ValueError, UnicodeError):
        raise bad_request("the body is not JSON") from None
    if not isinstance(document, dict):
        raise bad_request("the body is not a JSON object")
    return document


def require_objects(found: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects with names."""
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
        raise bad_request(f"{what} is not a list of objects with names")
    return found


def parse_parameters(found: Any, whose: str) -> dict[str, Any]:
    """Names with text, numbers and booleans."""
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str | bool | int | float) for v in found.values()):
        raise bad_request(f"the parameters of {whose} are not an object of texts, numbers and booleans")
    return found


def parse_flag(parameters: dict[str, Any], name: str) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise bad_request(f"{name} is neither true nor false")
    return value


def parse_count(value: Any, what: str) -> int:
    """A whole number from 0 on, of a sane length."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**MAX_DIGITS:
        raise bad_request(f"{what} is not a whole number from 0 on")
    return value


def parse_outputs(found: Any, binary: bool) -> list[RequestedOutput]:
    """The outputs that are asked for."""
    wanted = []
    for entry in require_objects(found, "outputs"):
        parameters = parse_parameters(entry.get("parameters"), "an output")
        classes = parameters.get("classification")
        if classes is not None and parse_count(classes, "classification") == 0:
            classes = None
        wanted.append(
            RequestedOutput(entry["name"], classes, parse_flag({"binary_data": binary, **parameters}, "binary_data"))
        )
    if len({each.name for each in wanted}) < len(wanted):
        raise bad_request("an output is asked for twice")
    return wanted


def parse_input(entry: dict[str, Any], rest: bytes, request: InferRequest, settings: Settings) -> bytes:
    """The one input into `asked`; gives what follows its raw tensor."""
    if entry["name"] not in INPUTS:
        raise bad_request(f"there is no input {entry['name'][:40]!r}: send image or pixels")
    datatype, dimensions = INPUTS[entry["name"]]
    if entry.get("datatype") != datatype:
        raise bad_request(f"the datatype of {entry['name']} is not {datatype}")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise bad_request("the shape is not a list of numbers")
    shape = [parse_count(side, "a side of the shape") for side in shape]
    if len(shape) not in dimensions or (datatype == "BYTES" and shape[1:] not in ([], [1])):
        raise bad_request(
            f"the shape of {entry['name']} is {shape}: it must be {'[n]' if datatype == 'BYTES' else '[n, h, w, c]'}"
        )
    if not 1 <= shape[0] <= settings.images_per_request:
        raise too_large(f"there are {shape[0]} images: send 1 to {settings.images_per_request} at a time")
    parameters = parse_parameters(entry.get("parameters"), "an input")
    raw = None
    if "binary_data_size" in parameters:
        size = parse_count(parameters["binary_data_size"], "binary_data_size")
        if "data" in entry:
            raise bad_request("an input has both data and binary_data_size")
        if size > len(rest):
            raise bad_request(f"binary_data_size is {size}, and {len(rest)} bytes are left")
        raw, rest = rest[:size], rest[size:]
    elif "data" not in entry:
        raise bad_request("the input has no data")
    if datatype == "BYTES":
        request.files = (
            split_bytes(raw, shape[0]) if raw is not None else decode_texts(entry["data"], shape[0], parameters)
        )
    else:
        request.pixels = make_array(raw, entry.get("data"), shape, settings)
    return rest


INPUTS = {"image": ("BYTES", (1, 2)), "pixels": ("UINT8", (4,))}  # name -> datatype, numbers of dimensions


def split_bytes(raw: bytes, images: int) -> list[bytes]:
    """Elements of a BYTES tensor, each behind its length."""
    found, at = [], 0
    for _ in range(images):
        if at + 4 > len(raw):
            raise bad_request("the tensor ends before its last image")
        (size,) = struct.unpack_from("<I", raw, at)
        if size > len(raw) - at - 4:
            raise bad_request("an image is said to be longer than the tensor")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if at < len(raw):
        raise bad_request("the tensor goes on after its last image")
    return found


def flatten(data: Any) -> Iterable[Any]:
    """What is in nested lists, in order."""
    stack = [iter([data])]
    while stack:
        for each in stack[-1]:
            if isinstance(each, list):
                stack.append(iter(each))
                break
            yield each
        else:
            stack.pop()


def decode_texts(data: Any, images: int, parameters: dict[str, Any]) -> list[bytes]:
    """Image files as base64, as JSON can carry them."""
    if parameters.get("content_type", "base64") != "base64":
        raise bad_request("content_type is not base64, the only one in which JSON can carry an image")
    found = list(flatten(data))
    if len(found) != images or not all(isinstance(each, str) for each in found):
        raise bad_request(f"data is not {images} texts, an image in base64 each")
    try:
        return [base64.b64decode(each, validate=True) for each in found]
    except (binascii.Error, ValueError):
        raise bad_request("an image is not in base64") from None


def make_array(raw: bytes | None, data: Any, shape: Sequence[int], settings: Settings) -> np.ndarray:
    """Pixels (n, h, w, c) as uint8."""
    if shape[3] not in (1, 3) or 0 in shape:
        raise bad_request(f"the shape of pixels is {list(shape)}: it must be [n, h, w, c] with 1 or 3 channels")
    if shape[1] * shape[2] > settings.max_megapixels * 1_000_000:
        raise too_large(
            f"{shape[2]}x{shape[1]} pixels are more than the {settings.max_megapixels} million that are accepted"
        )
    size = math.prod(shape)
    if raw is not None:
        if len(raw) != size:
            raise bad_request(f"the tensor has {len(raw)} bytes; its shape asks for {size}")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    found = list(flatten(data))
    if len(found) != size:
        raise bad_request(f"data has {len(found)} numbers; the shape asks for {size}")
    if not all(type(each) is int and 0 <= each <= 255 for each in found):
        raise bad_request("a pixel is not a whole number from 0 to 255")
    return np.array(found, np.uint8).reshape(shape)


@dataclass(frozen=True)
class OutputTensor:
    """An output of an answer: a float array, or texts as an array of bytes."""

    name: str
    values: np.ndarray
    binary: bool = False

    @property
    def datatype(self) -> str:
        """Its name in the protocol."""
        return "BYTES" if self.values.dtype == object else "FP32"

    def raw(self) -> bytes:
        """Little-endian and row by row; texts each behind its length."""
        if self.datatype == "FP32":
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        return b"".join(struct.pack("<I", len(each)) + each for each in self.values.ravel())

    def plain(self) -> list[Any]:
        """As JSON carries it."""
        flat = self.values.ravel().tolist()
        return [each.decode() for each in flat] if self.datatype == "BYTES" else flat


def best_classes(values_NY: np.ndarray, labels: Sequence[str], classes: int) -> np.ndarray:
    """`value:index:label` of the so many highest of each row, best first; without labels `value:index`."""
    best_NK = np.argsort(-values_NY, axis=1, kind="stable")[:, :classes]
    found = np.empty(best_NK.shape, object)
    for n, row in enumerate(best_NK.tolist()):
        for k, index in enumerate(row):
            label = f":{labels[index]}" if labels else ""
            found[n, k] = f"{values_NY[n, index]:f}:{index}{label}".encode()
    return found


def write_response(
    model: str, version: str, request: InferRequest, outputs: Sequence[OutputTensor]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and the headers that say what it is."""
    entries, tensors = [], []
    for each in outputs:
        entry: dict[str, Any] = {"name": each.name, "shape": list(each.values.shape), "datatype": each.datatype}
        if each.binary:
            tensors.append(each.raw())
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = each.plain()
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": entries}
    if request.id is not None:
        document["id"] = request.id
    text = json.dumps(document, allow_nan=False).encode()
    if not tensors:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join([text, *tensors]), headers


def select_outputs(request: InferRequest, values: dict[str, np.ndarray], labels: Sequence[str]) -> list[OutputTensor]:
    """The outputs that are asked for, of those that there are; raises `Refusal` for one that there is not."""
    binary = parse_flag(request.parameters, "binary_data_output")
    wanted = [RequestedOutput(name, binary=binary) for name in values] if request.outputs is None else request.outputs
    given = []
    for each in wanted:
        if each.name not in values:
            raise bad_request(f"there is no output {each.name[:40]!r}: there are {', '.join(values)}")
        found = values[each.name]
        if each.classes is not None:
            if found.ndim != 2 or found.dtype == object or (labels and found.shape[1] != len(labels)):
                raise bad_request(f"{each.name} is not a row of classes")
            found = best_classes(found, labels, each.classes)
        given.append(OutputTensor(each.name, found, each.binary))
    return given
