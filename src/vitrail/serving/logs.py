"""Structured logs: JSON lines on stderr."""

import json
import logging
import re
import sys
import time
import uuid

from vitrail.serving.errors import RequestError

REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # request ids of clients that are safe to repeat


def log(event: str, **fields: object) -> None:
    """Writes one line with time, event and fields."""
    now = time.time()
    timestamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    sys.stderr.write(json.dumps({"time": timestamp, "event": event, **fields}) + "\n")
    sys.stderr.flush()


class JsonLinesHandler(logging.Handler):
    """Writes the log records of libraries as lines of the same format."""

    def emit(self, record: logging.LogRecord) -> None:
        log("note", logger=record.name, level=record.levelname, text=record.getMessage()[:500])


def choose_request_id(client_id: str | None) -> str:
    """Returns the client's own id if it is valid, else a new one."""
    return client_id if client_id is not None and REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex


def describe_error(error: RequestError) -> dict[str, object]:
    """Returns the log fields of an error."""
    return {"reason": error.reason, "error": error.sentence}
