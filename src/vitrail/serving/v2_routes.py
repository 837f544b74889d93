"""The Open Inference Protocol v2: health, metadata, statistics and inference of every model."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from vitrail.serving import schema
from vitrail.serving.decode_worker import Pixels
from vitrail.serving.endpoint import MODEL_VERSION, Endpoint, compute_deadline, find_endpoint
from vitrail.serving.errors import ClientDisconnected, RequestError, bad_request, too_large
from vitrail.serving.image_routes import explain_options, require_readable
from vitrail.serving.protocol import (
    EXTENSIONS,
    LENGTH_HEADER,
    InferRequest,
    parse_request,
    select_outputs,
    write_response,
)
from vitrail.serving.service import (
    Service,
    ServiceState,
    add_log_fields,
    count_images,
    get_start_time,
    run_until_deadline,
)
from vitrail.version import __version__

MAX_MICROSECONDS = 1e18  # larger integers may overflow a float
Computed = tuple[dict[str, np.ndarray], str | None]  # outputs, and a warning about the images
Compute = Callable[[Endpoint, InferRequest, float, float], Awaitable[Computed]]
router = APIRouter(tags=["v2"])


@router.get("/v2/health/live", responses=schema.make_responses(schema.LIVE))
async def live() -> dict[str, bool]:
    """Returns whether the server runs."""
    return {"live": True}


@router.get("/v2/health/ready", responses=schema.make_responses(schema.READY, 503))
async def ready(service: ServiceState) -> Response:
    """Returns whether every model is ready and the server is not shutting down."""
    is_ready = all(endpoint.is_ready for endpoint in service.endpoints.values()) and not service.is_draining()
    return JSONResponse({"ready": is_ready, "live": is_ready}, 200 if is_ready else 503)


@router.get("/v2", responses=schema.make_responses(schema.SERVER))
async def server(service: ServiceState) -> dict[str, Any]:
    """Describes the server."""
    return {"name": "vitrail", "version": __version__, "extensions": EXTENSIONS, "models": list(service.endpoints)}


@router.get("/v2/models/stats", responses=schema.make_responses(schema.STATISTICS))
async def all_statistics(service: ServiceState) -> dict[str, Any]:
    """Returns number and duration of the inferences of every model."""
    return {"model_stats": [model_statistics(name, endpoint) for name, endpoint in service.endpoints.items()]}


async def statistics(service: ServiceState, name: str, version: str | None = None) -> dict[str, Any]:
    """Returns number and duration of a model's inferences."""
    return {"model_stats": [model_statistics(name, find_endpoint(service.endpoints, name, version))]}


def model_statistics(name: str, endpoint: Endpoint) -> dict[str, Any]:
    return endpoint.prediction_pool.statistics.to_json(name, MODEL_VERSION)


async def metadata(service: ServiceState, name: str, version: str | None = None) -> dict[str, Any]:
    """Describes a model's inputs and outputs."""
    return find_endpoint(service.endpoints, name, version).describe()


async def model_ready(service: ServiceState, name: str, version: str | None = None) -> Response:
    """Returns whether a model is ready."""
    is_ready = find_endpoint(service.endpoints, name, version).is_ready
    return JSONResponse({"name": name, "ready": is_ready}, 200 if is_ready else 503)


async def infer(request: Request, service: ServiceState, name: str, version: str | None = None) -> Response:
    """Predicts images; the outputs are tensors."""
    return await answer_inference(request, service, find_endpoint(service.endpoints, name, version), compute_outputs)


async def explain_tensors(request: Request, service: ServiceState, name: str, version: str | None = None) -> Response:
    """Explains images; the outputs are tensors, the parameters are those of /explain."""
    return await answer_inference(request, service, find_endpoint(service.endpoints, name, version), compute_maps)


async def compute_outputs(endpoint: Endpoint, infer_request: InferRequest, started: float, deadline: float) -> Computed:
    with endpoint.admit(infer_request.image_count, deadline):
        pixels, warning = await read_pixels(endpoint, infer_request, deadline)
    return endpoint.make_outputs(await endpoint.classify(pixels, deadline)), warning


