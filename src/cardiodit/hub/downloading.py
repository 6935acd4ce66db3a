"""Single files from the Hub."""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.hub.uploading import reason_of


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a repository, in the Hub client's cache."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # no network, no such file or repository: each client version has its own
        raise CardioDiTError(
            f"{file} of {repository} cannot be downloaded from the Hub ({reason_of(error)}). Look whether the names "
            "are right and whether you may read it (hf auth login); offline, it must have been downloaded before."
        ) from error
