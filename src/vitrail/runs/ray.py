"""Training on a Ray cluster: Ray Train places the processes, connects them and restarts them after a loss.

Each process calls `vitrail.train` in Ray's process group. The run folder is the only state: after a loss, the remaining
or new processes resume its newest checkpoint. Every node must see the data and the run folder under the same paths.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from vitrail.console import log
from vitrail.data.open import absolute_address
from vitrail.data.source import name_of_data
from vitrail.documents import RunResult
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.files import absolute_if_exists, read_json_object
from vitrail.installation import install_hint
from vitrail.loading import load_torch
from vitrail.machine import count_cores
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins
from vitrail.ray_cluster import connect_ray
from vitrail.runs.claim import RUNS
from vitrail.runs.folder import RunFolder
from vitrail.runs.names import numbered_folders
from vitrail.runs.resolve import find_run_to_resume, request_recipe
from vitrail.runs.result import ResultCallback, Run, log_result, make_run
from vitrail.runs.train import train
from vitrail.training.distributed import PeerLost
from vitrail.training.recipe import RECIPE_FIELDS
from vitrail.training.recipes import find_recipe

POLL_INTERVAL_S = 1.0  # between two reads of the metrics that the processes write


def train_on_ray(
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    processes: int | tuple[int, int] = 2,
    restarts: int = 3,
    ray_address: str | None = None,
    on_result: ResultCallback = log_result,
    **options: Any,
) -> Run:
    """Trains as `vitrail.train` does, with its options, in several processes of a Ray cluster.

    `processes` is their number, or (minimum, maximum): Ray then uses what the cluster has room for. `restarts`
    is the number of losses that are repaired; one more raises `VitrailError`. Other errors: those of `vitrail.train`.
    """
    min_processes, max_processes = processes if isinstance(processes, tuple) else (processes, processes)
    if not 1 <= min_processes <= max_processes:
        raise UsageError(f"no number is from {min_processes} to {max_processes} processes", "ask for at least 1")
    if restarts < 0:
        raise UsageError(f"restarts is {restarts}; it must be at least 0")
    folder = select_folder(data, out, resume, options)
    for name in ("model", "teacher", "unlabeled", "baseline"):  # the processes run in other folders
        if isinstance(options.get(name), str | Path):
            options[name] = absolute_if_exists(options[name])
    if options.get("recipe") is not None:
        options["recipe"] = find_recipe(options["recipe"])
    job = {
        "data": absolute_address(data),
        "out": str(folder.path),
        "options": options,
        "plugins": plugins_for_processes(),
    }
    with connect_ray(ray_address, max(count_cores(), max_processes)) as ray, log_progress(folder, on_result):
        answer = run_ray_train(ray, folder.path, (min_processes, max_processes), restarts, job)
    if "error" in answer:
        raise (UsageError if answer["is_usage_error"] else VitrailError)(answer["error"], answer["hint"])
    classifier = load_torch(folder.path, device=options.get("device") or "cpu")
    return make_run(folder.path, classifier, cast(RunResult, read_json_object(folder.result_file)))


def select_folder(data: str | Path, out: str | Path | None, resume: bool, options: dict[str, Any]) -> RunFolder:
    """Returns the absolute folder of the run; raises `UsageError` for wrong options before any process is started."""
    name = name_of_data(data)
    folder = find_run_to_resume(name, out, resume)
    if folder is not None:
        folder.load_recipe()
    else:
        changes = {field: options[field] for field in (*RECIPE_FIELDS, "size") if field in options}
        request_recipe(options.get("recipe"), options.get("model"), changes)
        free = (path for path in numbered_folders(RUNS, name) if not path.exists())
        folder = RunFolder(Path(out) if out is not None else next(free))
    return RunFolder(folder.path.resolve())


def run_ray_train(
    ray: Any, out: Path, processes: tuple[int, int], restarts: int, job: dict[str, Any]
) -> dict[str, Any]:
    """Runs `train_worker` in the processes; returns the answer of the first one."""
    try:
        from ray import train as ray_train
        from ray.train import torch as torch_trainer
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", install_hint("ray")) from None
    engine: Any = ray_train
    min_processes, max_processes = processes
    workers = max_processes if min_processes == max_processes else (min_processes, max_processes)
    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    ray_folder = f".ray-{out.name}"  # Ray Train's own files, deleted at the end
    trainer = torch_trainer.TorchTrainer(
        train_worker,  # type: ignore[arg-type]
        train_loop_config=job,
        scaling_config=engine.ScalingConfig(num_workers=workers, use_gpu=has_gpu),
        run_config=engine.RunConfig(
            name=ray_folder, storage_path=str(out.parent), failure_config=engine.FailureConfig(max_failures=restarts)
        ),
    )
    try:
        result: Any = trainer.fit()
        return dict(result.return_value or {})
    except engine.TrainingFailedError as error:
        raise VitrailError(
            f"the processes were lost more than {restarts} times: {first_line(error)}", "continue with --resume"
        ) from None
    finally:
        shutil.rmtree(out.parent / ray_folder, ignore_errors=True)


def train_worker(job: dict[str, Any]) -> dict[str, Any]:
    """Trains in one process. Errors that a restart cannot repair are returned; a loss is raised, for Ray to repair."""
    folder = RunFolder(Path(job["out"]))
    try:
        load_plugins(job["plugins"])
        run = train(job["data"], out=folder.path, resume=folder.config_file.exists(), **job["options"])
    except PeerLost:
        raise
    except VitrailError as error:
        return {"error": error.sentence, "hint": error.hint, "is_usage_error": isinstance(error, UsageError)}
    return {"run": str(run.folder)}


@contextmanager
def log_progress(folder: RunFolder, on_result: ResultCallback) -> Iterator[None]:
    """Inside, prints a line for every epoch that the processes record, and calls `on_result` once they have scores."""
    is_over = threading.Event()
    printed = len(folder.load_metrics())
    has_result = False

    def watch() -> None:
        nonlocal printed, has_result
        while not (ends := is_over.wait(POLL_INTERVAL_S)) or not has_result:
            for row in folder.load_metrics()[printed:]:
                printed += 1
                scores = "  ".join(
                    f"{name.replace('_', ' ')} {row[name]:.3f}" for name in row if name.endswith(("_loss", "_accuracy"))
                )
                log(f"epoch {row.get('epoch', '')}  {scores}")
            if not has_result and folder.is_finished():
                has_result = True
                on_result(folder.path, cast(RunResult, read_json_object(folder.result_file)))
            if ends:
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        watcher.join()
