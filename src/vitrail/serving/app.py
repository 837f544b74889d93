"""The routes: plain images, the inference protocol, health, metrics, the page."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from vitrail.data.decode import ImageError
from vitrail.explanation import DEFAULT_METHOD
from vitrail.serving import page, schema
from vitrail.serving.body import BodyReader, read_files
from vitrail.serving.logs import describe_error
from vitrail.serving.metrics import Metrics
from vitrail.serving.protocol import EXTENSIONS, LENGTH_HEADER, InferRequest, select_outputs, parse_request, write_response
from vitrail.serving.reading import Pixels, ImageDecoder
from vitrail.serving.refusal import ClientDisconnected, RequestError, deadline_exceeded, too_large, unreadable_image, bad_request
from vitrail.serving.served import VERSION, Endpoint, compute_deadline, find_endpoint
from vitrail.serving.settings import MIB, Settings
from vitrail.version import __version__

MOST_MICROSECONDS = 1e18  # a longer timeout is no number of these, and may not even be a float
Found = TypeVar("Found")
Timeout = Annotated[
    float | None, Query(gt=0, description="seconds until the request is given up, within the server's own")
]
TimeoutHeader = Annotated[str | None, Header(alias="x-request-timeout", description="the same as a header")]
Model = Annotated[str | None, Query(description="the model's name (the first one)")]


def make_app(
    models: dict[str, Endpoint], settings: Settings, metrics: Metrics, reader: ImageDecoder, lifespan: Callable[..., Any]
) -> FastAPI:
    """The application around these models."""
    app = FastAPI(
        title="vitrail", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Image classifiers: plain images, and the Open Inference Protocol v2.",
    )  # fmt: skip
    bodies = BodyReader(settings.max_body_mib * MIB)

    def refuse(request: Request, error: RequestError) -> JSONResponse:
        metrics.rejected.labels(error.reason).inc()
        request.scope["visit"]["noted"].update(describe_error(error))
        return JSONResponse({"error": error.sentence}, error.status, error.headers)

    def gone(request: Request, error: ClientDisconnected) -> Response:
        metrics.rejected.labels("gone").inc()
        request.scope["visit"]["noted"]["reason"] = "gone"
        return Response(status_code=499)  # nobody reads it; nginx's number for the log

    def mistaken(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return refuse(request, bad_request(f"{first['loc'][-1]}: {first['msg']}"))

    def http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    def broken(request: Request, error: Exception) -> JSONResponse:
        return refuse(request, RequestError(500, "failed", "the server made a mistake"))

    for kind, handler in (
        (RequestError, refuse), (ClientDisconnected, gone), (RequestValidationError, mistaken), (HTTPException, http), (Exception, broken),
    ):  # fmt: skip
        app.add_exception_handler(kind, handler)  # type: ignore[arg-type]

    def begun(request: Request) -> float:
        return float(request.scope["visit"]["started"])

    def note(request: Request, **known: object) -> None:
        request.scope["visit"]["noted"].update(known)

    # Plain images

    @app.post("/predict", openapi_extra=schema.IMAGES, responses=schema.answers(schema.PREDICTIONS), tags=["images"])
    async def predict(
        request: Request, model: Model = None, top: Annotated[int, Query(ge=1)] = 5,
        timeout: Timeout = None, x_request_timeout: TimeoutHeader = None,
    ) -> Response:  # fmt: skip
        """What is in images: send one as the body, or several as the files of a form."""
        served = find_endpoint(models, model)
        if not served.info.classes:
            raise bad_request(f"{served.info.name} gives features and knows no classes")
        deadline = compute_deadline(begun(request), timeout or x_request_timeout, settings.timeout_s)
        async with bodies.read(request, deadline) as body:
            files = await read_files(request, body, settings.images_per_request)
            note(request, model=served.info.name, images=len(files))

            async def work() -> tuple[list[dict[str, Any]], bool]:
                return await predictions(served, files, top, deadline)

            rows, any_readable = await in_time(request, work(), deadline)
        document: dict[str, Any] = {"model": served.info.name, "predictions": rows}
        if not any_readable:
            metrics.rejected.labels("image").inc()
            document["error"] = rows[0]["error"]
        return JSONResponse(document, 200 if any_readable else 400)

    @app.post("/explain", openapi_extra=schema.IMAGES, responses=schema.answers(schema.EXPLANATION), tags=["images"])
    async def explain(
        request: Request, model: Model = None,
        method: Annotated[str | None, Query(description="one of `vitrail explain --help`")] = None,
        label: Annotated[str | None, Query(alias="class", description="the class to explain")] = None,
        against: Annotated[str | None, Query(description="explain the class rather than this one")] = None,
        layer: int | None = None, head: int | None = None,
        query: Annotated[str | None, Query(description="ROW,COLUMN of a patch")] = None,
        picture: Annotated[Literal["panels", "overlay"] | None, Query(description="PNG instead of JSON")] = None,
        timeout: Timeout = None, x_request_timeout: TimeoutHeader = None,
    ) -> Response:  # fmt: skip
        """What speaks for a class in an image: the map as JSON, or a picture of it as PNG."""
        served = find_endpoint(models, model)
        options = explain_options(served, method, label, against, layer, head, query)
        deadline = compute_deadline(begun(request), timeout or x_request_timeout, settings.timeout_s)
        async with bodies.read(request, deadline) as body:
            files = await read_files(request, body, 1)
            note(request, model=served.info.name, images=1)

            async def work() -> tuple[dict[str, Any], bytes]:
                pixels = all_readable(await served.read([files[0][1]]))
                return (await served.explain(pixels, options, picture, deadline))[0]

            document, png = await in_time(request, work(), deadline)
        if picture is not None:
            return Response(png, media_type="image/png")
        return JSONResponse({"model": served.info.name, "explanation": document})

    # The Open Inference Protocol

    @app.get("/v2/health/live", responses=schema.answers(schema.LIVE), tags=["v2"])
    async def live() -> dict[str, bool]:
        """Whether the server runs."""
        return {"live": True}

    @app.get("/v2/health/ready", responses=schema.answers(schema.READY, 503), tags=["v2"])
    async def ready() -> Response:
        """Whether every model is loaded and warm, and the server is not about to stop."""
        fine = all(served.ready for served in models.values()) and not app.state.draining()
        return JSONResponse({"ready": fine, "live": fine}, 200 if fine else 503)

    @app.get("/v2", responses=schema.answers(schema.SERVER), tags=["v2"])
    async def server() -> dict[str, Any]:
        """What this server is."""
        return {"name": "vitrail", "version": __version__, "extensions": EXTENSIONS, "models": list(models)}

    @app.get("/v2/models/stats", responses=schema.answers(schema.STATISTICS), tags=["v2"])
    async def all_statistics() -> dict[str, Any]:
        """How often and how long each model ran."""
        return {"model_stats": [each.predicting.statistics.to_json(name, VERSION) for name, each in models.items()]}

    async def statistics(name: str, version: str | None = None) -> dict[str, Any]:
        """How often and how long a model ran."""
        return {"model_stats": [find_endpoint(models, name, version).predicting.statistics.to_json(name, VERSION)]}

    async def metadata(name: str, version: str | None = None) -> dict[str, Any]:
        """What a model takes and gives."""
        return find_endpoint(models, name, version).metadata()

    async def model_ready(name: str, version: str | None = None) -> Response:
        """Whether a model is loaded and warm."""
        fine = find_endpoint(models, name, version).ready
        return JSONResponse({"name": name, "ready": fine}, 200 if fine else 503)

    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        """Answers to images, as tensors."""

        async def answers(served: Endpoint, pixels: list[Pixels], asked: InferRequest, deadline: float) -> dict[str, np.ndarray]:
            return served.output_values(await served.classify(pixels, deadline))

        return await through_protocol(request, find_endpoint(models, name, version), answers)

    async def explain_tensors(request: Request, name: str, version: str | None = None) -> Response:
        """Explanations of images, as tensors; the parameters are those of /explain."""

        async def answers(served: Endpoint, pixels: list[Pixels], asked: InferRequest, deadline: float) -> dict[str, np.ndarray]:
            options = explain_options(served, **schema.explain_parameters(asked.parameters))
            found = [document for document, _ in await served.explain(pixels, options, None, deadline)]
            probabilities = [[np.nan if each["probability"] is None else each["probability"]] for each in found]
            return {
                "map": np.array([each["map"] for each in found], np.float32),
                "label": texts([each["label"] for each in found]),
                "predicted": texts([each["predicted"] for each in found]),
                **({"probability": np.array(probabilities, np.float32)} if served.info.classes else {}),
            }

        return await through_protocol(request, find_endpoint(models, name, version), answers)

    async def through_protocol(
        request: Request,
        served: Endpoint,
        answers: Callable[[Endpoint, list[Pixels], InferRequest, float], Awaitable[dict[str, np.ndarray]]],
    ) -> Response:
        """A request of the protocol: parsed, read, answered, counted."""
        statistics = served.predicting.statistics
        started = begun(request)
        deadline = compute_deadline(started, request.headers.get("x-request-timeout"), settings.timeout_s)
        try:
            async with bodies.read(request, deadline) as body:
                length = request.headers.get(LENGTH_HEADER)
                asked = await in_time(request, reader.run(parse_request, body, length, settings), deadline)
                if asked.images > settings.images_per_request:
                    raise too_large(f"there are {asked.images} images: send {settings.images_per_request} at most")
                note(request, model=served.info.name, images=asked.images)
                limit = min(deadline, compute_deadline(started, protocol_timeout(asked.parameters), settings.timeout_s))

                async def work() -> tuple[bytes, dict[str, str]]:
                    read_at = asyncio.get_running_loop().time()
                    if asked.pixels is not None:
                        pixels = await served.fit(asked.pixels)
                    else:
                        pixels = all_readable(await served.read(asked.files))
                    statistics.spans["compute_input"].add(asyncio.get_running_loop().time() - read_at)
                    values = await answers(served, pixels, asked, limit)
                    return write_response(served.info.name, VERSION, asked, select_outputs(asked, values, served.info.classes))

                answer, headers = await in_time(request, work(), limit)
        except (RequestError, ClientDisconnected):
            statistics.spans["fail"].add(asyncio.get_running_loop().time() - started)
            raise
        statistics.spans["success"].add(asyncio.get_running_loop().time() - started)
        return Response(answer, headers=headers)

    for start, shown in (("/v2/models/{name}", True), ("/v2/models/{name}/versions/{version}", False)):
        for method, end, work, answer, extra in (
            ("GET", "", metadata, schema.answers(schema.MODEL), None),
            ("GET", "/ready", model_ready, schema.answers(schema.MODEL_READY, 503), None),
            ("GET", "/stats", statistics, schema.answers(schema.STATISTICS), None),
            ("POST", "/infer", infer, schema.answers(schema.INFERENCE), schema.INFER),
            ("POST", "/explain", explain_tensors, schema.answers(schema.INFERENCE), schema.INFER),
        ):
            app.add_api_route(
                start + end, work, methods=[method], responses=answer, openapi_extra=extra,
                include_in_schema=shown, tags=["v2"],
            )  # fmt: skip

    # The rest

    @app.get("/metrics", responses=schema.answers(schema.TEXT), tags=["operation"])
    async def prometheus() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def first_page(model: Model = None) -> Response:
        return Response(await find_endpoint(models, model).page(), media_type="text/html; charset=utf-8", headers=page.HEADERS)

    @app.get("/favicon.ico", include_in_schema=False)
    async def no_icon() -> Response:
        return Response(status_code=204)

    return app


async def predictions(
    served: Endpoint, files: list[tuple[str, bytes]], top: int, deadline: float
) -> tuple[list[dict[str, Any]], bool]:
    """A row for each file, with its classes or why it has none; and whether any could be read."""
    found = await served.read([data for _, data in files])
    readable = [pixels for pixels in found if not isinstance(pixels, ImageError)]
    answers = iter(await served.classify(readable, deadline) if readable else [])
    rows = [
        {"name": name, "top": [], "error": pixels.reason}
        if isinstance(pixels, ImageError)
        else {"name": name, "top": served.top_classes(next(answers), top), "error": None}
        for (name, _), pixels in zip(files, found, strict=True)
    ]
    return rows, bool(readable)


def all_readable(found: list[Pixels | ImageError]) -> list[Pixels]:
    """The pixels of all; raises `Refusal` for the first image that has none."""
    for number, each in enumerate(found):
        if isinstance(each, ImageError):
            raise unreadable_image(each.reason if len(found) == 1 else f"image {number}: {each.reason}")
    return [each for each in found if not isinstance(each, ImageError)]


def explain_options(
    served: Endpoint, method: str | None, label: str | None, against: str | None,
    layer: int | None, head: int | None, query: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What a worker is asked for; raises `Refusal` for what makes no sense whatever the model."""
    inside = layer is not None or head is not None or query is not None
    options: dict[str, Any] = {
        "method": method or ("attention" if inside or not served.info.classes else DEFAULT_METHOD)
    }
    options.update({k: v for k, v in (("layer", layer), ("head", head)) if v is not None})
    if query is not None:
        row, _, column = query.partition(",")
        if not all(part.isascii() and part.isdecimal() and len(part) <= 6 for part in (row, column)):
            raise bad_request("query is not a patch's row and column, such as 3,5")
        options["query"] = [int(row), int(column)]
    if against is not None and label is None:
        raise bad_request("against needs class: name both")
    return {"options": options, "target": label if against is None else [label, against]}


def texts(values: list[str]) -> np.ndarray:
    """Texts as the protocol's BYTES, (n, 1)."""
    found = np.empty((len(values), 1), object)
    found[:, 0] = [value.encode() for value in values]
    return found


def protocol_timeout(parameters: dict[str, Any]) -> float | None:
    """Triton's parameter `timeout`, in microseconds, as seconds."""
    given = parameters.get("timeout")
    if given is None or (given == 0 and not isinstance(given, bool)):  # 0 is Triton's "none"
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < MOST_MICROSECONDS:
        raise bad_request("timeout is not a number of microseconds")
    return given / 1e6


async def in_time(request: Request, work: Awaitable[Found], deadline: float) -> Found:
    """The work's result; it is cancelled where the client goes away first (`Gone`) or the deadline passes (504)."""

    async def leaving() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(leaving())
    try:
        left = max(0.0, deadline - time.monotonic())
        await asyncio.wait({task, watch}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected if watch.done() else deadline_exceeded()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
