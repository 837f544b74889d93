"""The options that let a proxy and other websites use the server: allowed Host headers and origins."""

import re
from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from vitrail.errors import UsageError

HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]", re.ASCII)
ORIGIN = re.compile(r"https?://[a-z0-9.\[\]:-]+", re.ASCII)
EXPOSED_HEADERS = ("x-request-id", "retry-after", "inference-header-content-length")
MAX_AGE_S = 600  # a browser repeats its preflight request after this time


def check_hosts(hosts: Sequence[str]) -> frozenset[str]:
    """Returns the names in lower case; raises `UsageError` for one that is not a host name without a port."""
    for host in hosts:
        if not HOST.fullmatch(host.lower()):
            raise UsageError(f"{host!r} is not a host name", "use the name alone, such as images.example.org")
    return frozenset(host.lower() for host in hosts)


def check_origins(origins: Sequence[str]) -> list[str]:
    """Returns the origins in lower case; raises `UsageError` for one that is not scheme and host, or *."""
    for origin in origins:
        if origin != "*" and not ORIGIN.fullmatch(origin.lower()):
            raise UsageError(
                f"{origin!r} is not an origin", "use scheme and host without a path, such as https://example.org"
            )
    return [origin.lower() for origin in origins]


def allow_origins(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Returns the application with CORS headers for these origins; the application itself without any."""
    if not origins:
        return app
    return CORSMiddleware(
        app, allow_origins=origins, allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS,
        max_age=MAX_AGE_S,
    )  # fmt: skip
