"""Upload to and download from the Hub, with every failure of its client explained in one sentence."""

from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError


def create_repository(name: str, private: bool, gated: bool = False) -> Any:
    """Create a repository if it is missing and return its address; refuse a public one if it should be private.

    Args:
        name: org/name.
        private: only its owners see it.
        gated: whoever wants its files asks, and the owners decide.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        if gated:
            api.update_repo_settings(address.repo_id, gated="manual")
        is_public = private and api.repo_info(address.repo_id).private is False
    except Exception as error:  # no network, no login, no such organisation: each client version raises its own
        raise CardioDiTError(
            f"The repository {name} cannot be created on the Hub ({_reason(error)}). Log in (hf auth login), and "
            "check that you have write access."
        ) from error
    if is_public:
        raise CardioDiTError(
            f"The repository {name} exists already and is public. Allow that explicitly, choose another name, "
            "or make it private in its settings on the Hub."
        )
    return address


def upload(address: Any, folder: Path, message: str) -> None:
    """Upload all files of a folder in one commit."""
    from huggingface_hub import HfApi

    try:
        HfApi().upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise CardioDiTError(
            f"{folder} could not be uploaded to {address} ({_reason(error)}). Nothing there has changed; try again."
        ) from error


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """Return the local path of a file of a repository, downloaded to the Hub client's cache if necessary."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # as above
        raise CardioDiTError(
            f"{file} of {repository} cannot be downloaded from the Hub ({_reason(error)}). Check that the names "
            "are right and that you have access (hf auth login); offline, it must have been downloaded before."
        ) from error


def list_files(repository: str, revision: str | None = None) -> tuple[str, dict[str, int]]:
    """Return the commit of a repository's revision, and the sizes of its files in bytes by name."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # as above
        raise CardioDiTError(
            f"{repository} cannot be read on the Hub ({_reason(error)}). Check that the name is right and that you "
            "have access (hf auth login); offline, it must have been opened before."
        ) from error
    return str(info.sha), {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _reason(error: Exception) -> str:
    """Return the first line of an error's message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
