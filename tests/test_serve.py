"""The server with real processes and sockets, and with clients that are slow or disconnect early."""

import asyncio
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
from conftest import COLORS, picture
from serving import QUEUE_SIZE, TIMEOUT_S, PendingRequest, Reply, RunningServer, send_without_waiting, start_request
from test_battery import png
from vitrail.data.decode import decode
from vitrail.data.pixel_range import DEPTH_RULE
from vitrail.errors import UsageError, VitrailError
from vitrail.installation import install_hint
from vitrail.serving import web_page
from vitrail.serving.model_info import choose_names
from vitrail.serving.onnx_cache import onnx_cache_folder, onnx_cache_name, write_onnx
from vitrail.serving.page import Page


def encode_image(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def make_photo(seed: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """Returns an image file that is different for each seed: its probabilities identify the request."""
    return encode_image(picture(list(COLORS.values())[seed % 3], seed, size))


def compute_logits(clf: vitrail.Classifier, data: bytes) -> list[float]:
    """Returns the logits of an image file."""
    return clf.logits(clf.read_image(decode(io.BytesIO(data)))[None])[0].tolist()


def make_raw_headers(data: bytes) -> dict[str, str]:
    """Returns the headers of Triton's raw binary request, whose body is one image."""
    return {"Inference-Header-Content-Length": "0", "Content-Length": str(len(data))}


def read_logits(reply: Reply) -> list[float]:
    """Returns the logits of a response with binary tensors."""
    length = int(reply.headers["inference-header-content-length"])
    document = json.loads(reply.body[:length])
    size = document["outputs"][0]["parameters"]["binary_data_size"]
    assert document["outputs"][0]["name"] == "logits"
    return np.frombuffer(reply.body[length : length + size], "<f4").tolist()


def make_form(*files: tuple[str, bytes]) -> tuple[bytes, str]:
    """Returns a multipart form and its content type."""
    parts = [
        f'--frontier\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join(parts) + b"--frontier--\r\n", "multipart/form-data; boundary=frontier"


# Predictions and explanations


@pytest.mark.newest
def test_a_prediction_equals_that_of_the_classifier(server: RunningServer, clf: vitrail.Classifier):
    for seed in range(3):
        data = make_photo(seed, (24, 20))
        reply = server.post("/predict?top=2", data)
        assert reply.status == 200
        expected = clf.predict(decode(io.BytesIO(data)), top=2)
        top = reply.json["predictions"][0]["top"]
        assert [row["label"] for row in top] == [p.label for p in expected]
        assert [row["probability"] for row in top] == pytest.approx([p.probability for p in expected], abs=1e-5)


@pytest.mark.newest
def test_a_bad_file_in_a_form_does_not_affect_the_others(server: RunningServer):
    body, content_type = make_form(
        ("a.png", make_photo(0)),
        ("b.png", make_photo(1)[:70]),
        ("c.jpg", encode_image(picture((40, 190, 70), 4), "JPEG")),
    )
    reply = server.post("/predict", body, content_type=content_type)
    assert reply.status == 200
    rows = reply.json["predictions"]
    assert [row["name"] for row in rows] == ["a.png", "b.png", "c.jpg"]
    assert [bool(row["top"]) for row in rows] == [True, False, True]
    assert "damaged" in rows[1]["error"]


def test_an_answer_says_how_more_than_8_bits_were_scaled(server: RunningServer, clf: vitrail.Classifier):
    values = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    deep = encode_image(Image.fromarray(values), "PNG")
    body, content_type = make_form(("deep.png", deep), ("plain.png", make_photo(0)))
    deep_row, plain_row = server.post("/predict", body, content_type=content_type).json["predictions"]
    assert DEPTH_RULE in deep_row["warning"]
    assert plain_row["warning"] is None
    expected = clf.predict(decode(io.BytesIO(deep)))[0]
    assert deep_row["top"][0]["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert DEPTH_RULE in server.post("/explain", deep).json["warning"]
    assert server.post("/explain", make_photo(0)).json["warning"] is None
    for files, is_warned in (([make_photo(0), deep], True), ([make_photo(0)], False)):
        data = [base64.b64encode(file).decode() for file in files]
        tensor = {"name": "image", "shape": [len(files)], "datatype": "BYTES", "data": data}
        answer = server.post("/v2/models/colors/infer", json.dumps({"inputs": [tensor]})).json
        assert ("parameters" in answer) == is_warned
        assert not is_warned or DEPTH_RULE in answer["parameters"]["warning"]
    schemas = server.get("/openapi.json").json["paths"]["/predict"]["post"]["responses"]["200"]["content"]
    row = schemas["application/json"]["schema"]["properties"]["predictions"]["items"]
    assert DEPTH_RULE in row["properties"]["warning"]["description"]


@pytest.mark.newest
def test_an_explanation_equals_that_of_the_classifier(server: RunningServer, clf: vitrail.Classifier):
    data = make_photo(0)
    expected = vitrail.explain(clf, decode(io.BytesIO(data)), target=("red", "blue"))
    reply = server.post("/explain?class=red&against=blue", data)
    explanation = reply.json["explanation"]
    assert explanation["label"] == "red"
    assert explanation["against"] == "blue"
    np.testing.assert_allclose(explanation["map"], expected.map, atol=2e-6)
    assert "patches" in explanation["summary"]
    attention = server.post("/explain?layer=0&head=1&query=2,1", data).json["explanation"]
    assert attention["method"] == "attention"
    np.testing.assert_allclose(
        attention["map"],
        vitrail.explain(clf, decode(io.BytesIO(data)), method="attention", layer=0, head=1, query=(2, 1)).map,
        atol=2e-6,
    )


@pytest.mark.parametrize("layout", ["panels", "overlay"])
def test_a_picture_of_an_explanation(server: RunningServer, layout: str):
    reply = server.post(f"/explain?picture={layout}", make_photo(1))
    assert reply.headers["content-type"] == "image/png"
    assert min(Image.open(io.BytesIO(reply.body)).size) >= 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("method=magic", "no method"),
        ("class=pink", "no class"),
        ("against=red", "set both"),
        ("layer=9", "no layer"),
        ("head=9", "no head"),
        ("query=9,9", "no patch"),
        ("query=x", "row and column"),
        ("method=rollout&head=1", "method rollout has no option head"),
        ("picture=oil", "picture"),
        ("model=other", "no model"),
        ("timeout=-1", "timeout"),
        ("timeout=nan", "timeout"),
    ],
)
def test_an_invalid_explanation_request_is_refused(server: RunningServer, options: str, message: str):
    reply = server.post(f"/explain?{options}", make_photo(0))
    assert reply.status in (400, 404)
    assert message in reply.json["error"]


def test_a_model_without_classes_gives_features(server: RunningServer):
    data = make_photo(0)
    reply = server.post("/v2/models/features/infer", data, **make_raw_headers(data))
    output = json.loads(reply.body[: int(reply.headers["inference-header-content-length"])])["outputs"][0]
    assert (output["name"], output["shape"]) == ("features", [1, 32])
    prediction = server.post("/predict?model=features", data)
    assert prediction.status == 400
    assert "has no classes" in prediction.json["error"]
    assert server.post("/explain?model=features&class=red", data).status == 400
    assert server.post("/explain?model=features", data).json["explanation"]["method"] == "attention"


# Hostile input


def make_bomb() -> bytes:
    """Returns a PNG of a few kilobytes whose header announces 10000x10000 pixels."""
    return png(10_000, 10_000, rows=b"")


IMAGE_16_BIT = Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 257)
RED_IMAGE = picture((210, 50, 40), 1)
HOSTILE: dict[str, tuple[bytes, str | None]] = {  # the data, and the expected error (None: a prediction)
    "empty": (b"", "empty"),
    "text": (b"hello", "not an image"),
    "html": (b"<html><img src=x></html>", "not an image"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG files are not read"),
    "pdf": (b"%PDF-1.7\n", "PDF files are not read"),
    "zip": (b"PK\x03\x04" + bytes(100), "not an image"),
    "address": (b"http://169.254.169.254/latest/meta-data", "not an image"),
    "cut short": (encode_image(RED_IMAGE, "JPEG")[:-200], "damaged or truncated"),
    "bomb": (make_bomb(), "pixels are above the limit"),
    "bomb of 400 MP": (png(20_000, 20_000, rows=b""), "pixels"),
    "wrong checksum": (make_photo(0)[:40] + b"\0\0\0\0" + make_photo(0)[44:], "not an image"),
    "1x30000": (encode_image(Image.new("RGB", (1, 30_000))), "fewer than a patch"),
    "30000x1": (encode_image(Image.new("RGB", (30_000, 1))), "fewer than a patch"),
    "2x30000": (encode_image(Image.new("RGB", (2, 30_000))), None),
    "1x1": (encode_image(Image.new("RGB", (1, 1))), "fewer than a patch"),
    "16-bit": (encode_image(IMAGE_16_BIT), None),
    "16-bit TIFF": (encode_image(IMAGE_16_BIT, "TIFF"), None),
    "CMYK": (encode_image(RED_IMAGE.convert("CMYK"), "JPEG"), None),
    "palette": (encode_image(RED_IMAGE.quantize(16)), None),
    "alpha": (encode_image(RED_IMAGE.convert("RGBA")), None),
    "animated": (encode_image(RED_IMAGE, "GIF", save_all=True, append_images=[RED_IMAGE.rotate(90)]), None),
    "many frames": (
        encode_image(RED_IMAGE, "GIF", save_all=True, append_images=[RED_IMAGE.rotate(i) for i in range(200)]),
        None,
    ),
}


@pytest.mark.newest
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image(server: RunningServer, clf: vitrail.Classifier, name: str):
    data, message = HOSTILE[name]
    reply = server.post("/predict", data)
    if message is not None:
        assert reply.status == 400, reply
        assert message in reply.json["error"]
        return
    assert reply.status == 200, reply
    best = clf.predict(decode(io.BytesIO(data)))[0]
    assert reply.json["predictions"][0]["top"][0]["label"] == best.label
    assert reply.json["predictions"][0]["top"][0]["probability"] == pytest.approx(best.probability, abs=1e-5)


def test_the_exif_orientation_is_applied(server: RunningServer, clf: vitrail.Classifier):
    exif = Image.Exif()
    exif[0x0112] = 6
    rotated = encode_image(picture((60, 90, 200), 5, (20, 30)), "JPEG", exif=exif)
    assert read_logits(server.post("/v2/models/colors/infer", rotated, **make_raw_headers(rotated))) == pytest.approx(
        compute_logits(clf, rotated), abs=1e-4
    )


def test_decompression_bombs_do_not_increase_the_memory(server: RunningServer):
    """Sends the largest accepted image, in the mode that needs the most memory, and all kinds of bombs."""
    large = encode_image(Image.fromarray(np.zeros((2000, 2000), np.uint16)))
    gzipped = gzip.compress(bytes(50 << 20))
    growth = []
    for _ in range(4):  # only the last round counts: at first, each decoding thread allocates memory that it reuses
        before = server.measure_memory()
        for _ in range(8):
            assert server.post("/predict", large).status == 200
            assert server.post("/predict", make_bomb()).status == 400
            assert server.post("/predict", gzipped, content_encoding="gzip").status == 413
        growth.append(server.measure_memory() - before)
    assert growth[-1] < 40 << 20, growth


def test_a_body_of_100_mb_is_refused_without_buffering_it(server: RunningServer):
    before = server.measure_memory()
    announced = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 104857600\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(announced)  # refused by its Content-Length, before any data
        assert b" 413 " in connection.recv(65536)

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1 << 20)

    reply = server.request("POST", "/predict", endless())
    assert reply.status == 413
    assert "2 MiB" in reply.json["error"]
    assert server.measure_memory() - before < 20 << 20


@pytest.mark.newest
@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(make_photo(0)), "gzip", 200),
        (zlib.compress(make_photo(0)), "deflate", 200),
        (gzip.compress(make_photo(0))[:-30], "gzip", 400),
        (b"not compressed", "gzip", 400),
        (gzip.compress(make_photo(0)) + b"more", "gzip", 400),
        (gzip.compress(bytes(3 << 20)), "gzip", 413),
        (make_photo(0), "br", 415),
    ],
)
def test_compressed_bodies(server: RunningServer, body: bytes, encoding: str, status: int):
    assert server.post("/predict", body, content_encoding=encoding).status == status


