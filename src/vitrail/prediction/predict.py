"""`predict_all`: all images of some sources -> a folder of parts."""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from vitrail.classifier import Classifier
from vitrail.console import log, progress_bar
from vitrail.data.shards import is_shards
from vitrail.errors import UsageError, VitrailError
from vitrail.files import write_json
from vitrail.interrupts import Interrupted, interrupt_on_sigterm
from vitrail.prediction.arrow import import_pyarrow
from vitrail.prediction.engines import Engine, resolve_engine
from vitrail.prediction.folder import Plan, PredictionFolder
from vitrail.prediction.listing import Part, write_listing
from vitrail.prediction.model_spec import ModelSpec
from vitrail.prediction.options import EngineName, PredictOptions, PredictPrecision, TableFormat
from vitrail.prediction.part_job import PartJob
from vitrail.prediction.spreadsheets import check_csv_classes
from vitrail.prediction.summary import PredictSummary, summarize
from vitrail.tasks import refuse_task


def predict_all(
    model: str | Path,
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    format: TableFormat = "parquet",
    top: int = 1,
    embedding: bool = False,
    part_images: int | None = None,
    slice: tuple[int, int] = (1, 1),
    resume: bool = False,
    engine: EngineName = "local",
    ray_address: str | None = None,
    processes: int | None = None,
    workers: int | None = None,
    batch_size: int = 64,
    threads: int | None = None,
    device: str | None = None,
    torch_files: bool = False,
    precision: PredictPrecision = "fp32",
) -> PredictSummary:
    """Predicts every image of the sources into a folder of parts. Memory does not grow with the number of images.

    `sources` are folders, tar shards, tables (.csv, .tsv, .parquet) with a column of paths, and image files. An image
    that cannot be read gets a row with its error. After any kind of stop, `resume=True` continues. Raises `UsageError`
    if `out` holds other files, or predictions with other options.

    - `format`: file format of the parts; `part_images`: images per part; `top`: classes per image, most probable first
    - `embedding`: add the model's features of each image as a column
    - `slice`: (i, n) predicts the i-th of n equal shares of the parts
    - `engine`: this machine or a Ray cluster, at `ray_address` (default: start one)
    - `processes`, `threads`: model processes on a CPU, and threads of each; `workers`: data-loading workers for a GPU
    - `device`, `precision`, `torch_files`: how the model is loaded; `batch_size`: images per batch
    """
    settings = PredictOptions(
        format=format,
        top=top,
        embedding=embedding,
        part_images=part_images,
        slice=slice,
        resume=resume,
        engine=engine,
        ray_address=ray_address,
        processes=processes,
        workers=workers,
        batch_size=batch_size,
        threads=threads,
        device=device,
        torch_files=torch_files,
        precision=precision,
    )
    return predict_sources(model, sources, out, settings)


def predict_sources(
    model: str | Path, sources: str | Path | Sequence[str | Path], out: str | Path, settings: PredictOptions
) -> PredictSummary:
    """Does what `predict_all` says."""
    source_names = [str(source) for source in ([sources] if isinstance(sources, str | Path) else sources)]
    if not source_names:
        raise UsageError("there is nothing to predict", "name a folder")
    engine = resolve_engine(settings)
    spec = ModelSpec(str(model), settings.device, settings.threads, settings.torch_files, settings.precision)
    folder = PredictionFolder(Path(out))
    with single_thread_on_cpu(spec), interrupt_on_sigterm():
        settings.check_device(spec.device_type)
        plan = make_plan(spec, settings)
        folder.create()
        with folder.lock(settings.slice, settings.resume):
            job, parts = prepare_job(spec, source_names, folder, plan, settings)
            return run_slice(job, parts, settings, engine)


def make_plan(spec: ModelSpec, options: PredictOptions) -> Plan:
    """Returns the plan, still without images; raises `UsageError` for what this model or this format cannot do."""
    if options.format == "parquet":
        import_pyarrow()
    classifier = spec.load()
    if options.embedding and not isinstance(classifier, Classifier):
        raise UsageError("an exported file has no embedding, only logits", "name the classifier it was exported from")
    if not options.embedding:
        classifier.require_classes()
    if options.top != 1:
        refuse_task(classifier.task, "top")
    if options.format == "csv":
        check_csv_classes(classifier.classes)
    return Plan(
        model=spec.digest,
        images=0,
        fingerprint="",
        part_images=0,
        format=options.format,
        top=min(options.top, max(1, len(classifier.classes))),
        embedding=options.embedding,
        precision=options.precision,
    )