async def compute_maps(endpoint: Endpoint, infer_request: InferRequest, started: float, deadline: float) -> Computed:
    explainer, images = endpoint.require_explainer(), infer_request.image_count
    options = explain_options(endpoint, **schema.read_explain_parameters(infer_request.parameters))
    plan = explainer.plan(options, None, images, deadline - started, deadline)
    with explainer.admit(plan, images, deadline):
        pixels, warning = await read_pixels(endpoint, infer_request, deadline)
    documents = [document for document, _ in await explainer.explain(plan, pixels, deadline)]
    probabilities = [[np.nan if each["probability"] is None else each["probability"]] for each in documents]
    outputs = {
        "map": np.array([each["map"] for each in documents], np.float32),
        "label": encode_texts([each["label"] for each in documents]),
        "predicted": encode_texts([each["predicted"] for each in documents]),
        **({"probability": np.array(probabilities, np.float32)} if endpoint.info.classes else {}),
    }
    return outputs, warning


async def read_pixels(
    endpoint: Endpoint, infer_request: InferRequest, deadline: float
) -> tuple[list[Pixels], str | None]:
    """Returns the pixels of the images and a warning about them, and counts the time."""
    started = time.monotonic()
    warning = None
    if infer_request.pixels is not None:
        pixels = await endpoint.fit_pixels(infer_request.pixels)
    else:
        images = require_readable(await endpoint.decode_files(infer_request.files, deadline))
        pixels = [image.pixels for image in images]
        warning = next((image.warning for image in images if image.warning), None)
    endpoint.prediction_pool.statistics.durations["compute_input"].add(time.monotonic() - started)
    return pixels, warning


async def answer_inference(request: Request, service: Service, endpoint: Endpoint, compute: Compute) -> Response:
    """Parses a request of the protocol, computes its outputs, and counts it."""
    settings, statistics = service.settings, endpoint.prediction_pool.statistics
    started = get_start_time(request)
    deadline = service.deadline(request, request.headers.get("x-request-timeout"))
    try:
        async with service.bodies.read(request, deadline) as body:
            length = request.headers.get(LENGTH_HEADER)
            parsing = service.decoder.run(parse_request, body, length, settings)
            infer_request = await run_until_deadline(request, parsing, deadline)
            if infer_request.image_count > settings.images_per_request:
                limit = settings.images_per_request
                raise too_large(f"there are {infer_request.image_count} images: send at most {limit} per request")
            add_log_fields(request, model=endpoint.info.name, images=infer_request.image_count)
            own_timeout = protocol_timeout(infer_request.parameters)
            deadline = min(deadline, compute_deadline(started, own_timeout, settings.timeout_s))
            work = compute_response(endpoint, infer_request, compute, started, deadline)
            content, headers = await run_until_deadline(request, count_images(request, work), deadline)
    except (RequestError, ClientDisconnected):
        statistics.durations["fail"].add(time.monotonic() - started)
        raise
    statistics.durations["success"].add(time.monotonic() - started)
    return Response(content, headers=headers)


async def compute_response(
    endpoint: Endpoint, infer_request: InferRequest, compute: Compute, started: float, deadline: float
) -> tuple[bytes, dict[str, str]]:
    """Decodes the images, computes the outputs and returns the response's content and headers."""
    values, warning = await compute(endpoint, infer_request, started, deadline)
    outputs = select_outputs(infer_request, values, endpoint.info.classes)
    return write_response(endpoint.info.name, MODEL_VERSION, infer_request, outputs, warning)


def encode_texts(values: list[str]) -> np.ndarray:
    """Returns texts as the protocol's BYTES, (n, 1)."""
    encoded = np.empty((len(values), 1), object)
    encoded[:, 0] = [value.encode() for value in values]
    return encoded


def protocol_timeout(parameters: dict[str, Any]) -> float | None:
    """Returns Triton's parameter `timeout`, which is in microseconds, in seconds; None for 0, Triton's "none"."""
    timeout = parameters.get("timeout")
    if timeout is None or (timeout == 0 and not isinstance(timeout, bool)):
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < MAX_MICROSECONDS:
        raise bad_request("timeout is not a number of microseconds")
    return timeout / 1e6


for prefix, is_documented in (("/v2/models/{name}", True), ("/v2/models/{name}/versions/{version}", False)):
    for http_method, suffix, function, responses, extra in (
        ("GET", "", metadata, schema.make_responses(schema.MODEL), None),
        ("GET", "/ready", model_ready, schema.make_responses(schema.MODEL_READY, 503), None),
        ("GET", "/stats", statistics, schema.make_responses(schema.STATISTICS), None),
        ("POST", "/infer", infer, schema.make_responses(schema.INFERENCE), schema.INFER),
        ("POST", "/explain", explain_tensors, schema.make_responses(schema.INFERENCE), schema.INFER),
    ):
        router.add_api_route(
            prefix + suffix, function, methods=[http_method], responses=responses, openapi_extra=extra,
            include_in_schema=is_documented,
        )  # fmt: skip
