"""An exported folder -> a repository of the Hugging Face hub."""

from pathlib import Path

from vitrail.errors import UsageError, VitrailError, first_line


def push_to_hub(folder: Path, name: str, *, private: bool = False) -> str:
    """Uploads a folder to `owner/name`, made if it is not there; returns its address.

    Raises `UsageError` where the name or the login is wrong, `VitrailError` where the hub cannot be reached.
    """
    try:
        import huggingface_hub as hub
        from huggingface_hub import errors
    except ImportError:
        raise UsageError("huggingface_hub is not installed", "pip install 'vitrail[hub]'") from None
    try:
        if hub.get_token() is None:
            raise UsageError("nobody is logged in to the Hugging Face hub", "run: hf auth login")
        made = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Weights written by vitrail")
        return str(made)
    except errors.HFValidationError as error:
        raise UsageError(f"{name!r} is no name for a repository ({first_line(error)})", "use owner/name") from None
    except UsageError:
        raise
    except Exception as error:  # the hub's client raises what its transport raises
        raise VitrailError(
            f"{name} cannot be uploaded ({first_line(error)})", f"the folder {folder} is whole: push it later"
        ) from None
