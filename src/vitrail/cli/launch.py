"""`--processes N`: starts the same command N times on this machine, as torchrun does, and returns one answer.

The first process writes its answer, or its error, to a file. If a process dies without one, all are restarted from the
newest checkpoint.
"""

import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.cli.answer import ANSWER_FILE, Answer
from vitrail.console import log
from vitrail.errors import UsageError, VitrailError
from vitrail.interrupts import Interrupted

MAX_RESTARTS = 3


def is_launched() -> bool:
    """Returns whether `launch` started this process."""
    return ANSWER_FILE in os.environ


def launch(argv: list[str], processes: int) -> Answer:
    """Runs a command in several processes and returns its answer; raises the error that they end with."""
    from vitrail.machine import count_cores

    if processes < 1:
        raise UsageError(f"--processes is {processes}", "use 1 or more")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("torchrun has started this command already", "leave out --processes")
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its errors are reported here
    with tempfile.TemporaryDirectory(prefix="vitrail-") as temporary:
        answer = Path(temporary, "answer.json")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=MAX_RESTARTS,
            logs_specs=DefaultLogsSpecs(log_dir=temporary),
            signals_to_handle="SIGTERM,SIGINT",
        )
        threads = str(max(1, count_cores() // processes))
        with environment_variables(
            {ANSWER_FILE: str(answer), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        ):
            try:
                elastic_launch(config, sys.executable)("-m", "vitrail", *argv)
            except SignalException:
                if not answer.exists():
                    raise Interrupted("stopped") from None
            except ChildFailedError as error:
                rank, failure = error.get_first_failure()
                code = failure.exitcode
                cause = f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                raise VitrailError(
                    f"process {rank} died ({cause}) again after {MAX_RESTARTS} restarts",
                    "probably out of memory: use fewer --processes, and --resume",
                ) from None
        return parse_answer(json.loads(answer.read_text(encoding="utf-8")))


def parse_answer(document: dict[str, Any]) -> Answer:
    """Returns the answer of the started processes; raises their error."""
    if "error" in document:
        error = VitrailError(document["error"], document["hint"])
        error.exit_code = document["code"]
        raise error
    return Answer(document["document"], document["shown"], document["code"])


def answer_in_group(work: Callable[[], Answer]) -> Answer | None:
    """Runs `work`, which all processes of a group run; returns the answer in the process that prints it, else None.

    That is the first process. If `launch` started the group, its process prints, and the first one sends it the answer
    or the error.
    """
    from vitrail.training.distributed import PeerLost

    is_first = int(os.environ.get("RANK", 0)) == 0
    answer: Answer | VitrailError
    try:
        if is_launched():
            end_with_parent()
        answer = work()
    except PeerLost as error:  # no answer: the launcher restarts the group, or reports how it ended
        log(f"warning: {error}")
        raise SystemExit(error.exit_code) from None
    except VitrailError as error:  # all processes raise it, and one reports it
        if is_first and not is_launched():
            raise
        answer = error
    if is_launched():
        if is_first:
            return_answer(answer)
        return None
    if isinstance(answer, VitrailError):
        raise SystemExit(answer.exit_code)
    return answer if is_first else None


def return_answer(answer: Answer | VitrailError) -> None:
    """Writes the answer, or the error that all processes end with, for the process that started this one."""
    if isinstance(answer, Answer):
        document = {"document": answer.document, "shown": answer.shown, "code": answer.code}
    else:
        document = {"error": answer.sentence, "hint": answer.hint, "code": answer.exit_code}
    path = Path(os.environ[ANSWER_FILE])
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(document), encoding="utf-8")
    os.replace(temporary, path)


def end_with_parent() -> None:
    """Makes the kernel end this process if its parent is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextmanager
def environment_variables(changes: dict[str, str]) -> Iterator[None]:
    """Sets environment variables within the block."""
    previous = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
