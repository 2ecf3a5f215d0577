"""Push an exported folder to the Hugging Face hub."""

from __future__ import annotations

import textwrap
from pathlib import Path

from longrope.exceptions import RunFailedError, SettingsError


def check_repository(name: str) -> None:
    """Raise SettingsError unless ``name`` may be the name of a repository."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise SettingsError(
            f"{name!r} cannot be the name of a repository; write for example my-name/my-model"
        ) from None


def push_folder(folder: Path, name: str, private: bool | None = None) -> str:
    """Upload a folder to the model repository ``name``, which is made if there is none.

    Args:
        private: whether a repository that is made is private; the default of the account when None.

    Returns:
        The address of the commit.

    Raises:
        RunFailedError: if the hub cannot be reached or refuses; the folder stays as it is.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        repository = api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository.repo_id, folder_path=folder, commit_message="Upload by longrope apply"
        )
    except Exception as error:  # whatever the hub's client and those below it raise
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        raise RunFailedError(
            f"{folder} is written, but could not be pushed to {name} ({reason}); after `hf auth login`, run "
            f"`hf upload {name} {folder}`"
        ) from error
    return str(commit)
