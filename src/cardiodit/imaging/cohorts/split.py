"""Splits of patients into training, validation and test."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.cohorts.cohort import CohortFile

SPLITS = ("training", "validation", "test")
OWN_SPLITS = {"testing": "test", "training labeled": "training", "training unlabeled": "training"}


def split_subjects(labels: Mapping[str, str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Split subjects by a seed, each label in the same proportions; return subject → split.

    Args:
        labels: subject → label.
        fractions: shares of training, validation and test; they sum to 1. With fewer patients than fractions above 0,
            some splits stay empty.
        seed: random seed; the order of the subjects does not matter.
    """
    if len(fractions) != len(SPLITS) or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise CardioDiTError(
            f"The fractions {tuple(fractions)} must be three numbers that sum to 1: {', '.join(SPLITS)}."
        )

    def shuffled(subject: str) -> bytes:
        return hashlib.sha256(f"{seed}:{subject}".encode()).digest()

    groups: dict[str, list[str]] = defaultdict(list)
    for subject, label in labels.items():
        groups[label].append(subject)
    # One queue of all subjects, label by label; at each position, the split furthest behind its share gets the next.
    queue = [subject for label in sorted(groups) for subject in sorted(groups[label], key=shuffled)]
    sizes = _split_sizes(len(queue), fractions)
    counts = [0] * len(SPLITS)
    result = {}
    for position, subject in enumerate(queue, start=1):
        behind = [size * position / len(queue) - count for size, count in zip(sizes, counts, strict=True)]
        split = max(range(len(SPLITS)), key=lambda i: (behind[i], sizes[i]))
        counts[split] += 1
        result[subject] = SPLITS[split]
    return result


def _split_sizes(subjects: int, fractions: Sequence[float]) -> list[int]:
    """Round to whole subjects; if there are enough, every split with a fraction above 0 gets at least one."""
    sizes = [round(fraction * subjects) for fraction in fractions]
    sizes[0] = subjects - sum(sizes[1:])
    used = [split for split, fraction in enumerate(fractions) if fraction > 0]
    for split in used:
        if subjects >= len(used) and sizes[split] < 1:
            sizes[sizes.index(max(sizes))] -= 1
            sizes[split] += 1
    return sizes


def own_splits(files: Sequence[CohortFile]) -> dict[str, str]:
    """Return subject → split by the cohort's own partitions."""
    problems = Problems("The cohort's own split cannot be used")
    splits: dict[str, str] = {}
    for file in files:
        split = OWN_SPLITS.get(file.partition, file.partition)
        if not split:
            problems.add(f"{file.image} is not in any of its partitions")
        elif splits.setdefault(file.subject, split) != split:
            problems.add(
                f"{file.image} is in its partition {file.partition}, but another image of {file.subject} is not"
            )
    problems.raise_if_any("Split by a seed instead.")
    return splits
