"""What reading from and writing to the Hugging Face hub share: its client, addresses, time limits, and its errors.

The hub is at `HF_ENDPOINT`. Its client reads the token from `HF_TOKEN`, or from the file that `hf auth login` writes.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitrail.console import ProgressBar
from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint

LOGIN = "run hf auth login, or set HF_TOKEN"
MEGABYTE = 1_000_000
ATTEMPTS = 5  # to download a file with a client that does not try again itself
CUT_ERRORS = ("ChunkedEncodingError", "ConnectionError", "ReadTimeout")  # of requests
BUSY_STATUSES = (429, 500, 502, 503, 504)
MAX_WAIT_S = 10


def import_hub() -> Any:
    """Returns the hub's client; raises `UsageError` if it is not installed."""
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError("huggingface_hub is not installed", install_hint("hub")) from None
    return huggingface_hub


def split_address(address: str) -> tuple[str, str | None]:
    """Splits `owner/name@revision` into the repository and its branch, tag or commit; None if it names none.

    Raises `UsageError` for a revision that git does not allow.
    """
    name, at, revision = address.partition("@")
    if at and (not re.fullmatch(r"[\w./-]+", revision) or ".." in revision or revision.startswith("/")):
        raise UsageError(f"{revision!r} is not a revision of {name}", "name a branch, a tag or a commit")
    return name, revision or None


def is_commit(revision: str | None) -> bool:
    """Returns whether a revision is a whole commit id, whose files never change."""
    return revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def time_limit_s(hub: Any) -> float:
    """Returns how long an answer may take, in seconds: 10, or what HF_HUB_ETAG_TIMEOUT says."""
    return float(hub.constants.HF_HUB_ETAG_TIMEOUT)


@contextmanager
def limit_session(hub: Any, seconds: float) -> Iterator[None]:
    """Inside, requests for which the client sets no time limit end after `seconds` without a byte.

    Clients before 1.0 have no such setting: there it does nothing.
    """
    session = hub.utils.get_session()
    before = getattr(session, "timeout", None)
    session.timeout = seconds
    try:
        yield
    finally:
        session.timeout = before


def describe_hub_error(name: str, error: Exception, *, near: str | None = None, writing: bool = False) -> VitrailError:
    """Returns the error for the user of what the client raised for a repository; `near` is a hint for a wrong name.

    The kind of the error and its HTTP status decide, never its text.
    """
    from huggingface_hub import errors

    while getattr(error, "response", None) is None and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client wraps what happened
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HFValidationError):
        return UsageError(f"{name!r} is not the name of a repository", near or "use owner/name")
    if isinstance(error, errors.GatedRepoError):
        return VitrailError(
            f"{name} requires that you accept its license", f"accept it at {hub_url(name)}, then {LOGIN}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UsageError(f"{name} has no such revision", "name a branch, a tag or a commit of it")
    if isinstance(error, errors.RepositoryNotFoundError):
        private = f"for a private one {LOGIN}"
        return UsageError(f"there is no model {name!r} that you may read", f"{near} {private}" if near else private)
    if status == 401:
        return VitrailError("the hub does not accept your token", f"log in again: {LOGIN}")
    if status == 403:
        action = "write to" if writing else "read"
        return VitrailError(f"your login may not {action} {name}", f"ask its owner, or log in as another user: {LOGIN}")
    if status == 429:
        return VitrailError("the hub refuses more requests for now", "retry in some minutes; a login allows more")
    reason = first_line(
        error.__cause__ if type(error).__name__ == "LocalEntryNotFoundError" and error.__cause__ else error
    )
    return VitrailError(
        f"the hub at {hub_url()} cannot be used ({reason})", near or "check the network, and retry later"
    )


def download_from_hub(hub: Any, name: str, file: str, **options: Any) -> Path:
    """Downloads a file into the cache and returns its path; raises the client's errors.

    Clients before 1.0 give up after a cut and when the server is busy. The next attempt continues where they stopped.
    """
    attempts = ATTEMPTS if int(hub.__version__.split(".")[0]) < 1 else 1
    for attempt in range(1, attempts + 1):
        try:
            return Path(hub.hf_hub_download(name, file, **options))
        except Exception as error:
            response = getattr(error, "response", None)
            is_cut = type(error).__name__ in CUT_ERRORS and response is None
            if attempt == attempts or not (is_cut or getattr(response, "status_code", None) in BUSY_STATUSES):
                raise
            wait = str(getattr(response, "headers", {}).get("Retry-After", 2**attempt))
            time.sleep(min(int(wait), MAX_WAIT_S) if wait.isdecimal() else MAX_WAIT_S)
    raise AssertionError("unreachable")


def hub_url(name: str = "") -> str:
    """Returns the address of a repository, or of the hub."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name}".rstrip("/")


def make_progress_class(progress: ProgressBar, done: int, total: int | None) -> type:
    """Returns a class for the client's `tqdm_class` that shows bytes on our progress bar, in MB, after `done` bytes."""

    class ByteProgress:
        received = done

        def __init__(self, *arguments: Any, **options: Any):
            self.n = self.total = 0

        def __enter__(self) -> "ByteProgress":
            return self

        def __exit__(self, *arguments: object) -> None:
            pass

        def update(self, n: float | None = 1) -> None:
            ByteProgress.received += int(n or 0)
            progress.update(ByteProgress.received // MEGABYTE, total // MEGABYTE if total else None)

        def ignore(self, *arguments: Any, **options: Any) -> None:
            """The client's other methods only change what its own bars look like."""

        update_transfer = set_transfer_postfix_str = set_postfix_str = set_description = ignore
        set_description_str = refresh = close = reset = ignore

    return ByteProgress