FIELD = b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\ntext\r\n--a--\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
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
def test_an_invalid_form_is_refused(server: RunningServer, body: bytes, content_type: str, message: str):
    reply = server.post("/predict", body, content_type=content_type)
    assert reply.status == 400
    assert message in reply.json["error"]


def test_a_file_name_that_is_not_valid_unicode_is_accepted(server: RunningServer):
    body, content_type = make_form(("\\ud800.png", make_photo(0)))
    reply = server.post("/predict", body, content_type=f"{content_type}; charset=unicode_escape")
    assert reply.status == 200
    assert reply.json["predictions"][0]["name"] == "?.png"


@pytest.mark.newest
def test_damaged_requests_cause_no_server_error(server: RunningServer):
    """Sends randomly damaged requests over raw sockets: no response is a 5xx, and the server stays ready."""
    rng = random.Random(0)
    valid_requests = [
        b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n" + bytes(20),
        b"POST /v2/models/colors/infer HTTP/1.1\r\nHost: localhost\r\nInference-Header-Content-Length: 5\r\n"
        b'Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n2\r\n1}\r\n0\r\n\r\n',
        b"GET /v2/models/colors HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ]
    statuses = []
    for _ in range(120):
        data = bytearray(rng.choice(valid_requests))
        for _ in range(rng.randint(1, 6)):
            position = rng.randrange(len(data))
            kind = rng.randrange(4)
            if kind == 0:
                data[position] = rng.randrange(256)
            elif kind == 1:
                del data[position : position + rng.randint(1, 20)]
            elif kind == 2:
                data[position:position] = rng.choice(
                    [b"\r\n", b"\0", b"%00", b"../", b"\xff" * 9, b"9" * 40, b"A" * 70_000]
                )
            else:
                data = data[: position + 1]
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
     "/%2e%2e/x", "/v2/models/colors/versions/2", "/nothing"],
)  # fmt: skip
def test_unknown_paths(server: RunningServer, path: str):
    reply = server.get(path)
    assert reply.status == 404
    assert reply.json["error"]


