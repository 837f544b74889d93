"""The fork server: a process that has loaded all models and forks a worker process on request.

Importing torch takes seconds, a fork takes milliseconds: a worker that dies is replaced at once, and all workers share
one copy of the weights. A fork is safe only in a process with a single thread. Therefore the fork server is forked
before the server starts a thread, it runs no model, and it does not initialize a GPU.

Server and fork server talk over a stream socket, which every Unix has: a frame is a length and a JSON document, and a
request also carries the descriptor of a socket for the new worker.
"""

import array
import asyncio
import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vitrail import console
from vitrail.classifier import Classifier
from vitrail.loading import is_program, load
from vitrail.parts import plugins_for_processes
from vitrail.plugins import load_plugins
from vitrail.serving.decode_worker import run_decoder
from vitrail.serving.logs import warn
from vitrail.serving.worker import WorkerConfig, run_worker

LENGTH = struct.Struct("<I")  # number of bytes of the document after it
MAX_DOCUMENT_BYTES = 1 << 16
Frame = tuple[dict[str, Any], list[int]]  # the document of a frame and its descriptors
END_S = 3.0  # time in which the fork server ends its workers and itself; after it, it is killed


@dataclass(frozen=True)
class ModelSource:
    """The argument and options from which a model is loaded."""

    model: str
    torch_files: bool = False

    def load(self) -> Classifier | None:
        """Returns the classifier; None for an exported file, which each worker loads itself."""
        return None if self.is_program else load(self.model, torch_files=self.torch_files)

    @property
    def is_program(self) -> bool:
        return is_program(self.model)


