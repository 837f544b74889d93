"""Where worker processes come from: a process that has loaded everything, runs nothing, and forks at once.

Importing torch takes seconds, a fork takes milliseconds: a worker that is killed is replaced before its clients notice,
and all workers share one copy of the weights. A fork is sound only while its process has a single thread, so the
nursery is split off before the server starts any, runs no model, and touches no GPU.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from vitrail.classifier import Classifier
from vitrail.loading import is_onnx, load
from vitrail.serving.logs import log
from vitrail.serving.worker import WorkerConfig, run_worker

MAX_REQUEST_BYTES = 1 << 16  # bytes of a request for a worker


@dataclass(frozen=True)
class ModelSource:
    """What a model is loaded from."""

    model: str
    torch_files: bool = False

    def load(self) -> Classifier | None:
        """The classifier; None for an ONNX file, which only the processes that run it load."""
        return None if self.is_graph else load(self.model, torch_files=self.torch_files)

    @property
    def is_graph(self) -> bool:
        """Whether this is an ONNX file."""
        return is_onnx(self.model)


class ForkServer:
    """The server's end: `spawn` gives a socket to a new worker. Split off by `open_nursery`."""

    def __init__(self, sources: Sequence[ModelSource], control: socket.socket, pid: int):
        self.sources = sources
        self.control = control
        self.pid = pid

    def spawn(self, config: WorkerConfig) -> socket.socket:
        """A socket to a new process with this duty, which says hello once it is warm."""
        ours, theirs = socket.socketpair()
        message = json.dumps(asdict(config)).encode()
        with theirs:
            try:
                socket.send_fds(self.control, [message], [theirs.fileno()])
            except OSError:  # the nursery itself was killed: start another, which has to import and load everything
                log("nursery_lost", pid=self.pid)
                self.reopen()
                socket.send_fds(self.control, [message], [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def reopen(self) -> None:
        """A nursery from nothing: this process has threads by now, so it cannot be forked."""
        self.control.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sources = json.dumps([asdict(source) for source in self.sources])
        command = [sys.executable, "-m", "vitrail.serving.fork_server", str(theirs.fileno()), sources]
        with theirs:
            self.pid = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL).pid

    def close(self) -> None:
        """No more workers; those that are there end with their sockets."""
        self.control.close()


def start_fork_server(
    sources: Sequence[ModelSource], classifiers: Sequence[Classifier | None], close: Sequence[socket.socket] = ()
) -> ForkServer:
    """Splits the nursery off this process, which must not have started a thread nor run a model.

    Sockets in `close` are the server's alone.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # a message is a message
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        for each in (ours, *close):
            each.close()
        _serve_forever(theirs, classifiers)
    theirs.close()
    return ForkServer(sources, ours, pid)


def _serve_forever(control: socket.socket, classifiers: Sequence[Classifier | None]) -> None:
    """Forks a worker for each request, until the server has gone; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C and a stop of the whole group are the server's to handle:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what it has accepted must still be answered
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers; their sockets say when they end
    with contextlib.suppress(OSError):
        while True:
            message, handles, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1)
            if not message:
                break
            if os.fork() == 0:
                control.close()
                _become_worker(socket.socket(fileno=handles[0]), WorkerConfig(**json.loads(message)), classifiers)
            os.close(handles[0])
    os._exit(0)


def _become_worker(connection: socket.socket, duty: WorkerConfig, classifiers: Sequence[Classifier | None]) -> None:
    """Works until the server has gone; never returns into what this process is a copy of."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run_worker(connection, classifiers[duty.model], duty)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(words: Sequence[str]) -> None:
    """A nursery of its own: the number of its socket, and the models as JSON."""
    torch.set_num_threads(1)
    sources = [ModelSource(**source) for source in json.loads(words[1])]
    classifiers = [source.load() for source in sources]
    _serve_forever(socket.socket(fileno=int(words[0])), classifiers)


if __name__ == "__main__":
    main(sys.argv[1:])
