"""Images are decoded in processes that may die."""

import asyncio
import faulthandler
import io
import os
import signal
import socket
import threading
from typing import Any

import pytest

from serving import TIMEOUT_S, RunningServer
from test_serve import make_photo
from vitrail.data.decode import ImageError, decode
from vitrail.data.preprocess import Preprocess
from vitrail.serving import decode_worker
from vitrail.serving.decode_worker import run_decoder
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.errors import RequestError
from vitrail.serving.metrics import Metrics
from vitrail.serving.settings import Settings

pytestmark = pytest.mark.newest

KILLER = b"this file kills its decoder"
HANG = b"this file is decoded forever"
PREPROCESS = Preprocess(image_size=(16, 16))


class Decoders:
    """Forks decoding processes, in which two files kill or block the image library."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    async def spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        if (pid := os.fork()) == 0:
            ours.close()
            faulthandler.disable()
            decode_worker.count_pixels = self.count_pixels
            try:
                run_decoder(theirs)
            finally:
                os._exit(0)
        self.pids.append(pid)
        theirs.close()
        ours.setblocking(False)
        return ours

    @staticmethod
    def count_pixels(file: bytes, max_megapixels: int) -> int:
        if file == KILLER:
            os.kill(os.getpid(), signal.SIGSEGV)  # what a bug in an image library does
        if file == HANG:
            signal.pause()
        return 1


def run_scenario(scenario: Any) -> Any:
    """Runs a scenario with a decoder that has one process; returns its result and the number of processes."""
    decoders = Decoders()

    async def run() -> Any:
        decoder = ImageDecoder(Settings(decode_processes=1, queue_size=8), Metrics(), decoders.spawn)
        await decoder.open()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await scenario(decoder)
        finally:
            await decoder.close()

    try:
        return asyncio.run(run()), len(decoders.pids)
    finally:
        for pid in decoders.pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def far() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_S


def test_a_file_that_kills_its_decoder_is_unreadable_and_affects_no_other():
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        return await decoder.decode_all([make_photo(0), KILLER, make_photo(1)], PREPROCESS, far())

    (first, killed, last), processes = run_scenario(scenario)
    assert isinstance(killed, ImageError)
    assert "ended" in killed.reason
    for seed, pixels in ((0, first), (1, last)):
        assert (pixels == PREPROCESS.fit_image(decode_photo(seed)).numpy()).all()
    assert processes == 2 + 2  # one more for large images; the file was tried twice


def decode_photo(seed: int) -> Any:
    return decode(io.BytesIO(make_photo(seed)))


def test_a_decoder_that_was_killed_by_someone_else_loses_no_file():
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        (worker,) = decoder.pool.workers.values()
        os.kill(worker.hello["pid"], signal.SIGSTOP)
        task = asyncio.create_task(decoder.decode_all([make_photo(0)], PREPROCESS, far()))
        await asyncio.sleep(0.05)
        os.kill(worker.hello["pid"], signal.SIGKILL)
        return await task

    (pixels,), _ = run_scenario(scenario)
    assert pixels.shape == (3, 16, 16)


def test_a_file_that_is_decoded_forever_is_given_up_at_the_deadline():
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        with pytest.raises(RequestError) as caught:
            await decoder.decode_all([HANG], PREPROCESS, asyncio.get_running_loop().time() + 0.2)
        assert caught.value.status == 504
        return await decoder.decode_all([make_photo(0)], PREPROCESS, far())

    (pixels,), processes = run_scenario(scenario)
    assert pixels.shape == (3, 16, 16)
    assert processes == 3


def test_a_crash_in_the_image_library_does_not_end_the_server(server: RunningServer):
    """Kills a decoding process of a real server while it answers."""
    victim = server.select_events("worker_ready", task="decode")[-1]["pid"]
    restarts = server.read_metric("vitrail_worker_restarts_total")
    statuses: list[int] = []

    def client() -> None:
        statuses.extend(server.post("/predict", make_photo(seed)).status for seed in range(20))

    thread = threading.Thread(target=client)
    thread.start()
    os.kill(victim, signal.SIGKILL)
    thread.join(TIMEOUT_S)
    assert statuses == [200] * 20
    server.wait_for(lambda: server.read_metric("vitrail_worker_restarts_total") == restarts + 1)
    server.wait_for(lambda: server.select_events("worker_ready", task="decode")[-1]["pid"] != victim)
