"""The Ray deployment."""

import http.client
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import vitrail
from conftest import COLOURS, picture
from vitrail.data.decode import decode
from vitrail.errors import UsageError

CLIENT_COUNT = 240  # that ask at once
TIMEOUT_S = 90.0  # seconds of a request


def encode_photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(list(COLOURS.values())[seed % 3], seed, (20, 18)).save(buffer, "PNG")
    return buffer.getvalue()


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    from vitrail.serving.ray import deployment

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="ray is not installed"):
        deployment("anything")


@pytest.fixture(scope="module")
def port(run: vitrail.Run) -> Iterator[int]:
    """Where two replicas of the run on the colours answer, in a cluster of this test's own."""
    pytest.importorskip("ray")
    from ray import serve

    from vitrail.ray_cluster import connect_ray
    from vitrail.serving.ray import deployment
    from vitrail.serving.settings import Settings

    with connect_ray(None, cores=2):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"port": port, "host": "127.0.0.1"})
        options = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
        serve.run(
            deployment(str(run.folder), Settings(queue_size=2 * CLIENT_COUNT), threads=1, **options), route_prefix="/"
        )
        try:
            yield port
        finally:
            serve.shutdown()


def send_image(port: int, body: bytes) -> tuple[int, dict]:
    """The status and the answer; 0 where the connection ended without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    try:
        connection.request("POST", "/", body)
        response = connection.getresponse()
        data = response.read()
        return response.status, json.loads(data) if data.startswith(b"{") else {}
    except (OSError, http.client.HTTPException):
        return 0, {}
    finally:
        connection.close()


def is_correct(answer: dict, expected: list[vitrail.Prediction]) -> bool:
    """Whether an answer is that of this image and no other: its labels and its probabilities, which differ by image."""
    top = answer["predictions"][0]["top"]
    same = [row["label"] for row in top] == [each.label for each in expected]
    return same and all(abs(a["probability"] - b.probability) < 2e-5 for a, b in zip(top, expected, strict=True))


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_the_same_answers_through_ray(port: int, clf: vitrail.Classifier):
    for seed in range(3):
        status, answer = send_image(port, encode_photo(seed))
        assert status == 200 and is_correct(answer, clf.predict(decode(io.BytesIO(encode_photo(seed)))))
    status, answer = send_image(port, b"no image")
    assert status == 400 and "not an image" in answer["error"]
    status, answer = send_image(port, bytes(17 << 20))
    assert status == 413


@pytest.mark.scale
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_under_load_every_image_gets_its_own_answer_and_a_dead_replica_harms_nobody_for_long(
    port: int, clf: vitrail.Classifier
):
    """Hundreds at once, twice over; a replica is killed while they are asked. None is lost, and none swapped."""
    bodies = [encode_photo(seed) for seed in range(CLIENT_COUNT)]
    expected = [clf.predict(decode(io.BytesIO(body))) for body in bodies]
    assert len({round(top[0].probability, 4) for top in expected}) > CLIENT_COUNT / 3  # a swap would be seen
    calm = send_all(port, bodies)
    assert [status for status, _ in calm] == [200] * CLIENT_COUNT
    assert all(is_correct(answer, each) for (_, answer), each in zip(calm, expected, strict=True))

    victims = find_replicas()
    assert len(victims) == 2
    stormy = send_all(port, bodies, when_some=lambda: os.kill(victims[0], signal.SIGKILL))
    counts = Counter(status for status, _ in stormy)
    assert set(counts) <= {200, 500, 503}, counts  # an answer, or a clean refusal; never silence
    assert counts[200] >= CLIENT_COUNT / 2, counts
    assert all(
        is_correct(answer, each) for (status, answer), each in zip(stormy, expected, strict=True) if status == 200
    )

    until = time.monotonic() + 120
    while len(now := find_replicas()) < 2 or victims[0] in now:  # Ray starts another one
        assert time.monotonic() < until
        time.sleep(0.5)
    again = send_all(port, bodies[:50])
    assert all(
        status == 200 and is_correct(answer, each) for (status, answer), each in zip(again, expected, strict=False)
    )


def send_all(port: int, bodies: list[bytes], when_some=None) -> list[tuple[int, dict]]:
    """The answers to requests that are all sent at once; `when_some` is called after a few of them."""
    answers: list[tuple[int, dict]] = [(-1, {})] * len(bodies)
    some, start = threading.Semaphore(0), threading.Barrier(len(bodies) + 1)

    def one(i: int) -> None:
        start.wait()
        answers[i] = send_image(port, bodies[i])
        some.release()

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    start.wait()
    if when_some:
        for _ in range(10):
            some.acquire()
        when_some()
    for thread in threads:
        thread.join()
    return answers


def find_replicas() -> list[int]:
    """The processes of this cluster's replicas."""
    return find_descendants(b"ServeReplica")


def find_descendants(name: bytes) -> list[int]:
    """The processes that this one has started, or they, and whose name (Ray gives them one) holds this."""
    named, parents = [], {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if name in (place / "cmdline").read_bytes():
                named.append(int(place.name))
        except OSError:
            continue

    def ours(number: int) -> bool:
        return number == os.getpid() or (number in parents and ours(parents[number]))

    return sorted(filter(ours, named))
