"""Answer over HTTP: predictions and explanations of images, and a page to try them on.

  curl --data-binary @photo.jpg http://127.0.0.1:8000/predict
  curl --data-binary @photo.jpg 'http://127.0.0.1:8000/explain?picture=panels' > why.png

POST /predict and /explain take an image as the body, or image files in a form. Under /v2 stands the Open Inference
Protocol, which tritonclient speaks; /metrics is for Prometheus, /openapi.json describes everything. SIGTERM and Ctrl-C
let the server finish what it has accepted. Logs are JSON, a line each, on stderr.

Beyond this machine (--host 0.0.0.0) a key is asked for: Authorization: Bearer KEY, X-API-Key: KEY, or the password in a
browser. Put a proxy with TLS before it.
"""

import argparse
import os
from dataclasses import fields
from pathlib import Path

from vitrail.cli.fields import add_fields
from vitrail.cli.main import Answer
from vitrail.errors import UsageError
from vitrail.serving.settings import Settings

OPTIONS = [each.name for each in fields(Settings)]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options."""
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="what predict takes; several are served side by side"
    )
    parser.add_argument("--torch-files", action="store_true", help="read plain tensors from torch's own files")
    parser.add_argument("--host", default="127.0.0.1", metavar="H", help="the address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="the port (8000); 0 takes a free one")
    parser.add_argument("--name", action="append", default=[], metavar="NAME", help="a model's name, once for each")
    parser.add_argument("--device", metavar="D", help="cpu, cuda, mps (the best there is)")
    parser.add_argument(
        "--api-key-file", metavar="FILE", help="a file with the key that clients must bring (or $VITRAIL_API_KEY)"
    )
    parser.add_argument("--no-api-key", action="store_true", help="let everyone in who can reach the address")
    add_fields(parser, "limits and workings", Settings, OPTIONS)


def run(arguments: argparse.Namespace) -> Answer:
    """Serves until it is told to stop."""
    given = vars(arguments)
    settings = Settings(**{name: given[name] for name in OPTIONS if name in given})
    key = read_key(arguments.api_key_file)
    if key is not None and arguments.no_api_key:
        raise UsageError("there is a key, and --no-api-key", "leave one of them out")
    if not 0 <= arguments.port < 65536:
        raise UsageError(f"--port is {arguments.port}; it must be from 0 to 65535")
    try:
        from vitrail.serving.nursery import Source
        from vitrail.serving.server import serve
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", "pip install 'vitrail[serve]'") from None
    sources = [Source(model, arguments.torch_files) for model in arguments.models]
    done = serve(
        sources, arguments.name, settings, host=arguments.host, port=arguments.port, device=arguments.device,
        key=key, keyless=arguments.no_api_key,
    )  # fmt: skip
    return Answer(done, [f"{done['requests']} requests answered"])


def read_key(file: str | None) -> str | None:
    """The key in a file or in the environment; raises `UsageError` for an empty one."""
    if file is None:
        key = os.environ.get("VITRAIL_API_KEY")
    else:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise UsageError(f"the key cannot be read from {file}") from None
    if key is not None and not key:
        raise UsageError("the key is empty", "put a long random text there: openssl rand -hex 32")
    return key
