"""The server: real processes, real sockets, clients that are slow, rude and sudden."""

import base64
import contextlib
import gzip
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vitrail
from conftest import COLOURS, picture
from serving import QUEUE_SIZE, TIMEOUT_S, PendingRequest, Reply, RunningServer, send_without_waiting, start_request
from test_battery import png
from vitrail.data.decode import decode
from vitrail.errors import UsageError
from vitrail.serving import web_page
from vitrail.serving.endpoint import choose_names
from vitrail.serving.onnx_cache import onnx_cache_folder, onnx_cache_name, write_onnx


def encode_image(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def make_photo(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """A picture that no other seed gives, so that an answer says whose it is."""
    return encode_image(picture(list(COLOURS.values())[seed % 3], seed, size))


def compute_logits(clf: vitrail.Classifier, data: bytes) -> list[float]:
    """The logits of an image file."""
    return clf.logits(clf.read_image(decode(io.BytesIO(data)))[None])[0].tolist()


def make_raw_headers(data: bytes) -> dict[str, str]:
    """The headers of the protocol's raw form, whose body is one image."""
    return {"Inference-Header-Content-Length": "0", "Content-Length": str(len(data))}


def read_logits(reply: Reply) -> list[float]:
    """The logits of an answer with binary tensors."""
    length = int(reply.headers["inference-header-content-length"])
    document = json.loads(reply.body[:length])
    size = document["outputs"][0]["parameters"]["binary_data_size"]
    assert document["outputs"][0]["name"] == "logits"
    return np.frombuffer(reply.body[length : length + size], "<f4").tolist()


def make_form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """A multipart form and its content type."""
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--frontier--\r\n", "multipart/form-data; boundary=frontier"


# Answers


def test_a_prediction_is_the_classifiers_own(server: RunningServer, clf: vitrail.Classifier):
    for seed in range(3):
        data = make_photo(seed, (24, 20))
        reply = server.post("/predict?top=2", data)
        assert reply.status == 200
        expected = clf.predict(decode(io.BytesIO(data)), top=2)
        got = reply.json["predictions"][0]["top"]
        assert [row["label"] for row in got] == [p.label for p in expected]
        assert [row["probability"] for row in got] == pytest.approx([p.probability for p in expected], abs=1e-5)


def test_a_bad_file_in_a_form_fails_alone(server: RunningServer):
    body, kind = make_form(
        ("a.png", make_photo(0)),
        ("b.png", make_photo(1)[:70]),
        ("c.jpg", encode_image(picture((40, 190, 70), 4), "JPEG")),
    )
    reply = server.post("/predict", body, content_type=kind)
    assert reply.status == 200
    rows = reply.json["predictions"]
    assert [row["name"] for row in rows] == ["a.png", "b.png", "c.jpg"]
    assert [bool(row["top"]) for row in rows] == [True, False, True]
    assert "damaged" in rows[1]["error"]


def test_an_explanation_is_the_classifiers_own(server: RunningServer, clf: vitrail.Classifier):
    data = make_photo(0)
    expected = vitrail.explain(clf, decode(io.BytesIO(data)), target=("red", "blue"))
    reply = server.post("/explain?class=red&against=blue", data)
    found = reply.json["explanation"]
    assert found["label"] == "red"
    assert found["against"] == "blue"
    np.testing.assert_allclose(found["map"], expected.map, atol=2e-6)
    assert "patches" in found["summary"]
    attention = server.post("/explain?layer=0&head=1&query=2,1", data).json["explanation"]
    assert attention["method"] == "attention"
    np.testing.assert_allclose(
        attention["map"],
        vitrail.explain(clf, decode(io.BytesIO(data)), method="attention", layer=0, head=1, query=(2, 1)).map,
        atol=2e-6,
    )


@pytest.mark.parametrize("which", ["panels", "overlay"])
def test_a_picture_of_an_explanation(server: RunningServer, which: str):
    reply = server.post(f"/explain?picture={which}", make_photo(1))
    assert reply.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(reply.body)).size) >= 300


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("method=magic", "no method"),
        ("class=pink", "no class"),
        ("against=red", "name both"),
        ("layer=9", "no layer"),
        ("head=9", "no head"),
        ("query=9,9", "no patch"),
        ("query=x", "row and column"),
        ("method=rollout&head=1", "takes no head"),
        ("picture=oil", "picture"),
        ("model=other", "no model"),
        ("timeout=-1", "timeout"),
        ("timeout=nan", "timeout"),
    ],
)
def test_an_explanation_that_makes_no_sense(server: RunningServer, options: str, said: str):
    reply = server.post(f"/explain?{options}", make_photo(0))
    assert reply.status in (400, 404)
    assert said in reply.json["error"]


