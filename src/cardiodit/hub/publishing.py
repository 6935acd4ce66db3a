"""Publish a pipeline folder on the Hub if its card is complete and none of its files can identify a patient."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.foreign_files import read_text
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.audit_gate import audit_problems, write_hub_config, write_reason
from cardiodit.hub.card.metadata import metadata_problems
from cardiodit.hub.card.owner_facts import HUB_ID
from cardiodit.hub.checks.files import file_problems, folder_problems, what_is_checked
from cardiodit.hub.client import create_repository, upload
from cardiodit.hub.model_card import CARD, headings, to_be_stated

ADVICE = "Nothing was uploaded. `cardiodit card --help` explains how to complete a card."


def publish(
    folder: Path,
    repository: str,
    private: bool = True,
    message: str = "Published with cardiodit",
    without_audit: str | None = None,
    gated: bool = False,
) -> Any:
    """Check a folder, upload it and return its address on the Hub.

    Args:
        folder: pipeline folder with a complete card.
        repository: destination, org/name.
        private: create a private repository, and refuse one that is public.
        message: commit message.
        without_audit: why the model was not audited; written into the card.
        gated: let the owners decide on each request for the files.
    """
    check_name(repository)
    check_all(folder, repository, without_audit).raise_if_any(ADVICE)
    if without_audit is not None:
        write_reason(folder, without_audit)
    write_hub_config(folder)
    address = create_repository(repository, private, gated)
    upload(address, folder, message)
    return address


def check_name(repository: str) -> None:
    if not HUB_ID.fullmatch(repository):
        raise CardioDiTError(f"{repository!r} is not a repository name; expected org/name.")


def check_all(folder: Path, repository: str, without_audit: str | None) -> Problems:
    """Collect everything that prevents a folder from being published, a missing audit too."""
    problems = check_folder(folder, repository)
    for sentence in audit_problems(folder, without_audit):
        problems.add(sentence)
    return problems


def check_folder(folder: Path, repository: str | None = None) -> Problems:
    """Collect everything that prevents a folder from being published in a repository."""
    if not folder.is_dir():
        raise CardioDiTError(f"{folder} is not a folder.")
    problems = Problems(f"{folder} cannot be published")
    for sentence in (*folder_problems(folder), *_card_problems(folder, repository), *file_problems(folder)):
        problems.add(sentence)
    return problems


@dataclass(frozen=True)
class PublishedFile:
    """A file that would be uploaded, its size in bytes, and what was checked in it."""

    name: str
    size: int
    checked: str


def inventory(folder: Path) -> list[PublishedFile]:
    """List the files of a folder that `check_folder` accepts."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [PublishedFile(f.relative_to(folder).as_posix(), f.stat().st_size, what_is_checked(f)) for f in files]


def _card_problems(folder: Path, repository: str | None) -> Iterator[str]:
    card = folder / CARD
    if not card.is_file():
        yield f"{CARD} is missing; write the card with `cardiodit card {folder}`."
        return
    try:
        text = read_text(card)
    except CardioDiTError:
        return  # file_problems reports it
    yield from (f"{CARD} does not state yet: {fact}" for fact in to_be_stated(text))
    present = re.findall(r"^## (.*)$", text, re.MULTILINE)
    if missing := [heading for heading in headings() if heading not in present]:
        yield f"{CARD} lacks the section {', '.join(missing)}; write it with `cardiodit card`, or restore it."
    if repository is not None and f'from_pretrained("{repository}")' not in text:
        yield f"{CARD} shows how to open another model than {repository}; state `repository` in the facts, or edit it."
    yield from (f"{CARD} {problem}." for problem in metadata_problems(card))
