"""Fill the model card of a pipeline folder from its files, its training runs and its owner's facts.

Facts that are still missing stay visible in the card after `TO_BE_STATED`; a card without these words is complete.
"""

import hashlib
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from cardiodit import __version__
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.typed_yaml import load_yaml
from cardiodit.errors import CardioDiTError, try_all
from cardiodit.hub.card.emissions import emissions_of
from cardiodit.hub.card.metadata import card_metadata
from cardiodit.hub.card.model_facts import read_model
from cardiodit.hub.card.owner_facts import TO_BE_STATED, OwnerFacts
from cardiodit.hub.card.previews import read_previews
from cardiodit.hub.card.sections import sections
from cardiodit.hub.card.training_runs import RECORD, TrainingRun, read_run

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("model_card.md")
FRONT = re.compile(r"---\n(.*?)---\n", re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->\n", re.DOTALL)
PLACEHOLDER = re.compile(r"\{\{ (\w+) \}\}")  # of the metadata, whose values keep their types
SEAL = "<!-- Made by cardiodit card, sha256 {hash}; a card with other content was edited, and is not replaced. -->\n"
NO_FACTS = OwnerFacts()


def write_card(
    folder: Path, runs: Sequence[Path] = (), facts: OwnerFacts = NO_FACTS, overwrite: bool = False
) -> list[str]:
    """Write `README.md` of a pipeline folder and return the facts that are still missing.

    Args:
        folder: a pipeline folder. If it lies in a run folder, that run and the neighbouring runs whose weights it
            holds are found automatically.
        runs: further folders of training runs.
        facts: facts that only the owner knows.
        overwrite: also replace a card that was edited by hand.
    """
    card = folder / CARD
    if card.is_file() and not overwrite and not is_as_made(card.read_text(encoding="utf-8", errors="replace")):
        raise CardioDiTError(f"{card} was edited by hand and is not replaced. Move it away, or give --overwrite.")
    text = fill_card(folder, _runs_behind(folder, runs), facts)
    with atomic_file(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return to_be_stated(text)


def fill_card(folder: Path, runs: Sequence[TrainingRun], facts: OwnerFacts) -> str:
    """Return the text of the card."""
    model, previews = read_model(folder), read_previews(folder)
    emissions = emissions_of(model, runs, facts)
    name = facts.name or _name_of(folder, runs)
    front, body = _template()
    block = _filled_block(front, card_metadata(name, model, facts, emissions))
    words = {**sections(folder, model, runs, facts, emissions, previews), "name": name, "version": __version__}
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(body)
    filled = re.sub(r"\n{3,}", "\n\n", template.render(words))
    return sealed(f"---\n{block}---\n{filled}")


def to_be_stated(card: str) -> list[str]:
    """Return the facts that a card marks as missing."""
    return [line.partition(TO_BE_STATED)[2].strip() for line in card.splitlines() if TO_BE_STATED in line]


def headings() -> list[str]:
    """Return the headings that every card has."""
    return re.findall(r"^## (.*)$", _template()[1], re.MULTILINE)


def is_as_made(card: str) -> bool:
    """Tell whether a card is unedited since it was written."""
    content, _, seal = card.rstrip("\n").rpartition("\n")
    return seal + "\n" == _seal_of(content + "\n")


def sealed(content: str) -> str:
    """Return a card with the mark by which `is_as_made` recognizes it."""
    return content + _seal_of(content)


def _seal_of(content: str) -> str:
    return SEAL.format(hash=hashlib.sha256(content.encode()).hexdigest())


def _template() -> tuple[str, str]:
    """Return the template's metadata block and body, without the comment for its readers."""
    text = TEMPLATE.read_text(encoding="utf-8")
    front = FRONT.match(text)
    if front is None:
        raise CardioDiTError(f"The template {TEMPLATE} has no metadata block. Install cardiodit again.")
    return front[1], COMMENT.sub("", text[front.end() :], count=1)


def _filled_block(front: str, known: dict[str, Any]) -> str:
    """Fill the metadata block in the template's order, leaving unknown keys out."""
    block = {}
    for key, value in load_yaml(front).items():
        placeholder = PLACEHOLDER.fullmatch(value)
        block[key] = known[placeholder[1]] if placeholder else value
    known_keys = {key: value for key, value in block.items() if value is not None}
    return yaml.safe_dump(known_keys, sort_keys=False, allow_unicode=True, width=120)


def _runs_behind(folder: Path, runs: Sequence[Path]) -> list[TrainingRun]:
    """Return the given runs and those that a pipeline in a run folder comes from, in the order of their stages."""
    home = folder.resolve().parent
    folders = {run.resolve(): run for run in [*runs, *([home] if (home / RECORD).is_file() else [])]}
    found = try_all(*[partial(read_run, run) for run in folders.values()])
    if home in folders:
        found += _contributors(folder, [run for run in sorted(home.parent.iterdir()) if run.resolve() not in folders])
    stages = read_model(folder).system.stages
    return sorted(found, key=lambda run: stages.index(run.stage) if run.stage in stages else len(stages))


def _contributors(folder: Path, others: Sequence[Path]) -> list[TrainingRun]:
    """Return the runs whose best weights are in this pipeline, byte for byte."""
    found = []
    for other in others:
        if (other / RECORD).is_file():
            with suppress(CardioDiTError):  # a damaged record of a run that was not given
                run = read_run(other)
                found += [run] if run.made(folder) else []
    return found


def _name_of(folder: Path, runs: Sequence[TrainingRun]) -> str:
    naming = (run.name for run in reversed(runs) if run.stage is not None and run.stage.names_model)
    return next(naming, folder.resolve().name)
