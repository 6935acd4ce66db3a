"""Patients into splits, by a seed: the same patient always falls the same way."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cardiodit.errors import CardioDiTError

SPLITS = ("training", "validation", "test")


def split_subjects(labels: Mapping[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Subject → split, with every label's subjects shared out in the same proportions.

    Args:
        labels: of each subject.
        fractions: of training, validation and test; they sum to 1. Fewer patients than fractions above 0 leave splits
            empty.
        seed: another seed, another split. Order and number of processes do not matter.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CardioDiTError(
            f"The fractions {tuple(fractions)} must be three numbers that sum to 1: {', '.join(SPLITS)}."
        )
    groups: dict[str, list[str]] = defaultdict(list)
    for subject, label in labels.items():
        groups[label].append(subject)
    # One line of all subjects, label by label, each shuffled by its hash; every position has its split.
    line = [s for label in sorted(groups) for s in sorted(groups[label], key=lambda s: _shuffle(seed, s))]
    wanted = _sizes(len(line), fractions)
    given = [0] * len(SPLITS)
    result = {}
    for position, subject in enumerate(line, start=1):
        # Whoever lags most behind its share gets the next one, so that each label is spread evenly.
        lag = [want * position / len(line) - got for want, got in zip(wanted, given, strict=True)]
        split = max(range(len(SPLITS)), key=lambda i: (lag[i], wanted[i]))
        given[split] += 1
        result[subject] = SPLITS[split]
    return result


def _sizes(subjects: int, fractions: Sequence[float]) -> list[int]:
    """How many go to each split: rounded, but where they suffice, at least one to every split that has a fraction."""
    wanted = [round(fraction * subjects) for fraction in fractions]
    wanted[0] = subjects - sum(wanted[1:])
    asked = [split for split, fraction in enumerate(fractions) if fraction > 0]
    for split in asked:
        if subjects >= len(asked) and wanted[split] < 1:
            wanted[wanted.index(max(wanted))] -= 1
            wanted[split] += 1
    return wanted


def _shuffle(seed: int, subject: str) -> bytes:
    return hashlib.sha256(f"{seed}:{subject}".encode()).digest()
