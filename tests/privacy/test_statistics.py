"""The published rule and its correction: golden counts, closed forms, and simulated generators with known shares."""

import zlib

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import false_discovery_control

from cardiodit.errors import CardioDiTError
from cardiodit.privacy.statistics import (
    attack_of,
    benjamini_hochberg,
    excess_of_copies,
    excess_of_patients,
    fewest_held_out,
    matched_p_values,
    matched_rate,
    proportion_interval,
    published_rule,
    tail_p_values,
    true_level,
)


def draws(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(text.encode())).standard_normal(shape)


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    """Embeddings with 48 planted copies of 24 patients, by the rule of the golden values."""
    sets = {name: draws(f"{name} embeddings", (n, 32)) for name, n in [("train", 120), ("validation", 30)]}
    synthetic = draws("synthetic embeddings", (120, 32))
    synthetic[:48] = sets["train"][np.arange(48) // 2] + 0.15 * draws("copies", (48, 32))
    return {name: cdist(sets["train"], rows, "correlation") for name, rows in {**sets, "synthetic": synthetic}.items()}


def test_the_published_rule_counts_what_was_published(published: dict) -> None:
    found = published_rule(published["validation"], published["synthetic"])
    assert (found.patients.sum(), found.copies.sum()) == (36, 58)
    assert 1 - found.threshold == pytest.approx(0.5015628562690, rel=1e-6)
    assert found.expected == pytest.approx(1 - 0.95**4)


def test_matched_p_values_and_discoveries_are_the_golden_ones(published: dict) -> None:
    p_values = matched_p_values(published["validation"].min(axis=0), published["synthetic"].min(axis=0))
    assert (p_values <= 0.05).sum() == 50
    assert benjamini_hochberg(p_values).sum() == 50
    assert np.array_equal(benjamini_hochberg(p_values), false_discovery_control(p_values) <= 0.10)


def simulated(seed: int, share: float, training: int = 240, held_out: int = 60, samples: int = 240) -> list[np.ndarray]:
    """Distances to held-out patients and to samples, of which a share copies one training patient each."""
    rng = np.random.default_rng(seed)
    patients, others, generated = (rng.standard_normal((n, 6)) for n in (training, held_out, samples))
    copied = round(share * samples)
    generated[:copied] = patients[:copied] + 0.01 * rng.standard_normal((copied, 6))
    return [cdist(patients, others), cdist(patients, generated)]


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_the_corrected_share_of_copies_is_unbiased_where_the_published_one_is_not(share: float) -> None:
    corrected, published = [], []
    for seed in range(120):
        held_out, samples = simulated(seed, share)
        found = excess_of_copies(held_out.min(axis=0), samples.min(axis=0), samples.argmin(axis=0), repeats=1)
        corrected.append(found.excess.value / (1 - found.null))
        published.append(published_rule(held_out, samples).copies.mean())
    assert np.mean(corrected) == pytest.approx(share, abs=0.01)
    assert np.mean(published) > share + 0.10  # a generator that copies nobody: 18% "copies"


def test_the_corrected_share_of_patients_is_unbiased_for_a_generator_that_copies_nobody() -> None:
    corrected, published, p_values, covered = [], [], [], []
    for seed in range(40):
        held_out, samples = simulated(seed, 0.0)
        found = excess_of_patients(held_out, samples, permutations=19)
        corrected.append(found.excess.value)
        covered.append(found.excess.low <= 0 <= found.excess.high)
        p_values.append(found.p_value)
        published.append(published_rule(held_out, samples).patients.mean())
    assert abs(np.mean(corrected)) < 0.01
    assert np.mean(published) > 0.15
    assert np.mean(covered) >= 0.85  # 96% of 400 seeds
    assert np.mean(np.array(p_values) <= 0.05) <= 0.125


def test_copied_patients_are_found_as_often_as_a_draw_contains_their_copies() -> None:
    held_out, samples = simulated(0, 0.2)
    found = excess_of_patients(held_out, samples)
    assert found.excess.value == pytest.approx(0.2 * 60 / 240, abs=0.03)
    assert found.excess.low > 0
    assert found.p_value < 0.05


def test_the_matched_rate_is_the_mean_over_draws() -> None:
    held_out, samples = simulated(3, 0.1, training=40, held_out=10, samples=30)
    threshold = np.percentile(held_out.min(axis=1), 5)
    rng = np.random.default_rng(0)
    rates = [(samples[:, rng.permutation(30)[:10]].min(axis=1) < threshold).mean() for _ in range(20000)]
    assert matched_rate(held_out, samples) == pytest.approx(np.mean(rates), abs=2e-3)


def test_p_values_of_copies_are_rarely_small_for_a_generator_that_copies_nobody() -> None:
    p_values = []
    for seed in range(150):
        held_out, samples = simulated(seed, 0.0)
        nearest = held_out.min(axis=0), samples.min(axis=0), samples.argmin(axis=0)
        p_values.append(excess_of_copies(*nearest, repeats=1).p_value)
    assert 0.0 < np.mean(np.array(p_values) <= 0.1) <= 0.18


def test_few_held_out_patients_cannot_show_anything() -> None:
    assert fewest_held_out() == 19
    with pytest.raises(CardioDiTError, match="18 held-out patients cannot show copies .* at least 19 are needed"):
        excess_of_copies(np.ones(18), np.zeros(5), np.zeros(5, int))
    assert excess_of_copies(np.ones(19), np.zeros(5), np.arange(5)).observed == 1.0


def test_the_level_of_a_threshold_is_uncertain() -> None:
    assert true_level(226) == pytest.approx((0.025, 0.080), abs=5e-3)
    assert true_level(50) == pytest.approx((0.005, 0.110), abs=5e-3)


def test_fewer_samples_than_held_out_patients_are_matched_too() -> None:
    held_out, samples = simulated(1, 0.0, held_out=80, samples=30)
    assert "30 of 30 samples" in excess_of_patients(held_out, samples, permutations=3).excess.method


def test_an_attack_is_judged_by_auc_and_by_the_members_it_finds_without_false_alarms() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.normal(-1, 1, 300), rng.normal(0, 1, 400)
    attack = attack_of(members, others)
    brute = np.mean((members[:, None] < others) + 0.5 * (members[:, None] == others))
    assert attack.auc.value == pytest.approx(brute)
    assert attack.auc.low < 0.760 < attack.auc.high  # Φ(1 / √2)
    assert attack.rates[0.01].value == np.mean(members < np.sort(others)[4])
    assert attack.rates[0.001].notes and "0 false alarms of 400" in attack.rates[0.001].method
    blind = attack_of(rng.normal(0, 1, 200), rng.normal(0, 1, 200))
    assert blind.auc.low < 0.5 < blind.auc.high


def test_exact_intervals_of_proportions() -> None:
    assert proportion_interval(0, 20) == pytest.approx((0.0, 0.1684), abs=1e-4)
    assert proportion_interval(7, 20) == pytest.approx((0.1539, 0.5922), abs=1e-4)
    assert proportion_interval(20, 20)[1] == 1.0


def test_single_copies_are_named_among_many_samples_and_rarely_by_chance() -> None:
    named, wrongly = [], []
    for seed in range(100):
        held_out, samples = (each.min(axis=0) for each in simulated(seed, 0.0))
        wrongly.append(benjamini_hochberg(tail_p_values(held_out, samples)).any())
        samples[:2] = 0.01  # two copies of 240 samples: p-values of at least 1 / 61 could never name them
        assert not benjamini_hochberg(matched_p_values(held_out, samples)).any()
        named.append(benjamini_hochberg(tail_p_values(held_out, samples))[:2].all())
    assert np.mean(named) > 0.95
    assert np.mean(wrongly) <= 0.15