def test_a_model_without_classes_gives_features(server: RunningServer):
    data = make_photo(0)
    reply = server.post("/v2/models/features/infer", data, **make_raw_headers(data))
    output = json.loads(reply.body[: int(reply.headers["inference-header-content-length"])])["outputs"][0]
    assert (output["name"], output["shape"]) == ("features", [1, 32])
    nameless = server.post("/predict?model=features", data)
    assert nameless.status == 400
    assert "has no classes" in nameless.json["error"]
    assert server.post("/explain?model=features&class=red", data).status == 400
    assert server.post("/explain?model=features", data).json["explanation"]["method"] == "attention"


# Hostile input


def make_bomb() -> bytes:
    """A PNG of 10000x10000 pixels in a few kilobytes, whose header does not lie."""
    return png(10_000, 10_000, rows=b"")


DEEP = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
COLOUR = picture((210, 50, 40), 1)
HOSTILE: dict[str, tuple[bytes, str | None]] = {  # what is sent, and what is said of it (None: an answer)
    "empty": (b"", "empty"),
    "text": (b"hello", "not an image"),
    "html": (b"<html><img src=x></html>", "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "pdf": (b"%PDF-1.7\n", "not an image"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an image"),
    "address": (b"http://169.254.169.254/latest/meta-data", "not an image"),
    "cut short": (encode_image(COLOUR, "JPEG")[:-200], "damaged or truncated"),
    "bomb": (make_bomb(), "pixels are more than"),
    "bomb of 400 MP": (png(20_000, 20_000, rows=b""), "pixels"),
    "wrong checksum": (make_photo(0)[:40] + b"\0\0\0\0" + make_photo(0)[44:], "not an image"),
    "1x30000": (encode_image(Image.new("RGB", (1, 30_000))), "fewer than a patch"),
    "30000x1": (encode_image(Image.new("RGB", (30_000, 1))), "fewer than a patch"),
    "2x30000": (encode_image(Image.new("RGB", (2, 30_000))), None),
    "1x1": (encode_image(Image.new("RGB", (1, 1))), "fewer than a patch"),
    "16-bit": (encode_image(DEEP), None),
    "16-bit TIFF": (encode_image(DEEP, "TIFF"), None),
    "CMYK": (encode_image(COLOUR.convert("CMYK"), "JPEG"), None),
    "palette": (encode_image(COLOUR.quantize(16)), None),
    "alpha": (encode_image(COLOUR.convert("RGBA")), None),
    "animated": (encode_image(COLOUR, "GIF", save_all=True, append_images=[COLOUR.rotate(90)]), None),
    "many frames": (
        encode_image(COLOUR, "GIF", save_all=True, append_images=[COLOUR.rotate(i) for i in range(200)]),
        None,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image(server: RunningServer, clf: vitrail.Classifier, name: str):
    data, said = HOSTILE[name]
    reply = server.post("/predict", data)
    if said is not None:
        assert reply.status == 400, reply
        assert said in reply.json["error"]
        return
    assert reply.status == 200, reply
    best = clf.predict(decode(io.BytesIO(data)))[0]
    assert reply.json["predictions"][0]["top"][0]["label"] == best.label
    assert reply.json["predictions"][0]["top"][0]["probability"] == pytest.approx(best.probability, abs=1e-5)


def test_a_turned_image_is_put_upright(server: RunningServer, clf: vitrail.Classifier):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encode_image(picture((60, 90, 200), 5, (20, 30)), "JPEG", exif=exif)
    assert read_logits(server.post("/v2/models/colours/infer", lying, **make_raw_headers(lying))) == pytest.approx(
        compute_logits(clf, lying), abs=1e-4
    )


def test_memory_stays_flat_under_bombs(server: RunningServer):
    """The largest image that is let in, in the mode that takes the most, again and again, and bombs of every kind."""
    large = encode_image(Image.fromarray(np.zeros((2000, 2000), np.uint16)))
    gzipped = gzip.compress(bytes(50 << 20))
    grown = []
    for _ in range(4):  # the last of them counts: each thread that reads images allocates once what it keeps
        before = server.measure_memory()
        for _ in range(8):
            assert server.post("/predict", large).status == 200
            assert server.post("/predict", make_bomb()).status == 400
            assert server.post("/predict", gzipped, content_encoding="gzip").status == 413
        grown.append(server.measure_memory() - before)
    assert grown[-1] < 40 << 20, grown


def test_a_body_of_100_mb_is_refused_without_being_kept(server: RunningServer):
    before = server.measure_memory()
    announced = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(announced)  # refused on its word: nothing needs to be sent
        assert b" 413 " in connection.recv(65536)

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)

    reply = server.request("POST", "/predict", endless())
    assert reply.status == 413
    assert "2 MiB" in reply.json["error"]
    assert server.measure_memory() - before < 20 << 20


@pytest.mark.parametrize(
    ("packed", "how", "status"),
    [
        (gzip.compress(make_photo(0)), "gzip", 200),
        (zlib.compress(make_photo(0)), "deflate", 200),
        (gzip.compress(make_photo(0))[:-30], "gzip", 400),
        (b"nothing packed", "gzip", 400),
        (gzip.compress(make_photo(0)) + b"more", "gzip", 400),
        (gzip.compress(bytes(3 << 20)), "gzip", 413),
        (make_photo(0), "br", 415),
    ],
)
def test_packed_bodies(server: RunningServer, packed: bytes, how: str, status: int):
    assert server.post("/predict", packed, content_encoding=how).status == status


FIELD = b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\ntext\r\n--a--\r\n'


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"", "multipart/form-data", "form"),
        (b"x", "multipart/form-data; boundary=", "form"),
        (b"--a\r\n", "multipart/form-data; boundary=a", "form"),
        (FIELD, "multipart/form-data; boundary=a", "no file"),
        (b"--a\r\nContent-Disposition: form-data\r\n\r\ntext\r\n--a--\r\n", "multipart/form-data; boundary=a", "form"),
        (make_form(*[("a.png", b"x")] * 7)[0], make_form()[1], "form"),
        (b"x" * 5000, "multipart/form-data; boundary=" + "a" * 3000, "form"),
    ],
)  # fmt: skip
def test_a_form_that_makes_no_sense(server: RunningServer, body: bytes, kind: str, said: str):
    reply = server.post("/predict", body, content_type=kind)
    assert reply.status == 400
    assert said in reply.json["error"]


