"""Rendezvous of the processes of one attempt, through a key-value store at torchrun's address.

A launcher that restarts dead workers may keep one store for all attempts (torchrun does, unless
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), and gloo would then find the addresses of dead processes in it. The restart count
does not identify an attempt, because it differs between nodes. Instead rank 0 announces a random attempt id, each other
rank registers a nonce under it, and continues only when rank 0 has acknowledged that nonce. The store's keys are then
prefixed with the attempt id.
"""

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

POLL_SECONDS = 0.02
TIMEOUT = timedelta(minutes=10)
ATTEMPT_KEY = "vitrail/attempt"


def rendezvous_store(rank: int, size: int) -> Store:
    """Returns a store that only the `size` processes of this attempt share.

    Reads torchrun's environment variables. Raises `TimeoutError` if a process does not come.
    """
    is_hosted_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None,
        is_master=rank == 0 and not is_hosted_by_launcher,
        timeout=TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"vitrail/{agree_on_attempt(store, rank, size)}", store)


def agree_on_attempt(store: Store, rank: int, size: int) -> str:
    """Returns the id of this attempt, the same in all of its processes; raises `TimeoutError`."""
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    return _lead_attempt(store, size, deadline) if rank == 0 else _join_attempt(store, rank, deadline)


def _lead_attempt(store: Store, size: int, deadline: float) -> str:
    attempt = uuid.uuid4().hex
    store.set(ATTEMPT_KEY, attempt)
    for rank in range(1, size):
        _wait_for_key(store, _nonce_key(attempt, rank), deadline)
    for rank in range(1, size):
        nonce = store.get(_nonce_key(attempt, rank)).decode()
        store.set(_acknowledgment_key(attempt, nonce), "")
    return attempt


def _join_attempt(store: Store, rank: int, deadline: float) -> str:
    nonce = uuid.uuid4().hex
    _wait_for_key(store, ATTEMPT_KEY, deadline)
    while True:
        attempt = store.get(ATTEMPT_KEY).decode()  # may be an earlier attempt, whose rank 0 never acknowledges
        store.set(_nonce_key(attempt, rank), nonce)
        if store.check([_acknowledgment_key(attempt, nonce)]):
            return attempt
        if time.monotonic() > deadline:
            raise TimeoutError("process 0 does not answer")
        time.sleep(POLL_SECONDS)


def _wait_for_key(store: Store, key: str, deadline: float) -> None:
    while not store.check([key]):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no process wrote {key}")
        time.sleep(POLL_SECONDS)


def _nonce_key(attempt: str, rank: int) -> str:
    return f"vitrail/{attempt}/nonce/{rank}"


def _acknowledgment_key(attempt: str, nonce: str) -> str:
    return f"vitrail/{attempt}/acknowledged/{nonce}"
