"""`--processes N`: this very command N times on this machine, as torchrun would start it, with one answer.

Every process runs the same words; the first of them hands its answer, or its error, back through a file. A process that
dies without one takes the others with it, and all are started again from the newest checkpoint.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.cli.main import ANSWER, Answer
from vitrail.errors import UsageError, VitrailError
from vitrail.interrupts import Interrupted
from vitrail.machine import count_cores

RESTARTS = 3  # times that dead processes are started again


def launched() -> bool:
    """Whether this process was started here."""
    return ANSWER in os.environ


def launch(words: list[str], processes: int) -> Answer:
    """The answer of this command, given by so many processes; raises the error that they end with."""
    if processes < 1:
        raise UsageError(f"--processes is {processes}", "1 or more")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("torchrun has started this command already", "leave out --processes")
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it would tell is said here
    with tempfile.TemporaryDirectory(prefix="vitrail-") as aside:
        answer = Path(aside, "answer.json")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=RESTARTS,
            logs_specs=DefaultLogsSpecs(log_dir=aside),
            signals_to_handle="SIGTERM,SIGINT",
        )
        threads = str(max(1, count_cores() // processes))
        with environment({ANSWER: str(answer), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}):
            try:
                elastic_launch(config, sys.executable)("-m", "vitrail", *words)
            except SignalException:
                if not answer.exists():
                    raise Interrupted("stopped") from None
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                code = failure.exitcode
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                raise VitrailError(
                    f"process {rank} ended ({how}) once more after {RESTARTS} restarts",
                    "often the memory is short: take fewer --processes, then --resume",
                ) from None
        return answered(json.loads(answer.read_text(encoding="utf-8")))


def answered(document: dict[str, Any]) -> Answer:
    """The answer that was handed back; raises the error that was."""
    if "error" in document:
        error = VitrailError(document["error"], document["hint"])
        error.exit_code = document["code"]
        raise error
    return Answer(document["document"], document["shown"], document["code"])


def hand_back(answer: Answer | VitrailError) -> None:
    """Leaves the answer, or the error that all processes end with, to whoever started this process."""
    if isinstance(answer, Answer):
        document = {"document": answer.document, "shown": answer.shown, "code": answer.code}
    else:
        document = {"error": answer.sentence, "hint": answer.hint, "code": answer.exit_code}
    path = Path(os.environ[ANSWER])
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(document), encoding="utf-8")
    os.replace(aside, path)


def end_with_parent() -> None:
    """Asks the system to stop this process where the one that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Inside, these variables are set."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
