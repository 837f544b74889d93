"""Structured logs: a JSON object a line, on stderr."""

import json
import logging
import re
import sys
import time
import uuid

from vitrail.serving.errors import RequestError

CLIENT_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # what of a client's own id is repeated


def log(event: str, **known: object) -> None:
    """One line: when, what, and what is known of it."""
    moment = time.time()
    when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(moment))}.{int(moment % 1 * 1000):03d}Z"
    sys.stderr.write(json.dumps({"time": when, "event": event, **known}) + "\n")
    sys.stderr.flush()


class JsonLinesHandler(logging.Handler):
    """What libraries have to say, as lines like ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log("note", logger=record.name, level=record.levelname, text=record.getMessage()[:500])


def request_id(given: str | None) -> str:
    """The client's own id where it is a harmless one, else a new one."""
    return given if given is not None and CLIENT_ID.fullmatch(given) else uuid.uuid4().hex


def describe_error(error: RequestError) -> dict[str, object]:
    """What a line says of a refusal."""
    return {"reason": error.reason, "error": error.sentence}
