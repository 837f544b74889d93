"""Folders of pictures that a small ViT can learn, and a run trained on them once."""

import gc
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from prepared_python import start_server
from serving import MAX_BATCH_SIZE, QUEUE_SIZE, ForkedWorkers, RunningServer
from vitrail import console
from vitrail.data.open import open_source
from vitrail.data.shards.writer import write_shards
from vitrail.errors import VitrailError
from vitrail.runs import train  # noqa: F401 - it loads the modules that draw

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else the processes of the tests ignore Ctrl-C, too

# An export registers a device with torch. If the first backward pass comes after it, torch starts threads for that
# device, and refuses every backward pass in a fork; if it comes before, forks can train.
torch.ones(1, requires_grad=True).sum().backward()

COLORS = {"red": (210, 50, 40), "green": (40, 190, 70), "blue": (50, 60, 220)}


SHARED_FIXTURES = ("records", "ray_cluster")  # that take so long that all tests of a module that use one share it


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests that share a slow fixture, for `pytest --dist loadgroup`."""
    for item in items:
        for name in set(SHARED_FIXTURES) & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{name}"))


@pytest.fixture(autouse=True, scope="session")
def _own_environment(tmp_path_factory: pytest.TempPathFactory):
    """Tests use their own cache for facts about images and for features, not the one of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITRAIL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("RAY_worker_niceness", "0")  # else Ray's processes wait for all others on a busy machine
        patch.setenv("RAY_gcs_server_port_wait_time_s", "120")
        yield


DRAWING = [
    (module, name, getattr(module, name))
    for path, module in sorted(sys.modules.items())
    if path.startswith(("vitrail.runs.", "vitrail.callbacks.", "vitrail.data.check"))
    for name in ("draw_class_sheet", "draw_curves", "draw_pictures")
    if hasattr(module, name)
]


@contextmanager
def drawing(draws: bool) -> Iterator[None]:
    """Inside, runs in this process draw their pictures, or do not."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name, function in DRAWING:
            patch.setattr(module, name, function if draws else lambda *arguments, **options: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _no_pictures():
    """Most runs draw no pictures: that takes ten times as long as a training of a few steps."""
    with drawing(False):
        yield


@pytest.fixture
def pictures():
    """The runs of a test with this fixture draw their pictures."""
    with drawing(True):
        yield


@pytest.fixture(autouse=True)
def _loud_again():
    """Resets `console.quiet` after a test that set it."""
    yield
    console.quiet = False


def picture(color: tuple[int, int, int], seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A noisy field of a color, (height, width) pixels."""
    noise = np.random.default_rng(seed).normal(0, 30, (*size, 3))
    return Image.fromarray((np.array(color) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder("name", {"train": 8, "test": 4}) or make_folder("name", 8) with so many pictures per class."""

    def make(
        name: str, images: int | dict[str, int], classes: tuple[str, ...] = ("red", "blue"), size=(16, 16)
    ) -> Path:
        return fill(tmp_path / name, images, classes, size)

    return make


def fill(root: Path, images: int | dict[str, int], classes: tuple[str, ...], size: tuple[int, int]) -> Path:
    splits = images if isinstance(images, dict) else {"": images}
    colors = list(COLORS.values())
    for s, (split, n) in enumerate(splits.items()):
        for c, label in enumerate(classes):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                picture(colors[c % 3], 1000 * s + 100 * c + i, size).save(folder / f"{i}.png")
    return root


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("VITRAIL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes with 24 training and 12 test images."""
    return fill(tmp_path / "photos", {"train": 12, "test": 6}, ("red", "blue"), (16, 16))


@pytest.fixture
def shards(photos: Path, tmp_path: Path) -> Path:
    """`photos` as five shards with an index."""
    write_shards(open_source(photos), tmp_path / "shards", images_per_shard=10)
    return tmp_path / "shards"


@pytest.fixture(scope="session")
def colors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and test of three colors."""
    return fill(tmp_path_factory.mktemp("data") / "colors", {"train": 20, "test": 8}, tuple(COLORS), (16, 16))


@pytest.fixture(scope="session")
def run(colors: Path, tmp_path_factory: pytest.TempPathFactory) -> vitrail.Run:
    """A run on the colors: learnt well in a few seconds."""
    out = tmp_path_factory.mktemp("runs") / "colors"
    with drawing(True):
        return vitrail.train(colors, out=out, epochs=8, width=32, depth=2, heads=2, mlp_width=64)


@pytest.fixture(scope="session")
def clf(run: vitrail.Run) -> vitrail.Classifier:
    """The classifier of the run on the colors."""
    return vitrail.load(run.folder)


@pytest.fixture(scope="session")
def prepared_vitrail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The command `vitrail`, in processes that need not import torch any more (prepared_python.py)."""
    with start_server(tmp_path_factory.mktemp("commands")) as command:
        yield command


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Any]:
    """The module `ray`, connected to a cluster of this machine with two cores; it ends before other tests fork."""
    pytest.importorskip("ray")
    from vitrail.ray_cluster import connect_ray

    def connect(attempts: int) -> Any:
        try:
            return stack.enter_context(connect_ray(None, cores=2))
        except VitrailError:  # Ray allows itself 30 seconds to start, which is too short on a busy machine
            if attempts == 1:
                raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of what Ray has started
            gc.collect()
        return connect(attempts - 1)

    with ExitStack() as stack:
        yield connect(attempts=3)


@pytest.fixture
def fork_workers() -> Iterator[Callable[[Callable[[socket.socket], None]], ForkedWorkers]]:
    """Returns a function from the work of processes to what forks them; they end after the test."""
    created: list[ForkedWorkers] = []

    def create(work: Callable[[socket.socket], None]) -> ForkedWorkers:
        created.append(ForkedWorkers(work))
        return created[-1]

    yield create
    for each in created:
        each.kill()


@pytest.fixture(scope="session")
def server(
    run: vitrail.Run, clf: vitrail.Classifier, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """A server with two models, one of which knows no classes, and limits small enough to be met."""
    features = tmp_path_factory.mktemp("models") / "features.safetensors"
    torch.manual_seed(0)
    vit = vitrail.ViT(vitrail.ViTConfig(width=32, depth=1, heads=2, mlp_width=32, patch=4, image_size=16, classes=0))
    vitrail.Classifier(vit, (), clf.preprocess).save(features)
    options = [
        "--backend",
        "torch",
        "--processes",
        1,
        "--queue-size",
        QUEUE_SIZE,
        "--max-batch-size",
        MAX_BATCH_SIZE,
        "--max-images-per-request",
        6,
        "--max-body-mib",
        2,
        "--max-megapixels",
        4,
    ]
    with RunningServer([run.folder, features, *options, "--timeout-s", 30]) as running:
        yield running
