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

from vitrail.serving.refusal import too_much, wrong
from vitrail.serving.settings import Settings

LENGTH_HEADER = "inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "classification", "statistics", "explanation"]
DIGITS = 9  # a longer number of bytes, images or classes is no number of these


@dataclass(frozen=True)
class Wanted:
    """An output that is asked for; with `classes` as its so many best classes, as text."""

    name: str
    classes: int | None = None
    binary: bool = False


@dataclass
class Asked:
    """A request: image files, or pixels (n, h, w, C), and what of the answer is wanted (None: everything)."""

    files: list[bytes] = field(default_factory=list)
    pixels: np.ndarray | None = None
    outputs: list[Wanted] | None = None
    id: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many."""
        return len(self.files) if self.pixels is None else len(self.pixels)


def read_request(body: bytes, length: str | None, settings: Settings) -> Asked:
    """A body -> what is asked; `length` is the header that says how much of it is JSON. Raises `Refusal`."""
    if length is None:
        return read_document(body, b"", settings)
    if not (length.isascii() and length.isdecimal() and len(length) <= DIGITS) or int(length) > len(body):
        raise wrong(f"Inference-Header-Content-Length is {length[:20]!r}, and the body has {len(body)} bytes")
    if int(length) == 0:  # the body is the only image, and the answer's tensors are bytes
        if not body:
            raise wrong("the body is empty: send an image file")
        return Asked([body], parameters={"binary_data_output": True})
    return read_document(body[: int(length)], body[int(length) :], settings)


def read_document(text: bytes, rest: bytes, settings: Settings) -> Asked:
    """The JSON of a request, and the raw tensors behind it."""
    document = read_json(text)
    name = document.get("id")
    if name is not None and not isinstance(name, str):
        raise wrong("id is not text")
    parameters = read_parameters(document.get("parameters"), "the request")
    inputs = entries(document.get("inputs"), "inputs")
    if len(inputs) != 1:
        raise wrong(f"there are {len(inputs)} inputs: send one, image or pixels")
    asked = Asked(id=name, parameters=parameters)
    if "outputs" in document:
        asked.outputs = read_outputs(document["outputs"], switch(parameters, "binary_data_output"))
    rest = read_input(inputs[0], rest, asked, settings)
    if rest:
        raise wrong(f"{len(rest)} bytes follow the last tensor")
    return asked


def read_json(text: bytes) -> dict[str, Any]:
    """A JSON object; raises `Refusal` for anything else, however deep or damaged."""
    try:
        document = json.loads(text)
    except RecursionError:
        raise wrong("the JSON is nested too deep") from None
    except (ValueError, UnicodeError):
        raise wrong("the body is not JSON") from None
    if not isinstance(document, dict):
        raise wrong("the body is not a JSON object")
    return document


def entries(found: Any, what: str) -> list[dict[str, Any]]:
    """A list of objects with names."""
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("name"), str) for e in found):
        raise wrong(f"{what} is not a list of objects with names")
    return found


def read_parameters(found: Any, whose: str) -> dict[str, Any]:
    """Names with text, numbers and booleans."""
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(v, str | bool | int | float) for v in found.values()):
        raise wrong(f"the parameters of {whose} are not an object of texts, numbers and booleans")
    return found


def switch(parameters: dict[str, Any], name: str) -> bool:
    """A parameter that is true or false."""
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise wrong(f"{name} is neither true nor false")
    return value


def count(value: Any, what: str) -> int:
    """A whole number from 0 on, of a sane length."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**DIGITS:
        raise wrong(f"{what} is not a whole number from 0 on")
    return value


def read_outputs(found: Any, binary: bool) -> list[Wanted]:
    """The outputs that are asked for."""
    wanted = []
    for entry in entries(found, "outputs"):
        parameters = read_parameters(entry.get("parameters"), "an output")
        classes = parameters.get("classification")
        if classes is not None and count(classes, "classification") == 0:
            classes = None
        wanted.append(Wanted(entry["name"], classes, switch({"binary_data": binary, **parameters}, "binary_data")))
    if len({each.name for each in wanted}) < len(wanted):
        raise wrong("an output is asked for twice")
    return wanted