def test_a_wrong_method(server: RunningServer):
    reply = server.get("/predict")
    assert reply.status == 405
    assert "error" in reply.json


@pytest.mark.newest
def test_a_slow_client_gets_a_timeout(server: RunningServer):
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nX-Request-Timeout: 0.2\r\nContent-Length: 1000\r\n\r\nab"
        )
        assert b" 408 " in connection.recv(65536)


# Under load. A stopped worker (SIGSTOP) makes the order of events deterministic


class StoppedWorker:
    """Stops the worker with SIGSTOP."""

    def __init__(self, server: RunningServer, task: str = "predict"):
        self.worker = server.find_worker(task)

    def __enter__(self) -> int:
        os.kill(self.worker, signal.SIGSTOP)
        return self.worker

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.worker, signal.SIGCONT)


def block_worker(server: RunningServer) -> PendingRequest:
    """Sends a request that the stopped worker receives and does not answer."""
    batched = server.read_metric("vitrail_queue_seconds_count")
    pending = start_request(server, "/predict", make_photo(100))
    server.wait_for(lambda: server.read_metric("vitrail_queue_seconds_count") == batched + 1)
    return pending


def fill_queue(server: RunningServer) -> tuple[PendingRequest, list[PendingRequest]]:
    """Sends one request to the stopped worker, and fills the queue behind it."""
    first = block_worker(server)
    rest = [start_request(server, "/predict", make_photo(101 + i)) for i in range(QUEUE_SIZE)]
    server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == QUEUE_SIZE)
    return first, rest


