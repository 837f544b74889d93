"""Loading from the Hugging Face hub: the real client against a local server, with faults of networks and servers."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

import vitrail
from hub_server import TOKEN, Handler, Hub, Repository, hang, run_hub, use_hub
from vitrail import Classifier, UsageError, ViT, ViTConfig, VitrailError
from vitrail.cli import main
from vitrail.data.preprocess import Preprocess
from vitrail.exporting.libraries import LIBRARIES, convert_classifier
from vitrail.weights import download, hub_client
from vitrail.weights.cards import Card
from vitrail.weights.download import download_file
from vitrail.weights.hub import fetch_file, fetch_folder, find_cached_folder

NAME = "owner/tiny"
MODEL = "model.safetensors"


@cache
def make_files(seed: int = 0, format: str = "timm") -> dict[str, bytes]:
    """The files of a repository with a tiny classifier."""
    torch.manual_seed(seed)
    config = ViTConfig(width=64, depth=2, heads=4, mlp_width=128, patch=8, image_size=32, classes=2)
    preprocess = Preprocess(image_size=(32, 32), fit="stretch", mean=(0.4, 0.4, 0.4))
    model = convert_classifier(Classifier(ViT(config), ("ant", "bee"), preprocess), LIBRARIES[format])
    files = {name: json.dumps(document).encode() for name, document in model.files.items()}
    return {**files, MODEL: save(model.tensors, metadata={"format": "pt"}), "README.md": b"no weights"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with run_hub() as hub:
        use_hub(hub, tmp_path / "cache", monkeypatch)
        hub.repositories[NAME] = Repository()
        hub.repositories[NAME].commit(make_files())
        yield hub


@pytest.fixture
def image(tmp_path: Path) -> str:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "image.png")
    return str(tmp_path / "image.png")


def head_of(name: str = NAME) -> torch.Tensor:
    return vitrail.load(name).vit.head.weight


def only(part: str, answer: Callable[[Handler], object], times: int = 1000, method: str = "GET"):
    """A fault for the first `times` requests of paths with this part."""
    left = [times]

    def fault(handler: Handler, path: str) -> bool:
        if part not in path or handler.command != method or left[0] == 0:
            return False
        left[0] -= 1
        answer(handler)
        return True

    return fault


def test_a_repository_is_downloaded_once_and_asked_again_each_time(hub: Hub, capsys: pytest.CaptureFixture[str]):
    clf = vitrail.load(NAME)
    commit = hub.repositories[NAME].refs["main"]
    assert clf.classes == ("ant", "bee") and clf.origin["source"] == NAME and clf.origin["commit"] == commit
    assert "downloading owner/tiny from the Hugging Face hub (0." in capsys.readouterr().err
    assert not hub.count("GET", "README.md")
    hub.requests.clear()
    assert torch.equal(head_of(), clf.vit.head.weight)
    assert [path for _, path, _ in hub.requests] == [f"/api/models/{NAME}"]
    assert capsys.readouterr().err == ""


def test_a_changed_repository_is_noticed(hub: Hub, capsys: pytest.CaptureFixture[str]):
    old = head_of()
    before, after = hub.repositories[NAME].refs["main"], hub.repositories[NAME].commit(make_files(1))
    capsys.readouterr()
    new = head_of()
    assert not torch.equal(old, new)
    assert f"has changed on the hub: commit {after[:8]} instead of {before[:8]}" in capsys.readouterr().err
    hub.requests.clear()
    assert torch.equal(head_of(f"{NAME}@{before}"), old)  # a commit never changes: nothing is asked
    assert not hub.requests


def test_branches_tags_and_commits_are_revisions_everywhere(
    hub: Hub, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    repository = hub.repositories[NAME]
    first = repository.refs["main"]
    repository.commit(make_files(1), "refs/pr/1")
    repository.refs["v1.0"] = first
    for revision, seed in {"refs/pr/1": 1, "v1.0": 0, first: 0, "main": 0}.items():
        tensors = convert_head(seed)
        assert torch.equal(head_of(f"{NAME}@{revision}"), tensors), revision
        assert find_cached_folder(NAME, revision) is not None
    assert main(["predict", f"{NAME}@refs/pr/1", image, "--json"]) == 0
    assert main(["explain", f"{NAME}@v1.0", image, "--out", str(tmp_path / "map.png")]) == 0
    capsys.readouterr()
    assert main(["predict", f"{NAME}@v2", image]) == 2
    assert "owner/tiny has no such revision" in capsys.readouterr().err
    for revision in ("a..b", "/main", "a b"):
        with pytest.raises(UsageError, match="not a revision"):
            fetch_folder(f"{NAME}@{revision}")


def convert_head(seed: int) -> torch.Tensor:
    return load(make_files(seed)[MODEL])["head.weight"]


def test_a_card_has_revisions_and_still_takes_a_file(hub: Hub, tmp_path: Path):
    with pytest.raises(VitrailError, match="no file"):
        vitrail.load("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@missing.safetensors")
    with pytest.raises(UsageError, match="that you may read"):
        vitrail.load("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k@main")
    assert hub.count("GET", "/api/models/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/revision/main") == 1
    with pytest.raises(VitrailError, match="no file main"):
        vitrail.load("torchvision/vit_b_16@main")


# Who may read


@pytest.mark.parametrize(
    ("case", "sentence"),
    [
        ("missing", "there is no model 'owner/other' that you may read"),
        ("private", "there is no model 'owner/tiny' that you may read"),
        ("gated", "owner/tiny requires that you accept its license"),
        ("bad token", "the hub does not accept your token"),
        ("forbidden", "your login may not read owner/tiny"),
    ],
)
def test_a_refusal_says_how_to_log_in(
    hub: Hub, image: str, case: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    hub.repositories[NAME].private = case == "private"
    hub.repositories[NAME].gated = case == "gated"
    if case == "bad token":
        monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    if case == "forbidden":
        hub.fault = only("/api/models", lambda handler: handler.answer_error(403, message="Forbidden"))
    assert main(["predict", "owner/other" if case == "missing" else NAME, image]) in (1, 2)
    error = capsys.readouterr().err
    assert f"error: {sentence}\n" in error and "run hf auth login, or set HF_TOKEN" in error, error
    assert "Traceback" not in error
    if case in ("private", "gated"):
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert vitrail.load(NAME).classes == ("ant", "bee")


# Faults of servers and networks


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_that_refuses_is_an_error_or_the_cache_is_used(
    hub: Hub, status: int, capsys: pytest.CaptureFixture[str]
):
    hub.fault = only("/api/", lambda handler: handler.answer_error(status))
    with pytest.raises(VitrailError, match="cannot be used|refuses more requests"):
        vitrail.load(NAME)
    hub.fault = None
    head = head_of()
    hub.fault = only("/api/", lambda handler: handler.answer_error(status))
    assert torch.equal(head_of(), head)
    commit = hub.repositories[NAME].refs["main"]
    assert f"owner/tiny is used as cached, commit {commit[:8]}" in capsys.readouterr().err


def test_a_busy_server_is_asked_again_for_a_file(hub: Hub):
    hub.fault = only(f"/{MODEL}", lambda handler: handler.answer_error(429, **{"Retry-After": "0"}), times=2)
    assert vitrail.load(NAME).classes == ("ant", "bee")
    assert hub.count("GET", MODEL) == 3


def test_a_cut_download_is_resumed_where_it_stopped(hub: Hub):
    content = make_files()[MODEL]
    commit = hub.repositories[NAME].refs["main"]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
    hub.fault = only(f"/{MODEL}", lambda handler: handler.send_file(content, headers, limit=len(content) // 2), times=1)
    assert torch.equal(head_of(), convert_head(0))
    ranges = [each for method, path, each in hub.requests if method == "GET" and path.endswith(MODEL)]
    assert len(ranges) == 2 and ranges[0] is None


def test_a_server_that_hangs_is_waited_for_with_a_limit(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(hub_client, "time_limit_s", lambda hub: 0.2)
    monkeypatch.setattr("vitrail.weights.hub.time_limit_s", lambda hub: 0.2)
    hub.fault = only("/api/", hang)
    with pytest.raises(VitrailError, match="cannot be used"):
        vitrail.load(NAME)
    hub.fault = None
    head = head_of()
    hub.fault = only("/api/", hang)
    assert torch.equal(head_of(), head)
    assert "is used as cached" in capsys.readouterr().err


def test_a_download_that_hangs_ends(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    hub.fault = only(f"/{MODEL}", hang)
    with pytest.raises(VitrailError, match="cannot be used"):
        vitrail.load(NAME)
    assert find_cached_folder(NAME) is None
    hub.fault = None
    assert vitrail.load(NAME).classes == ("ant", "bee")


def test_a_damaged_download_is_refused_and_removed(hub: Hub):
    content = make_files()[MODEL]
    commit = hub.repositories[NAME].refs["main"]
    headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
    damaged = content[:-4] + b"\0\1\2\3"
    hub.fault = only(f"/{MODEL}", lambda handler: handler.send_file(damaged, headers))
    with pytest.raises(VitrailError, match=r"download of model\.safetensors is damaged"):
        vitrail.load(NAME)
    hub.fault = only(f"/{MODEL}", lambda handler: handler.send_file(content[:-100], headers))  # another size
    with pytest.raises(VitrailError, match="cannot be used"):
        vitrail.load(NAME)
    hub.fault = only("/config.json", lambda handler: handler.send_file(b"{}", {**headers, "ETag": '"1"'}))
    assert find_cached_folder(NAME) is None
    hub.fault = None
    assert torch.equal(head_of(), convert_head(0))


def test_offline_uses_the_cache_and_asks_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(VitrailError, match="not in the cache and cannot be downloaded"):
        vitrail.load(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    head = head_of()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    capsys.readouterr()
    assert torch.equal(head_of(), head) and not hub.requests
    assert capsys.readouterr().err == ""


def test_an_interrupted_update_leaves_the_cached_commit_in_use(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    old = head_of()
    hub.repositories[NAME].commit(make_files(1))
    hub.fault = only(f"/{MODEL}", lambda handler: handler.answer_error(404, "EntryNotFound"))
    with pytest.raises(VitrailError):
        vitrail.load(NAME)
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(head_of(), old)


def test_an_interrupt_in_a_download_leaves_nothing_wrong(hub: Hub, image: str, tmp_path: Path):
    hub.fault = only(f"/{MODEL}", hang)
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"HF_HUB_ETAG_TIMEOUT": "120"}  # on a busy machine the client must not give up before the signal
    command = [sys.executable, "-m", "vitrail", "predict", NAME, image]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not hub.count("GET", MODEL) and process.poll() is None and time.monotonic() < deadline:
        hub.released.wait(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=250)
    assert (process.returncode, "error: stopped" in error, "Traceback" in error) == (130, True, False), error
    assert find_cached_folder(NAME) is None
    hub.fault = None
    assert vitrail.load(NAME).classes == ("ant", "bee")


# What a repository holds


def test_shards_adapters_and_repositories_without_weights(hub: Hub):
    files = make_files()
    tensors = load(files[MODEL])
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {"weight_map": {name: part for part, members in parts.items() for name in members}}
    sharded = {part: save({name: tensors[name] for name in members}) for part, members in parts.items()}
    others = {name: content for name, content in files.items() if name != MODEL}
    extra = {"model.fp16.safetensors": b"not wanted", "model.safetensors.index.json": json.dumps(index).encode()}
    cases = {"sharded": {**others, **sharded, **extra}, "none": others, "adapter": {"adapter_config.json": b"{}"}}
    for name, content in cases.items():
        hub.repositories[f"owner/{name}"] = Repository()
        hub.repositories[f"owner/{name}"].commit(content)
    assert torch.equal(head_of("owner/sharded"), convert_head(0))
    assert not hub.count("GET", "model.fp16.safetensors")
    with pytest.raises(VitrailError, match="no safetensors weights"):
        vitrail.load("owner/none")
    with pytest.raises(VitrailError, match="peft adapter"):
        vitrail.load("owner/adapter")


def test_a_preprocessor_file_that_another_program_left_out_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import huggingface_hub.constants as constants

    hub.repositories[NAME].commit(make_files(0, "hf"))
    folder = fetch_folder(NAME)
    assert vitrail.load(NAME).preprocess.mean == (0.4, 0.4, 0.4)
    file = folder / "preprocessor_config.json"
    file.unlink()
    assert vitrail.load(f"{NAME}@{folder.name}").preprocess.mean == (0.4, 0.4, 0.4)
    file.unlink()
    hub.fault = only("preprocessor_config", lambda handler: handler.answer_error(500), method="HEAD")
    capsys.readouterr()
    assert vitrail.load(f"{NAME}@{folder.name}").preprocess.mean == (0.5, 0.5, 0.5)
    assert "preprocessor_config.json of owner/tiny could not be fetched" in capsys.readouterr().err
    hub.fault = only("preprocessor_config", lambda handler: handler.answer_error(404, "EntryNotFound"), method="HEAD")
    assert vitrail.load(f"{NAME}@{folder.name}").preprocess.mean == (0.5, 0.5, 0.5)
    assert "could not be fetched" not in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert vitrail.load(NAME).preprocess.mean == (0.5, 0.5, 0.5)
    assert "there is no preprocessor_config.json of owner/tiny here" in capsys.readouterr().err


# Single files


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A server of one file, and a card for it."""
    monkeypatch.setattr(download, "WAIT_S", 0.01)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    content = bytes(range(256)) * 4096
    with run_hub() as hub:
        hub.fault = only("weights.bin", lambda handler: handler.send_file(content, {}))
        digest = hashlib.sha256(content).hexdigest()
        card = Card(name="a", layout="timm", config={}, preprocess={}, source=f"{hub.url}/weights.bin", sha256=digest)
        yield hub, content, card


