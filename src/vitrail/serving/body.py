"""A request's body: counted while it comes in, unpacked within the same limit, given up when the deadline passes."""

import asyncio
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from vitrail.serving.refusal import Gone, Refusal, overloaded, too_much, wrong
from vitrail.serving.settings import MIB

PACKED = {"gzip": 31, "deflate": 15}  # Content-Encoding -> zlib's wbits
ROOM = 16  # bodies of the longest kind that are held at once
FIELDS = 16  # of a form, beside its files


class Bodies:
    """Reads bodies of at most `most` bytes, all of those held at a time within a budget."""

    def __init__(self, most: int):
        self.most = most
        self.left = ROOM * most

    @asynccontextmanager
    async def read(self, request: Request, deadline: float) -> AsyncIterator[bytes]:
        """The whole body, unpacked; raises `Refusal` where it is too long, damaged or slow, `Gone` where it ends."""
        held = 0
        parts: list[bytes] = []
        unpack = unpacker(request.headers.get("content-encoding", "identity"))
        self.refuse_announced(request.headers.get("content-length"))
        try:
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    async for chunk in request.stream():
                        for part in unpacked(chunk, unpack, self.most):
                            held += len(part)
                            self.left -= len(part)
                            if held > self.most:
                                raise too_much(self.sentence)
                            if self.left < 0:
                                raise overloaded(1)
                            parts.append(part)
            except TimeoutError:
                raise Refusal(408, "slow", "the request did not arrive before its deadline") from None
            except ClientDisconnect:
                raise Gone from None
            if unpack is not None and not unpack.eof:
                raise wrong("the body is packed, and cut short")
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.left += held

    def refuse_announced(self, length: str | None) -> None:
        """Raises `Refusal` for a body that says itself that it is too long."""
        if length is not None and length.isdecimal() and int(length) > self.most:
            raise too_much(self.sentence)

    @property
    def sentence(self) -> str:
        """What is said of a longer one."""
        return f"the body is longer than the {self.most / MIB:g} MiB that are accepted"


def unpacker(encoding: str) -> "zlib._Decompress | None":
    """What unpacks a body; None where it is not packed."""
    encoding = encoding.strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding not in PACKED:
        raise Refusal(415, "wrong", "the body is packed in a way that is not known: gzip and deflate are")
    return zlib.decompressobj(PACKED[encoding])


def unpacked(chunk: bytes, unpack: "zlib._Decompress | None", most: int) -> list[bytes]:
    """What is in a chunk, of which no more than a little above `most` is ever made."""
    if unpack is None or not chunk:
        return [chunk]
    if unpack.eof:
        raise wrong("something follows the packed body")
    try:
        parts = [unpack.decompress(chunk, most + 1)]
    except zlib.error:
        raise wrong("the body is packed, and damaged") from None
    if unpack.unused_data:
        raise wrong("something follows the packed body")
    if unpack.unconsumed_tail:  # more than `most`, whatever it is
        parts.append(b"\0" * (most + 1 - len(parts[0])))
    return parts


class WithoutDisk(MultiPartParser):
    """Forms in memory alone: their length has a limit already."""

    spool_max_size = 1 << 40


async def files_of(request: Request, body: bytes, most: int) -> list[tuple[str, bytes]]:
    """The names and contents of the image files in a body: the files of a form, or the body itself."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if not body:
            raise wrong("the body is empty: send an image file")
        return [("image", body)]

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await WithoutDisk(
            request.headers, stream(), max_files=most, max_fields=FIELDS, max_part_size=len(body) + 1
        ).parse()
    except MultiPartException as error:
        raise wrong(f"the form cannot be read: {error.message}") from None
    except (KeyError, ValueError, UnicodeError):
        raise wrong("the form cannot be read") from None
    files = [
        ((part.filename or "image").encode("utf-8", "replace").decode(), await part.read())
        for _, part in form.multi_items()
        if isinstance(part, UploadFile)
    ]
    await form.close()
    if not files:
        raise wrong("the form has no file: send image files in it")
    return files
