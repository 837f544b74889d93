"""Structured logs: JSON lines on stderr."""

import atexit
import json
import logging
import queue
import re
import sys
import threading
import time
import uuid

from vitrail import console
from vitrail.serving.errors import RequestError

REQUEST_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # request ids of clients that are safe to repeat
MAX_QUEUED_LINES = 10_000  # more lines are dropped and counted: a reader of stderr that stops must not stop the server
EXIT_TIMEOUT_S = 2.0  # time to write the queued lines at the end


class LineWriter:
    """Writes lines to stderr in a thread of its own, so that a slow reader does not block the event loop."""

    def __init__(self) -> None:
        self.lines: queue.Queue[str] = queue.Queue(MAX_QUEUED_LINES)
        self.dropped = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()
        atexit.register(self.close)

    def write(self, line: str) -> None:
        """Queues a line; drops it if too many are waiting."""
        try:
            self.lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        while True:
            text = self.lines.get()
            count = 1
            while not self.lines.empty() and count < 100:
                text += self.lines.get()
                count += 1
            if dropped := self.dropped:
                self.dropped -= dropped
                text += format_line("log_lines_dropped", count=dropped)
            try:
                write_now(text)
            except (OSError, ValueError):  # stderr is closed
                self.dropped += count
            for _ in range(count):
                self.lines.task_done()

    def close(self) -> None:
        """Waits until the queued lines are written, but not forever."""
        deadline = time.monotonic() + EXIT_TIMEOUT_S
        while self.lines.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)


_writer: LineWriter | None = None


def start_writer() -> None:
    """Writes all further lines of this process in a thread; not to be called before a fork."""
    global _writer
    _writer = _writer or LineWriter()


def flush() -> None:
    """Waits until all lines are written."""
    if _writer is not None:
        _writer.close()


def log(event: str, **fields: object) -> None:
    """Writes one line with time, event and fields, unless `--quiet` is set."""
    if not console.quiet:
        _write(event, fields)


def warn(event: str, **fields: object) -> None:
    """Writes one line about a problem, also with `--quiet`."""
    _write(event, fields)


def _write(event: str, fields: dict[str, object]) -> None:
    line = format_line(event, **fields)
    if _writer is None:
        write_now(line)
    else:
        _writer.write(line)


def format_line(event: str, **fields: object) -> str:
    now = time.time()
    timestamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
    return json.dumps({"time": timestamp, "event": event, **fields}) + "\n"


def write_now(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class JsonLinesHandler(logging.Handler):
    """Writes the warnings of libraries as lines of the same format."""

    def emit(self, record: logging.LogRecord) -> None:
        warn("note", logger=record.name, level=record.levelname, text=record.getMessage()[:500])


def choose_request_id(client_id: str | None) -> str:
    """Returns the client's own id if it is valid, else a new one."""
    return client_id if client_id is not None and REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex


def describe_error(error: RequestError) -> dict[str, object]:
    """Returns the log fields of an error."""
    return {"reason": error.reason, "error": error.sentence}
