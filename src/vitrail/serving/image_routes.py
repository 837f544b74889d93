"""POST /predict and /explain: plain images, as the body or in a form."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response

from vitrail.data.decode import ImageError
from vitrail.explanation.methods import DEFAULT_METHOD
from vitrail.serving import schema
from vitrail.serving.body import read_files
from vitrail.serving.decoding import DecodedImage
from vitrail.serving.endpoint import Endpoint, find_endpoint
from vitrail.serving.errors import bad_request, unreadable_image
from vitrail.serving.service import (
    ModelName,
    ServiceState,
    Timeout,
    TimeoutHeader,
    add_log_fields,
    count_images,
    get_start_time,
    run_until_deadline,
)
from vitrail.weights.unlike import describe_unlike

router = APIRouter(tags=["images"])


@router.post("/predict", openapi_extra=schema.IMAGES, responses=schema.make_responses(schema.PREDICTIONS))
async def predict(
    request: Request, service: ServiceState, model: ModelName = None, top: Annotated[int, Query(ge=1)] = 5,
    timeout: Timeout = None, x_request_timeout: TimeoutHeader = None,
) -> Response:  # fmt: skip
    """Predicts the classes of images: one as the body, or several as the files of a form."""
    endpoint = find_endpoint(service.endpoints, model)
    if not endpoint.info.classes:
        raise bad_request(f"{endpoint.info.name} returns features and has no classes")
    deadline = service.deadline(request, timeout or x_request_timeout)
    async with service.bodies.read(request, deadline) as body:
        files = await read_files(request, body, service.settings.images_per_request)
        add_log_fields(request, model=endpoint.info.name, images=len(files))
        work = predict_files(endpoint, files, top, deadline)
        rows, any_readable = await run_until_deadline(request, count_images(request, work), deadline)
    unlike = describe_unlike(endpoint.info.unlike)
    document: dict[str, Any] = {"model": endpoint.info.name, "predictions": rows, "unlike": unlike}
    if not any_readable:
        service.metrics.rejected.labels("image").inc()
        document["error"] = rows[0]["error"]
    return JSONResponse(document, 200 if any_readable else 400)


@router.post("/explain", openapi_extra=schema.IMAGES, responses=schema.make_responses(schema.EXPLANATION))
async def explain(
    request: Request, service: ServiceState, model: ModelName = None,
    method: Annotated[str | None, Query(description="a method that `vitrail explain --help` lists")] = None,
    label: Annotated[str | None, Query(alias="class", description="the class to explain")] = None,
    against: Annotated[str | None, Query(description="show evidence for the class against this one")] = None,
    layer: int | None = None, head: int | None = None,
    query: Annotated[str | None, Query(description="ROW,COLUMN of a patch")] = None,
    picture: Annotated[Literal["panels", "overlay"] | None, Query(description="PNG instead of JSON")] = None,
    timeout: Timeout = None, x_request_timeout: TimeoutHeader = None,
) -> Response:  # fmt: skip
    """Explains the prediction for an image: the relevance map as JSON, or a picture of it as PNG."""
    endpoint = find_endpoint(service.endpoints, model)
    explainer = endpoint.require_explainer()
    options = explain_options(endpoint, method, label, against, layer, head, query)
    deadline = service.deadline(request, timeout or x_request_timeout)
    plan = explainer.plan(options, picture, 1, deadline - get_start_time(request), deadline)
    async with service.bodies.read(request, deadline) as body:
        files = await read_files(request, body, 1)
        add_log_fields(request, model=endpoint.info.name, images=1)

        async def work() -> tuple[dict[str, Any], bytes]:
            with explainer.admit(plan, 1, deadline):
                (image,) = require_readable(await endpoint.decode_files([files[0][1]], deadline))
            explanation, png = (await explainer.explain(plan, [image.pixels], deadline))[0]
            return {"model": endpoint.info.name, "explanation": explanation, "warning": image.warning}, png

        document, png = await run_until_deadline(request, work(), deadline)
    if picture is not None:
        return Response(png, media_type="image/png")
    return JSONResponse(document)


async def predict_files(
    endpoint: Endpoint, files: list[tuple[str, bytes]], top: int, deadline: float
) -> tuple[list[dict[str, Any]], bool]:
    """Returns a row per file with its classes, a warning or an error, and whether any file could be read."""
    with endpoint.admit(len(files), deadline):
        images = await endpoint.decode_files([data for _, data in files], deadline)
    readable = [image.pixels for image in images if not isinstance(image, ImageError)]
    outputs = iter(await endpoint.classify(readable, deadline) if readable else [])
    rows: list[dict[str, Any]] = [
        {"name": name, **endpoint.no_answer(), "warning": None, "error": image.reason}
        if isinstance(image, ImageError)
        else {
            "name": name,
            **endpoint.answer(next(outputs), top),
            "warning": image.warning,
            "error": None,
        }
        for (name, _), image in zip(files, images, strict=True)
    ]
    return rows, bool(readable)


def require_readable(images: list[DecodedImage | ImageError]) -> list[DecodedImage]:
    """Returns the images; raises `RequestError` for the first one that could not be read."""
    for number, each in enumerate(images):
        if isinstance(each, ImageError):
            raise unreadable_image(each.reason if len(images) == 1 else f"image {number}: {each.reason}")
    return [each for each in images if not isinstance(each, ImageError)]


def explain_options(
    endpoint: Endpoint, method: str | None, label: str | None, against: str | None,
    layer: int | None, head: int | None, query: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the request for a worker; raises `RequestError` for options that no model accepts."""
    is_attention_query = layer is not None or head is not None or query is not None
    options: dict[str, Any] = {
        "method": method or ("attention" if is_attention_query or not endpoint.info.classes else DEFAULT_METHOD)
    }
    options.update({name: value for name, value in (("layer", layer), ("head", head)) if value is not None})
    if query is not None:
        row, _, column = query.partition(",")
        if not all(part.isascii() and part.isdecimal() and len(part) <= 6 for part in (row, column)):
            raise bad_request("query is not the row and column of a patch, such as 3,5")
        options["query"] = [int(row), int(column)]
    if against is not None and label is None:
        raise bad_request("against requires class: set both")
    return {"options": options, "target": label if against is None else [label, against]}
