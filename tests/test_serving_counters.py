"""What the server counts returns to zero when all requests have ended, however they ended."""

import asyncio
import contextlib
import gzip
import random
import socket
from typing import Any

import numpy as np
import pytest

import vitrail
from serving import TIMEOUT_S
from vitrail.serving import endpoint as endpoint_module
from vitrail.serving.app import make_app
from vitrail.serving.decoding import ImageDecoder
from vitrail.serving.endpoint import Endpoint
from vitrail.serving.errors import RequestError
from vitrail.serving.fork_server import ForkServer, ModelSource
from vitrail.serving.messages import pack_message, receive_message_async
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import AccessMiddleware
from vitrail.serving.model_info import describe_model
from vitrail.serving.scheduler import Item, Scheduler
from vitrail.serving.service import Service
from vitrail.serving.service_time import BatchTime, ExplanationTime, PassTimes
from vitrail.serving.settings import MIB, Settings
from vitrail.serving.worker import WorkerConfig
from vitrail.serving.worker_pool import ADMISSION_MARGIN, WorkerPool

pytestmark = pytest.mark.newest
NO_PROCESS = 1 << 30  # a pid that no process has
IMAGE = b"an image"


class UnreliableWorkers(ForkServer):
    """Workers in the event loop that answer, or do what broken ones do: end, hang, answer with less."""

    def __init__(self, seed: int, outputs: int, size: tuple[int, ...]):
        self.random = random.Random(seed)
        self.is_reliable = False
        self.outputs = outputs
        self.size = size
        self.tasks: set[asyncio.Task[None]] = set()

    async def spawn(self, config: WorkerConfig) -> socket.socket:
        if not self.is_reliable and self.random.random() < 0.1:
            raise OSError(11, "no process now")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task = asyncio.create_task(self.work(theirs, config.task))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return ours

    async def work(self, connection: socket.socket, task: str) -> None:
        reader, writer = await asyncio.open_connection(sock=connection)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError), contextlib.closing(writer):
            writer.write(pack_message({"pid": NO_PROCESS}))
            times = {"forward": 0.001, "backward": 0.001, "batched_forward": 0.001, "picture": 0.001}
            writer.write(pack_message({"seconds_by_size": [[1, 0.002], [4, 0.004]], "pass_times": times}))
            while True:
                document, _ = await receive_message_async(reader)
                event = "answer" if self.is_reliable else self.random.choice(["answer"] * 6 + ["end", "error", "wrong"])
                await asyncio.sleep(self.random.choice([0, 0.002, 0.01, 0.3 if event != "answer" else 0.02]))
                if event == "end":
                    return
                if event == "error":
                    writer.write(pack_message({"error": "no", "is_usage_error": False, "seconds": 0.001}))
                else:
                    answer, payload = self.answer(task, document)
                    writer.write(pack_message(answer, [payload if event == "answer" else payload[:-1]]))

    def answer(self, task: str, document: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        if task == "decode":
            size = int(np.prod(self.size))
            kinds: list[dict[str, Any]] = [{"pixels": list(self.size), "dtype": "uint8", "is_deep": False}]
            if not self.is_reliable:
                kinds += [{"unreadable": "damaged"}] + [{"is_large": True}] * (not document["decode_large"])
            kind = self.random.choice(kinds)
            return {**kind, "seconds": 0.001}, bytes(size if "pixels" in kind else 1)
        if task == "explain":
            return {"explanation": {"map": []}, "seconds": 0.001}, b"png"
        rows = np.zeros((document["shape"][0], self.outputs), np.float32)
        return {"outputs": self.outputs, "seconds": 0.001}, rows.tobytes()


class Client:
    """A client of the application that may be slow, leave, or send something else than it announced."""

    def __init__(self, app: Any, seed: int):
        self.app = app
        self.random = random.Random(seed)
        self.status = 0

    async def request(self, path: str, query: str = "", is_careful: bool = False) -> int:
        choose = self.random.choice
        encoding = b"" if is_careful else choose([b""] * 5 + [b"gzip", b"deflate", b"br"])
        body = IMAGE if is_careful else choose([IMAGE] * 6 + [b"", bytes(3 * MIB), IMAGE * 1000])
        if encoding == b"gzip":
            body = gzip.compress(body)[: choose([None, -3])]
        cuts = sorted(self.random.randrange(len(body) + 1) for _ in range(self.random.randrange(3)))
        parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        leaves_at = None if is_careful else choose([None] * 3 + [self.random.randrange(len(parts) + 1)])
        leave_after = None if is_careful else choose([None, None, self.random.uniform(0, 0.1)])
        messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": i < len(parts) - 1} for i, part in enumerate(parts)
        ]
        left = asyncio.Event()
        sent = 0

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not is_careful:
                await asyncio.sleep(choose([0, 0, 0.005, 0.05]))
            if sent == leaves_at or (sent == len(messages) and leave_after is None and left.is_set()):
                return {"type": "http.disconnect"}
            if sent < len(messages):
                sent += 1
                return messages[sent - 1]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(left.wait(), leave_after)
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            self.status = message.get("status", self.status)
            if not message.get("more_body", False) and message["type"] == "http.response.body":
                left.set()

        headers = [(b"host", b"localhost"), (b"content-type", b"image/png")]
        headers += [(b"content-encoding", encoding)] if encoding else []
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
            "headers": headers, "http_version": "1.1", "scheme": "http", "client": None, "server": None,
        }  # fmt: skip
        await self.app(scope, receive, send)
        return self.status