@pytest.mark.newest
def test_requests_beyond_the_queue_are_refused(server: RunningServer, clf: vitrail.Classifier):
    rejected = server.read_metric('vitrail_rejected_total{reason="queue"}')
    with StoppedWorker(server):
        first, rest = fill_queue(server)
        for _ in range(3):
            reply = server.post("/predict", make_photo(0))
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) >= 1
            assert "waiting" in reply.json["error"]
    for i, pending in enumerate([first, *rest]):
        expected = clf.predict(decode(io.BytesIO(make_photo(100 + i))))[0]
        assert pending.result().status == 200
        best = pending.result().json["predictions"][0]["top"][0]
        assert best["label"] == expected.label
        assert best["probability"] == pytest.approx(expected.probability, abs=1e-5)
    assert server.read_metric('vitrail_rejected_total{reason="queue"}') == rejected + 3


@pytest.mark.newest
def test_an_expired_request_does_not_reach_the_model(server: RunningServer):
    image_count = server.read_metric("vitrail_batch_size_sum")
    with StoppedWorker(server):
        first = block_worker(server)
        with_query = start_request(server, "/predict?timeout=1.5", make_photo(1))
        with_header = start_request(server, "/predict", make_photo(2), x_request_timeout="1.5")
        data = base64.b64encode(make_photo(3)).decode()
        document = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [data]}]}
        document["parameters"] = {"timeout": 1_200_000}  # in microseconds, as for Triton
        with_parameter = server.post("/v2/models/colors/infer", json.dumps(document))
        assert with_query.result().status == with_header.result().status == with_parameter.status == 504
        assert server.read_metric("vitrail_waiting_images") == 0
    assert first.result().status == 200
    assert server.read_metric("vitrail_batch_size_sum") == image_count + 1


@pytest.mark.newest
def test_a_disconnected_client_leaves_the_queue(server: RunningServer, clf: vitrail.Classifier):
    image_count, disconnected = (
        server.read_metric("vitrail_batch_size_sum"),
        server.read_metric('vitrail_rejected_total{reason="gone"}'),
    )
    with StoppedWorker(server):
        first = block_worker(server)
        connections = [send_without_waiting(server, "/predict", make_photo(200 + i)) for i in range(4)]
        remaining = [start_request(server, "/predict", make_photo(300 + i)) for i in range(3)]
        server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == 7)
        for connection in connections:
            connection.close()
        server.wait_for(lambda: server.read_metric("vitrail_waiting_images") == 3)
    assert first.result().status == 200
    for i, pending in enumerate(remaining):
        expected = clf.predict(decode(io.BytesIO(make_photo(300 + i))))[0]
        assert pending.result().json["predictions"][0]["top"][0]["probability"] == pytest.approx(
            expected.probability, abs=1e-5
        )
    assert server.read_metric("vitrail_batch_size_sum") == image_count + 4  # without the disconnected clients
    assert server.read_metric('vitrail_rejected_total{reason="gone"}') == disconnected + 4


