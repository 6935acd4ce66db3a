from collections import Counter

import pytest

from cardiodit.imaging.cohorts.split import SPLITS, split_subjects

LABELS = {f"p{n:03d}": "abcd"[n % 4] if n < 90 else "rare" for n in range(100)}


@pytest.mark.parametrize("fractions", [(0.8, 0.1, 0.1), (0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (1.0, 0.0, 0.0)])
def test_sizes_are_as_asked_and_every_label_is_spread(fractions: tuple) -> None:
    splits = split_subjects(LABELS, fractions, seed=0)
    counts = Counter(splits.values())
    assert [counts[name] for name in SPLITS] == [round(100 * fraction) for fraction in fractions]
    for label in set(LABELS.values()):
        mine = Counter(splits[s] for s in LABELS if LABELS[s] == label)
        for name, fraction in zip(SPLITS, fractions):
            assert abs(mine[name] - fraction * mine.total()) <= 1.5


def test_it_depends_on_the_seed_and_on_nothing_else() -> None:
    splits = split_subjects(LABELS, (0.8, 0.1, 0.1), seed=3)
    backwards = dict(reversed(LABELS.items()))
    assert split_subjects(backwards, (0.8, 0.1, 0.1), seed=3) == splits
    assert split_subjects(LABELS, (0.8, 0.1, 0.1), seed=4) != splits


@pytest.mark.parametrize(
    ("patients", "fractions", "counts"),
    [
        (5, (0.8, 0.1, 0.1), [3, 1, 1]),
        (3, (0.8, 0.1, 0.1), [1, 1, 1]),
        (4, (0.9, 0.1, 0.0), [3, 1, 0]),
        (10, (0.02, 0.49, 0.49), [1, 4, 5]),
        (5, (1.0, 0.0, 0.0), [5, 0, 0]),
        (2, (0.8, 0.1, 0.1), [2, 0, 0]),
    ],
)
def test_no_split_is_empty_where_patients_suffice(patients: int, fractions: tuple, counts: list[int]) -> None:
    found = Counter(split_subjects({f"p{n}": "ab"[n % 2] for n in range(patients)}, fractions, 0).values())
    assert [found[name] for name in SPLITS] == counts


def test_splits_of_which_none_was_empty_stay_as_they_were() -> None:
    splits = split_subjects({f"p{n}": "ab"[n % 2] for n in range(6)}, (0.8, 0.1, 0.1), 0)
    assert splits == {"p5": "test", "p4": "validation", **dict.fromkeys(("p0", "p1", "p2", "p3"), "training")}


def test_few_patients() -> None:
    assert Counter(split_subjects({"a": "", "b": "", "c": ""}, (0.34, 0.33, 0.33), 0).values()).total() == 3
    assert split_subjects({"a": ""}, (0.8, 0.1, 0.1), 0) == {"a": "training"}
