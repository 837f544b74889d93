"""The same training by Ray Train: Ray places the processes, joins them and starts them again when one is lost.

Each of them calls `vitrail.train` in the process group that Ray has made. What is kept is the run folder and nothing of
Ray's: after a loss the processes that are left, or those that come, go on from its newest checkpoint, as `--resume`
does. Every node must see the data and the run folder under the same path.
"""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.console import log
from vitrail.data.open import absolute_address
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.files import absolute_if_exists, read_json_object
from vitrail.loading import load
from vitrail.machine import count_cores
from vitrail.ray_cluster import connect_ray
from vitrail.runs.finish import Run
from vitrail.runs.folder import RunFolder, candidate_folders, find_run, refuse_taken
from vitrail.runs.train import train
from vitrail.training.distributed import PeerLost
from vitrail.training.recipe import RECIPE_FIELDS
from vitrail.training.recipes import DEFAULT_RECIPE, DEFAULT_TRANSFER_RECIPE, find_recipe

LOOK = 1.0  # seconds between two looks at what the processes have recorded


def train_on_ray(
    data: str | Path,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    processes: int | tuple[int, int] = 2,
    restarts: int = 3,
    ray_address: str | None = None,
    **options: Any,
) -> Run:
    """Trains as `vitrail.train` does, with its options, by so many processes of a Ray cluster.

    `processes` may be (least, most): training then goes on with as many as there is room for. `restarts` is how often
    they are started again after a loss. Raises `VitrailError` as `vitrail.train` does, and where the restarts are used
    up.
    """
    least, most = processes if isinstance(processes, tuple) else (processes, processes)
    if not 1 <= least <= most:
        raise UsageError(f"processes from {least} to {most} are none", "ask for at least 1")
    if restarts < 0:
        raise UsageError(f"restarts is {restarts}; it must be at least 0")
    folder = begun(data, out, resume, options)
    if isinstance(options.get("model"), str | Path):  # the processes run in other folders
        options["model"] = absolute_if_exists(options["model"])
    if options.get("recipe") is not None:
        options["recipe"] = find_recipe(options["recipe"])
    with connect_ray(ray_address, max(count_cores(), most)) as ray, told(folder):
        answer = fitted(ray, folder.path, (least, most), restarts, {"data": absolute_address(data), "options": options})
    if "sentence" in answer:
        raise (UsageError if answer["usage"] else VitrailError)(answer["sentence"], answer["hint"])
    return Run(
        folder.path,
        load(folder.path, device=options.get("device") or "cpu"),
        read_json_object(folder.path / "result.json"),
    )


def begun(data: str | Path, out: str | Path | None, resume: bool, options: dict[str, Any]) -> RunFolder:
    """The run's folder, in full; raises `UsageError` where the processes would only find out later."""
    if resume:
        folder = find_run(data, out)
        folder.load_recipe()
    else:
        recipe = options.get("recipe") or (DEFAULT_RECIPE if options.get("model") is None else DEFAULT_TRANSFER_RECIPE)
        find_recipe(recipe, **{name: options[name] for name in (*RECIPE_FIELDS, "size") if name in options})
        refuse_taken(out)
        free = (path for path in candidate_folders(data) if not path.exists())
        folder = RunFolder(Path(out) if out is not None else next(free))
    return RunFolder(folder.path.resolve())


def fitted(ray: Any, out: Path, processes: tuple[int, int], restarts: int, asked: dict[str, Any]) -> dict[str, Any]:
    """What the first process answers, once Ray Train has brought all of them through."""
    try:
        from ray import train as ray_train
        from ray.train import torch as torch_trainer
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", "pip install 'vitrail[ray]'") from None
    engine: Any = ray_train
    least, most = processes
    gpu = ray.cluster_resources().get("GPU", 0) >= 1
    beside = f".ray-{out.name}"  # what Ray Train wants to write, which nobody needs afterwards
    trainer = torch_trainer.TorchTrainer(
        join,  # type: ignore[arg-type]
        train_loop_config={**asked, "out": str(out)},
        scaling_config=engine.ScalingConfig(num_workers=most if least == most else (least, most), use_gpu=gpu),
        run_config=engine.RunConfig(
            name=beside, storage_path=str(out.parent), failure_config=engine.FailureConfig(max_failures=restarts)
        ),
    )
    try:
        finished: Any = trainer.fit()
        return dict(finished.return_value or {})
    except engine.TrainingFailedError as error:
        raise VitrailError(
            f"the processes were lost more than {restarts} times: {first_line(error)}", "go on with --resume"
        ) from None
    finally:
        shutil.rmtree(out.parent / beside, ignore_errors=True)


def join(asked: dict[str, Any]) -> dict[str, Any]:
    """What every process does. What starting again would not help is answered; a loss is raised, for Ray to repair."""
    out = Path(asked["out"])
    try:
        run = train(asked["data"], out=out, resume=(out / "recipe.json").exists(), **asked["options"])
    except PeerLost:
        raise
    except VitrailError as error:
        return {"sentence": error.sentence, "hint": error.hint, "usage": isinstance(error, UsageError)}
    return {"run": str(run.folder)}


@contextmanager
def told(folder: RunFolder) -> Iterator[None]:
    """Inside, every epoch that the processes record is said here."""
    over = threading.Event()
    known = len(folder.load_metrics())

    def tell() -> None:
        nonlocal known
        while not over.wait(LOOK):
            for row in folder.load_metrics()[known:]:
                known += 1
                scores = "  ".join(
                    f"{name.replace('_', ' ')} {row[name]:.3f}" for name in row if name.endswith(("_loss", "_accuracy"))
                )
                log(f"epoch {row.get('epoch', '')}  {scores}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