@pytest.mark.newest
def test_a_killed_worker_is_replaced_and_only_its_batch_fails(server: RunningServer):
    with StoppedWorker(server) as worker:
        first, rest = fill_queue(server)
        os.kill(worker, signal.SIGKILL)
        failed = first.result()
        assert failed.status == 503
        assert "ended" in failed.json["error"]
        assert failed.headers["retry-after"] == "1"
        assert [pending.result().status for pending in rest] == [200] * QUEUE_SIZE
    assert server.find_worker() != worker
    assert server.get("/v2/health/ready").status == 200
    assert server.read_metric("vitrail_worker_restarts_total") >= 1


def test_the_server_is_not_ready_while_a_worker_is_replaced(server: RunningServer):
    """Stops the fork server, so that the state between two workers can be observed."""
    worker = server.find_worker()
    fork_server_pid = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(fork_server_pid, signal.SIGSTOP)
    try:
        os.kill(worker, signal.SIGKILL)
        server.wait_for(lambda: server.get("/v2/health/ready").status == 503)
        assert server.get("/v2/health/ready").json["ready"] is False
        assert server.get("/v2/health/live").status == 200
        assert server.get("/v2/models/colors/ready").status == 503
        waiting = start_request(server, "/predict", make_photo(0))
    finally:
        os.kill(fork_server_pid, signal.SIGCONT)
    assert waiting.result().status == 200
    server.wait_for(lambda: server.get("/v2/health/ready").status == 200)


def test_a_slow_explanation_does_not_delay_predictions(server: RunningServer):
    with StoppedWorker(server, "explain"):
        slow = start_request(server, "/explain", make_photo(0))
        assert server.post("/predict", make_photo(1)).status == 200
    assert slow.result().status == 200