def test_a_name_that_is_no_text_is_answered_all_the_same(server: RunningServer):
    body, kind = make_form(("\\ud800.png", make_photo(0)))
    reply = server.post("/predict", body, content_type=f"{kind}; charset=unicode_escape")
    assert reply.status == 200
    assert reply.json["predictions"][0]["name"] == "?.png"


def test_bytes_that_are_no_requests(server: RunningServer):
    """Raw sockets with damaged requests: whatever comes back is no 5xx, and the server goes on."""
    chance = random.Random(0)
    good = [
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n" + bytes(20),
        b"POST /v2/models/colours/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 5\r\n"
        b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
        b"GET /v2/models/colours HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    statuses = []
    for _ in range(120):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data))
            how = chance.randrange(4)
            if how == 0:
                data[at] = chance.randrange(256)
            elif how == 1:
                del data[at : at + chance.randint(1, 20)]
            elif how == 2:
                data[at:at] = chance.choice([b"\r\n", b"\0", b"%00", b"../", b"\xff" * 9, b"9" * 40, b"A" * 70_000])
            else:
                data = data[: at + 1]
            if not data:
                break
        reply = server.send_raw(bytes(data))
        statuses += [line.split()[1] for line in reply.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses
    assert not [status for status in statuses if status.startswith(b"5")]
    assert server.get("/v2/health/ready").status == 200


@pytest.mark.parametrize(
    "path",
    ["/v2/models/%00", "/v2/models/..%2f..%2fetc%2fpasswd", "/v2/models/" + "a" * 5000, "/v2/models/%ff%fe",
     "/%2e%2e/x", "/v2/models/colours/versions/2", "/nothing"],
)  # fmt: skip
def test_odd_addresses(server: RunningServer, path: str):
    reply = server.get(path)
    assert reply.status == 404
    assert reply.json["error"]


def test_a_wrong_verb(server: RunningServer):
    reply = server.get("/predict")
    assert reply.status == 405
    assert "error" in reply.json


def test_a_slow_client_is_given_up(server: RunningServer):
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Request-Timeout: 0.2\r\nContent-Length: 1000\r\n\r\nab"
        )
        assert b" 408 " in connection.recv(65536)


