"""Uploads an exported folder to the Hugging Face hub."""

from pathlib import Path

from vitrail.errors import UsageError, VitrailError, first_line
from vitrail.installation import install_hint


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder to the repository `owner/name`, which is created if it does not exist; returns its URL.

    Raises `UsageError` for a wrong name or a missing login, `VitrailError` if the upload fails.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise UsageError("huggingface_hub is not installed", install_hint("hub")) from None
    try:
        if hub.get_token() is None:
            raise UsageError("you are not logged in to the Hugging Face hub", "run: hf auth login")
        repository = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Weights written by vitrail")
        return str(repository)
    except errors.HFValidationError as error:
        raise UsageError(f"{name!r} is not the name of a repository ({first_line(error)})", "use owner/name") from None
    except UsageError:
        raise
    except Exception as error:  # the hub's client raises the errors of its HTTP library
        raise VitrailError(
            f"{name} cannot be uploaded ({first_line(error)})", f"the folder {folder} is complete: push it later"
        ) from None
