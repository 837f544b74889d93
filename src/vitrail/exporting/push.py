"""Uploads an exported folder to the Hugging Face hub."""

import re
from pathlib import Path
from typing import Any

from vitrail.console import log
from vitrail.errors import UsageError, VitrailError
from vitrail.weights.hub_client import LOGIN, describe_hub_error, import_hub, limit_session, time_limit_s

CARD = "README.md"
WEIGHTS_FILE = "model.safetensors"
MESSAGE = "Weights written by vitrail"
UPLOAD_LIMIT_S = 120.0  # without a byte from the hub, while it stores large files


def check_push(name: str, *, private: bool = False) -> None:
    """Raises unless `push_folder` can be expected to succeed: client, network, login, the right to write, the name.

    `UsageError` says what to change, `VitrailError` what the hub refuses. It asks the hub, and changes nothing there.
    """
    hub = import_hub()
    if hub.constants.HF_HUB_OFFLINE:
        raise UsageError("HF_HUB_OFFLINE is set, so nothing can be uploaded", "unset it")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UsageError(f"{name!r} is not the name of a repository", "use owner/name")
    if hub.get_token() is None:
        raise UsageError("you are not logged in to the Hugging Face hub", LOGIN)
    try:
        with limit_session(hub, time_limit_s(hub)):
            hub.utils.validate_repo_id(name)
            check_rights(hub.HfApi().whoami(), name)
            is_private = find_privacy(name)
    except VitrailError:
        raise
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        raise describe_hub_error(name, error, writing=True) from None
    if private and is_private is False:
        raise UsageError(f"{name} exists and is public", "choose another name, or leave out --private")


def check_rights(user: dict[str, Any], name: str) -> None:
    """Raises `UsageError` if a token only reads, or belongs to a user who may not write to the owner's repositories.

    What a fine-grained token may do is known to the hub alone.
    """
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UsageError("your token can only read", f"make one that can write, and {LOGIN}")
    owners = [user.get("name"), *(each.get("name") for each in user.get("orgs", []))]
    owner = name.partition("/")[0]
    if role == "write" and owner not in owners:
        raise UsageError(f"your login may not write to {owner}", f"use {' or '.join(map(str, owners))}")


def find_privacy(name: str) -> bool | None:
    """Returns whether a repository is private; None if it does not exist yet."""
    hub = import_hub()
    try:
        private: bool = hub.HfApi().model_info(name, timeout=time_limit_s(hub)).private or False
    except hub.errors.RepositoryNotFoundError:
        return None
    return private


def push_folder(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder of `export_library` to `owner/name`, which is created if it does not exist; returns its URL.

    The uploaded model card loads the model from the repository; the folder stays as it is. Raises `UsageError` for
    another folder, `VitrailError` if the upload fails: then it can be repeated.
    """
    hub = import_hub()
    files = list_files(folder)
    try:
        with limit_session(hub, UPLOAD_LIMIT_S):
            repository = hub.HfApi().create_repo(name, private=private, exist_ok=True)
            operations = [
                hub.CommitOperationAdd(file.name, card_for_hub(file, name).encode() if file.name == CARD else str(file))
                for file in files
            ]
            hub.HfApi().create_commit(repository.repo_id, operations, commit_message=MESSAGE)
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        reason = describe_hub_error(name, error, writing=True)
        raise VitrailError(
            f"{folder} was not uploaded: {reason.sentence}", f"{reason.hint}; repeat: vitrail push {folder} {name}"
        ) from None
    return str(repository)


def list_files(folder: Path) -> list[Path]:
    """Returns the files to upload; raises `UsageError` if the folder is not one of `export_library`."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", "vitrail export MODEL --format timm --out FOLDER writes one")
    if not (folder / WEIGHTS_FILE).is_file() or not (folder / CARD).is_file():
        raise UsageError(
            f"{folder} is not an export for a library: it lacks {WEIGHTS_FILE} or {CARD}",
            "vitrail export MODEL --format timm --out FOLDER writes one",
        )
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if left_out := sorted(path.name for path in folder.iterdir() if path not in files):
        log(f"not uploaded: {', '.join(left_out)}")
    return files


def card_for_hub(card: Path, name: str) -> str:
    """Returns a model card whose code loads the model from the repository `name`, not from a folder."""
    text = card.read_text(encoding="utf-8")
    weights = f'huggingface_hub.hf_hub_download("{name}", "{WEIGHTS_FILE}")'
    for pattern, replacement in (
        (r'"local-dir:[^"\n]*"', f'"hf-hub:{name}"'),
        (r'\.from_pretrained\("[^"\n]*"\)', f'.from_pretrained("{name}")'),
        (rf'load_file\("[^"\n]*{re.escape(WEIGHTS_FILE)}"\)', f"load_file({weights})"),
    ):
        text = re.sub(pattern, lambda match, text=replacement: text, text)  # type: ignore[misc]
    return text
