"""The page of one model as the server holds it: made once, in the background, and sent with a tag for caches."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable

from vitrail.errors import VitrailError
from vitrail.serving.errors import internal_error
from vitrail.serving.logs import warn

RETRY_S = 300.0  # after a failure the page is not made again before this time


class Page:
    """Makes the page with `make` when it is first needed; visitors who come meanwhile wait for the same one."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]):
        self.make = make
        self.content: bytes | None = None
        self.tag = ""  # the value of the ETag header
        self.failure = ""
        self.failed_at = 0.0
        self.task: asyncio.Task[None] | None = None

    def prepare(self) -> None:
        """Starts to make the page, unless it exists, is being made, or has failed a short while ago."""
        is_running = self.task is not None and not self.task.done()
        has_failed = self.failure and time.monotonic() - self.failed_at < RETRY_S
        if self.content is None and not is_running and not has_failed:
            self.task = asyncio.create_task(self._make())

    async def _make(self) -> None:
        try:
            self.content = await self.make()
        except VitrailError as error:
            self.failure, self.failed_at = str(error), time.monotonic()
            warn("page_failed", error=self.failure)
            return
        self.tag = f'"{hashlib.sha256(self.content).hexdigest()[:32]}"'
        self.failure = ""

    async def get(self) -> bytes:
        """Returns the page; raises `RequestError` if it cannot be made."""
        self.prepare()
        if self.content is None and self.task is not None:
            await asyncio.wait([self.task])
        if self.content is None:
            raise internal_error(f"the page cannot be made: {self.failure or 'the server is stopping'}")
        return self.content

    def close(self) -> None:
        if self.task is not None:
            self.task.cancel()