@pytest.mark.newest
def test_random_disconnects_do_not_affect_other_clients(server: RunningServer, clf: vitrail.Classifier):
    """Runs clients that disconnect at random: every response belongs to its own request."""
    rng = random.Random(1)
    wrong: list[object] = []
    answered = [0]

    def client(number: int) -> None:
        client_rng = random.Random(number)
        for i in range(25):
            data = make_photo(1000 * number + i)
            if client_rng.random() < 0.3:
                connection = send_without_waiting(server, "/predict", data)
                time.sleep(client_rng.choice([0, 0.001, 0.004]))
                connection.close()
                continue
            reply = server.post("/v2/models/colors/infer", data, **make_raw_headers(data))
            if reply.status == 503:
                continue
            if reply.status != 200 or read_logits(reply) != pytest.approx(expected_logits[data], abs=1e-4):
                wrong.append((number, i, reply))
            answered[0] += 1

    expected_logits = {
        data: compute_logits(clf, data) for n in range(8) for i in range(25) if (data := make_photo(1000 * n + i))
    }
    assert len(expected_logits) == 200
    threads = [threading.Thread(target=client, args=[n]) for n in rng.sample(range(8), 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not wrong
    assert answered[0] > 50
    assert server.read_metric("vitrail_waiting_images") == 0


# A quiet server on another loopback address, with a small queue, behind a proxy


@pytest.fixture(scope="module")
def small_server(run: vitrail.Run) -> Iterator[RunningServer]:
    options = ["--queue-size", QUEUE_SIZE, "--decode-processes", 1, "--processes", 1, "--backend", "torch"]
    access = ["--allow-host", "images.example.org", "--allow-origin", "https://shop.example"]
    arguments = [run.folder, *options, *access, "--no-explain", "--no-page"]
    with RunningServer(arguments, quiet_host="127.0.0.2") as running:
        yield running


def test_the_host_name_of_the_printed_url_is_allowed(small_server: RunningServer):
    assert small_server.host == "127.0.0.2"
    assert small_server.get("/v2").status == 200
    assert small_server.get("/v2", host="evil.example").status == 403
    assert small_server.get("/v2", host="Images.Example.org:443").status == 200  # --allow-host


def test_only_allowed_websites_may_read_responses(small_server: RunningServer):
    allowed = small_server.get("/v2", origin="https://shop.example")
    assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
    assert "retry-after" in allowed.headers["access-control-expose-headers"]
    headers = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    assert small_server.request("OPTIONS", "/predict", headers=headers).status == 200
    foreign = small_server.get("/v2", origin="https://evil.example")
    assert "access-control-allow-origin" not in foreign.headers
    assert (
        small_server.request("OPTIONS", "/predict", headers={**headers, "origin": "https://evil.example"}).status == 400
    )


def test_a_quiet_server_logs_problems_only(small_server: RunningServer):
    assert small_server.post("/predict", make_photo(0)).status == 200
    with socket.create_connection((small_server.host, small_server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"no request\r\n\r\n")
        assert b" 400 " in connection.recv(65536)
    small_server.wait_for(lambda: small_server.select_events("note"))
    assert {event["event"] for event in small_server.log_lines} <= {"note", "worker_ended"}


def test_a_server_without_a_page(small_server: RunningServer):
    reply = small_server.get("/")
    assert reply.status == 404
    assert "--no-page" in reply.json["error"]


def test_more_images_than_the_queue_holds_are_refused_for_good(small_server: RunningServer):
    body, content_type = make_form(*[("a.png", make_photo(0))] * (QUEUE_SIZE + 1))
    assert small_server.post("/predict", body, content_type=content_type).status == 400
    data = [base64.b64encode(make_photo(0)).decode()] * (QUEUE_SIZE + 1)
    document = {"inputs": [{"name": "image", "shape": [len(data)], "datatype": "BYTES", "data": data}]}
    reply = small_server.post("/v2/models/colors/infer", json.dumps(document))
    assert reply.status == 413
    assert f"1 to {QUEUE_SIZE}" in reply.json["error"]


def test_large_images_delay_no_small_ones_and_respect_the_deadline(small_server: RunningServer):
    large = encode_image(Image.new("L", (7000, 7000)))
    body, content_type = make_form(*[("large.png", large)] * (QUEUE_SIZE - 1))
    decoded = small_server.read_metric("vitrail_decode_seconds_count")
    pending = start_request(small_server, "/predict?timeout=0.3", body, content_type=content_type)
    statuses = [small_server.post("/predict", make_photo(0)).status]
    while pending.thread.is_alive():
        statuses.append(small_server.post("/predict", make_photo(0)).status)
    assert pending.result().status == 504
    assert set(statuses) == {200}
    assert small_server.read_metric("vitrail_decode_seconds_count") - decoded < len(statuses) + QUEUE_SIZE - 1


# Metrics, logs, web page and OpenAPI document


@pytest.mark.newest
def test_metrics_logs_and_ids(server: RunningServer):
    assert server.post("/predict", b"no image").status == 400
    assert b" 400 " in server.send_raw(b"no request\r\n\r\n")
    named = server.post("/predict", make_photo(0), x_request_id="trace-1:a.b")
    assert named.headers["x-request-id"] == "trace-1:a.b"
    forged = server.post("/predict", make_photo(0), x_request_id='x" evil')
    assert forged.headers["x-request-id"] != 'x" evil'
    line = server.wait_for(lambda: server.select_events("request", id="trace-1:a.b"))[0]
    assert line["status"] == 200
    assert line["model"] == "colors"
    assert line["seconds"] > 0
    text = server.get("/metrics").body.decode()
    for name in ("queue_seconds", "decode_seconds", "compute_seconds", "batch_size"):
        assert f"vitrail_{name}_bucket" in text
    assert 'vitrail_rejected_total{reason="image"}' in text
    assert not server.other_lines, "the server wrote lines that are not JSON"
    assert server.select_events("note"), "the logs of libraries are missing"


def test_the_page_is_self_contained(server: RunningServer):
    reply = server.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert "wasm-unsafe-eval" in reply.headers["content-security-policy"]
    assert reply.headers["cross-origin-opener-policy"] == "same-origin"
    assert reply.headers["cross-origin-embedder-policy"] == "require-corp"
    assert reply.headers["cross-origin-resource-policy"] == "same-origin"
    assert b"colors" in reply.body or b"red" in reply.body


def test_a_browser_that_has_the_page_gets_no_second_copy(server: RunningServer):
    tag = server.get("/").headers["etag"]
    reply = server.request("GET", "/?utm_source=mail", headers={"if-none-match": f'"other", W/{tag}'})
    assert (reply.status, reply.body) == (304, b"")
    assert reply.headers["cache-control"] == "no-cache"
    assert server.request("GET", "/", headers={"if-none-match": '"other"'}).status == 200


def test_a_page_that_cannot_be_made_is_not_made_for_every_visit(monkeypatch: pytest.MonkeyPatch):
    attempts = []

    async def make() -> bytes:
        attempts.append(True)
        await asyncio.sleep(0.01)
        if len(attempts) == 1:
            raise VitrailError("no memory")
        return b"page"

    async def visit() -> None:
        page = Page(make)
        page.prepare()
        replies = await asyncio.gather(*(page.get() for _ in range(3)), return_exceptions=True)
        assert [getattr(reply, "sentence", "") for reply in replies] == ["the page cannot be made: no memory"] * 3
        assert len(attempts) == 1
        monkeypatch.setattr("vitrail.serving.page.RETRY_S", 0.0)
        assert await page.get() == b"page"
        assert await page.get() == b"page"
        assert len(attempts) == 2

    asyncio.run(visit())


@pytest.mark.parametrize("path", ["/v2", "/v2/health/ready", "/v2/models/colors", "/metrics", "/openapi.json"])
def test_head_has_the_status_and_headers_of_get(server: RunningServer, path: str):
    head, get = server.request("HEAD", path), server.get(path)
    assert (head.status, head.body) == (get.status, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0
    assert server.request("HEAD", "/predict").status == 405


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/predict?topp=3", "there is no query parameter 'topp': did you mean top?"),
        ("/explain?methd=rise", "method"),
        ("/explain?top=3", "there is no query parameter 'top'"),
        ("/v2/models/colors/infer?model=features", "there is no query parameter 'model'"),
    ],
)
def test_an_unknown_query_parameter_is_refused(server: RunningServer, path: str, message: str):
    reply = server.post(path, make_photo(0))
    assert reply.status == 400
    assert message in reply.json["error"]


def test_an_option_in_a_form_is_refused(server: RunningServer):
    body, content_type = make_form(("a.png", make_photo(0)))
    field = b'--frontier\r\nContent-Disposition: form-data; name="top"\r\n\r\n1\r\n'
    reply = server.post("/predict", field + body, content_type=content_type)
    assert reply.status == 400
    assert "the form field 'top' is not a file: send options in the URL" in reply.json["error"]


def test_the_reasons_for_a_plain_page(clf: vitrail.Classifier, monkeypatch: pytest.MonkeyPatch):
    assert web_page.reason_for_plain_page(clf) is None
    assert "has no classes" in str(web_page.reason_for_plain_page(replace(clf, classes=())))
    monkeypatch.setattr(web_page, "find_spec", lambda package: None if package == "onnx" else package)
    assert web_page.reason_for_plain_page(clf) == f"onnx is not installed: {install_hint('export')}"
    monkeypatch.setattr(web_page, "MAX_PAGE_MB", 5.0)
    assert "more than 5" in str(web_page.reason_for_plain_page(clf))


def test_a_foreign_host_name_is_refused(server: RunningServer):
    """Prevents DNS rebinding: a website whose own domain points to this machine has no access."""
    assert server.get("/v2", host="evil.example:80").status == 403
    assert server.get("/v2", host="localhost:1").status == 200
    assert server.get("/v2", host="[::1]").status == 200


SCHEMATHESIS_HOOKS = """
import schemathesis


@schemathesis.check
def no_server_error(ctx, response, case):
    with open("statuses", "a") as file:
        print("status", response.status_code, file=file)
    timeouts = [(case.query or {}).get("timeout"), (case.headers or {}).get("x-request-timeout")]
    is_short = False
    for timeout in timeouts:
        try:
            is_short = is_short or 0 < float(timeout) < 0.5
        except (TypeError, ValueError):
            pass
    assert response.status_code < 500 or (response.status_code == 504 and is_short), response.text
"""


def test_the_server_conforms_to_its_openapi_document(server: RunningServer, tmp_path: Path):
    """Sends generated requests with schemathesis: no response is a 5xx, and all responses match the document.

    Some requests have a timeout as short as 5e-324 s; only for those is 504 correct.
    """
    (tmp_path / "hooks.py").write_text(SCHEMATHESIS_HOOKS)
    script = Path(sys.executable).with_name("schemathesis")
    if not script.exists():
        pytest.skip("schemathesis is not installed: it needs newer libraries than vitrail")
    checks = "no_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    process = subprocess.run(
        [str(script), "run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", checks, "--max-examples", "3",
         "--phases", "examples,coverage,fuzzing", "--seed", "1", "--request-timeout", "30", "--no-color"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "SCHEMATHESIS_HOOKS": "hooks"},
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-1000:]
    assert "status 200" in (tmp_path / "statuses").read_text()  # the check was called
    assert server.get("/v2/health/ready").status == 200


# A second server: an API key, two models and ONNX Runtime; and a third, which is shut down


@pytest.fixture(scope="module")
def protected_server(
    run: vitrail.Run, clf: vitrail.Classifier, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("protected")
    (folder / "key").write_text("öffne dich\n", encoding="utf-8")
    cached = onnx_cache_folder() / onnx_cache_name(clf)  # the server uses a cached file
    write_onnx(clf, cached)
    shutil.copy(cached, folder / "file.ONNX")
    arguments = [run.folder, folder / "file.ONNX", "--host", "0.0.0.0", "--api-key-file", folder / "key"]
    with RunningServer([*arguments, "--backend", "onnxruntime", "--no-explain", "--no-page"]) as running:
        yield running


SECRET = "öffne dich".encode().decode("latin-1")  # http.client encodes headers as Latin-1: the bytes sent are UTF-8
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
        ({"x-api-key": "öffne dich"}, 200),  # sent as Latin-1
        ({"authorization": "Basic " + base64.b64encode("me:öffne dich".encode()).decode()}, 200),
    ],
)
def test_the_api_key(protected_server: RunningServer, headers: dict[str, str], status: int):
    for path in ("/v2", "/metrics", "/favicon.ico", "/openapi.json"):
        expected = 204 if status == 200 and path == "/favicon.ico" else status
        assert protected_server.request("GET", path, headers=headers).status == expected
    assert protected_server.request("POST", "/predict?model=colors", make_photo(0), headers).status == status
    assert protected_server.get("/v2/health/ready").status == protected_server.get("/v2/health/live").status == 200


