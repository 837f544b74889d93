"""The FastAPI application: the routes, and one handler per type of error."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from vitrail.serving import image_routes, operation_routes, v2_routes
from vitrail.serving.errors import ClientDisconnected, RequestError, bad_request
from vitrail.serving.logs import describe_error
from vitrail.serving.service import Service, add_log_fields, get_service, refuse_unknown_query
from vitrail.version import __version__


def make_app(service: Service, lifespan: Callable[..., Any]) -> FastAPI:
    app = FastAPI(
        title="vitrail", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Image classifiers: plain images, and the Open Inference Protocol v2.",
    )  # fmt: skip
    app.state.service = service
    for error, handler in HANDLERS.items():
        app.add_exception_handler(error, handler)
    for routes in (image_routes, v2_routes, operation_routes):
        app.include_router(routes.router, dependencies=[Depends(refuse_unknown_query)])
    app.include_router(operation_routes.page_router)
    return app


async def handle_request_error(request: Request, error: RequestError) -> JSONResponse:
    get_service(request).metrics.rejected.labels(error.reason).inc()
    add_log_fields(request, **describe_error(error))
    return JSONResponse({"error": error.sentence}, error.status, error.headers)


async def handle_disconnect(request: Request, error: ClientDisconnected) -> Response:
    get_service(request).metrics.rejected.labels("gone").inc()
    add_log_fields(request, reason="gone")
    return Response(status_code=499)  # never sent; the log uses the same status as nginx


async def handle_invalid_arguments(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    return await handle_request_error(request, bad_request(f"{first['loc'][-1]}: {first['msg']}"))


async def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)


async def handle_internal_error(request: Request, error: Exception) -> JSONResponse:
    return await handle_request_error(request, RequestError(500, "failed", "internal server error"))


# Starlette would run a handler that is not `async` in a thread
HANDLERS: dict[type[Exception], Callable[..., Coroutine[Any, Any, Response]]] = {
    RequestError: handle_request_error,
    ClientDisconnected: handle_disconnect,
    RequestValidationError: handle_invalid_arguments,
    HTTPException: handle_http_error,
    Exception: handle_internal_error,
}
