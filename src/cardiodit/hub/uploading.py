"""A folder onto the Hub. What its client says in many ways when that cannot work is one sentence here."""

from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError


def create_repository(name: str, private: bool) -> Any:
    """The address of a repository that is there now; one that should be private and is not is refused."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        is_public = private and api.repo_info(address.repo_id).private is False
    except Exception as error:  # no network, no login, no such organisation: each client version has its own
        raise CardioDiTError(
            f"The repository {name} cannot be made on the Hub ({reason_of(error)}). Log in (hf auth login), and "
            "look whether you may write there."
        ) from error
    if is_public:
        raise CardioDiTError(
            f"The repository {name} exists already and is public. Say that it may be, choose another name, "
            "or make it private in its settings on the Hub."
        )
    return address


def upload(address: Any, folder: Path, message: str) -> None:
    """All files of a folder, in one commit."""
    from huggingface_hub import HfApi

    try:
        HfApi().upload_folder(repo_id=address.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:  # as above
        raise CardioDiTError(
            f"{folder} could not be uploaded to {address} ({reason_of(error)}). Nothing there has changed; try again."
        ) from error


def reason_of(error: Exception) -> str:
    """The first line of what an error says."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
