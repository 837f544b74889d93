"""Messages between the server and its processes: a JSON document and bytes, over a socket. Nothing is unpickled."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

LENGTHS = struct.Struct("<II")  # of the document, of the bytes behind it
Message = tuple[dict[str, Any], bytes]


def pack_message(document: dict[str, Any], parts: Sequence[Any] = ()) -> list[Any]:
    """The pieces of a message, to be written one after the other; `parts` are anything with bytes in it."""
    text = json.dumps(document).encode()
    return [LENGTHS.pack(len(text), sum(memoryview(part).nbytes for part in parts)), text, *parts]


def send_message(connection: socket.socket, document: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Writes a message and waits until it is gone."""
    connection.sendall(b"".join(pack_message(document, parts)))


def receive_message(file: BinaryIO) -> Message | None:
    """Waits for a message; None where the other side has gone."""
    start = file.read(LENGTHS.size)
    if len(start) < LENGTHS.size:
        return None
    text, rest = LENGTHS.unpack(start)
    body = file.read(text + rest)
    return (json.loads(body[:text]), body[text:]) if len(body) == text + rest else None


async def receive_message_async(reader: asyncio.StreamReader) -> Message:
    """The same inside an event loop; raises `asyncio.IncompleteReadError` where the other side has gone."""
    text, rest = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
    return json.loads(await reader.readexactly(text)), await reader.readexactly(rest)
