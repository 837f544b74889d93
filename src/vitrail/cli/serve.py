"""Serve predictions and explanations over HTTP, with a web page to try them.

  curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/explain?picture=panels' > why.png

POST /predict and /explain take an image as the body, or image files in a form. /v2 is the Open Inference Protocol,
which tritonclient speaks; /metrics is for Prometheus; /openapi.json describes all routes. SIGTERM and Ctrl-C shut down
gracefully: accepted requests are answered. Logs are JSON lines on stderr; with --quiet only problems.

Access from other machines (--host 0.0.0.0) requires an API key: Authorization: Bearer KEY, X-API-Key: KEY, or the
password in a browser. Put a proxy with TLS in front of it.
"""

import argparse
import os
from dataclasses import fields
from pathlib import Path

from vitrail.cli.answer import Answer
from vitrail.cli.arguments import MODEL_HELP, PROGRAM_HELP, add_device, add_torch_files
from vitrail.cli.field_options import add_field_options
from vitrail.cli.parser import Parser
from vitrail.errors import UsageError
from vitrail.installation import install_hint
from vitrail.serving.settings import Settings

OPTIONS = [each.name for each in fields(Settings)]
WORKER_OPTIONS = ("backend", "processes", "threads", "max_batch_size", "max_delay_ms", "explain", "page")


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help=f"{MODEL_HELP}, or {PROGRAM_HELP}; several are served side by side"
    )
    add_torch_files(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=8000, metavar="PORT", help="port to listen on; 0: a free one (default: 8000)"
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="NAME",
        help="a model's name, once per model (default: from its path)",
    )  # fmt: skip
    add_device(parser)
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="file with the API key (default: $VITRAIL_API_KEY, else no key)"
    )
    parser.add_argument(
        "--no-api-key", action="store_true", help="allow other machines without an API key (default: off)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="accept this name in the Host header, such as that of a proxy; repeatable (default: none)",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let scripts of a website, such as https://example.org, use the server (CORS); repeatable (default: none)",
    )
    group = parser.add_argument_group("workers")
    add_field_options(group, Settings, WORKER_OPTIONS)
    limits = parser.add_advanced_group("limits")
    add_field_options(limits, Settings, [name for name in OPTIONS if name not in WORKER_OPTIONS])


def run(arguments: argparse.Namespace) -> Answer:
    """Serves until a signal stops the server."""
    options = vars(arguments)
    settings = Settings(**{name: options[name] for name in OPTIONS if name in options})
    key = read_api_key(arguments.api_key_file)
    if key is not None and arguments.no_api_key:
        raise UsageError("--no-api-key is set, and there is an API key", "leave one of them out")
    if not 0 <= arguments.port < 65536:
        raise UsageError(f"--port is {arguments.port}; it must be from 0 to 65535")
    try:
        from vitrail.serving.fork_server import ModelSource
        from vitrail.serving.server import serve
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", install_hint("serve")) from None
    sources = [ModelSource(model, arguments.torch_files) for model in arguments.models]
    summary = serve(
        sources, arguments.name, settings, host=arguments.host, port=arguments.port, device=arguments.device,
        api_key=key, allow_no_api_key=arguments.no_api_key, allowed_hosts=arguments.allow_host,
        allowed_origins=arguments.allow_origin,
    )  # fmt: skip
    return Answer(summary, [f"{summary['requests']} requests answered"])


def read_api_key(file: str | None) -> str | None:
    """Returns the API key of the file or the environment; raises `UsageError` for an empty one."""
    if file is None:
        key = os.environ.get("VITRAIL_API_KEY")
    else:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"the key cannot be read from {file}") from None
    if key is not None and not key:
        raise UsageError("the key is empty", "use a long random text: openssl rand -hex 32")
    return key
