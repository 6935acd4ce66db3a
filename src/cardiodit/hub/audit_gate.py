"""The gate before publishing: an audit of these very weights and this very cohort, or a reason why there is none."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardiodit import __version__
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import read_object
from cardiodit.errors import CardioDiTError
from cardiodit.hub.model_card import CARD, is_as_made, sealed
from cardiodit.hub.registration import LIBRARY, class_name_of

REPORT = "audit.json"
SECTION = "## Privacy\n"
REASON = "**Published without an audit.**"


def add_audit(folder: Path, source: Path, home: Path | None = None) -> dict[str, Any]:
    """Copy an audit into a pipeline folder, if it is of the folder's weights, and return it.

    Args:
        home: folder whose run or card records the training data, if not this one.
    """
    from cardiodit.privacy.report import read_audit

    report = read_audit(source)
    for sentence in _mismatches(folder, report, home or folder):
        raise CardioDiTError(f"{source} cannot be added to {folder}: {sentence}")
    path = source / REPORT if source.is_dir() else source
    if path.resolve() != (folder / REPORT).resolve():
        with atomic_file(folder / REPORT) as temporary:
            shutil.copy(path, temporary)
    return report


def missing(audit: Path | None, without_audit: str | None, how: str) -> str | None:
    """Return why a model must not be published if it has neither an audit nor a reason for lacking one.

    Args:
        audit: where its `audit.json` would be.
        how: how to add one.
    """
    if without_audit is not None:
        return None if without_audit.strip() else "--without_audit needs a reason, which is written into the card."
    if audit is not None and audit.is_file():
        return None
    return (
        "There is no audit of whether the model reproduces its training patients: run `cardiodit audit`, and "
        f"{how}; or give --without_audit with a reason."
    )


def audit_problems(folder: Path, without_audit: str | None) -> Iterator[str]:
    """Report what is wrong with a folder's audit, unless a reason is given why there is none."""
    if without_audit is None and not folder.is_dir():
        return
    if problem := missing(folder / REPORT, without_audit, f"add it with `cardiodit card {folder} --audit`"):
        yield problem
        return
    if without_audit is not None:
        return
    from cardiodit.privacy.report import read_audit

    try:
        yield from _mismatches(folder, read_audit(folder / REPORT), folder)
    except CardioDiTError as error:
        yield str(error)


def _mismatches(folder: Path, report: dict[str, Any], home: Path) -> Iterator[str]:
    from cardiodit.privacy.identities import identity_of_weights, known_cohort

    audited = report["model"]
    if audited["weights"] is None:
        yield "The audit examined samples only, without --model, so that it belongs to no weights. Audit with --model."
    elif audited["weights"] != (weights := identity_of_weights(folder)):
        yield (
            f"The audit is of the weights {audited['weights'][:12]}, and the folder has {weights[:12]}. Audit these "
            "weights: other training, rounding or conversion makes another model."
        )
    trained_on = known_cohort(home)
    if trained_on is not None and trained_on.match(audited["cohort"]) is None:
        yield (
            f"The audit searched another cohort than the one that the model was trained on ({trained_on.source} "
            f"records {trained_on.identity[:16]}). Audit with the training manifest."
        )


def write_reason(folder: Path, reason: str) -> None:
    """Write into a card why there is no audit, in place of an earlier reason."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8")
    was_as_made = is_as_made(text)
    content = text.rstrip("\n").rpartition("\n")[0] + "\n" if was_as_made else text
    lines = [line for line in content.splitlines(keepends=True) if not line.startswith(REASON)]
    if SECTION not in lines:  # such as in the card that diffusers makes
        lines += ["\n", SECTION]
    place = lines.index(SECTION) + 1
    lines[place:place] = ["\n", f"{REASON} {' '.join(reason.split())}\n"]
    content = "".join(lines).replace("\n\n\n", "\n\n")
    with atomic_file(card) as temporary:
        temporary.write_text(sealed(content) if was_as_made else content, encoding="utf-8")


def check_push(origin: str, without_audit: str | None) -> None:
    """Raise an error unless the folder that a pipeline was opened from has an audit, or a reason is given."""
    audit = Path(origin) / REPORT if origin else None
    how = "add it with `cardiodit card FOLDER --audit` to the folder that the pipeline is opened from"
    if problem := missing(audit, without_audit, how):
        raise CardioDiTError(f"{problem} (`without_audit=` in Python.)" if without_audit is None else problem)


def write_hub_config(folder: Path) -> None:
    """Write the `config.json` by whose downloads the Hub counts those of a model whose library it does not know."""
    index = read_object(folder / "model_index.json")
    config = {"library_name": LIBRARY, "_class_name": class_name_of(index, folder), "cardiodit_version": __version__}
    with atomic_file(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")


def complete_push(folder: Path, origin: str, without_audit: str | None) -> None:
    """Add the audit of the folder that a pipeline was opened from, or the reason, to the folder that is uploaded."""
    write_hub_config(folder)
    if without_audit is None:
        add_audit(folder, Path(origin) / REPORT, Path(origin))
    else:
        write_reason(folder, without_audit)
