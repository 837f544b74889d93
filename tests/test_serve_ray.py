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
from typing import Any

import pytest

import vitrail
from conftest import COLORS, picture
from vitrail.data.decode import decode
from vitrail.errors import UsageError

CLIENT_COUNT = 240  # concurrent requests
TIMEOUT_S = 300.0  # of one step, also on a busy machine


def encode_photo(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(list(COLORS.values())[seed % 3], seed, (20, 18)).save(buffer, "PNG")
    return buffer.getvalue()


def test_without_ray_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    from vitrail.serving.ray import deployment

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="ray is not installed"):
        deployment("model")


@pytest.fixture(scope="module")
def port(run: vitrail.Run, ray_cluster: Any) -> Iterator[int]:
    """Returns the port of a deployment with two replicas."""
    from ray import serve

    from vitrail.serving.ray import deployment
    from vitrail.serving.settings import Settings

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    serve.start(http_options={"port": port, "host": "127.0.0.1"})
    settings = Settings(queue_size=2 * CLIENT_COUNT)
    options = {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    serve.run(deployment(str(run.folder), settings, threads=1, **options), route_prefix="/")
    try:
        yield port
    finally:
        serve.shutdown()


def send_image(port: int, body: bytes) -> tuple[int, dict]:
    """Returns status and JSON of the response; status 0 if the connection ended without a response."""
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
    """Returns whether a response belongs to this image: labels and probabilities, which differ between images."""
    top = answer["predictions"][0]["top"]
    has_same_labels = [row["label"] for row in top] == [each.label for each in expected]
    return has_same_labels and all(
        abs(a["probability"] - b.probability) < 2e-5 for a, b in zip(top, expected, strict=True)
    )


@pytest.mark.scale
@pytest.mark.filterwarnings("ignore")
def test_ray_returns_the_same_predictions(port: int, clf: vitrail.Classifier):
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
def test_under_load_responses_are_not_mixed_up_and_a_dead_replica_is_replaced(port: int, clf: vitrail.Classifier):
    """Sends hundreds of concurrent requests twice and kills a replica the second time: no response is swapped."""
    bodies = [encode_photo(seed) for seed in range(CLIENT_COUNT)]
    expected = [clf.predict(decode(io.BytesIO(body))) for body in bodies]
    assert len({round(top[0].probability, 4) for top in expected}) > CLIENT_COUNT / 3  # to detect a swap
    undisturbed = send_all(port, bodies)
    assert [status for status, _ in undisturbed] == [200] * CLIENT_COUNT
    assert all(is_correct(answer, each) for (_, answer), each in zip(undisturbed, expected, strict=True))

    pids = find_replicas()
    assert len(pids) == 2
    disturbed = send_all(port, bodies, after_some=lambda: os.kill(pids[0], signal.SIGKILL))
    counts = Counter(status for status, _ in disturbed)
    assert set(counts) <= {200, 500, 503}, counts  # a prediction or an error, never a lost connection
    assert counts[200] >= CLIENT_COUNT / 2, counts
    assert all(
        is_correct(answer, each) for (status, answer), each in zip(disturbed, expected, strict=True) if status == 200
    )

    stop = time.monotonic() + TIMEOUT_S
    while len(current := find_replicas()) < 2 or pids[0] in current:  # until Ray has started a new replica
        assert time.monotonic() < stop
        time.sleep(0.5)
    again = send_all(port, bodies[:50])
    assert all(
        status == 200 and is_correct(answer, each) for (status, answer), each in zip(again, expected, strict=False)
    )


def send_all(port: int, bodies: list[bytes], after_some=None) -> list[tuple[int, dict]]:
    """Sends all requests at the same time; calls `after_some` after ten responses."""
    answers: list[tuple[int, dict]] = [(-1, {})] * len(bodies)
    done, start = threading.Semaphore(0), threading.Barrier(len(bodies) + 1)

    def send_one(i: int) -> None:
        start.wait()
        answers[i] = send_image(port, bodies[i])
        done.release()

    threads = [threading.Thread(target=send_one, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    start.wait()
    if after_some:
        for _ in range(10):
            done.acquire()
        after_some()
    for thread in threads:
        thread.join()
    return answers


def find_replicas() -> list[int]:
    """Returns the pids of this cluster's replicas."""
    return find_descendants(b"ServeReplica")


def find_descendants(name: bytes) -> list[int]:
    """Returns the pids of direct and indirect child processes whose command line contains `name`."""
    matches, parents = [], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if name in (folder / "cmdline").read_bytes():
                matches.append(int(folder.name))
        except OSError:
            continue

    def is_descendant(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and is_descendant(parents[pid]))

    return sorted(filter(is_descendant, matches))