def prepare_job(
    spec: ModelSpec, sources: Sequence[str], folder: PredictionFolder, plan: Plan, options: PredictOptions
) -> tuple[PartJob, list[Part]]:
    """Lists the sources, claims the folder for the finished plan, and returns the job with all its parts."""
    with tempfile.TemporaryDirectory(dir=folder.metadata, prefix=".listing-") as temporary:
        with progress_bar("listing", None) as progress:
            listing = write_listing(
                sources, Path(temporary, "listing"), on_progress=lambda images: progress.update(images, None)
            )
        existing = folder.read_plan()  # a folder that is completed keeps the size of its parts, unless one is requested
        part_images = options.images_per_part(listing.images)
        if existing is not None and options.part_images is None:
            part_images = existing.part_images
        plan = replace(plan, images=listing.images, fingerprint=listing.fingerprint, part_images=part_images)
        folder.claim(plan)
        listing = folder.store_listing(listing)
    directory = working_directory([*sources, spec.model, folder.path])
    job = PartJob(spec, plan, folder, listing.file, options.batch_size, directory)
    return job, listing.parts(plan.part_images)


def working_directory(names: Iterable[str | Path]) -> str | None:
    """Returns the current folder if one of the names is a relative path to something there, else None."""
    relative = [name for name in map(str, names) if not os.path.isabs(name) and "://" not in name]
    paths = [path for name in relative for path in (name, name.rpartition("@")[2])]  # CARD@FILE
    return os.getcwd() if any(os.path.exists(path) or is_shards(path) for path in paths) else None


@contextmanager
def single_thread_on_cpu(spec: ModelSpec) -> Iterator[None]:
    """Limits torch to one thread: after it has started more, a fork of this process is not safe."""
    threads = torch.get_num_threads()
    try:
        if spec.device_type == "cpu":
            torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def run_slice(job: PartJob, parts: Sequence[Part], options: PredictOptions, engine: Engine) -> PredictSummary:
    """Predicts the missing parts of this slice and returns its summary; the last slice also writes `_summary.json`."""
    number, count = options.slice
    format, folder = job.plan.format, job.folder
    own_parts = [part for part in parts if part.number % count == number - 1]
    missing = [part for part in own_parts if folder.read_manifest(part, format) is None]
    start = time.monotonic()
    if missing:
        run_missing_parts(job, own_parts, missing, options, engine)
    summary = summarize(
        folder,
        format,
        own_parts,
        len(parts),
        resumed=len(own_parts) - len(missing),
        seconds=round(time.monotonic() - start, 3),
        images_now=sum(part.images for part in missing),
    )
    if summary.parts_done != len(own_parts):
        raise VitrailError(
            f"{len(own_parts) - summary.parts_done} parts are missing in {summary.out}", "predict them with --resume"
        )
    total = summary if count == 1 else summarize(folder, format, parts, len(parts))
    if total.parts_done < len(parts):
        return summary
    write_json(folder.path / "_summary.json", replace(total, complete=True).to_json())
    folder.remove_temporary_files()
    return replace(summary, complete=True)


def run_missing_parts(
    job: PartJob, own_parts: Sequence[Part], missing: Sequence[Part], options: PredictOptions, engine: Engine
) -> None:
    """Runs the engine under a progress bar; after a failure or Ctrl-C, reports how much is done."""
    images, images_missing = (sum(part.images for part in some) for some in (own_parts, missing))
    with progress_bar("predicting", images) as progress:
        progress.start_from(images - images_missing)
        try:
            engine(job, missing, options, progress.advance)
        except (KeyboardInterrupt, VitrailError) as error:
            done = sum(job.folder.read_manifest(part, job.plan.format) is not None for part in own_parts)
            state = f"{done} of {len(own_parts)} parts are done"
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped; {state}", "run the same command with --resume to continue") from None
            log(f"{state}; run the same command with --resume to continue")
            raise
