"""Public weights from their publishers' servers, through caches that also work offline.

vitrail looks up the newest commit of a repository each time, so it notices changes; it downloads only new files. If the
hub cannot answer, vitrail uses the cached commit and prints a warning. It does not contact the hub for a named commit,
nor with `HF_HUB_OFFLINE=1`.
"""

import inspect
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.console import log, progress_bar
from vitrail.errors import VitrailError, did_you_mean
from vitrail.files import check_free_space, format_bytes, write_text
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.config_files import is_timm_config
from vitrail.weights.download import DownloadFailed, download_file, verify_blob
from vitrail.weights.hf_config import PREPROCESSOR_FILE
from vitrail.weights.hub_client import (
    MEGABYTE,
    describe_hub_error,
    download_from_hub,
    import_hub,
    is_commit,
    limit_session,
    make_progress_class,
    split_address,
    time_limit_s,
)
from vitrail.weights.tensor_files import SHARD_INDEX, read_shard_index

WEIGHTS_FILE = "model.safetensors"
ADAPTER_FILE = "adapter_config.json"  # of peft: updates of another model's weights

# Single files, in torch's cache


def cached_path(card: Card) -> Path:
    """Returns the path of a card's file in torch's cache."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / card.file_name


def fetch_file(card: Card) -> Path:
    """Returns the file of a card whose source is a URL, from the cache or the network.

    A download must have the card's hash, if the card has one; a cached file is not checked. Raises `VitrailError` if
    the file cannot be downloaded or has another hash.
    """
    path = cached_path(card)
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise make_download_error(card.name, path, "HF_HUB_OFFLINE is set")
    log(f"downloading {card.source}")
    try:
        download_file(card.source, path, card.sha256)
    except DownloadFailed as error:
        raise make_download_error(card.name, path, error.sentence) from None
    return path


def make_download_error(name: str, path: Path, reason: str) -> VitrailError:
    """Returns the error for weights that are neither cached nor downloadable."""
    return VitrailError(f"{name} is not in the cache and cannot be downloaded ({reason})", f"put the file at {path}")


# Repositories of the Hugging Face hub


@dataclass(frozen=True)
class Listing:
    """What the hub says about a revision: its commit, and its files by name, each with size and hashes if known."""

    commit: str
    files: dict[str, Any]

    def missing_bytes(self, folder: Path, names: list[str]) -> int:
        """Returns the size of the named files that a folder lacks."""
        return sum(self.files[name].size or 0 for name in names if not (folder / name).is_file())


def fetch_folder(address: str) -> Path:
    """Returns the folder of `owner/name` or `owner/name@revision` with safetensors weights; its name is the commit.

    Raises `VitrailError` if the weights cannot be downloaded, `UsageError` for an unknown repository or revision.
    """
    hub = import_hub()
    name, revision = split_address(address)
    cached = find_cached_folder(name, revision)
    if cached is not None and (is_commit(revision) or hub.constants.HF_HUB_OFFLINE):
        folder = cached
    else:
        folder = fetch_newest(name, revision, cached)
    if not has_preprocessing(folder):
        fetch_preprocessing(name, folder)
    if not has_preprocessing(folder):
        log(f"warning: there is no {PREPROCESSOR_FILE} of {name} here: images are stretched, mean and std are 0.5")
    return folder


def fetch_newest(name: str, revision: str | None, cached: Path | None) -> Path:
    """Returns the folder of a revision's commit as the hub has it now, or the cached one if the hub cannot say."""
    hub = import_hub()
    near = None if name in load_cards() else did_you_mean(name, load_cards())
    if hub.constants.HF_HUB_OFFLINE:
        raise VitrailError(
            f"{name} is not in the cache and cannot be downloaded (HF_HUB_OFFLINE is set)",
            near or f"download it elsewhere and name its folder; the cache is {hub.constants.HF_HUB_CACHE}",
        )
    try:
        listing = list_files(name, revision)
    except VitrailError as error:
        if cached is None:
            raise
        log(f"warning: {error.sentence}: {name} is used as cached, commit {cached.name[:8]}")
        return cached
    if cached is not None and cached.name == listing.commit:
        return cached
    if cached is not None:
        log(f"{name} has changed on the hub: commit {listing.commit[:8]} instead of {cached.name[:8]}")
    folder = download_folder(name, listing)
    if revision != listing.commit:  # the cache's note of a branch or tag, after its files
        write_text(folder.parent.parent / "refs" / (revision or "main"), listing.commit)
    return folder


def list_files(name: str, revision: str | None) -> Listing:
    """Asks the hub for a revision's commit and files; raises `VitrailError`, with how to log in if that is needed."""
    hub = import_hub()
    near = None if name in load_cards() else did_you_mean(name, load_cards())
    try:
        info = hub.HfApi().model_info(name, revision=revision, timeout=time_limit_s(hub), files_metadata=True)
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        raise describe_hub_error(name, error, near=near) from None
    if not is_commit(info.sha):
        raise VitrailError(f"{hub.constants.ENDPOINT} does not answer as the Hugging Face hub", "check HF_ENDPOINT")
    return Listing(info.sha, {file.rfilename: file for file in info.siblings or []})


