"""Shards at URLs: the cache of local copies, retries, outages."""

import hashlib
import http.server
import math
import re
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import vitrail
from shard_files import SMALL, locate_image, modify_file, png_bytes, write_set, write_tar
from vitrail.data.decode import ImageError
from vitrail.data.open import open_data, open_source
from vitrail.data.shards import cache, storage
from vitrail.data.shards import images as shard_images
from vitrail.data.shards.cache import cache_limit, open_shard
from vitrail.errors import UsageError, VitrailError


def test_shards_in_the_memory_file_system_of_fsspec(photos: Path, shards: Path, own_cache: Path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    memory.put(str(shards), "/remote", recursive=True)
    try:
        for address in ("memory://remote", "memory://remote/{train-{000000..000002},test-{000000..000001}}.tar"):
            source = open_source(address)
            assert source.fingerprint == open_source(photos).fingerprint
            train = open_data(address).train
            assert torch.equal(train[3], open_data(photos).train[3])
            assert train.paths[0].startswith("memory://") and "train-" in train.paths[0]
        assert open_source("memory://remote/train-*.tar").splits["train"].names[0] == "train/blue/0.png"
        with pytest.raises(UsageError, match="no shard"):
            open_source("memory://remote/none-{0..1}.tar")
    finally:
        memory.rm("/remote", recursive=True)


class Server(http.server.ThreadingHTTPServer):
    """Serves files over HTTP, with range requests if `ranges`; counts requests and bytes."""

    daemon_threads = True

    def __init__(self, root: Path, ranges: bool = True):
        self.ranges = ranges
        self.requests: list[str] = []  # paths of successful GET requests
        self.bytes_sent = 0
        self.failures = 0  # requests that fail before the next success
        self.max_requests = math.inf  # after these, every request fails
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(root)))

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, body: bool) -> None:
        if self.server.failures > 0 or len(self.server.requests) >= self.server.max_requests:
            self.server.failures -= 1
            self.send_error(503)
            return
        try:
            content = Path(self.translate_path(self.path)).read_bytes()
        except OSError:
            self.send_error(404)
            return
        requested = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if self.server.ranges else None
        part = content[int(requested[1]) : int(requested[2] or len(content)) + 1] if requested else content
        if body:
            self.server.bytes_sent += len(part)
            self.server.requests.append(self.path)
        self.send_response(206 if requested else 200)
        if requested:
            self.send_header(
                "Content-Range", f"bytes {requested[1]}-{int(requested[1]) + len(part) - 1}/{len(content)}"
            )
        self.send_header("Content-Length", str(len(part)))
        self.send_header("ETag", hashlib.sha256(content).hexdigest())
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    pytest.importorskip("aiohttp")
    running: list[Server] = []

    def start(root: Path, **options: bool) -> Server:
        running.append(Server(root, **options))
        threading.Thread(target=running[-1].serve_forever, daemon=True).start()
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_over_http_equals_training_from_the_folder(photos, shards, serve, tmp_path, own_cache, workers: int):
    server = serve(shards)
    options = {"epochs": 1, "batch_size": 8, "image_cache_gib": 0.0, "report": False, "check": False, **SMALL}
    address = f"{server.address}/{{train-{{000000..000002}},test-{{000000..000001}}}}.tar"
    runs = [
        vitrail.train(photos, out=tmp_path / "a", workers=0, **options),
        vitrail.train(address, out=tmp_path / "b", workers=workers, **options),
    ]
    ours, theirs = ((run.folder / "classifier.safetensors").read_bytes() for run in runs)
    assert ours == theirs
    requests = [path for path in server.requests if path.endswith(".tar")]
    assert len(requests) == len(set(requests)) == 5  # every shard once, by whichever worker


@pytest.mark.parametrize("ranges", [True, False], ids=["ranges", "no ranges"])
def test_without_a_cache_each_image_is_requested_by_itself(photos, shards, serve, own_cache, monkeypatch, ranges: bool):
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards, ranges=ranges)
    train = open_data(server.address).train
    theirs = open_data(photos).train
    before = server.bytes_sent
    assert all(torch.equal(train[i], theirs[i]) for i in range(4))
    if ranges:
        assert server.bytes_sent - before == sum(theirs.pixels.byte_sizes()[:4])
    assert not list((own_cache / "shards").glob("*.tar")) if own_cache.exists() else True


def test_the_cache_stays_within_its_limit_and_keeps_the_first_shards(photos, shards, serve, own_cache, monkeypatch):
    size = (shards / "train-000000.tar").stat().st_size
    limit = 2 * size + 100
    monkeypatch.setenv("VITRAIL_CACHE_GIB", str(limit / 2**30))
    server = serve(shards)
    for _ in range(2):
        for images in open_data(server.address).as_dict().values():
            for i in range(len(images)):
                images[i]
        copies = list((own_cache / "shards").glob("*.tar"))
        assert copies and sum(path.stat().st_size for path in copies) <= limit
    other = serve(write_set(photos, shards.parent / "other", images_per_shard=10, seed=4))  # it replaces the first set
    train = open_data(other.address).train
    for i in range(len(train)):
        train[i]
    assert sum(path.stat().st_size for path in (own_cache / "shards").glob("*.tar")) <= limit
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "much")
    with pytest.raises(UsageError, match="VITRAIL_CACHE_GIB"):
        cache_limit()