# Under load. A worker that is stopped (SIGSTOP) makes every order of events certain


class StoppedWorker:
    """Inside, the worker stands still."""

    def __init__(self, server: RunningServer, task: str = "predict"):
        self.worker = server.find_worker(task)

    def __enter__(self) -> int:
        os.kill(self.worker, signal.SIGSTOP)
        return self.worker

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, signal.SIGCONT)


def block_worker(server: RunningServer) -> PendingRequest:
    """A request that the stopped worker has and does not answer."""
    taken = server.read_metric("vitrail_queue_seconds_count")
    call = start_request(server, "/predict", make_photo(100))
    server.wait_for(lambda: server.read_metric("vitrail_queue_seconds_count") == taken + 1)
    return call


def fill_queue(server: RunningServer) -> tuple[PendingRequest, list[PendingRequest]]:
    """One request in the stopped worker, and a full queue behind it."""
    first = block_worker(server)
    rest = [start_request(server, "/predict", make_photo(101 + i)) for i in range(QUEUE_SIZE)]
    server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == QUEUE_SIZE)
    return first, rest


def test_overload_is_said_and_breaks_nothing(server: RunningServer, clf: vitrail.Classifier):
    rejected = server.read_metric('vitrail_rejected_total{reason="queue"}')
    with StoppedWorker(server):
        first, rest = fill_queue(server)
        for _ in range(3):
            reply = server.post("/predict", make_photo(0))
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "waiting" in reply.json["error"]
    for i, call in enumerate([first, *rest]):
        expected = clf.predict(decode(io.BytesIO(make_photo(100 + i))))[0]
        assert call.result().status == 200
        got = call.result().json["predictions"][0]["top"][0]
        assert got["label"] == expected.label
        assert got["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert server.read_metric('vitrail_rejected_total{reason="queue"}') == rejected + 3


def test_a_deadline_passes_and_the_model_never_sees_the_image(server: RunningServer):
    runs = server.read_metric("vitrail_batch_size_sum")
    with StoppedWorker(server):
        first = block_worker(server)
        late = start_request(server, "/predict?timeout=0.3", make_photo(1))
        later = start_request(server, "/predict", make_photo(2), x_request_timeout="0.3")
        data = base64.b64encode(make_photo(3)).decode()
        asked = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [data]}]}
        asked["parameters"] = {"timeout": 200_000}  # microseconds, as Triton counts
        latest = server.post("/v2/models/colours/infer", json.dumps(asked))
        assert late.result().status == later.result().status == latest.status == 504
        assert server.read_metric("vitrail_waiting_images") == 0
    assert first.result().status == 200
    assert server.read_metric("vitrail_batch_size_sum") == runs + 1