def test_a_single_file_is_resumed_verified_and_cached(files, monkeypatch: pytest.MonkeyPatch):
    hub, content, card = files
    monkeypatch.setattr(download, "TIME_LIMIT_S", 1.0)
    cut = [100_000, 100_000, 0, 0, None]

    def answer(handler: Handler) -> None:
        limit = cut.pop(0)
        handler.send_file(content, {}, limit=limit) if limit != 0 else hang(handler)

    hub.fault = only("weights.bin", answer)
    assert fetch_file(card).read_bytes() == content
    assert [each for _, _, each in hub.requests] == [None, "bytes=100000-", *["bytes=200000-"] * 3]
    fetch_file(card)
    assert len(hub.requests) == 5


@pytest.mark.parametrize("case", ["hangs", "refused", "damaged", "broken"])
def test_a_single_file_that_cannot_be_had_is_an_error_and_leaves_nothing(
    files, case: str, monkeypatch: pytest.MonkeyPatch
):
    hub, content, card = files
    if case == "hangs":
        monkeypatch.setattr(download, "TIME_LIMIT_S", 0.2)
    answers: dict[str, Callable[[Handler], object]] = {
        "hangs": hang,
        "refused": lambda handler: handler.answer_error(404),
        "damaged": lambda handler: handler.send_file(content[:-1] + b"x", {}),
        "broken": lambda handler: handler.answer_error(503),
    }
    hub.fault = only("weights.bin", answers[case])
    with pytest.raises(VitrailError, match="not the published file" if case == "damaged" else "cannot be downloaded"):
        fetch_file(card)
    assert len(hub.requests) == (1 if case in ("refused", "damaged") else download.TRIES)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    assert not list(folder.iterdir())


def test_a_server_without_ranges_sends_the_file_again(files, tmp_path: Path):
    hub, content, card = files
    left = [1]

    def answer(handler: Handler) -> None:
        del handler.headers["Range"]
        handler.send_file(content, {}, limit=1000 if left.pop() else None)
        left.append(0)

    hub.fault = only("weights.bin", answer)
    download_file(card.source, tmp_path / "file", card.sha256)
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device whose disk is always full")
def test_a_full_disk_is_not_taken_for_a_fault_of_the_server(files, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hub, _, card = files
    monkeypatch.setattr("vitrail.files.create_beside", lambda path, create: Path("/dev/full"))
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)
    with pytest.raises(VitrailError, match=r"a\.bin cannot be written: No space left on device"):
        download_file(card.source, tmp_path / "a.bin", card.sha256)
    assert len(hub.requests) == 1
