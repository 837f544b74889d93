"""Where the processes of one attempt find one another, and nobody of an attempt before.

A launcher that starts dead workers again may keep one store for all attempts (torchrun does unless
TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1), in which gloo finds addresses of processes that are gone. Restart counts differ
from node to node, so they name no attempt. Here process 0 names it: each of the others shows a word of its own, and
goes on only when process 0 has answered that very word.
"""

import os
import time
import uuid
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

POLL_SECONDS = 0.02  # seconds between two looks
TIMEOUT = timedelta(minutes=10)  # that processes wait for one another


def rendezvous_store(rank: int, size: int) -> Store:
    """A store that the `size` processes of this attempt share, at the address in torchrun's environment.

    Raises `TimeoutError` where one of them does not come.
    """
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by the launcher
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world_size=None,
        is_master=rank == 0 and not hosted,
        timeout=TIMEOUT,
        wait_for_workers=False,
        multi_tenant=True,
    )
    return PrefixStore(f"vitrail/{agree_on_attempt(store, rank, size)}", store)


def agree_on_attempt(store: Store, rank: int, size: int) -> str:
    """The name of this attempt, the same for its processes and no others."""
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + TIMEOUT.total_seconds()

    def wait_for(key: str) -> None:
        while not store.check([key]):
            if time.monotonic() > deadline:
                raise TimeoutError(f"nobody wrote {key}")
            time.sleep(POLL_SECONDS)

    if rank == 0:
        store.set("vitrail/offer", mine)
        for other in range(1, size):
            wait_for(f"vitrail/{mine}/word/{other}")
        for other in range(1, size):
            word = store.get(f"vitrail/{mine}/word/{other}").decode()
            store.set(f"vitrail/{mine}/answer/{word}", "")
        return mine
    wait_for("vitrail/offer")
    while True:
        offer = store.get("vitrail/offer").decode()  # perhaps of an attempt before: it will not answer
        store.set(f"vitrail/{offer}/word/{rank}", mine)
        if store.check([f"vitrail/{offer}/answer/{mine}"]):
            return offer
        if time.monotonic() > deadline:
            raise TimeoutError("process 0 does not answer")
        time.sleep(POLL_SECONDS)
