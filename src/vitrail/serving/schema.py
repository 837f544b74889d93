"""What the OpenAPI document says of bodies and answers."""

from typing import Any

from vitrail.serving.errors import bad_request

NUMBER, TEXT_, WHOLE, TRUTH = {"type": "number"}, {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def thing(**properties: Any) -> dict[str, Any]:
    """An object with all of these."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def several(each: dict[str, Any]) -> dict[str, Any]:
    """A list."""
    return {"type": "array", "items": each}


def maybe(each: dict[str, Any]) -> dict[str, Any]:
    """That, or null."""
    return {"anyOf": [each, {"type": "null"}]}


def json_of(schema: dict[str, Any]) -> dict[str, Any]:
    """A content that is JSON."""
    return {"application/json": {"schema": schema}}


BINARY = {"schema": {"type": "string", "format": "binary"}}
ERROR = json_of(thing(error=TEXT_))
ROW = thing(label=TEXT_, probability=NUMBER)
PREDICTIONS = json_of(thing(model=TEXT_, predictions=several(thing(name=TEXT_, top=several(ROW), error=maybe(TEXT_)))))
EXPLANATION = {
    **json_of(
        thing(model=TEXT_, explanation=thing(label=TEXT_, method=TEXT_, map=several(several(NUMBER)), summary=TEXT_))
    ),
    "image/png": BINARY,
}
LIVE = json_of(thing(live=TRUTH))
READY = json_of(thing(ready=TRUTH, live=TRUTH))
MODEL_READY = json_of(thing(name=TEXT_, ready=TRUTH))
SERVER = json_of(thing(name=TEXT_, version=TEXT_, extensions=several(TEXT_)))
TENSOR = thing(name=TEXT_, datatype=TEXT_, shape=several(WHOLE))
MODEL = json_of(
    thing(name=TEXT_, versions=several(TEXT_), platform=TEXT_, inputs=several(TENSOR), outputs=several(TENSOR))
)
STATISTICS = json_of(
    thing(model_stats=several(thing(name=TEXT_, version=TEXT_, inference_count=WHOLE, execution_count=WHOLE)))
)
INFERENCE = {
    **json_of(thing(model_name=TEXT_, model_version=TEXT_, outputs=several(TENSOR))),
    "application/octet-stream": BINARY,
}
TEXT = {"text/plain": {"schema": TEXT_}}


def answers(content: dict[str, Any], *also: int) -> dict[int | str, dict[str, Any]]:
    """The answers of a route: its own, with other statuses too, and errors as one sentence."""
    good = {"description": "the answer", "content": content}
    return {
        200: good,
        **dict.fromkeys(also, good),
        "4XX": {"description": "the request is at fault, and this says how", "content": ERROR},
        "5XX": {"description": "the server cannot answer now (503), in time (504) or at all", "content": ERROR},
    }


IMAGES = {
    "requestBody": {
        "required": True,
        "description": "an image file, or a form with image files",
        "content": {
            "application/octet-stream": BINARY,
            "image/jpeg": BINARY,
            "image/png": BINARY,
            "multipart/form-data": {"schema": thing(image=several({"type": "string", "format": "binary"}))},
        },
    }
}
PARAMETERS = {"type": "object", "additionalProperties": {"anyOf": [TEXT_, NUMBER, TRUTH]}}
INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"enum": ["image", "pixels"]},
        "shape": several({"type": "integer", "minimum": 0}),
        "datatype": {"enum": ["BYTES", "UINT8"]},
        "parameters": PARAMETERS,
        "data": {"type": "array", "description": "images in base64, or pixels as numbers"},
    },
}
OUTPUT = {"type": "object", "required": ["name"], "properties": {"name": TEXT_, "parameters": PARAMETERS}}
INFER = {
    "requestBody": {
        "required": True,
        "description": "an inference request of the Open Inference Protocol v2, with binary tensors or without",
        "content": {
            **json_of(
                {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": TEXT_,
                        "parameters": PARAMETERS,
                        "inputs": {**several(INPUT), "minItems": 1, "maxItems": 1},
                        "outputs": several(OUTPUT),
                    },
                }
            ),
            "application/octet-stream": BINARY,
        },
    }
}

EXPLAIN = {"method": str, "class": str, "against": str, "layer": int, "head": int, "query": str}


def explain_parameters(given: dict[str, Any]) -> dict[str, Any]:
    """The parameters of an explanation among those of a protocol's request; raises `Refusal` for a wrong type."""
    found = {}
    for name, kind in EXPLAIN.items():
        value = given.get(name)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise bad_request(f"the parameter {name} is not a {'text' if kind is str else 'whole number'}")
        found["label" if name == "class" else name] = value
    return found