def find_cached_folder(name: str, revision: str | None = None) -> Path | None:
    """Returns the cached folder of a hub repository if it has a `config.json` and all weights."""
    import huggingface_hub as hub

    try:
        config = hub.try_to_load_from_cache(name, "config.json", revision=revision)
    except (OSError, ValueError):  # not the name of a repository: the download reports it
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if (folder / SHARD_INDEX).is_file() and not (folder / WEIGHTS_FILE).is_file():
        needed = {*read_shard_index(folder / SHARD_INDEX).values()}
    else:
        needed = {WEIGHTS_FILE}
    return folder if all((folder / file).is_file() for file in needed) else None


def download_folder(name: str, listing: Listing) -> Path:
    """Downloads what the cache lacks of a commit, verified, and returns its folder; raises as `fetch_folder`."""
    names = [file for file in ("config.json", PREPROCESSOR_FILE) if file in listing.files]
    if WEIGHTS_FILE in listing.files:
        names.append(WEIGHTS_FILE)
    elif SHARD_INDEX in listing.files:
        index = download_files(name, listing, [SHARD_INDEX]) / SHARD_INDEX
        names += sorted({*read_shard_index(index).values()})
    elif ADAPTER_FILE in listing.files:
        raise VitrailError(
            f"{name} is a peft adapter, which has no weights of its own", "merge it: peft's merge_and_unload"
        )
    else:
        raise VitrailError(f"{name} has no safetensors weights", "vitrail reads no other weights from the hub")
    if missing := [file for file in names if file not in listing.files]:
        raise VitrailError(f"{name} lacks {missing[0]}, which its index names", "ask its owner")
    return download_files(name, listing, names)


def download_files(name: str, listing: Listing, names: list[str]) -> Path:
    """Downloads files of a commit that the cache lacks, and returns its folder in the cache.

    Their hashes are compared with the hub's. The client continues after a cut, and gives up after about a minute
    without a byte.
    """
    hub = import_hub()
    storage = hub.file_download.repo_folder_name(repo_id=name, repo_type="model")
    folder = Path(hub.constants.HF_HUB_CACHE) / storage / "snapshots" / listing.commit
    total = listing.missing_bytes(folder, names)
    check_free_space(folder, total, "free some space, or set HF_HUB_CACHE to another folder")
    log(f"downloading {name} from the Hugging Face hub ({format_bytes(total)})")
    done = 0
    with progress_bar("downloading (MB)", total // MEGABYTE) as progress, limit_session(hub, time_limit_s(hub)):
        for file in names:
            is_new, listed = not (folder / file).is_file(), listing.files[file]
            options: dict[str, Any] = {"etag_timeout": time_limit_s(hub)}
            if "tqdm_class" in inspect.signature(hub.hf_hub_download).parameters:  # since 1.3
                options["tqdm_class"] = make_progress_class(progress, done, total)
            try:
                path = download_from_hub(hub, name, file, revision=listing.commit, **options)
            except Exception as error:  # the hub's client raises the errors of its HTTP library
                raise describe_hub_error(name, error) from None
            if is_new:
                sha256 = listed.lfs["sha256"] if listed.lfs else None
                verify_blob(path, size=listed.size, sha256=sha256, git_id=listed.blob_id)
                done += listed.size or 0
    return folder


def fetch_preprocessing(name: str, folder: Path) -> None:
    """Downloads the preprocessor's config of a cached commit, which other programs may have left out, if it exists.

    Prints a warning if it could not be fetched; if the hub has none, the cache records that.
    """
    hub = import_hub()
    if hub.try_to_load_from_cache(name, PREPROCESSOR_FILE, revision=folder.name) is not None:
        return
    try:
        hub.hf_hub_download(name, PREPROCESSOR_FILE, revision=folder.name, etag_timeout=time_limit_s(hub))
    except Exception as error:  # the client raises many types
        is_missing = isinstance(error, hub.errors.EntryNotFoundError)
        is_unknown = isinstance(error, hub.errors.LocalEntryNotFoundError)  # the hub did not answer
        if (is_missing and not is_unknown) or hub.constants.HF_HUB_OFFLINE:
            return
        reason = describe_hub_error(name, error).sentence
        log(f"warning: {PREPROCESSOR_FILE} of {name} could not be fetched, and the model may need it: {reason}")


def has_preprocessing(folder: Path) -> bool:
    """Returns whether a folder states the preprocessing: transformers in a file of its own, timm in `config.json`."""
    if (folder / PREPROCESSOR_FILE).is_file():
        return True
    try:
        return is_timm_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):  # parsing the file reports it
        return True
