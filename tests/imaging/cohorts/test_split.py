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


def test_few_patients() -> None:
    assert Counter(split_subjects({"a": "", "b": "", "c": ""}, (0.34, 0.33, 0.33), 0).values()).total() == 3
    assert split_subjects({"a": ""}, (0.8, 0.1, 0.1), 0) == {"a": "training"}