@pytest.mark.parametrize("seed", range(3))
def test_all_counters_are_zero_after_everything_has_ended(
    clf: vitrail.Classifier, seed: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(endpoint_module, "MAX_ARRIVAL_S", 0.05)

    async def scenario() -> None:
        info = describe_model("m", 0, ModelSource("m"), clf)
        settings = Settings(
            backend="torch",
            processes=2,
            max_batch_size=4,
            queue_size=12,
            decode_processes=2,
            max_body_mib=2,
            timeout_s=1,
        )
        size = (info.preprocess.channels, *info.preprocess.image_size)
        outputs = len(clf.classes) + (info.unlike is not None)  # and the distance of each image
        workers = UnreliableWorkers(seed, outputs, size)
        metrics = Metrics()
        decoder = ImageDecoder(settings, metrics, lambda: workers.spawn(WorkerConfig(0, 1, task="decode")))
        endpoint = Endpoint(info, workers, settings, metrics, decoder, WorkerConfig(0, 1))
        explainer = endpoint.explainer
        assert explainer is not None
        pools = [endpoint.prediction_pool, explainer.quick_pool, decoder.pool, decoder.large_image_pool]
        for pool in pools:
            pool.start()
        service = Service({"m": endpoint}, settings, metrics, decoder)
        access = AccessMiddleware(make_app(service, lambda app: None), metrics, None, set(), service.expect_request)  # type: ignore[arg-type,return-value]
        all_bytes = service.bodies.available_bytes
        generator = random.Random(seed)

        async def send(number: int) -> int:
            await asyncio.sleep(generator.uniform(0, 0.6))
            timeout = generator.choice(["", "timeout=0.02", "timeout=0.3", "timeout=nan", "top=0"])
            path, query = generator.choice([("/predict", timeout)] * 4 + [("/explain", "")])
            return await Client(access, 1000 * seed + number).request(path, query)

        async with asyncio.timeout(TIMEOUT_S):
            statuses = await asyncio.gather(*(send(number) for number in range(150)))
            assert {400, 499, 503} <= set(statuses)  # on a slow machine, no request of these is answered in time
            assert 0 not in statuses
            while decoder.coming:
                await asyncio.sleep(0.01)
        for pool in (*pools, explainer.slow_pool):
            assert (pool.coming, len(pool.scheduler), pool.scheduler.known_seconds) == (0, 0, 0.0)
        assert (decoder.waiting, decoder.coming) == (0, 0)
        assert service.bodies.available_bytes == all_bytes
        workers.is_reliable = True
        async with asyncio.timeout(TIMEOUT_S):  # and the server still works
            while await Client(access, 0).request("/predict", is_careful=True) != 200:
                await asyncio.sleep(0.01)
            while await Client(access, 0).request("/explain", is_careful=True) != 200:
                await asyncio.sleep(0.01)
        await endpoint.close()
        await decoder.close()
        while workers.tasks:
            await asyncio.wait(workers.tasks)

    asyncio.run(scenario())


def is_refused(pool: WorkerPool, deadline: float) -> bool:
    try:
        pool.check_load(1, deadline, margin=ADMISSION_MARGIN)
    except RequestError:
        return True
    return False


def test_a_prediction_that_is_too_long_does_not_refuse_everything_forever():
    """An idle server computes nothing that could correct it, so that refusals must."""

    async def scenario() -> None:
        time = BatchTime({1: 0.3}, factor=2.9, deviation=0.9)
        pool = WorkerPool("m", "predict", None, Scheduler(1, 8, service_time=time), Metrics())  # type: ignore[arg-type]
        now = asyncio.get_running_loop().time
        pool.free_at = [now() + 100]
        for limit in (0.001, 1.0):  # a busy pool learns from its batches, not from what clients ask for
            assert is_refused(pool, now() + limit)
        assert (time.factor, time.deviation) == (2.9, 0.9)
        pool.free_at = [0.0]
        refusals = 0  # alone, an image would take 0.87 s: less than the limit of 1 s, but not with the margin
        while refusals < 50 and is_refused(pool, now() + 1.0):
            refusals += 1
        assert 0 < refusals < 10
        time.deviation, late = 0.9, 0
        pool.scheduler.add([Item(now() + 1.0)], now())
        while late < 50 and not pool.scheduler.take(now())[0]:
            late += 1
            pool.scheduler.add([Item(now() + 1.0)], now())
        assert 0 < late < 10

    asyncio.run(scenario())


def test_an_explanation_that_hung_once_says_little_about_the_next():
    time = ExplanationTime(patches=196, passes=PassTimes(0.01, 0.02, 0.005, 0.1))
    time.observe([{"options": {"method": "attention"}, "picture": None}], 120.0)
    assert time.seconds("attention", False) < 0.02
