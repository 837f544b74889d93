"""Routes for operation: metrics for Prometheus, the web page and its icon."""

from fastapi import APIRouter
from fastapi.responses import Response

from vitrail.serving import schema, web_page
from vitrail.serving.endpoint import find_endpoint
from vitrail.serving.service import ModelName, ServiceState

router = APIRouter()


@router.get("/metrics", responses=schema.make_responses(schema.PLAIN_TEXT), tags=["operation"])
async def prometheus(service: ServiceState) -> Response:
    """Returns counters and histograms for Prometheus."""
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/", include_in_schema=False)
async def send_web_page(service: ServiceState, model: ModelName = None) -> Response:
    content = await find_endpoint(service.endpoints, model).get_page()
    return Response(content, media_type="text/html; charset=utf-8", headers=web_page.HEADERS)


@router.get("/favicon.ico", include_in_schema=False)
async def send_no_icon() -> Response:
    return Response(status_code=204)