def test_two_models_with_onnx_runtime(protected_server: RunningServer, clf: vitrail.Classifier):
    assert protected_server.request("GET", "/v2", headers=KEY).json["models"] == ["colors", "file"]
    data = make_photo(5)
    for name in ("colors", "file"):
        metadata = protected_server.request("GET", f"/v2/models/{name}", headers=KEY).json
        assert metadata["platform"] == "onnxruntime_vitrail"
        reply = protected_server.request("POST", f"/v2/models/{name}/infer", data, {**KEY, **make_raw_headers(data)})
        assert read_logits(reply) == pytest.approx(compute_logits(clf, data), abs=1e-4)
    assert protected_server.select_events("backend")[0]["images_per_second"].keys() == {"torch", "onnxruntime"}
    assert protected_server.request("POST", "/explain", data, KEY).status == 501


def test_the_plain_form_has_only_buttons_for_supported_routes(server: RunningServer, clf: vitrail.Classifier):
    features = server.get("/?model=features").body.decode()
    assert "Explain</button>" in features and "Predict</button>" not in features
    assert "has no classes" in server.select_events("plain_page", model="features")[0]["why"]
    onnx_page = web_page.make_plain_page(clf, "file", can_explain=False).decode()
    assert "Predict</button>" in onnx_page and "Explain</button>" not in onnx_page
    assert "an exported file" in str(web_page.reason_for_plain_page(None))
    assert not server.select_events("plain_page", model="colors")  # it gets the full page


