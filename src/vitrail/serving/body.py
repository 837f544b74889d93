"""A request's body: counted while it comes in, unpacked within the same limit, given up when the deadline passes."""

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
MAX_BODIES = 16  # bodies of the longest kind that are held at once
MAX_FORM_FIELDS = 16  # of a form, beside its files


class BodyReader:
    """Reads bodies of at most `most` bytes, all of those held at a time within a budget."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.left = MAX_BODIES * max_bytes

    @asynccontextmanager
    async def read(self, request: Request, deadline: float) -> AsyncIterator[bytes]:
        """The whole body, unpacked; raises `Refusal` where it is too long, damaged or slow, `Gone` where it ends."""
        held = 0
        parts: list[bytes] = []
        unpack = make_decompressor(request.headers.get("content-encoding", "identity"))
        self.check_announced_length(request.headers.get("content-length"))
        try:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    async for chunk in request.stream():
                        for part in decompress(chunk, unpack, self.max_bytes):
                            held += len(part)
                            self.left -= len(part)
                            if held > self.max_bytes:
                                raise too_large(self.sentence)
                            if self.left < 0:
                                raise overloaded(1)
                            parts.append(part)
            except TimeoutError:
                raise RequestError(408, "slow", "the request did not arrive before its deadline") from None
            except ClientDisconnect:
                raise ClientDisconnected from None
            if unpack is not None and not unpack.eof:
                raise bad_request("the body is packed, and cut short")
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.left += held

    def check_announced_length(self, length: str | None) -> None:
        """Raises `Refusal` for a body that says itself that it is too long."""
        if length is not None and length.isdecimal() and int(length) > self.max_bytes:
            raise too_large(self.sentence)

    @property
    def sentence(self) -> str:
        """What is said of a longer one."""
        return f"the body is longer than the {self.max_bytes / MIB:g} MiB that are accepted"


def make_decompressor(encoding: str) -> "zlib._Decompress | None":
    """What unpacks a body; None where it is not packed."""
    encoding = encoding.strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding not in WBITS:
        raise RequestError(415, "wrong", "the body is packed in a way that is not known: gzip and deflate are")
    return zlib.decompressobj(WBITS[encoding])


def decompress(chunk: bytes, unpack: "zlib._Decompress | None", most: int) -> list[bytes]:
    """What is in a chunk, of which no more than a little above `most` is ever made."""
    if unpack is None or not chunk:
        return [chunk]
    if unpack.eof:
        raise bad_request("something follows the packed body")
    try:
        parts = [unpack.decompress(chunk, most + 1)]
    except zlib.error:
        raise bad_request("the body is packed, and damaged") from None
    if unpack.unused_data:
        raise bad_request("something follows the packed body")
    if unpack.unconsumed_tail:  # more than `most`, whatever it is
        parts.append(b"\0" * (most + 1 - len(parts[0])))
    return parts


class InMemoryMultiPartParser(MultiPartParser):
    """Forms in memory alone: their length has a limit already."""

    spool_max_size = 1 << 40


async def read_files(request: Request, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names and contents of the image files in a body: the files of a form, or the body itself."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not body:
            raise bad_request("the body is empty: send an image file")
        return [("image", body)]

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await InMemoryMultiPartParser(
            request.headers, stream(), max_files=most, max_fields=MAX_FORM_FIELDS, max_part_size=len(body) + 1
        ).parse()
    except MultiPartException as error:
        raise bad_request(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise bad_request("the form cannot be read") from None
    files = [
        ((part.filename or "image").encode("utf-8", "replace").decode(), await part.read())
        for _, part in form.multi_items()
        if isinstance(part, UploadFile)
    ]
    await form.close()
    if not files:
        raise bad_request("the form has no file: send image files in it")
    return files
