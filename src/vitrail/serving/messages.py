"""Messages between the server and its worker processes: a JSON document and bytes, over a socket. No pickle."""

import asyncio
import json
import socket
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

LENGTHS = struct.Struct("<II")  # number of bytes of the JSON document and of the payload after it
Message = tuple[dict[str, Any], bytes]


def pack_message(document: dict[str, Any], parts: Sequence[Any] = ()) -> bytes:
    """Returns a message as bytes; `parts` are contiguous buffers of any type that form the payload.

    The result is one object of bytes, because sockets and transports treat other buffers differently: since Python
    3.12 asyncio counts the items of an array in `writelines`, not its bytes.
    """
    text = json.dumps(document).encode()
    return b"".join([LENGTHS.pack(len(text), sum(memoryview(part).nbytes for part in parts)), text, *parts])


def send_message(connection: socket.socket, document: dict[str, Any], parts: Sequence[Any] = ()) -> None:
    """Sends a message; blocks until all of it is written."""
    connection.sendall(pack_message(document, parts))


def receive_message(file: BinaryIO) -> Message | None:
    """Blocks until a message arrives; returns None if the other side has closed the connection."""
    header = file.read(LENGTHS.size)
    if len(header) < LENGTHS.size:
        return None
    text_size, payload_size = LENGTHS.unpack(header)
    body = file.read(text_size + payload_size)
    return (json.loads(body[:text_size]), body[text_size:]) if len(body) == text_size + payload_size else None


async def receive_message_async(reader: asyncio.StreamReader) -> Message:
    """Returns the next message; raises `asyncio.IncompleteReadError` if the other side closes the connection."""
    text_size, payload_size = LENGTHS.unpack(await reader.readexactly(LENGTHS.size))
    return json.loads(await reader.readexactly(text_size)), await reader.readexactly(payload_size)
