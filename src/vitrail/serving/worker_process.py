"""The server's connection to one worker process."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

from vitrail.errors import UsageError, VitrailError
from vitrail.serving.logs import warn
from vitrail.serving.messages import Message, pack_message, receive_message_async

MAX_BATCH_S = 120.0  # a process that does not answer a message within this time is killed
Spawn = Callable[[], Awaitable[socket.socket]]


class WorkerCrashed(Exception):
    """The worker process ended, or was killed because it did not answer."""


class Worker:
    """The connection to one worker process. The task `ended` is done when the process has ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.reader = reader
        self.writer = writer
        self.hello: dict[str, Any] = {}
        self.start_seconds = 0.0  # from the request for the process to the end of its warm-up
        self.answers: asyncio.Queue[Message] = asyncio.Queue()
        self.ended = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                self.answers.put_nowait(await receive_message_async(self.reader))

    @classmethod
    async def start(cls, spawn: Spawn) -> "Worker":
        """Starts a process and waits for its warm-up.

        Raises the process's own `VitrailError` if it fails, `WorkerCrashed` if it dies, and `OSError` if the system
        cannot create it.
        """
        started = time.monotonic()
        worker = cls(*await asyncio.open_connection(sock=await spawn()))
        try:
            worker.hello = (await worker.receive())[0]  # only its pid, to kill it if the warm-up hangs
            worker.hello |= (await worker.receive())[0]
            if "error" in worker.hello:
                raise parse_error(worker.hello)
        except BaseException:
            worker.close()
            raise
        worker.start_seconds = time.monotonic() - started
        return worker

    def send(self, document: dict[str, Any], parts: list[Any]) -> None:
        self.writer.write(pack_message(document, parts))

    async def receive(self, timeout_s: float | None = None) -> Message:
        """Returns the next answer.

        Raises `WorkerCrashed` if the process ends. A process that does not answer within `timeout_s` (default:
        `MAX_BATCH_S`) is killed.
        """
        timeout_s = timeout_s or MAX_BATCH_S
        answer = asyncio.create_task(self.answers.get())
        try:
            await asyncio.wait({answer, self.ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        if not self.ended.done():
            warn("worker_stuck", pid=self.hello.get("pid"), seconds=timeout_s)
            self.kill()
        raise WorkerCrashed

    def kill(self) -> None:
        """Ends the process at once."""
        with contextlib.suppress(ProcessLookupError, KeyError):
            os.kill(self.hello["pid"], signal.SIGKILL)

    def close(self) -> None:
        """Closes the connection and ends the process, also one that hangs or computes."""
        if not self.ended.done():
            self.kill()
        self.ended.cancel()
        self.writer.close()


def parse_error(document: dict[str, Any]) -> VitrailError:
    """Returns the error of an answer, with the type that it had in the worker."""
    return (UsageError if document["is_usage_error"] else VitrailError)(document["error"])