def test_a_killed_fork_server_is_replaced(protected_server: RunningServer):
    worker = protected_server.find_worker()
    fork_server_pid = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(fork_server_pid, signal.SIGKILL)
    os.kill(worker, signal.SIGKILL)
    protected_server.wait_for(lambda: protected_server.select_events("fork_server_lost"))
    protected_server.wait_for(lambda: protected_server.get("/v2/health/ready").status == 200)
    assert protected_server.request("POST", "/predict", make_photo(0), KEY).status == 200


@pytest.mark.newest
def test_sigterm_under_load_loses_no_accepted_request(run: vitrail.Run):
    """Sends requests until connections are refused; every request that the server started gets a response."""
    lost: list[object] = []
    answered: list[Reply] = []
    stop = threading.Event()

    def client(server: RunningServer, number: int) -> None:
        while not stop.is_set():
            request_id = f"{number}-{len(answered)}-{time.monotonic_ns()}"
            try:
                answered.append(server.post("/predict", make_photo(number), x_request_id=request_id))
            except ConnectionRefusedError:
                return
            except Exception as error:  # reset before the server read it, or lost: the log decides
                lost.append((request_id, error))
                return

    with RunningServer([run.folder, "--processes", 1, "--backend", "torch", "--no-explain", "--no-page"]) as server:
        threads = [threading.Thread(target=client, args=[server, n]) for n in range(12)]
        for thread in threads:
            thread.start()
        server.wait_for(lambda: len(answered) > 30)
        summary = server.stop()
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert {reply.status for reply in answered} == {200}
    started_ids = {event["id"] for event in server.select_events("request")}
    assert not [request_id for request_id, _ in lost if request_id in started_ids]
    assert summary["requests"] >= len(answered)
    assert server.select_events("draining")
    assert server.select_events("stopped")


# Usage errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--host", "0.0.0.0"], "--api-key-file"),
        (["{run}", "{run}"], "--name"),
        (["{run}", "--name", "a/b"], "cannot be a model's name"),
        (["{run}", "--port", "99999"], "--port"),
        (["{run}", "--host", "nowhere.invalid", "--no-api-key"], "cannot listen"),
        (["{run}", "--api-key-file", "/nothing"], "cannot be read"),
        (["{run}", "--queue-size", "0"], "queue_size"),
        (["{run}", "--allow-host", "https://example.org"], "is not a host name"),
        (["{run}", "--allow-origin", "example.org"], "is not an origin"),
        (["nothing-there"], "nothing-there"),
    ],
)
def test_usage_errors(run: vitrail.Run, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    from vitrail.cli.main import main

    assert main(["serve", *(argument.format(run=run.folder) for argument in arguments)]) in (1, 2)
    assert message in capsys.readouterr().err


def test_the_names_of_models(tmp_path: Path):
    (tmp_path / "my run").mkdir()
    assert choose_names([str(tmp_path / "my run"), "timm/vit_tiny@/x/w.safetensors"], []) == ["my-run", "w.safetensors"]
    with pytest.raises(UsageError, match="two models"):
        choose_names(["a", "b"], ["x", "x"])
    with pytest.raises(UsageError, match="1 names for 2"):
        choose_names(["a", "b"], ["x"])
    with pytest.raises(UsageError, match="stats"):
        choose_names(["a"], ["stats"])
