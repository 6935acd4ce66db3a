"""Maximum mean discrepancy, against sums written out and Gaussians whose discrepancy is known."""

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import jackknife_interval
from cardiodit.evaluation.metrics.kernel import kid_estimate, mmd_estimate, mmd_prdit


def gaussians(seed: int, n: int = 60, m: int = 70, f: int = 6, scale: float = 1.0, shift: float = 0.0) -> tuple:
    rng = np.random.default_rng(seed)
    synthetic = rng.normal(size=(m, f)) * scale
    synthetic[:, 0] += shift
    return rng.normal(size=(n, f)), synthetic


def expected_rbf(gamma: float, variance: float, shift: float, f: int = 6) -> float:
    """E exp(−γ|z|²) of z from N(shift, variance · I)."""
    widened = 1 + 2 * gamma * variance
    return float(widened ** (-f / 2) * np.exp(-gamma * shift**2 / widened))


def test_prdits_number_is_its_sum_written_out() -> None:
    real, synthetic = gaussians(0, 7, 5, 3, shift=1.0)
    gamma = 1 / (2 * np.median([np.square(a - b).sum() for i, a in enumerate(real) for b in real[:i]]))

    def mean(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.mean([np.exp(-gamma * np.square(a - b).sum()) for a in first for b in second]))

    expected = mean(real, real) + mean(synthetic, synthetic) - 2 * mean(real, synthetic)
    assert mmd_prdit(real, synthetic) == pytest.approx(expected)
    assert mmd_prdit(real, real) == pytest.approx(0, abs=1e-12)


def test_the_unit_of_the_features_does_not_matter() -> None:
    real, synthetic = gaussians(1)
    assert mmd_prdit(1000 * real, 1000 * synthetic) == pytest.approx(mmd_prdit(real, synthetic))


def test_the_polynomial_number_is_its_sum_written_out() -> None:
    real, synthetic = gaussians(2, 6, 5, 4, shift=1.0)

    def pairs(first: np.ndarray, second: np.ndarray, same: bool) -> float:
        values = [(a @ b / 4 + 1) ** 3 for i, a in enumerate(first) for j, b in enumerate(second) if not same or i != j]
        return float(np.mean(values))

    expected = pairs(real, real, True) + pairs(synthetic, synthetic, True) - 2 * pairs(real, synthetic, False)
    assert mmd_estimate(real, synthetic, kernel="polynomial").value == pytest.approx(expected)


def test_the_jackknife_leaves_out_what_it_says() -> None:
    """The interval by the quick sums is that of computing everything anew without each volume."""
    real, synthetic = gaussians(3, 9, 8, shift=1.0)
    estimate = mmd_estimate(real, synthetic, kernel="polynomial")
    by_hand = [
        np.array([mmd_estimate(np.delete(real, i, 0), synthetic, kernel="polynomial").value for i in range(9)]),
        np.array([mmd_estimate(real, np.delete(synthetic, j, 0), kernel="polynomial").value for j in range(8)]),
    ]
    assert (estimate.low, estimate.high) == pytest.approx(jackknife_interval(estimate.value, *by_hand))


@pytest.mark.parametrize(("scale", "shift", "at_most"), [(1.0, 0.0, 1.0), (1.0, 0.5, 1.0), (1.4, 1.0, 0.99)])
def test_the_interval_holds_the_truth_as_often_as_it_says(scale: float, shift: float, at_most: float) -> None:
    repetitions, held, errors = 200, 0, []
    for seed in range(repetitions):
        real, synthetic = gaussians(100 + seed, scale=scale, shift=shift)
        gamma = 1 / (2 * np.median(pdist(real, "sqeuclidean")))
        truth = (
            expected_rbf(gamma, 2, 0)
            + expected_rbf(gamma, 2 * scale**2, 0)
            - 2 * expected_rbf(gamma, 1 + scale**2, shift)
        )
        estimate = mmd_estimate(real, synthetic)
        assert estimate.low is not None
        assert estimate.high is not None
        held += estimate.low <= truth <= estimate.high
        errors.append(estimate.value - truth)
    assert 0.89 <= held / repetitions <= at_most
    assert abs(np.mean(errors)) < 3 * np.std(errors) / np.sqrt(repetitions)


def expected_polynomial(scale: float, shift: float, f: int = 6) -> float:
    """Σ C(3, k)/fᵏ |E x⊗ᵏ − E y⊗ᵏ|² of x from N(0, I) and y from N(shift · e, scale² I)."""
    variance, m = scale**2, shift**2
    second = (1 - variance) ** 2 * f - 2 * (1 - variance) * m + m**2
    third = m**3 + 6 * variance * m**2 + variance**2 * (3 * f + 6) * m
    return 3 * m / f + 3 * second / f**2 + third / f**3


@pytest.mark.parametrize(("scale", "shift", "at_most"), [(1.0, 0.0, 1.0), (1.0, 0.8, 0.99), (1.4, 1.0, 0.99)])
def test_the_interval_of_the_polynomial_kernel_holds_as_often(scale: float, shift: float, at_most: float) -> None:
    truth, found = expected_polynomial(scale, shift), []
    for seed in range(200):
        found.append(mmd_estimate(*gaussians(400 + seed, scale=scale, shift=shift), kernel="polynomial"))
    held = np.mean([estimate.low <= truth <= estimate.high for estimate in found])
    errors = np.array([estimate.value for estimate in found]) - truth
    assert 0.89 <= held <= at_most
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(200)


def test_unlike_the_biased_number_it_is_about_zero_between_equals() -> None:
    found = [(mmd_estimate(*gaussians(seed)).value, mmd_prdit(*gaussians(seed))) for seed in range(40)]
    unbiased, biased = np.mean(found, axis=0)
    assert abs(unbiased) < 0.1 * biased
    assert "degenerate" in mmd_estimate(*gaussians(0)).notes[0]


def test_copies_and_unknown_kernels_are_refused() -> None:
    with pytest.raises(CardioDiTError, match="Check the real volumes for copies"):
        mmd_prdit(np.ones((5, 2)), np.zeros((5, 2)))
    with pytest.raises(CardioDiTError, match='kernel="linear" is unknown'):
        mmd_estimate(*gaussians(0), kernel="linear")


def test_the_kernel_of_kid_has_another_value_than_the_rbf_kernel_and_the_former_name_still_works() -> None:
    real, synthetic = gaussians(0, shift=0.5)
    values = [mmd_estimate(real, synthetic, kernel=kernel).value for kernel in ("rbf", "polynomial")]
    assert values[1] > 2 * values[0]
    with pytest.warns(DeprecationWarning, match="use mmd_estimate"):
        assert kid_estimate(real, synthetic).value == values[0]
