"""No process outlives the server, and the server stops at a signal, whatever it is doing when the signal comes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.newest,
    pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc"),
]
END_S = 60.0

SIGNALS = """
import asyncio, os, signal, sys, uvicorn
from vitrail.serving import logs
from vitrail.serving.metrics import Metrics
from vitrail.serving.middleware import AccessMiddleware
from vitrail.serving.server import Server

async def app(scope, receive, send):
    raise NotImplementedError

def send_signal():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(10):  # the handler runs in this loop
        pass

def while_a_log_line_is_queued():
    with logs._writer.lines.mutex:
        send_signal()

def while_timers_are_sorted():
    loop = asyncio.get_running_loop()
    timers = [loop.call_later(600, print) for _ in range(200)]
    original = asyncio.base_events.heapq.heapify
    def heapify(timers):
        asyncio.base_events.heapq.heapify = original
        send_signal()
        original(timers)
    asyncio.base_events.heapq.heapify = heapify
    for timer in timers:
        timer.cancel()

async def main():
    logs.start_writer()
    access = AccessMiddleware(app, Metrics(), None, set())
    server = Server(uvicorn.Config(app, log_config=None), access, 0.0)
    with server.capture_signals():
        globals()[sys.argv[1]]()
        for _ in range(500):
            await asyncio.sleep(0.01)
            if server.should_exit:
                break
    logs.flush()
    print(access.draining, server.should_exit)

asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["while_a_log_line_is_queued", "while_timers_are_sorted"])
def test_a_signal_stops_the_server_whatever_it_interrupts(moment: str):
    done = subprocess.run([sys.executable, "-c", SIGNALS, moment], capture_output=True, text=True, timeout=END_S)
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.stderr.count('"draining"') == 1


WORKERS = """
import asyncio, os, signal, sys, time
from vitrail.serving import fork_server as module
from vitrail.serving.messages import send_message
from vitrail.serving.worker import WorkerConfig
from vitrail.serving.worker_process import Worker

def hang(connection):
    '''A worker that answers nothing after its start, like a library that does not return.'''
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    send_message(connection, {"pid": os.getpid()})
    send_message(connection, {})
    while True:
        time.sleep(600)

module.run_decoder = hang
server = module.start_fork_server([], [])

async def start_workers():
    workers = [await Worker.start(lambda: server.spawn(WorkerConfig(0, 1, task="decode"))) for _ in range(2)]
    print(server.pid, *(worker.hello["pid"] for worker in workers), flush=True)
    return workers

async def close_the_fork_server():
    await start_workers()
    server.close()

async def die():
    await start_workers()
    os.kill(os.getpid(), signal.SIGKILL)

async def close_workers_after_the_fork_server_died():
    workers = await start_workers()
    os.kill(server.pid, signal.SIGKILL)
    for worker in workers:
        worker.close()
    server.close()

asyncio.run(globals()[sys.argv[1]]())
"""


@pytest.mark.parametrize("end", ["close_the_fork_server", "die", "close_workers_after_the_fork_server_died"])
def test_workers_that_hang_end_with_the_server(end: str):
    """They would keep its output open: who reads it to its end would wait forever."""
    command = [sys.executable, "-c", WORKERS, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        process.wait(END_S)
        try:
            stop = time.monotonic() + END_S
            while alive := [pid for pid in pids if is_running(pid)]:
                assert time.monotonic() < stop, alive
                time.sleep(0.01)
        finally:
            for pid in filter(is_running, pids):
                os.kill(pid, 9)
        assert process.stdout.read() == ""


def is_running(pid: int) -> bool:
    """Returns whether a process exists and is no zombie, which only waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
