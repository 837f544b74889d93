"""The fork server in a process of its own: frames, failed forks, its end, and the processes that it leaves behind."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vitrail.serving.fork_server import pack_frame, receive_frame

pytestmark = pytest.mark.newest

PREAMBLE = """
import asyncio, errno, json, os, signal, socket, sys
from vitrail.serving import fork_server as module
from vitrail.serving.messages import receive_message_async
from vitrail.serving.worker import WorkerConfig

DECODER = WorkerConfig(0, 1, task="decode")

async def start(server):
    '''Returns the pid of a new worker, and its connection.'''
    reader, writer = await asyncio.open_connection(sock=await server.spawn(DECODER))
    return (await receive_message_async(reader))[0]["pid"], reader, writer

def read_state(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return None
"""


def run_script(text: str) -> str:
    """Runs a script in a new process, since a fork needs a process with one thread; returns what it prints."""
    process = subprocess.run([sys.executable, "-c", PREAMBLE + text], capture_output=True, text=True, timeout=250)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_a_frame_may_arrive_in_pieces():
    """A stream socket does not keep the boundaries of messages."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    frame = pack_frame({"id": 7, "text": "x" * 300})

    def send_slowly() -> None:
        socket.send_fds(ours, [frame[:1]], [write_end])
        for i in range(1, len(frame)):
            ours.sendall(frame[i : i + 1])
        ours.sendall(pack_frame({"id": 8}) + pack_frame({"id": 9})[:3])
        ours.close()

    thread = threading.Thread(target=send_slowly)
    thread.start()
    document, descriptors = receive_frame(theirs) or ({}, [])
    assert document == {"id": 7, "text": "x" * 300}
    os.write(descriptors[0], b"hello")
    assert os.read(read_end, 5) == b"hello"
    assert receive_frame(theirs) == ({"id": 8}, [])
    assert receive_frame(theirs) is None  # cut short
    thread.join()
    theirs.close()
    for descriptor in (read_end, write_end, *descriptors):
        os.close(descriptor)


SCRIPT = """
async def wait_for_end(pid):
    while read_state(pid) is not None:
        await asyncio.sleep(0.01)

async def scenario():
    for expected in (errno.EAGAIN, errno.ENOMEM):
        try:
            await start(server)
        except OSError as error:
            print(error.errno == expected, error.strerror)
    pid, reader, writer = await start(server)
    print("the same fork server:", server.pid == first)
    os.kill(pid, signal.SIGKILL)
    await wait_for_end(pid)
    print("the killed worker is gone")
    canceled = asyncio.create_task(server.spawn(DECODER))
    await asyncio.sleep(0)
    canceled.cancel()
    worker, reader, kept_writer = await start(server)
    print("a canceled request leaves no answer behind:", read_state(worker) is not None)
    os.kill(first, signal.SIGKILL)
    pid, reader, writer = await start(server)
    print("a new fork server:", server.pid != first, read_state(first))
    print(server.pid, pid, worker)
    sys.stdout.flush()
    os._exit(0)

def fork_or_fail():
    if failures and os.getpid() != main:
        number = failures.pop()
        raise OSError(number, os.strerror(number))
    return fork()

del socket.SOCK_SEQPACKET  # macOS has none
fork, failures, main = os.fork, [errno.ENOMEM, errno.EAGAIN], os.getpid()
os.fork = fork_or_fail
server = module.start_fork_server([], [])
first = server.pid
asyncio.run(scenario())
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_the_fork_server_survives_failed_forks_and_leaves_no_process_behind():
    lines = run_script(SCRIPT).splitlines()
    assert lines[:-1] == [
        "True Resource temporarily unavailable",
        "True Cannot allocate memory",
        "the same fork server: True",
        "the killed worker is gone",
        "a canceled request leaves no answer behind: True",
        "a new fork server: True None",
    ]
    deadline = time.monotonic() + 120
    for pid in map(int, lines[-1].split()):  # they end with the server
        while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():  # empty: a zombie
            assert time.monotonic() < deadline
            time.sleep(0.01)
