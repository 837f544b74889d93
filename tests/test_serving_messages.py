"""Messages between the server and its worker processes."""

import asyncio
import socket

import numpy as np
import pytest

from vitrail.serving.messages import pack_message, receive_message, receive_message_async, send_message
from vitrail.serving.worker_pool import Worker

ARRAYS = [np.arange(3 * 400 * 400, dtype=np.uint8).reshape(3, 400, 400), np.full((2, 5), 0.5, np.float32)]


def test_arrays_of_several_dimensions_arrive_complete():
    """Sends more than the socket holds to a reader that waits first: the transport keeps and sends the rest."""

    async def exchange() -> tuple[dict[str, object], bytes]:
        ours, theirs = socket.socketpair()
        worker = Worker(*await asyncio.open_connection(sock=ours))
        reader, writer = await asyncio.open_connection(sock=theirs)
        try:
            worker.send({"operation": "logits"}, [*ARRAYS, b"", memoryview(ARRAYS[1])])
            await asyncio.sleep(0.01)
            return await receive_message_async(reader)
        finally:
            worker.close()
            writer.close()

    document, payload = asyncio.run(exchange())
    assert document == {"operation": "logits"}
    assert payload == ARRAYS[0].tobytes() + 2 * ARRAYS[1].tobytes()


def test_a_message_over_a_blocking_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs, theirs.makefile("rb") as file:
        send_message(ours, {"shape": [2, 5]}, [ARRAYS[1]])
        assert receive_message(file) == ({"shape": [2, 5]}, ARRAYS[1].tobytes())
        ours.sendall(pack_message({"shape": [2, 5]}, [ARRAYS[1]])[:-1])
        ours.close()
        assert receive_message(file) is None  # it ends before the last byte


def test_a_part_that_is_not_contiguous_is_an_error():
    with pytest.raises(TypeError):
        pack_message({}, [ARRAYS[1][:, ::2]])