def test_who_leaves_is_dropped_and_touches_nobody(server: RunningServer, clf: vitrail.Classifier):
    runs, gone = (
        server.read_metric("vitrail_batch_size_sum"),
        server.read_metric('vitrail_rejected_total{reason="gone"}'),
    )
    with StoppedWorker(server):
        first = block_worker(server)
        leaving = [send_without_waiting(server, "/predict", make_photo(200 + i)) for i in range(4)]
        staying = [start_request(server, "/predict", make_photo(300 + i)) for i in range(3)]
        server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == 7)
        for connection in leaving:
            connection.close()
        server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == 3)
    assert first.result().status == 200
    for i, call in enumerate(staying):
        expected = clf.predict(decode(io.BytesIO(make_photo(300 + i))))[0]
        assert call.result().json["predictions"][0]["top"][0]["probability"] == pytest.approx(
            expected.probability, abs=1e-5
        )
    assert server.read_metric("vitrail_batch_size_sum") == runs + 4  # those that left were never run
    assert server.read_metric('vitrail_rejected_total{reason="gone"}') == gone + 4


def test_a_killed_worker_is_replaced_and_only_its_batch_pays(server: RunningServer):
    with StoppedWorker(server) as worker:
        first, rest = fill_queue(server)
        os.kill(worker, signal.SIGKILL)
        paid = first.result()
        assert paid.status == 503
        assert "ended" in paid.json["error"]
        assert paid.headers["retry-after"] == "1"
        assert [call.result().status for call in rest] == [200] * QUEUE_SIZE
    assert server.find_worker() != worker
    assert server.get("/v2/health/ready").status == 200
    assert server.read_metric("vitrail_worker_restarts_total") >= 1


def test_ready_is_no_before_it_is_yes_again(server: RunningServer):
    """With the process that starts workers held still, what comes between a death and a new worker can be seen."""
    worker = server.find_worker()
    nursery = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(nursery, signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.get("/v2/health/ready").json["ready"] is False
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/models/colours/ready").status == 503
        waiting = start_request(server, "/predict", make_photo(0))
    finally:
        os.kill(nursery, signal.SIGCONT)
    assert waiting.result().status == 200
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)


def test_a_slow_explanation_keeps_no_prediction_waiting(server: RunningServer):
    with StoppedWorker(server, "explain"):
        slow = start_request(server, "/explain", make_photo(0))
        assert server.post("/predict", make_photo(1)).status == 200
    assert slow.result().status == 200


