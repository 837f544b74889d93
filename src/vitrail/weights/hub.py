"""Public weights from where their publishers keep them, through a cache that also works without a network."""

import json
import os
import urllib.error
from contextlib import suppress
from pathlib import Path

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError, did_you_mean, first_line
from vitrail.weights.cards import Card, load_cards
from vitrail.weights.tensor_files import SHARD_INDEX, read_shard_index

WHOLE, PREPARATION = "model.safetensors", "preprocessor_config.json"


def cached_path(card: Card) -> Path:
    """Where the one file of a card lies once it is downloaded: torch's own cache."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / card.file_name


def fetch_file(card: Card) -> Path:
    """The file of a card whose source is one address, downloaded if it is not in the cache.

    What was downloaded is compared with the hash that the card has, if it has one; what is in the cache is taken as it
    is. Raises `VitrailError` where it can be had neither there nor from the network, or is another file.
    """
    import torch

    path = cached_path(card)
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise offline(card.name, path, "HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    log(f"downloading {card.source}")
    try:
        torch.hub.download_url_to_file(card.source, str(path), hash_prefix=card.sha256 or None)
    except (urllib.error.URLError, OSError, TimeoutError) as error:
        raise offline(card.name, path, str(getattr(error, "reason", error))) from None
    except RuntimeError as error:  # torch says so where the hash is another
        raise VitrailError(f"what {card.source} sent is not the published file ({error})", "try again later") from None
    return path


def offline(name: str, path: Path, why: str) -> VitrailError:
    """What is said when weights are neither at hand nor to be had."""
    return VitrailError(f"{name} is not in the cache and cannot be downloaded ({why})", f"put the file at {path}")


def fetch_folder(name: str) -> Path:
    """The folder of a hub repository with its weights as safetensors, from the cache or the network.

    What others left in the cache may lack how images are prepared: that is fetched, and said where it cannot be. Raises
    `VitrailError` saying why the weights cannot be had, `UsageError` where there is no such repository.
    """
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UsageError("huggingface_hub is not installed", "pip install 'vitrail[hub]'") from None
    folder = find_cached_folder(name) or download_folder(name)
    commit = folder.name
    if not prepared(folder) and hub.try_to_load_from_cache(name, PREPARATION, revision=commit) is None:
        with suppress(Exception):  # where the hub says that there is none, the cache knows it from now on
            hub.hf_hub_download(name, PREPARATION, revision=commit)
    if not prepared(folder):
        log(f"warning: there is no {PREPARATION} of {name} here: images are stretched, mean and deviation are 0.5")
    return folder


def find_cached_folder(name: str) -> Path | None:
    """The folder of a hub repository in the cache, if its `config.json` and all its weights are there."""
    import huggingface_hub as hub

    try:
        config = hub.try_to_load_from_cache(name, "config.json")
    except (OSError, ValueError):  # no name for a repository, which downloading will say
        return None
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    if (folder / SHARD_INDEX).is_file() and not (folder / WHOLE).is_file():
        wanted = {*read_shard_index(folder / SHARD_INDEX).values()}
    else:
        wanted = {WHOLE}
    return folder if all((folder / file).is_file() for file in wanted) else None


def prepared(folder: Path) -> bool:
    """Whether a folder says how images are prepared: transformers' in a file of its own, timm's in `config.json`."""
    if (folder / PREPARATION).is_file():
        return True
    try:
        return "architecture" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):  # reading it will say what is wrong with it
        return True


def download_folder(name: str) -> Path:
    """The folder of a hub repository, downloaded as far as the cache lacks it; raises as `fetch_folder`."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        log(f"downloading {name} from the Hugging Face hub")
        wanted = ["config.json", PREPARATION, "model*.safetensors", SHARD_INDEX]
        folder: str = hub.snapshot_download(name, allow_patterns=wanted)
    except errors.GatedRepoError:
        raise VitrailError(
            f"{name} asks for its licence to be accepted", f"accept it at huggingface.co/{name} and run: hf auth login"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UsageError(f"there is no model {name!r}", did_you_mean(name, load_cards())) from None
    except Exception as error:  # the hub's client raises what its transport raises
        near = "" if name in load_cards() else did_you_mean(name, load_cards()) or ""
        raise VitrailError(
            f"{name} is not in the cache and cannot be downloaded ({first_line(error)})",
            near
            if near.startswith("did")
            else f"download it elsewhere and name its folder; the cache is {hub.constants.HF_HUB_CACHE}",
        ) from None
    if not any(Path(folder, file).is_file() for file in (WHOLE, SHARD_INDEX)):
        raise VitrailError(
            f"{name} has no weights as safetensors", "vitrail reads safetensors from the hub and nothing else"
        )
    return Path(folder)
