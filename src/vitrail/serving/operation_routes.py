"""Routes for operation: metrics for Prometheus, the web page and its icon."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from vitrail.serving import schema, web_page
from vitrail.serving.endpoint import find_endpoint
from vitrail.serving.errors import not_found
from vitrail.serving.service import ModelName, ServiceState

router = APIRouter()
page_router = APIRouter()  # unknown query parameters are allowed here: links to pages often have some


@router.get("/metrics", responses=schema.make_responses(schema.PLAIN_TEXT), tags=["operation"])
async def prometheus(service: ServiceState) -> Response:
    """Returns counters and histograms for Prometheus."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@page_router.get("/", include_in_schema=False)
async def send_web_page(request: Request, service: ServiceState, model: ModelName = None) -> Response:
    """Returns the page; an empty response with status 304 to a browser that has it already."""
    if not service.settings.page:
        raise not_found("this server has no page: it was started with --no-page")
    page = find_endpoint(service.endpoints, model).page
    content = await page.get()
    headers = {**web_page.HEADERS, "etag": page.tag, "cache-control": "no-cache"}  # "no-cache": ask before each use
    known_tags = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if page.tag in known_tags or "*" in known_tags:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="text/html; charset=utf-8", headers=headers)


@page_router.get("/favicon.ico", include_in_schema=False)
async def send_no_icon() -> Response:
    return Response(status_code=204)
