"""The fork server: a process that has loaded all models and forks a worker process on request.

Importing torch takes seconds, a fork takes milliseconds: a worker that dies is replaced at once, and all workers share
one copy of the weights. A fork is safe only in a process with a single thread. Therefore the fork server is forked
before the server starts a thread, it runs no model, and it does not initialize a GPU.
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

MAX_REQUEST_BYTES = 1 << 16  # size of a request for a worker


@dataclass(frozen=True)
class ModelSource:
    """The argument and options from which a model is loaded."""

    model: str
    torch_files: bool = False

    def load(self) -> Classifier | None:
        """Returns the classifier; None for an ONNX file, which each worker loads itself."""
        return None if self.is_onnx else load(self.model, torch_files=self.torch_files)

    @property
    def is_onnx(self) -> bool:
        return is_onnx(self.model)


class ForkServer:
    """The server's connection to the fork server process; created by `start_fork_server`."""

    def __init__(self, sources: Sequence[ModelSource], control: socket.socket, pid: int):
        self.sources = sources
        self.control = control
        self.pid = pid

    def spawn(self, config: WorkerConfig) -> socket.socket:
        """Starts a worker and returns a socket to it; the worker sends a hello message after its warm-up."""
        ours, theirs = socket.socketpair()
        message = json.dumps(asdict(config)).encode()
        with theirs:
            try:
                socket.send_fds(self.control, [message], [theirs.fileno()])
            except OSError:  # the fork server died: start a new one, which imports and loads everything again
                log("fork_server_lost", pid=self.pid)
                self.restart()
                socket.send_fds(self.control, [message], [theirs.fileno()])
        ours.setblocking(False)
        return ours

    def restart(self) -> None:
        """Starts a fork server as a new Python process: the server has threads now, so it must not fork."""
        self.control.close()
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sources = json.dumps([asdict(source) for source in self.sources])
        command = [sys.executable, "-m", "vitrail.serving.fork_server", str(theirs.fileno()), sources]
        with theirs:
            self.pid = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL).pid

    def close(self) -> None:
        """Ends the fork server; running workers end when their own sockets are closed."""
        self.control.close()


def start_fork_server(
    sources: Sequence[ModelSource],
    classifiers: Sequence[Classifier | None],
    sockets_to_close: Sequence[socket.socket] = (),
) -> ForkServer:
    """Forks the fork server from this process, which must not have started a thread or run a model.

    The new process closes `sockets_to_close`, which only the server uses.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps the boundaries of messages
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        for each in (ours, *sockets_to_close):
            each.close()
        _serve_forever(theirs, classifiers)
    theirs.close()
    return ForkServer(sources, ours, pid)


def _serve_forever(control: socket.socket, classifiers: Sequence[Classifier | None]) -> None:
    """Forks a worker for each request until the server closes the connection; never returns."""
    # Ctrl-C and signals to the process group are handled by the server, which still has to answer accepted requests
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no wait() for workers; their sockets close when they end
    with contextlib.suppress(OSError):
        while True:
            message, descriptors, _, _ = socket.recv_fds(control, MAX_REQUEST_BYTES, 1)
            if not message:
                break
            if os.fork() == 0:
                control.close()
                _become_worker(socket.socket(fileno=descriptors[0]), WorkerConfig(**json.loads(message)), classifiers)
            os.close(descriptors[0])
    os._exit(0)


def _become_worker(connection: socket.socket, config: WorkerConfig, classifiers: Sequence[Classifier | None]) -> None:
    """Runs a worker until the server closes the connection; never returns to the forked parent's code."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        run_worker(connection, classifiers[config.model_index], config)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Runs a fork server that was started by `ForkServer.restart`: the socket's number, and the models as JSON."""
    torch.set_num_threads(1)
    sources = [ModelSource(**source) for source in json.loads(arguments[1])]
    classifiers = [source.load() for source in sources]
    _serve_forever(socket.socket(fileno=int(arguments[0])), classifiers)


if __name__ == "__main__":
    main(sys.argv[1:])