def test_a_damaged_copy_in_the_cache_is_replaced_and_a_changed_shard_is_detected(shards, serve, own_cache):
    server = serve(shards)
    train = open_data(server.address).train
    pixels = [train[i] for i in range(len(train))]
    copies = list((own_cache / "shards").glob("*.tar"))
    assert len(copies) == 3
    for path in copies:
        modify_file(path, lambda content: content.__setitem__(slice(0, None), bytes(len(content))))
    storage.open_files.files.clear()
    assert all(torch.equal(train[i], pixels[i]) for i in range(len(train)))
    path, offset, _ = locate_image(shards, "train/red/3.png")
    modify_file(path, lambda content: content.__setitem__(offset + 60, content[offset + 60] ^ 1))
    fresh = open_source(server.address).splits["train"]
    with pytest.raises(ImageError, match="SHA-256"):
        fresh.pixels.read_bytes(list(fresh.names).index("train/red/3.png"))


def test_a_damaged_copy_that_another_process_has_removed_is_fetched_again(shards, serve, own_cache, monkeypatch):
    train = open_data(serve(shards).address).train
    pixels = [train[i] for i in range(len(train))]
    for path in (own_cache / "shards").glob("*.tar"):
        modify_file(path, lambda content: content.__setitem__(slice(0, None), bytes(len(content))))
    read_range = shard_images.read_range

    def read_and_remove_copies(*arguments):
        content = read_range(*arguments)
        for path in (own_cache / "shards").glob("*.tar"):
            path.unlink()
        return content

    monkeypatch.setattr(shard_images, "read_range", read_and_remove_copies)
    assert all(torch.equal(train[i], pixels[i]) for i in range(len(train)))


def test_a_copy_that_another_process_removes_to_make_room_is_not_needed(shards, serve, own_cache, monkeypatch):
    train = open_data(serve(shards).address).train
    fetch_copy = cache.fetch_copy

    def fetch_and_remove(shard):
        path = fetch_copy(shard)
        path.unlink()
        return path

    monkeypatch.setattr(cache, "fetch_copy", fetch_and_remove)
    assert train[0].shape == (3, 16, 16)
    shard = train.pixels.shard_index.shards[0]
    with open_shard(shard) as file:
        assert len(file.read()) == shard.size


def test_a_request_that_fails_is_repeated_and_one_that_keeps_failing_is_an_error(shards, serve, own_cache, monkeypatch):
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.01, 0.01))
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards)
    train = open_data(server.address).train
    server.failures = 2
    assert train[0].shape == (3, 16, 16)
    server.failures = 99
    with pytest.raises(ImageError, match="does not answer"):
        train[0]
    server.failures = 0
    with pytest.raises(VitrailError, match=r"http://127\.0\.0\.1:1/x"):
        open_source("http://127.0.0.1:1/x-{0..1}.tar")
    with pytest.raises(UsageError, match="is not a protocol"):
        open_source("htp://somewhere/x.tar")


def test_predictions_stop_during_an_outage_and_resume_after_it(
    run: vitrail.Run, shards, serve, own_cache, monkeypatch, tmp_path: Path, capsys
):
    """An outage never becomes the error of an image in a row."""
    monkeypatch.setattr(storage, "RETRY_DELAYS_S", (0.01,))
    monkeypatch.setenv("VITRAIL_CACHE_GIB", "0")
    server = serve(shards)
    arguments = (run.folder, [server.address, server.address])  # 72 images: a part of 64, and one of 8
    summary = vitrail.predict_all(*arguments, tmp_path / "uninterrupted", part_images=64, processes=1)
    assert (summary.images, summary.unreadable, summary.parts) == (72, 0, 2)
    server.max_requests = 2 * len(server.requests) - 1  # the last shard of the second part is unreachable
    with pytest.raises(VitrailError, match="does not answer") as caught:
        vitrail.predict_all(*arguments, tmp_path / "out", part_images=64, processes=1)
    assert "--resume" in caught.value.hint
    assert "1 of 2 parts are done" in capsys.readouterr().err
    server.max_requests = len(server.requests) + 1  # the index alone
    with pytest.raises(VitrailError, match=r"http://127.*cannot be read: .* does not answer"):
        vitrail.predict_all(*arguments, tmp_path / "out", part_images=64, resume=True)
    server.max_requests = math.inf
    again = vitrail.predict_all(*arguments, tmp_path / "out", part_images=64, processes=1, resume=True)
    assert (again.images, again.unreadable, again.resumed) == (72, 0, 1)
    for part in sorted((tmp_path / "uninterrupted").glob("part-*")):
        assert (tmp_path / "out" / part.name).read_bytes() == part.read_bytes()


def test_foreign_shards_over_http_are_indexed_once(tmp_path: Path, serve, own_cache: Path):
    write_tar(
        tmp_path / "remote" / "x-0.tar", *((f"{label}/{i}.png", png_bytes(i)) for label in "ab" for i in range(5))
    )
    server = serve(tmp_path / "remote")
    first = open_source(f"{server.address}/x-0.tar")
    again = open_source(f"{server.address}/x-0.tar")
    assert list(first.splits["all"].labels) == list(again.splits["all"].labels) == ["a"] * 5 + ["b"] * 5
    assert server.requests.count("/x-0.tar") == 1