class ForkServer:
    """The server's connection to the fork server process; created by `start_fork_server`."""

    def __init__(self, sources: Sequence[ModelSource], control: socket.socket, pid: int):
        self.sources = sources
        self.control = control
        self.pid = pid
        self.process: subprocess.Popen[bytes] | None = None  # a fork server that replaced the first one
        self.request_count = 0
        self.lock = asyncio.Lock()

    async def spawn(self, config: WorkerConfig) -> socket.socket:
        """Starts a worker and returns a socket to it; the worker sends a hello message after its warm-up.

        Raises `OSError` if the system cannot create another process now. If the fork server itself has died, a new one
        is started first, which imports and loads everything again.
        """
        async with self.lock:
            ours, theirs = socket.socketpair()
            try:
                with theirs:  # open until the answer: some systems lose a descriptor that is closed on its way
                    try:
                        answer = await self._request(config, theirs)
                    except OSError:
                        warn("fork_server_lost", pid=self.pid)
                        await self.restart()
                        answer = await self._request(config, theirs)
                if "errno" in answer:
                    raise OSError(answer["errno"], answer["error"])
            except BaseException:
                ours.close()
                raise
            ours.setblocking(False)
            return ours

    async def _request(self, config: WorkerConfig, descriptor: socket.socket) -> dict[str, Any]:
        """Sends a request and returns its answer; skips answers to requests that were canceled."""
        loop = asyncio.get_running_loop()
        self.request_count += 1
        frame = pack_frame({"id": self.request_count, "config": asdict(config)})
        sent = socket.send_fds(self.control, [frame], [descriptor.fileno()])
        await loop.sock_sendall(self.control, frame[sent:])
        while True:
            (length,) = LENGTH.unpack(await self._receive(LENGTH.size))
            answer: dict[str, Any] = json.loads(await self._receive(length))
            if answer["id"] == self.request_count:
                return answer

    async def _receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await asyncio.get_running_loop().sock_recv(self.control, size - len(data))
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the fork server ended")
            data += part
        return data

    async def restart(self) -> None:
        """Starts a fork server as a new Python process: the server has threads now, so it must not fork."""
        self.control.close()
        await asyncio.to_thread(self._kill)
        self.control, theirs = socket.socketpair()
        self.control.setblocking(False)
        sources = json.dumps([asdict(source) for source in self.sources])
        quiet = ["--quiet"] if console.quiet else []
        plugins = json.dumps(plugins_for_processes())
        command = [sys.executable, "-m", "vitrail.serving.fork_server", str(theirs.fileno()), sources, plugins, *quiet]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.pid = self.process.pid

    def close(self) -> None:
        """Ends the fork server, which first ends all workers, also those that hang or compute; waits for its end."""
        self.control.close()
        deadline = time.monotonic() + END_S
        while not self._has_ended() and time.monotonic() < deadline:
            time.sleep(0.002)
        self._kill()

    def _has_ended(self) -> bool:
        if self.process is not None:
            return self.process.poll() is not None
        try:
            return not self.pid or os.waitpid(self.pid, os.WNOHANG)[0] == self.pid
        except ChildProcessError:
            return True

    def _kill(self) -> None:
        """Ends the fork server at once; its workers run on until their own connections are closed."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        elif self.pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
        self.process, self.pid = None, 0


def pack_frame(document: dict[str, Any]) -> bytes:
    """Returns a document with its length before it."""
    text = json.dumps(document).encode()
    return LENGTH.pack(len(text)) + text


def receive_frame(control: socket.socket) -> Frame | None:
    """Blocks until a frame arrives; returns its document and descriptors, or None at the end of the connection."""
    data, descriptors, size = b"", array.array("i"), LENGTH.size
    while len(data) < size:
        part, control_messages, _, _ = control.recvmsg(size - len(data), socket.CMSG_SPACE(descriptors.itemsize))
        for level, kind, values in control_messages:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(values[: len(values) - len(values) % descriptors.itemsize])
        if not part:
            return None
        data += part
        if len(data) == LENGTH.size == size:
            size += min(LENGTH.unpack(data)[0], MAX_DOCUMENT_BYTES)
    return json.loads(data[LENGTH.size :]), descriptors.tolist()


def start_fork_server(
    sources: Sequence[ModelSource],
    classifiers: Sequence[Classifier | None],
    sockets_to_close: Sequence[socket.socket] = (),
) -> ForkServer:
    """Forks the fork server from this process, which must not have started a thread or run a model.

    The new process closes `sockets_to_close`, which only the server uses.
    """
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) == 0:
        for each in (ours, *sockets_to_close):
            each.close()
        _serve_forever(theirs, classifiers)
    theirs.close()
    ours.setblocking(False)
    return ForkServer(sources, ours, pid)


def _serve_forever(control: socket.socket, classifiers: Sequence[Classifier | None]) -> None:
    """Forks a worker for each request until the server closes the connection or dies; never returns.

    Then it kills all workers: one that hangs or computes would not notice the end of its own connection, and would keep
    the terminal or the pipe of the server's output open.
    """
    # Ctrl-C and signals to the process group are handled by the server, which still has to answer accepted requests
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    workers: set[int] = set()  # not waited for yet, so no other process can have these numbers
    try:
        with child_signals() as ended_children, selectors.DefaultSelector() as selector:
            selector.register(control, selectors.EVENT_READ)
            selector.register(ended_children, selectors.EVENT_READ)
            while True:
                ready = {key.fileobj for key, _ in selector.select()}
                if ended_children in ready:
                    ended_children.recv(4096)
                    workers -= {pid for pid in workers if os.waitpid(pid, os.WNOHANG)[0]}
                if control in ready:
                    if (message := receive_frame(control)) is None:
                        break
                    _fork_worker(control, message, classifiers, workers)
    except ConnectionError:
        pass  # the server has died
    except BaseException:
        traceback.print_exc()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _fork_worker(
    control: socket.socket, message: Frame, classifiers: Sequence[Classifier | None], workers: set[int]
) -> None:
    """Forks the worker of a request, adds its number to `workers` and answers; never returns in the worker."""
    request, descriptors = message
    answer: dict[str, Any] = {"id": request["id"]}
    try:
        if not descriptors:  # too many files are open: the system has dropped the descriptor
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if (pid := os.fork()) == 0:
            signal.set_wakeup_fd(-1)
            control.close()
            config = WorkerConfig(**request["config"])
            _become_worker(socket.socket(fileno=descriptors[0]), config, classifiers)
        workers.add(pid)
    except OSError as error:  # no process now; the pool tries again later
        answer |= {"errno": error.errno, "error": error.strerror}
    for descriptor in descriptors:
        os.close(descriptor)
    control.sendall(pack_frame(answer))


@contextlib.contextmanager
def child_signals() -> Iterator[socket.socket]:
    """Yields a socket that can be read when a child process has ended."""
    receiver, sender = socket.socketpair()
    with receiver, sender:
        receiver.setblocking(False)
        sender.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # else Python writes nothing to the socket
        signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
        yield receiver


def _become_worker(connection: socket.socket, config: WorkerConfig, classifiers: Sequence[Classifier | None]) -> None:
    """Runs a worker until the server closes the connection; never returns to the forked parent's code."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if config.task == "decode":
            run_decoder(connection)
        else:
            run_worker(connection, classifiers[config.model_index], config)
    except ConnectionError:
        os._exit(0)  # the server has closed the connection while a batch was computed
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def main(arguments: Sequence[str]) -> None:
    """Runs a fork server that was started by `ForkServer.restart`: the socket's number; models and plugins as JSON."""
    torch.set_num_threads(1)
    console.quiet = "--quiet" in arguments
    load_plugins(json.loads(arguments[2]))
    sources = [ModelSource(**source) for source in json.loads(arguments[1])]
    classifiers = [source.load() for source in sources]
    _serve_forever(socket.socket(fileno=int(arguments[0])), classifiers)


if __name__ == "__main__":
    main(sys.argv[1:])
