"""Public weights from where their publishers keep them, through a cache that also works without a network."""

import os
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitrail.console import say
from vitrail.errors import UsageError, VitrailError, did_you_mean, first_line
from vitrail.weights.cards import Card, cards

WANTED = ("model.safetensors", "model.safetensors.index.json")
BESIDE = ("config.json", "preprocessor_config.json")


def cached_url(card: Card) -> Path:
    """Where the one file of a card lies once it is downloaded: torch's own cache."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / card.file


def fetch_file(card: Card) -> Path:
    """The file of a card whose source is one address, downloaded if it is not in the cache.

    What was downloaded is compared with the hash that the card has, if it has one; what is in the cache is taken as it
    is. Raises `VitrailError` where it can be had neither there nor from the network, or is another file.
    """
    import torch

    path = cached_url(card)
    if path.is_file():
        return path
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise offline(card.name, path, "HF_HUB_OFFLINE is set")
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"downloading {card.source}")
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

    Raises `VitrailError` saying why it cannot be had, `UsageError` where there is no such repository.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise UsageError("huggingface_hub is not installed", "pip install 'vitrail[hub]'") from None
    try:
        kept = [Path(hub.hf_hub_download(name, "config.json", local_files_only=True))]
        weights = _first(lambda file: hub.hf_hub_download(name, file, local_files_only=True), errors)
        if weights is not None:
            return kept[0].parent
    except errors.HfHubHTTPError:
        pass
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError, ValueError):
        pass
    try:
        say(f"downloading {name} from the Hugging Face hub")
        folder: str = hub.snapshot_download(
            name, allow_patterns=[*BESIDE, "model*.safetensors", "model.safetensors.index.json"]
        )
    except errors.GatedRepoError:
        raise VitrailError(
            f"{name} asks for its licence to be accepted", f"accept it at huggingface.co/{name} and run: hf auth login"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise UsageError(f"there is no model {name!r}", did_you_mean(name, cards())) from None
    except Exception as error:  # the hub's client raises what its transport raises
        near = "" if name in cards() else did_you_mean(name, cards()) or ""
        raise VitrailError(
            f"{name} is not in the cache and cannot be downloaded ({first_line(error)})",
            near
            if near.startswith("did")
            else f"download it elsewhere and name its folder; the cache is {hub.constants.HF_HUB_CACHE}",
        ) from None
    if not any(Path(folder, file).is_file() for file in WANTED):
        raise VitrailError(
            f"{name} has no weights as safetensors", "vitrail reads safetensors from the hub and nothing else"
        )
    return Path(folder)


def _first(get: Callable[[str], str], errors: Any) -> Path | None:
    for file in WANTED:
        try:
            return Path(get(file))
        except (errors.LocalEntryNotFoundError, errors.EntryNotFoundError):
            continue
    return None