def test_random_cancels_never_touch_anybody_else(server: RunningServer, clf: vitrail.Classifier):
    """Clients that ask one after another, some of whom leave at any moment: every answer is one's own."""
    chance = random.Random(1)
    wrong: list[object] = []
    answered = [0]

    def client(number: int) -> None:
        mine = random.Random(number)
        for i in range(25):
            data = make_photo(1000 * number + i)
            if mine.random() < 0.3:
                connection = send_without_waiting(server, "/predict", data)
                time.sleep(mine.choice([0, 0.001, 0.004]))
                connection.close()
                continue
            reply = server.post("/v2/models/colours/infer", data, **make_raw_headers(data))
            if reply.status == 503:
                continue
            if reply.status != 200 or read_logits(reply) != pytest.approx(truth_of[data], abs=1e-4):
                wrong.append((number, i, reply))
            answered[0] += 1

    truth_of = {
        data: compute_logits(clf, data) for n in range(8) for i in range(25) if (data := make_photo(1000 * n + i))
    }
    assert len(truth_of) == 200
    threads = [threading.Thread(target=client, args=[n]) for n in chance.sample(range(8), 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not wrong
    assert answered[0] > 50
    assert server.read_metric("vitrail_waiting_images") == 0


# A server on another address of this machine, with room for few images


@pytest.fixture(scope="module")
def small_server(run: vitrail.Run) -> Iterator[RunningServer]:
    words = [
        "--host",
        "127.0.0.2",
        "--queue-size",
        QUEUE_SIZE,
        "--decode-threads",
        1,
        "--processes",
        1,
        "--backend",
        "torch",
    ]
    with RunningServer([run.folder, *words, "--no-explain"]) as running:
        yield running


def test_the_address_that_is_printed_is_answered(roomless: RunningServer):
    assert roomless.host == "127.0.0.2"
    assert roomless.get("/v2").status == 200
    assert roomless.get("/v2", host="evil.example").status == 403


def test_more_images_than_may_wait_are_not_asked_to_come_again(roomless: RunningServer):
    several = make_form(*[("a.png", make_photo(0))] * (QUEUE_SIZE + 1))
    assert roomless.post("/predict", several[0], content_type=several[1]).status == 400
    data = [base64.b64encode(make_photo(0)).decode()] * (QUEUE_SIZE + 1)
    asked = {"inputs": [{"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
    reply = roomless.post("/v2/models/colours/infer", json.dumps(asked))
    assert reply.status == 413
    assert f"1 to {QUEUE_SIZE}" in reply.json["error"]


def test_large_images_keep_no_small_one_waiting_and_hold_nobody_past_the_deadline(roomless: RunningServer):
    large = encode_image(Image.new("L", (7000, 7000)))
    body, kind = make_form(*[("large.png", large)] * (QUEUE_SIZE - 1))
    read = roomless.read_metric("vitrail_decode_seconds_count")
    call = start_request(roomless, "/predict?timeout=0.3", body, content_type=kind)
    statuses = [roomless.post("/predict", make_photo(0)).status]
    while call.thread.is_alive():
        statuses.append(roomless.post("/predict", make_photo(0)).status)
    assert call.result().status == 504
    assert set(statuses) == {200}
    assert roomless.read_metric("vitrail_decode_seconds_count") - read < len(statuses) + QUEUE_SIZE - 1


# Around it


def test_metrics_logs_and_ids(server: RunningServer):
    assert server.post("/predict", b"no image").status == 400
    assert b" 400 " in server.send_raw(b"no request\r\n\r\n")
    named = server.post("/predict", make_photo(0), x_request_id="trace-1:a.b")
    assert named.headers["x-request-id"] == "trace-1:a.b"
    forged = server.post("/predict", make_photo(0), x_request_id='x" evil')
    assert forged.headers["x-request-id"] != 'x" evil'
    line = server.wait_for(lambda: server.select_events("request", id="trace-1:a.b"))[0]
    assert line["status"] == 200
    assert line["model"] == "colours"
    assert line["seconds"] > 0
    text = server.get("/metrics").body.decode()
    for name in ("queue_seconds", "decode_seconds", "compute_seconds", "batch_size"):
        assert f"vitrail_{name}_bucket" in text
    assert 'vitrail_rejected_total{reason="image"}' in text
    assert not server.other_lines, "something was said that is no log line"
    assert server.select_events("note"), "what libraries say has become lines too"


def test_the_page_brings_everything_itself(server: RunningServer):
    reply = server.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "wasm-unsafe-eval" in reply.headers["content-security-policy"]
    assert reply.headers["cross-origin-opener-policy"] == "same-origin"
    assert reply.headers["cross-origin-embedder-policy"] == "require-corp"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert b"colours" in reply.body or b"red" in reply.body


def test_why_a_page_is_plain(clf: vitrail.Classifier, monkeypatch: pytest.MonkeyPatch):
    assert web_page.reason_for_plain_page(clf) is None
    assert "has no classes" in str(web_page.reason_for_plain_page(replace(clf, classes=())))
    monkeypatch.setattr(web_page, "find_spec", lambda package: None if package == "onnx" else package)
    assert web_page.reason_for_plain_page(clf) == "onnx is not installed: pip install 'vitrail[export]'"
    monkeypatch.setattr(web_page, "MAX_PAGE_MB", 5.0)
    assert "more than 5" in str(web_page.reason_for_plain_page(clf))


def test_another_name_for_this_machine_is_refused(server: RunningServer):
    """A page elsewhere that points its own name at us (DNS rebinding) gets nothing."""
    assert server.get("/v2", host="evil.example:80").status == 403
    assert server.get("/v2", host="localhost:1").status == 200
    assert server.get("/v2", host="[::1]").status == 200


ANSWERED = """
import schemathesis


@schemathesis.check
def answered(ctx, response, case):
    with open("seen", "a") as file:
        print("answered", response.status_code, file=file)
    asked = [(case.query or {}).get("timeout"), (case.headers or {}).get("x-request-timeout")]
    hurried = False
    for each in asked:
        try:
            hurried = hurried or 0 < float(each) < 0.5
        except (TypeError, ValueError):
            pass
    assert response.status_code < 500 or (response.status_code == 504 and hurried), response.text
"""


def test_what_the_schema_says(server: RunningServer, tmp_path: Path):
    """schemathesis with requests of its own making: no 5xx, and every answer is one that the schema names.

    It also asks for answers within 5e-324 s: then, and only then, 504 is right.
    """
    (tmp_path / "hooks.py").write_text(ANSWERED)
    script = Path(sys.executable).with_name("schemathesis")
    checks = "answered,status_code_conformance,content_type_conformance,response_schema_conformance"
    done = subprocess.run(
        [str(script), "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", checks, "--max-examples", "3",
         "--phases", "examples,coverage,fuzzing", "--seed", "1", "--request-timeout", "30", "--no-color"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "answered 200" in (tmp_path / "seen").read_text()  # the check was asked
    assert server.get("/v2/health/ready").status == 200


# A second server: a key, two models, another runtime, and its end


@pytest.fixture(scope="module")
def protected_server(
    run: vitrail.Run, clf: vitrail.Classifier, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "key").write_text("öffne dich\n", encoding="utf-8")
    kept = onnx_cache_folder() / onnx_cache_name(clf)  # where the server looks for it before it makes its own
    write_onnx(clf, kept)
    shutil.copy(kept, folder / "file.ONNX")
    words = [run.folder, folder / "file.ONNX", "--host", "0.0.0.0", "--api-key-file", folder / "key"]
    with RunningServer([*words, "--backend", "onnxruntime", "--no-explain"]) as running:
        yield running


SECRET = "öffne dich".encode().decode("latin-1")  # http.client writes a header in Latin-1: on the wire it is UTF-8
KEY = {"authorization": f"Bearer {SECRET}"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer öffne"}, 401),
        ({"authorization": "Basic !!"}, 401),
        ({"x-api-key": "wrong"}, 401),
        (KEY, 200),
        ({"x-api-key": SECRET}, 200),
        ({"x-api-key": "öffne dich"}, 200),  # on the wire Latin-1
        ({"authorization": "Basic " + base64.b64encode("me:öffne dich".encode()).decode()}, 200),
    ],
)
def test_the_key(guarded: RunningServer, headers: dict[str, str], status: int):
    for path in ("/v2", "/metrics", "/", "/openapi.json"):
        assert guarded.request("GET", path, headers=headers).status == status
    assert guarded.request("POST", "/predict?model=colours", make_photo(0), headers).status == status
    assert guarded.get("/v2/health/ready").status == guarded.get("/v2/health/live").status == 200


def test_two_models_and_the_other_runtime(guarded: RunningServer, clf: vitrail.Classifier):
    assert guarded.request("GET", "/v2", headers=KEY).json["models"] == ["colours", "file"]
    data = make_photo(5)
    for name in ("colours", "file"):
        metadata = guarded.request("GET", f"/v2/models/{name}", headers=KEY).json
        assert metadata["platform"] == "onnxruntime_vitrail"
        reply = guarded.request("POST", f"/v2/models/{name}/infer", data, {**KEY, **make_raw_headers(data)})
        assert read_logits(reply) == pytest.approx(compute_logits(clf, data), abs=1e-4)
    assert guarded.select_events("backend")[0]["images_per_second"].keys() == {"torch", "onnxruntime"}
    assert guarded.request("POST", "/explain", data, KEY).status == 501


def test_the_plain_form_has_the_buttons_that_are_answered(server: RunningServer, guarded: RunningServer):
    features = server.get("/?model=features").body.decode()
    assert "Explain</button>" in features and "Predict</button>" not in features
    assert "has no classes" in server.select_events("plain_page", model="features")[0]["why"]
    graph = guarded.request("GET", "/?model=file", headers=KEY).body.decode()
    assert "Predict</button>" in graph and "Explain</button>" not in graph
    assert "ONNX file" in guarded.select_events("plain_page", model="file")[0]["why"]
    assert not server.select_events("plain_page", model="colours")  # which gets the whole page


def test_a_nursery_that_is_killed_comes_back_too(guarded: RunningServer):
    worker = guarded.find_worker()
    nursery = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(nursery, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    guarded.wait_for(lambda: guarded.select_events("nursery_lost"))
    guarded.wait_for(lambda: guarded.get("/v2/health/ready").status == 200)
    assert guarded.request("POST", "/predict", make_photo(0), KEY).status == 200


def test_sigterm_under_load_loses_nothing_that_was_accepted(guarded: RunningServer):
    """Clients ask on until they are refused; whoever's request the server has begun gets a whole answer."""
    lost: list[object] = []
    answered: list[Reply] = []
    stop = threading.Event()

    def client(number: int) -> None:
        while not stop.is_set():
            name = f"{number}-{len(answered)}-{time.monotonic_ns()}"
            try:
                answered.append(guarded.request("POST", "/predict", make_photo(number), {**KEY, "x-request-id": name}))
            except ConnectionRefusedError:
                return
            except Exception as error:  # reset before a byte of it was read, or lost: the log will tell
                lost.append((name, error))
                return

    threads = [threading.Thread(target=client, args=[n]) for n in range(12)]
    for thread in threads:
        thread.start()
    guarded.wait_for(lambda: len(answered) > 30)
    said = guarded.stop()
    stop.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert {reply.status for reply in answered} == {200}
    begun_there = {e["id"] for e in guarded.select_events("request")}
    assert not [name for name, _ in lost if name in begun_there]
    assert said["requests"] >= len(answered)
    assert guarded.select_events("draining")
    assert guarded.select_events("stopped")


# Wrong use


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{run}", "--host", "0.0.0.0"], "--api-key-file"),
        (["{run}", "{run}"], "--name"),
        (["{run}", "--name", "a/b"], "cannot be a model's name"),
        (["{run}", "--port", "99999"], "--port"),
        (["{run}", "--host", "nowhere.invalid", "--no-api-key"], "cannot listen"),
        (["{run}", "--api-key-file", "/nothing"], "cannot be read"),
        (["{run}", "--queue-size", "0"], "queue_size"),
        (["nothing-there"], "nothing-there"),
    ],
)
def test_wrong_use(run: vitrail.Run, words: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    from vitrail.cli.main import main

    assert main(["serve", *(word.format(run=run.folder) for word in words)]) in (1, 2)
    assert said in capsys.readouterr().err


def test_names(tmp_path: Path):
    (tmp_path / "my run").mkdir()
    assert choose_names([str(tmp_path / "my run"), "timm/vit_tiny@/x/w.safetensors"], []) == ["my-run", "w.safetensors"]
    with pytest.raises(UsageError, match="two models"):
        choose_names(["a", "b"], ["x", "x"])
    with pytest.raises(UsageError, match="1 names for 2"):
        choose_names(["a", "b"], ["x"])
    with pytest.raises(UsageError, match="stats"):
        choose_names(["a"], ["stats"])
