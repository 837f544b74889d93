"""Runs Python programs as processes of their own that have imported torch and vitrail before they start.

A process that imports torch needs two seconds of CPU time before it does anything. Tests of many commands start them
here: one process imports the modules once, and forks for each command. A command has its own process, arguments,
folder, environment, files and exit code, and gets the signals that are sent to the program that a shell started for it.

    python prepared_python.py serve SOCKET       forks for each command that arrives
    python prepared_python.py SOCKET ARGS...     runs `vitrail ARGS...` (or Python code after -c) and ends as it does
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FDS = 3  # stdin, stdout and stderr of the command


def run_command(path: str, arguments: list[str]) -> int:
    """Sends a command with this process's files, folder and environment; returns its exit code."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        request = json.dumps({"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ)}).encode()
        socket.send_fds(connection, [len(request).to_bytes(4)], list(range(FDS)))
        connection.sendall(request)
        pid = int.from_bytes(receive(connection, 4))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda which, _: os.kill(pid, which))
        return int.from_bytes(receive(connection, 4), signed=True)


def receive(connection: socket.socket, count: int) -> bytes:
    """Returns exactly `count` bytes; raises `ConnectionError` if the other end is closed before."""
    data = b""
    while len(data) < count:
        data += (chunk := connection.recv(count - len(data)))
        if not chunk:
            raise ConnectionError("the connection is closed")
    return data


def serve(path: str) -> None:
    """Forks for each command until this process is ended."""
    import matplotlib.figure  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import vitrail.cli.main
    import vitrail.explanation.api
    import vitrail.report.page
    import vitrail.runs.train  # noqa: F401

    signal.signal(signal.SIGCHLD, reap)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                answer(connection)
                os._exit(0)
            connection.close()


def reap(*_: object) -> None:
    """Collects the processes that have ended."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(connection: socket.socket) -> None:
    """Runs the command of a connection in a process, and sends its number and then its exit code."""
    size, fds, _, _ = socket.recv_fds(connection, 4, FDS)
    request = json.loads(receive(connection, int.from_bytes(size)))
    pid = os.fork()
    if pid == 0:
        connection.close()
        os._exit(run_in_fork(request, fds))
    for fd in fds:
        os.close(fd)
    connection.sendall(pid.to_bytes(4))
    _, status = os.waitpid(pid, 0)
    connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))


def run_in_fork(request: dict[str, Any], fds: list[int]) -> int:
    """Becomes the command: its files, folder, environment and arguments; returns its exit code."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    arguments = request["arguments"]
    try:
        if arguments[:1] == ["-c"]:
            sys.argv = ["-c", *arguments[2:]]
            sys.path.insert(0, "")
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
            code: Any = 0
        else:
            from vitrail.cli.main import main

            sys.argv = ["vitrail", *arguments]
            code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


@contextmanager
def start_server(folder: Path) -> Iterator[list[str]]:
    """Starts the process that forks; yields the command to which the arguments of `vitrail` are appended."""
    import subprocess

    path, script = str(folder / "commands"), str(Path(__file__).resolve())
    with subprocess.Popen([sys.executable, script, "serve", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield [sys.executable, "-S", "-E", script, path]
        finally:
            process.kill()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        code = run_command(sys.argv[1], sys.argv[2:])
        if code < 0:  # ended by a signal
            signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        sys.exit(code)
