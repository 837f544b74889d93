"""Images are decoded in processes that may die."""

import asyncio
import faulthandler
import io
import os
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from serving import TIMEOUT_S, ForkedWorkers, RunningServer
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


def decode_files(connection: socket.socket) -> None:
    """Decodes files; two of them kill or block the image library."""
    faulthandler.disable()
    decode_worker.count_pixels = count_pixels
    run_decoder(connection)


def count_pixels(file: bytes, max_megapixels: int) -> int:
    if file == KILLER:
        os.kill(os.getpid(), signal.SIGSEGV)  # what a bug in an image library does
    if file == HANG:
        signal.pause()
    return 1


@pytest.fixture
def decoders(fork_workers: Callable[..., ForkedWorkers]) -> ForkedWorkers:
    return fork_workers(decode_files)


def run_scenario(decoders: ForkedWorkers, scenario: Any) -> Any:
    """Runs a scenario with a decoder that has one process; returns its result."""

    async def run() -> Any:
        decoder = ImageDecoder(Settings(decode_processes=1, queue_size=8), Metrics(), decoders.spawn)
        await decoder.open()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await scenario(decoder)
        finally:
            await decoder.close()

    return asyncio.run(run())


def far() -> float:
    return asyncio.get_running_loop().time() + TIMEOUT_S


def test_a_file_that_kills_its_decoder_is_unreadable_and_affects_no_other(decoders: ForkedWorkers):
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        return await decoder.decode_all([make_photo(0), KILLER, make_photo(1)], PREPROCESS, far())

    (first, killed, last) = run_scenario(decoders, scenario)
    assert isinstance(killed, ImageError)
    assert "ended" in killed.reason
    for seed, image in ((0, first), (1, last)):
        assert (image.pixels == PREPROCESS.fit_image(decode_photo(seed)).numpy()).all()
    assert len(decoders.pids) == 2 + 2  # one more for large images; the file was tried twice


def decode_photo(seed: int) -> Any:
    return decode(io.BytesIO(make_photo(seed)))


def test_a_decoder_that_was_killed_by_someone_else_loses_no_file(decoders: ForkedWorkers):
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        (worker,) = decoder.pool.workers.values()
        os.kill(worker.hello["pid"], signal.SIGSTOP)
        task = asyncio.create_task(decoder.decode_all([make_photo(0)], PREPROCESS, far()))
        await asyncio.sleep(0.05)
        os.kill(worker.hello["pid"], signal.SIGKILL)
        return await task

    (image,) = run_scenario(decoders, scenario)
    assert image.pixels.shape == (3, 16, 16)


def test_a_file_that_is_decoded_forever_is_given_up_at_the_deadline(decoders: ForkedWorkers):
    async def scenario(decoder: ImageDecoder) -> list[Any]:
        with pytest.raises(RequestError) as caught:
            await decoder.decode_all([HANG], PREPROCESS, asyncio.get_running_loop().time() + 0.2)
        assert caught.value.status == 504
        return await decoder.decode_all([make_photo(0)], PREPROCESS, far())

    (image,) = run_scenario(decoders, scenario)
    assert image.pixels.shape == (3, 16, 16)
    assert len(decoders.pids) == 3


def test_a_crash_in_the_image_library_does_not_end_the_server(server: RunningServer):
    """Kills a decoding process of a real server while it answers."""

    def list_pids(*events: str) -> list[int]:
        return [line["pid"] for name in events for line in server.select_events(name, task="decode")]

    def find_living() -> list[int]:  # an earlier test may have ended others, whose end is still being logged
        return [pid for pid in list_pids("worker_ready") if pid not in list_pids("worker_ended", "worker_stopped")]

    victim = server.wait_for(find_living)[-1]
    restarts_of_decoders = 'vitrail_worker_restarts_total{model="",task="decode"}'
    restarts = server.read_metric(restarts_of_decoders)
    statuses: list[int] = []

    def client() -> None:
        statuses.extend(server.post("/predict", make_photo(seed)).status for seed in range(20))

    thread = threading.Thread(target=client)
    thread.start()
    os.kill(victim, signal.SIGKILL)
    thread.join(TIMEOUT_S)
    assert statuses == [200] * 20
    server.wait_for(lambda: victim in list_pids("worker_ended"))
    server.wait_for(lambda: server.read_metric(restarts_of_decoders) > restarts)
    server.wait_for(lambda: list_pids("worker_ready")[-1] != victim)