def read_input(entry: dict[str, Any], rest: bytes, asked: Asked, settings: Settings) -> bytes:
    """The one input into `asked`; gives what follows its raw tensor."""
    if entry["name"] not in INPUTS:
        raise wrong(f"there is no input {entry['name'][:40]!r}: send image or pixels")
    datatype, dimensions = INPUTS[entry["name"]]
    if entry.get("datatype") != datatype:
        raise wrong(f"the datatype of {entry['name']} is not {datatype}")
    shape = entry.get("shape")
    if not isinstance(shape, list):
        raise wrong("the shape is not a list of numbers")
    shape = [count(side, "a side of the shape") for side in shape]
    if len(shape) not in dimensions or (datatype == "BYTES" and shape[1:] not in ([], [1])):
        raise wrong(
            f"the shape of {entry['name']} is {shape}: it must be {'[n]' if datatype == 'BYTES' else '[n, h, w, c]'}"
        )
    if not 1 <= shape[0] <= settings.images_per_request:
        raise too_much(f"there are {shape[0]} images: send 1 to {settings.images_per_request} at a time")
    parameters = read_parameters(entry.get("parameters"), "an input")
    raw = None
    if "binary_data_size" in parameters:
        size = count(parameters["binary_data_size"], "binary_data_size")
        if "data" in entry:
            raise wrong("an input has both data and binary_data_size")
        if size > len(rest):
            raise wrong(f"binary_data_size is {size}, and {len(rest)} bytes are left")
        raw, rest = rest[:size], rest[size:]
    elif "data" not in entry:
        raise wrong("the input has no data")
    if datatype == "BYTES":
        asked.files = split(raw, shape[0]) if raw is not None else texts(entry["data"], shape[0], parameters)
    else:
        asked.pixels = array(raw, entry.get("data"), shape, settings)
    return rest


INPUTS = {"image": ("BYTES", (1, 2)), "pixels": ("UINT8", (4,))}  # name -> datatype, numbers of dimensions


def split(raw: bytes, images: int) -> list[bytes]:
    """Elements of a BYTES tensor, each behind its length."""
    found, at = [], 0
    for _ in range(images):
        if at + 4 > len(raw):
            raise wrong("the tensor ends before its last image")
        (size,) = struct.unpack_from("<I", raw, at)
        if size > len(raw) - at - 4:
            raise wrong("an image is said to be longer than the tensor")
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    if at < len(raw):
        raise wrong("the tensor goes on after its last image")
    return found


def flat(data: Any) -> Iterable[Any]:
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


def texts(data: Any, images: int, parameters: dict[str, Any]) -> list[bytes]:
    """Image files as base64, as JSON can carry them."""
    if parameters.get("content_type", "base64") != "base64":
        raise wrong("content_type is not base64, the only one in which JSON can carry an image")
    found = list(flat(data))
    if len(found) != images or not all(isinstance(each, str) for each in found):
        raise wrong(f"data is not {images} texts, an image in base64 each")
    try:
        return [base64.b64decode(each, validate=True) for each in found]
    except (binascii.Error, ValueError):
        raise wrong("an image is not in base64") from None


def array(raw: bytes | None, data: Any, shape: Sequence[int], settings: Settings) -> np.ndarray:
    """Pixels (n, h, w, c) as uint8."""
    if shape[3] not in (1, 3) or 0 in shape:
        raise wrong(f"the shape of pixels is {list(shape)}: it must be [n, h, w, c] with 1 or 3 channels")
    if shape[1] * shape[2] > settings.max_megapixels * 1_000_000:
        raise too_much(
            f"{shape[2]}x{shape[1]} pixels are more than the {settings.max_megapixels} million that are accepted"
        )
    size = math.prod(shape)
    if raw is not None:
        if len(raw) != size:
            raise wrong(f"the tensor has {len(raw)} bytes; its shape asks for {size}")
        return np.frombuffer(raw, np.uint8).reshape(shape)
    found = list(flat(data))
    if len(found) != size:
        raise wrong(f"data has {len(found)} numbers; the shape asks for {size}")
    if not all(type(each) is int and 0 <= each <= 255 for each in found):
        raise wrong("a pixel is not a whole number from 0 to 255")
    return np.array(found, np.uint8).reshape(shape)


@dataclass(frozen=True)
class Given:
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


def write_answer(model: str, version: str, asked: Asked, given: Sequence[Given]) -> tuple[bytes, dict[str, str]]:
    """The body of an answer, and the headers that say what it is."""
    outputs, tensors = [], []
    for each in given:
        entry: dict[str, Any] = {"name": each.name, "shape": list(each.values.shape), "datatype": each.datatype}
        if each.binary:
            tensors.append(each.raw())
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = each.plain()
        outputs.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if asked.id is not None:
        document["id"] = asked.id
    text = json.dumps(document, allow_nan=False).encode()
    if not tensors:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
    return b"".join([text, *tensors]), headers


def chosen(asked: Asked, values: dict[str, np.ndarray], labels: Sequence[str]) -> list[Given]:
    """The outputs that are asked for, of those that there are; raises `Refusal` for one that there is not."""
    binary = switch(asked.parameters, "binary_data_output")
    wanted = [Wanted(name, binary=binary) for name in values] if asked.outputs is None else asked.outputs
    given = []
    for each in wanted:
        if each.name not in values:
            raise wrong(f"there is no output {each.name[:40]!r}: there are {', '.join(values)}")
        found = values[each.name]
        if each.classes is not None:
            if found.ndim != 2 or found.dtype == object or (labels and found.shape[1] != len(labels)):
                raise wrong(f"{each.name} is not a row of classes")
            found = best_classes(found, labels, each.classes)
        given.append(Given(each.name, found, each.binary))
    return given
