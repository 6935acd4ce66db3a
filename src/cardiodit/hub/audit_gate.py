"""The gate before publishing: an audit of these very weights and this very cohort, or a reason why there is none."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.hub.model_card import CARD, is_as_made, sealed

REPORT = "audit.json"
SECTION = "## Privacy\n"
REASON = "**Published without an audit.**"


def add_audit(folder: Path, source: Path) -> dict[str, Any]:
    """Copy an audit into a pipeline folder, if it is of the folder's weights, and return it."""
    from cardiodit.privacy.report import read_audit

    report = read_audit(source)
    for sentence in _mismatches(folder, report):
        raise CardioDiTError(f"{source} cannot be added to {folder}: {sentence}")
    path = source / REPORT if source.is_dir() else source
    if path.resolve() != (folder / REPORT).resolve():
        with atomic_file(folder / REPORT) as temporary:
            shutil.copy(path, temporary)
    return report


def audit_problems(folder: Path, without_audit: str | None) -> Iterator[str]:
    """Report what is wrong with a folder's audit, unless a reason is given why there is none."""
    if without_audit is not None:
        if not without_audit.strip():
            yield "--without_audit needs a reason, which is written into the card."
        return
    if not folder.is_dir():
        return
    if not (folder / REPORT).is_file():
        yield (
            "There is no audit of whether the model reproduces its training patients: run `cardiodit audit`, and add "
            f"it with `cardiodit card {folder} --audit`; or give --without_audit with a reason."
        )
        return
    from cardiodit.privacy.report import read_audit

    try:
        yield from _mismatches(folder, read_audit(folder / REPORT))
    except CardioDiTError as error:
        yield str(error)


def _mismatches(folder: Path, report: dict[str, Any]) -> Iterator[str]:
    from cardiodit.privacy.identities import identity_of_weights, known_cohort

    audited = report["model"]
    if audited["weights"] is None:
        yield "The audit examined samples only, without --model, so that it belongs to no weights. Audit with --model."
    elif audited["weights"] != (weights := identity_of_weights(folder)):
        yield (
            f"The audit is of the weights {audited['weights'][:12]}, and the folder has {weights[:12]}. Audit these "
            "weights: other training, rounding or conversion makes another model."
        )
    trained_on = known_cohort(folder)
    if trained_on is not None and not trained_on.fits(audited["cohort"]):
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
    place = lines.index(SECTION) + 1
    lines[place:place] = ["\n", f"{REASON} {' '.join(reason.split())}\n"]
    content = "".join(lines).replace("\n\n\n", "\n\n")
    with atomic_file(card) as temporary:
        temporary.write_text(sealed(content) if was_as_made else content, encoding="utf-8")
