"""Public weights from their publishers' servers, through caches that also work offline."""

import json
import os
import urllib.error
from contextlib import suppress
from pathlib import Path

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError, did_you_mean, first_line
from vitrail.installation import install_hint
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.config_files import is_timm_config
from vitrail.weights.hf_config import PREPROCESSOR_FILE
from vitrail.weights.tensor_files import SHARD_INDEX, read_shard_index

WEIGHTS_FILE = "model.safetensors"

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
    import torch

    path = cached_path(card)
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise make_download_error(card.name, path, "HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    log(f"downloading {card.source}")
    try:
        torch.hub.download_url_to_file(card.source, str(path), hash_prefix=card.sha256 or None)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise make_download_error(card.name, path, str(getattr(error, "reason", error))) from None
    except RuntimeError as error:  # torch's error for another hash
        raise VitrailError(
            f"the download of {card.source} is not the published file ({error})", "retry later"
        ) from None
    return path


def make_download_error(name: str, path: Path, reason: str) -> VitrailError:
    """Returns the error for weights that are neither cached nor downloadable."""
    return VitrailError(f"{name} is not in the cache and cannot be downloaded ({reason})", f"put the file at {path}")


# Repositories of the Hugging Face hub


def fetch_folder(name: str) -> Path:
    """Returns the folder of a hub repository with safetensors weights, from the cache or the network.

    Other programs may have cached it without the preprocessor's config: that is then downloaded, with a warning if it
    does not exist. Raises `VitrailError` if the weights cannot be downloaded, `UsageError` for an unknown repository.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UsageError("huggingface_hub is not installed", install_hint("hub")) from None
    folder = find_cached_folder(name) or download_folder(name)
    commit = folder.name
    if not has_preprocessing(folder) and hub.try_to_load_from_cache(name, PREPROCESSOR_FILE, revision=commit) is None:
        with suppress(Exception):  # if the hub has none, the cache records that
            hub.hf_hub_download(name, PREPROCESSOR_FILE, revision=commit)
    if not has_preprocessing(folder):
        log(f"warning: there is no {PREPROCESSOR_FILE} of {name} here: images are stretched, mean and std are 0.5")
    return folder


def find_cached_folder(name: str) -> Path | None:
    """Returns the cached folder of a hub repository if it has a `config.json` and all weights."""
    import huggingface_hub as hub

    try:
        config = hub.try_to_load_from_cache(name, "config.json")
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


def has_preprocessing(folder: Path) -> bool:
    """Returns whether a folder states the preprocessing: transformers in a file of its own, timm in `config.json`."""
    if (folder / PREPROCESSOR_FILE).is_file():
        return True
    try:
        return is_timm_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):  # parsing the file reports it
        return True


def download_folder(name: str) -> Path:
    """Downloads what the cache lacks of a hub repository and returns its folder; raises as `fetch_folder`."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        log(f"downloading {name} from the Hugging Face hub")
        patterns = ["config.json", PREPROCESSOR_FILE, "model*.safetensors", SHARD_INDEX]
        folder = Path(hub.snapshot_download(name, allow_patterns=patterns))
    except errors.GatedRepoError:
        raise VitrailError(
            f"{name} requires that you accept its license",
            f"accept it at huggingface.co/{name} and run: hf auth login",
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UsageError(f"there is no model {name!r}", did_you_mean(name, load_cards())) from None
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        near = None if name in load_cards() else did_you_mean(name, load_cards())
        cache = hub.constants.HF_HUB_CACHE
        raise VitrailError(
            f"{name} is not in the cache and cannot be downloaded ({first_line(error)})",
            near or f"download it elsewhere and name its folder; the cache is {cache}",
        ) from None
    if not any((folder / file).is_file() for file in (WEIGHTS_FILE, SHARD_INDEX)):
        raise VitrailError(f"{name} has no safetensors weights", "vitrail reads no other weights from the hub")
    return folder
