"""Schemas of request bodies and responses for the OpenAPI document."""

from typing import Any

from vitrail.data.pixel_range import DEPTH_RULE
from vitrail.serving.errors import bad_request

NUMBER, STRING, INTEGER, BOOLEAN = {"type": "number"}, {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def make_object(**properties: Any) -> dict[str, Any]:
    """Returns the schema of an object with these required properties."""
    return {"type": "object", "properties": properties, "required": list(properties)}


def with_optional(schema: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """Returns the schema of an object with more properties, which are not required."""
    return {**schema, "properties": {**schema["properties"], **properties}}


def make_array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def make_nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def make_json_content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


BINARY = {"schema": {"type": "string", "format": "binary"}}
WARNING = {
    **make_nullable(STRING),
    "description": f"what to know about the image: one of more than 8 bits is scaled by a rule ({DEPTH_RULE})",
}
ERROR = make_json_content(make_object(error=STRING))
UNLIKE = {
    **NUMBER,
    "description": "how unlike the validation images it is, a quantile of their distances, if that is fitted",
}
UNLIKE_FACTS = {
    **with_optional(make_object(fitted=BOOLEAN), hint=STRING, images=INTEGER, fitted_on=STRING, threshold=NUMBER),
    "description": "how to read `unlike`, or a hint how to get it",
}
TOP_CLASS = make_object(label=STRING, probability=NUMBER)
PREDICTIONS = make_json_content(
    make_object(
        model=STRING,
        predictions=make_array(
            with_optional(
                make_object(name=STRING, warning=WARNING, error=make_nullable(STRING)),
                top={**make_array(TOP_CLASS), "description": "the most probable classes, or the labels"},
                numbers={
                    "type": "object",
                    "additionalProperties": NUMBER,
                    "description": "in place of top, of a model that predicts numbers: each by its name",
                },
                unlike=UNLIKE,
            )
        ),
        unlike=UNLIKE_FACTS,
    )
)
EXPLANATION = {
    **make_json_content(
        make_object(
            model=STRING,
            explanation=make_object(label=STRING, method=STRING, map=make_array(make_array(NUMBER)), summary=STRING),
            warning=WARNING,
        )
    ),
    "image/png": BINARY,
}
LIVE = make_json_content(make_object(live=BOOLEAN))
READY = make_json_content(make_object(ready=BOOLEAN, live=BOOLEAN))
MODEL_READY = make_json_content(make_object(name=STRING, ready=BOOLEAN))
SERVER = make_json_content(make_object(name=STRING, version=STRING, extensions=make_array(STRING)))
TENSOR = make_object(name=STRING, datatype=STRING, shape=make_array(INTEGER))
MODEL = make_json_content(
    make_object(
        name=STRING, versions=make_array(STRING), platform=STRING, inputs=make_array(TENSOR), outputs=make_array(TENSOR)
    )
)
STATISTICS = make_json_content(
    make_object(
        model_stats=make_array(
            make_object(name=STRING, version=STRING, inference_count=INTEGER, execution_count=INTEGER)
        )
    )
)
INFERENCE = {
    **make_json_content(
        {
            **(response := make_object(model_name=STRING, model_version=STRING, outputs=make_array(TENSOR))),
            "properties": {
                **response["properties"],
                "parameters": {"type": "object", "properties": {"warning": WARNING}},
            },
        }
    ),
    "application/octet-stream": BINARY,
}
PLAIN_TEXT = {"text/plain": {"schema": STRING}}


def make_responses(content: dict[str, Any], *other_statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the responses of a route: `content` with status 200 and `other_statuses`, and the errors."""
    success = {"description": "the result", "content": content}
    return {
        200: success,
        **dict.fromkeys(other_statuses, success),
        "4XX": {"description": "the request is invalid; the error describes the problem", "content": ERROR},
        "5XX": {"description": "the server is overloaded (503), too slow (504) or failed (500)", "content": ERROR},
    }


IMAGES = {
    "requestBody": {
        "required": True,
        "description": "an image file, or a multipart form with image files",
        "content": {
            "application/octet-stream": BINARY,
            "image/jpeg": BINARY,
            "image/png": BINARY,
            "multipart/form-data": {"schema": make_object(image=make_array({"type": "string", "format": "binary"}))},
        },
    }
}
PARAMETERS = {"type": "object", "additionalProperties": {"anyOf": [STRING, NUMBER, BOOLEAN]}}
INPUT = {
    "type": "object",
    "required": ["name", "shape", "datatype"],
    "properties": {
        "name": {"enum": ["image", "pixels"]},
        "shape": make_array({"type": "integer", "minimum": 0}),
        "datatype": {"enum": ["BYTES", "UINT8", "FP32"]},
        "parameters": PARAMETERS,
        "data": {"type": "array", "description": "images in base64, or pixels as numbers"},
    },
}
OUTPUT = {"type": "object", "required": ["name"], "properties": {"name": STRING, "parameters": PARAMETERS}}
INFER = {
    "requestBody": {
        "required": True,
        "description": "an inference request of the Open Inference Protocol v2, with or without binary tensors",
        "content": {
            **make_json_content(
                {
                    "type": "object",
                    "required": ["inputs"],
                    "properties": {
                        "id": STRING,
                        "parameters": PARAMETERS,
                        "inputs": {**make_array(INPUT), "minItems": 1, "maxItems": 1},
                        "outputs": make_array(OUTPUT),
                    },
                }
            ),
            "application/octet-stream": BINARY,
        },
    }
}

EXPLAIN_PARAMETERS = {"method": str, "class": str, "against": str, "layer": int, "head": int, "query": str}


def read_explain_parameters(parameters: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters of a request that configure an explanation; raises `RequestError` for a wrong type."""
    options = {}
    for name, value_type in EXPLAIN_PARAMETERS.items():
        value = parameters.get(name)
        if value is not None and (not isinstance(value, value_type) or isinstance(value, bool)):
            raise bad_request(f"the parameter {name} is not {'a string' if value_type is str else 'an integer'}")
        options["label" if name == "class" else name] = value
    return options
