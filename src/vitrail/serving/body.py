"""Reads the body of a request: limits its size before and after decompression, and stops at the deadline."""

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vitrail.serving.errors import ClientDisconnected, RequestError, bad_request, overloaded, too_large
from vitrail.serving.settings import MIB

WBITS = {"gzip": 31, "deflate": 15}  # Content-Encoding -> zlib's wbits
MAX_BODIES = 16  # memory budget: bodies of maximum size that may be in memory at the same time
MAX_FORM_FIELDS = 16  # fields of a form that are not files


class BodyReader:
    """Reads bodies of at most `max_bytes`. All bodies in memory share a budget of `MAX_BODIES * max_bytes`."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.available_bytes = MAX_BODIES * max_bytes

    @asynccontextmanager
    async def read(self, request: Request, deadline: float) -> AsyncIterator[bytes]:
        """Yields the whole body, decompressed.

        Raises `RequestError` if it is too large, damaged or too slow, and `ClientDisconnected` if the client leaves.
        """
        used_bytes = 0
        parts: list[bytes] = []
        decompressor = make_decompressor(request.headers.get("content-encoding", "identity"))
        self.check_announced_length(request.headers.get("content-length"))
        try:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    async for chunk in request.stream():
                        for part in decompress(chunk, decompressor, self.max_bytes):
                            used_bytes += len(part)
                            self.available_bytes -= len(part)
                            if used_bytes > self.max_bytes:
                                raise too_large(self.too_long_message)
                            if self.available_bytes < 0:
                                raise overloaded(1)
                            parts.append(part)
            except TimeoutError:
                raise RequestError(408, "slow", "the request did not arrive before its deadline") from None
            except ClientDisconnect:
                raise ClientDisconnected from None
            if decompressor is not None and not decompressor.eof:
                raise bad_request("the compressed body is truncated")
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.available_bytes += used_bytes

    def check_announced_length(self, length: str | None) -> None:
        """Raises `RequestError` if the Content-Length header exceeds the limit."""
        if length is not None and length.isdecimal() and int(length) > self.max_bytes:
            raise too_large(self.too_long_message)

    @property
    def too_long_message(self) -> str:
        return f"the body is larger than the limit of {self.max_bytes / MIB:g} MiB"


def make_decompressor(encoding: str) -> "zlib._Decompress | None":
    """Returns the decompressor for a Content-Encoding; None for an uncompressed body."""
    encoding = encoding.strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding not in WBITS:
        raise RequestError(415, "wrong", "the Content-Encoding is not supported: use gzip or deflate")
    return zlib.decompressobj(WBITS[encoding])


def decompress(chunk: bytes, decompressor: "zlib._Decompress | None", max_bytes: int) -> list[bytes]:
    """Returns the content of a chunk. Never allocates much more than `max_bytes`, even for a zip bomb."""
    if decompressor is None or not chunk:
        return [chunk]
    if decompressor.eof:
        raise bad_request("there is data after the end of the compressed body")
    try:
        parts = [decompressor.decompress(chunk, max_bytes + 1)]
    except zlib.error:
        raise bad_request("the compressed body is damaged") from None
    if decompressor.unused_data:
        raise bad_request("there is data after the end of the compressed body")
    if decompressor.unconsumed_tail:  # the output exceeds max_bytes: pad it, so that the size check fails
        parts.append(b"\0" * (max_bytes + 1 - len(parts[0])))
    return parts


class InMemoryMultiPartParser(MultiPartParser):
    """Parses forms without temporary files: the size of the body is limited already."""

    spool_max_size = 1 << 40


async def read_files(request: Request, body: bytes, max_files: int) -> list[tuple[str, bytes]]:
    """Returns names and contents of the image files: those of a multipart form, or the body itself as one file."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        if not body:
            raise bad_request("the body is empty: send an image file")
        return [("image", body)]

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemoryMultiPartParser(
            request.headers, stream(), max_files=max_files, max_fields=MAX_FORM_FIELDS, max_part_size=len(body) + 1
        ).parse()
    except MultiPartException as error:
        raise bad_request(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise bad_request("the form cannot be read") from None
    parts = form.multi_items()
    files = [
        ((part.filename or "image").encode("utf-8", "replace").decode(), await part.read())
        for _, part in parts
        if isinstance(part, UploadFile)
    ]
    await form.close()
    if not files:
        raise bad_request("the form has no file: send one or more image files")
    for name, part in parts:
        if not isinstance(part, UploadFile):
            name = name.encode("utf-8", "replace").decode()[:60]
            raise bad_request(f"the form field {name!r} is not a file: send options in the URL, such as ?top=3")
    return files
