"""All images of a source -> a folder of parts: what the verb and the Python call do."""

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data.shards import is_shards
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_json
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.options import check_fields, option
from vitrail.prediction.arrow import import_pyarrow
from vitrail.prediction.folder import EXAMPLES, Plan, PredictionFolder
from vitrail.prediction.listing import LISTING_STRIDE, Part, write_listing
from vitrail.prediction.local import Tell, predict_locally
from vitrail.prediction.model_spec import ModelSpec
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.table_formats import refuse_formulas

Engine = Callable[[PartJob, Sequence[Part], int | None, Tell], object]
LARGEST_PART = 31 * LISTING_STRIDE  # 1,984 images, unless asked otherwise: what a killed process loses at most
PARTS = 256  # of fewer images the parts are smaller, so that every core has several


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """How predictions are made and written; the command line's options are these fields."""

    format: Literal["parquet", "csv"] = option("parquet", "what the parts are")
    top: int = option(1, "classes to name for each image, the likeliest first", ge=1)
    embedding: bool = option(False, "the model's features of each image in a column")
    part_images: int | None = option(None, f"images in a part, rounded up to a multiple of {LISTING_STRIDE}", ge=1)
    slice: tuple[int, int] = option((1, 1), "the share of this machine, (i, n): every n-th part from the i-th on")
    resume: bool = option(False, "go on with predictions that were begun")
    engine: Literal["local", "ray"] = option("local", "what runs the parts")
    ray_address: str | None = option(None, "the Ray cluster; without it, one on this machine")
    workers: int | None = option(None, "processes (as many as cores)", ge=1)
    batch: int = option(64, "images at a time", ge=1)
    threads: int | None = option(None, "threads of each process (one)", ge=1)
    device: str | None = option(None, "cpu, cuda, mps (the best there is)")
    torch_files: bool = option(False, "read plain tensors from torch's own files")
    fast: bool = option(False, "in bf16, weights packed: the same labels but for rounding")

    def __post_init__(self) -> None:
        check_fields(self)
        number, of = self.slice
        if not 1 <= number <= of:
            raise UsageError(f"slice is {number}/{of}; of four machines the second has 2/4")
        if self.ray_address is not None and self.engine != "ray":
            raise UsageError("--ray-address is for --engine ray", "add --engine ray")


@dataclass(frozen=True)
class PredictSummary:
    """What came of it; `parts_done` are this share's, of `parts` in all."""

    out: Path
    images: int  # of the parts that are done
    unreadable: int
    examples: list[list[str]]
    labels: dict[str, int]
    parts: int
    parts_done: int
    resumed: int = 0  # parts that were there before
    seconds: float = 0.0
    images_now: int = 0  # predicted in these seconds
    complete: bool = False  # whether every part of the whole is there

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        rate = self.images_now / self.seconds if self.seconds else 0.0
        return {
            **{name: value for name, value in vars(self).items() if name not in ("out", "examples", "images_now")},
            "out": str(self.out),
            "images_per_second": round(rate, 2),
            "unreadable_files": [{"path": path, "error": error} for path, error in self.examples],
        }


def predict_all(
    model: str | Path, sources: str | Path | Sequence[str | Path], out: str | Path, **options: Any
) -> PredictSummary:
    """Predicts every image of the sources into a folder of parts, in memory that does not grow with their number.

    `sources` are folders, tar shards, tables (.csv, .tsv, .parquet) with a column of paths, and image files; `options`
    are the fields of `Wanted`. An image that cannot be read has a row with its error. What was stopped, however it was
    stopped, goes on with `resume=True`. Raises `UsageError` where `out` holds anything else or was asked for otherwise.
    """
    wanted = PredictOptions(**options)
    named = [str(each) for each in ([sources] if isinstance(sources, str | Path) else sources)]
    if not named:
        raise UsageError("there is nothing to predict", "name a folder")
    engine = resolve_engine(wanted)
    address = ModelSpec(str(model), wanted.device, wanted.threads, wanted.torch_files, wanted.fast)
    folder = PredictionFolder(Path(out))
    with few_threads(address), interrupt_on_sigterm():
        plan = make_plan(address, wanted)
        folder.create()
        return predict_sources(folder, named, plan, address, wanted, engine)


