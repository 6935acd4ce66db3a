"""From a pipeline folder to the Hub, if its card is complete and no file can tell who a patient is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.hub.card.metadata import metadata_problems
from cardiodit.hub.card.owner_facts import HUB_ID
from cardiodit.hub.checks.files import file_problems, folder_problems
from cardiodit.hub.model_card import CARD, headings, to_be_stated
from cardiodit.hub.uploading import create_repository, upload

ADVICE = "Nothing was uploaded. `cardiodit card --help` tells how a card is completed."


def check_folder(folder: Path, repository: str | None = None) -> Problems:
    """Everything that speaks against publishing a folder, there."""
    if not folder.is_dir():
        raise CardioDiTError(f"{folder} is not a folder.")
    problems = Problems(f"{folder} cannot be published")
    about_card = card_problems(folder, repository)
    for sentence in (*folder_problems(folder), *about_card, *file_problems(folder)):
        problems.add(sentence)
    return problems


def card_problems(folder: Path, repository: str | None = None) -> Iterator[str]:
    """What a card lacks or has wrong."""
    card = folder / CARD
    if not card.is_file():
        yield f"{CARD} is missing; make the card with `cardiodit card {folder}`."
        return
    try:
        text = card.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return  # said with the files
    yield from (f"{CARD} does not state yet: {what}" for what in to_be_stated(text))
    held = re.findall(r"^## (.*)$", text, re.MULTILINE)
    if lost := [heading for heading in headings() if heading not in held]:
        yield f"{CARD} lacks the section {', '.join(lost)}; make it with `cardiodit card`, or put it back."
    if repository is not None and f'from_pretrained("{repository}")' not in text:
        yield f"{CARD} shows how to open another model than {repository}; state `repository` in the facts, or edit it."
    yield from (f"{CARD} {problem}." for problem in metadata_problems(card))


def publish(folder: Path, repository: str, private: bool = True, message: str = "Published with cardiodit") -> Any:
    """Checks a folder and uploads it; its address on the Hub.

    Args:
        folder: a pipeline folder with a complete card.
        repository: org/name.
        private: refuse a repository that everybody sees.
        message: of the commit.
    """
    check_name(repository)
    check_folder(folder, repository).raise_if_any(ADVICE)
    address = create_repository(repository, private)
    upload(address, folder, message)
    return address


def check_name(repository: str) -> None:
    if not HUB_ID.fullmatch(repository):
        raise CardioDiTError(f"{repository!r} is not a repository name; expected org/name.")
