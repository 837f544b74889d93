"""Downloads one file by HTTP: resumed after a cut, with time limits, verified, and complete or absent."""

import errno
import hashlib
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO

from vitrail.console import ProgressBar, progress_bar
from vitrail.errors import VitrailError
from vitrail.files import write_atomically

TIME_LIMIT_S = 10.0  # without a byte
TRIES = 5  # in a row that bring no byte
WAIT_S = 1.0  # between tries
CHUNK_BYTES = 1 << 18
MEGABYTE = 1_000_000
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # not of the network


class DownloadFailed(VitrailError):
    """The server cannot be reached, refuses, or stops answering."""


def download_file(url: str, path: Path, sha256_prefix: str = "") -> None:
    """Writes the file at `url` to `path` atomically.

    Raises `DownloadFailed` if the server does not give the whole file, `VitrailError` if its hash differs or it cannot
    be written.
    """
    write_atomically(path, lambda temporary: fill_file(url, temporary, sha256_prefix))


def fill_file(url: str, path: Path, sha256_prefix: str) -> None:
    """Writes the file at `url` to an empty file; raises as `download_file`."""
    with path.open("wb") as file, progress_bar(f"downloading {path.suffix[1:]} (MB)", None) as progress:
        failures = 0
        while True:
            before = file.tell()
            try:
                if receive(url, file, progress):
                    break
                reason: Exception = ConnectionError("the connection was cut")
            except (OSError, HTTPException) as error:
                if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
                    raise
                reason = error
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
            failures = 1 if file.tell() > before else failures + 1
            is_refused = isinstance(reason, urllib.error.HTTPError) and reason.code < 500
            if failures >= TRIES or is_refused:
                raise DownloadFailed(str(getattr(reason, "reason", None) or reason)) from None
            time.sleep(WAIT_S)
    verify_sha256(url, path, sha256_prefix)


def receive(url: str, file: IO[bytes], progress: ProgressBar) -> bool:
    """Appends to the file what it lacks; returns whether it is complete.

    A server that does not continue where the file ends sends it from the start again.
    """
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(request, timeout=TIME_LIMIT_S) as response:
        if start and response.status != 206:
            start = 0
            file.seek(0)
            file.truncate()
        length = response.headers.get("Content-Length")
        total = None if length is None else start + int(length)
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            progress.update(file.tell() // MEGABYTE, total and total // MEGABYTE)
    return total is None or file.tell() >= total


def verify_sha256(url: str, path: Path, prefix: str) -> None:
    """Raises `VitrailError` if the SHA-256 of a file does not begin with these digits."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(prefix):
        raise VitrailError(f"the download of {url} is not the published file: its hash differs", "retry later")


def verify_blob(path: Path, *, size: int | None, sha256: str | None, git_id: str | None) -> None:
    """Raises `VitrailError`, after removing the file, if it is not the blob that a repository lists.

    `sha256` is that of a large file; `git_id` identifies others, as in git: the SHA-1 of a header and the content.
    """
    content_size = path.stat().st_size
    is_right = size is None or size == content_size
    with path.open("rb") as file:
        if is_right and sha256:
            is_right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        elif is_right and git_id:
            header = hashlib.sha1(f"blob {content_size}\0".encode(), usedforsecurity=False)
            header.update(file.read())
            is_right = header.hexdigest() == git_id
    if not is_right:
        os.unlink(path.resolve())
        path.unlink(missing_ok=True)
        raise VitrailError(f"the download of {path.name} is damaged: its hash differs", "it was removed: try again")