def predict_sources(
    folder: PredictionFolder, named: list[str], plan: Plan, address: ModelSpec, wanted: PredictOptions, engine: Engine
) -> PredictSummary:
    """Lists the sources, takes the folder for them and does this machine's share."""
    with folder.lock(wanted.slice, wanted.resume):
        with tempfile.TemporaryDirectory(dir=folder.metadata, prefix=".listing-") as aside, listing_bar() as tick:
            listing = write_listing(named, Path(aside, "listing"), tick)
            size = wanted.part_images or min(max(1, -(-listing.images // PARTS)), LARGEST_PART)
            plan = replace(
                plan,
                images=listing.images,
                fingerprint=listing.fingerprint,
                part_images=-(-size // LISTING_STRIDE) * LISTING_STRIDE,
            )
            folder.claim(plan)
            listing = folder.store_listing(listing)
        task = PartJob(
            address, plan, folder, listing.file, wanted.batch, working_directory([*named, address.model, folder.path])
        )
        return run_parts(task, listing.parts(plan.part_images), wanted, engine)


def working_directory(places: Iterable[str | Path]) -> str | None:
    """The folder that relative paths are meant from; None where all are in full, or names of other things."""
    relative = [place for place in map(str, places) if not os.path.isabs(place) and "://" not in place]
    files = [part for place in relative for part in (place, place.rpartition("@")[2])]  # CARD@FILE
    return os.getcwd() if any(os.path.exists(each) or is_shards(each) for each in files) else None


def make_plan(address: ModelSpec, wanted: PredictOptions) -> Plan:
    """The plan, but for what the images decide; raises `UsageError` for what this model or format cannot give."""
    if wanted.format == "parquet":
        import_pyarrow()
    classifier = address.load()
    if wanted.embedding and not isinstance(classifier, Classifier):
        raise UsageError("an .onnx file gives answers alone, no embedding", "name the classifier that it was made from")
    if not wanted.embedding:
        classifier.require_classes()
    if wanted.format == "csv":
        refuse_formulas(classifier.classes)
    top = min(wanted.top, max(1, len(classifier.classes)))
    return Plan(address.digest, 0, "", 0, wanted.format, top, wanted.embedding, wanted.fast)


@contextmanager
def few_threads(address: ModelSpec) -> Iterator[None]:
    """Inside, torch has one thread: from a process in which it has started more, others are not forked safely."""
    before = torch.get_num_threads()
    try:
        if address.device_type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def resolve_engine(wanted: PredictOptions) -> Engine:
    """What runs the parts; raises `UsageError` where it is not installed."""
    if wanted.engine == "local":
        return predict_locally
    from vitrail.prediction.ray import ray_engine

    return ray_engine(wanted.ray_address)


def run_parts(task: PartJob, pieces: Sequence[Part], wanted: PredictOptions, engine: Engine) -> PredictSummary:
    """Does what this share lacks, and sums up."""
    number, of = wanted.slice
    mine = [piece for piece in pieces if piece.number % of == number - 1]
    format, images = task.plan.format, sum(piece.images for piece in mine)
    missing = [piece for piece in mine if task.folder.read_manifest(piece, format) is None]
    began, now = time.monotonic(), sum(piece.images for piece in missing)
    with progress_bar("predicting", images) as progress:
        progress.start_from(images - now)
        try:
            if missing:
                engine(task, missing, wanted.workers, lambda images, done: progress.advance(images))
        except (KeyboardInterrupt, VitrailError) as error:
            left = sum(task.folder.read_manifest(piece, format) is None for piece in mine)
            kept = f"{len(mine) - left} of {len(mine)} parts are done and kept"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped; {kept}", "the same command with --resume goes on with them") from None
            log(f"{kept}; the same command with --resume goes on with them")
            raise
    seconds = round(time.monotonic() - began, 3)
    found = summarize(task, mine, len(pieces), resumed=len(mine) - len(missing), seconds=seconds, images_now=now)
    if found.parts_done != len(mine):
        raise VitrailError(f"{len(mine) - found.parts_done} parts are missing in {found.out}", "--resume does them")
    whole = found if of == 1 else summarize(task, pieces, len(pieces))
    if whole.parts_done < len(pieces):
        return found
    write_json(task.folder.path / "_summary.json", replace(whole, complete=True).to_json())
    task.folder.remove_temporary_files()
    return replace(found, complete=True)


def summarize(task: PartJob, pieces: Sequence[Part], parts: int, **timing: Any) -> PredictSummary:
    """What the notes of these parts say together."""
    images = parts_done = unreadable = 0
    labels: Counter[str] = Counter()
    examples: list[list[str]] = []
    for piece in pieces:
        if done := task.folder.read_manifest(piece, task.plan.format):
            images, parts_done, unreadable = images + done.rows, parts_done + 1, unreadable + done.unreadable
            labels.update(done.labels)
            examples += done.examples[: EXAMPLES - len(examples)]
    found = dict(labels.most_common())
    return PredictSummary(task.folder.path, images, unreadable, examples, found, parts, parts_done, **timing)


@contextmanager
def listing_bar() -> Iterator[Callable[[int], object]]:
    """Says how many images have been found so far."""
    with progress_bar("listing", None) as progress:
        yield lambda images: progress.update(images, None)
