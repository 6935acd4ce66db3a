"""MS-SSIM among pairs, beside MONAI's and the single-scale SSIM of the reconstructions."""

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics import diversity as diversity_module
from cardiodit.evaluation.metrics.diversity import (
    count_scales,
    diversity,
    draw_pairs,
    ms_ssim,
    scale_weights,
    window_axes,
)
from cardiodit.evaluation.similarity import ssim


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Blobs in [-1, 1] under a little noise."""
    rng = np.random.default_rng(seed)
    waves = sum(
        np.sin(2 * np.pi * np.tensordot(rng.normal(size=len(shape)) * 3, np.indices(shape) / 64, 1) + rng.uniform(0, 6))
        for _ in range(3)
    )
    return np.clip(waves / 3 + rng.normal(size=shape) * 0.05, -1, 1)


def monais(first: np.ndarray, second: np.ndarray, scales: int) -> float:
    """Of volumes `(H, W, D)`, or of planes `(N, H, W)` with a batch in front."""
    from monai.metrics.regression import MultiScaleSSIMMetric

    dims = 3 if scales == count_scales(first.shape) and window_axes(first.shape) == (0, 1, 2) else 2
    metric = MultiScaleSSIMMetric(dims, data_range=2.0, weights=tuple(scale_weights(scales)))
    if dims == 2:
        first, second = np.moveaxis(first, 2, 0), np.moveaxis(second, 2, 0)
    batch, other = (torch.from_numpy(x[:, None] if dims == 2 else x[None, None]) for x in (first, second))
    return float(metric(batch, other).mean())


@pytest.mark.parametrize("shape", [(64, 64, 3), (44, 46, 44)])
def test_it_is_monais_number_where_the_definitions_agree(shape: tuple[int, int, int]) -> None:
    first, second = smooth(shape, 0), smooth(shape, 1)
    second = 0.7 * first + 0.3 * second
    found = ms_ssim(first, second)
    assert 0.2 < found < 0.99
    assert found == pytest.approx(monais(first, second, count_scales(shape)), abs=2e-5)


def test_with_one_scale_it_is_the_ssim_of_the_planes() -> None:
    first, second = smooth((20, 20, 4), 2), smooth((20, 20, 4), 2) * 0.5
    assert count_scales(first.shape) == 1
    assert ms_ssim(first, second) == pytest.approx(ssim(first, second))


def test_scales_and_axes_follow_the_size() -> None:
    assert [count_scales((size, size, 8)) for size in (11, 22, 64, 128, 176, 512)] == [1, 2, 3, 4, 5, 5]
    assert window_axes((128, 128, 8, 32)) == (0, 1)
    assert window_axes((128, 128, 128)) == (0, 1, 2)
    assert count_scales((256, 256, 128)) == 4  # the shortest axis decides
    assert scale_weights(3).sum() == pytest.approx(1)
    assert scale_weights(5) == pytest.approx((0.0448, 0.2856, 0.3001, 0.2363, 0.1333), rel=1e-3)


def test_the_range_is_two() -> None:
    """Halved contrast looks the worse the smaller the constants, which the range sets."""
    from monai.metrics.regression import MultiScaleSSIMMetric

    first = smooth((24, 24, 1), 3) * 0.1
    planes = [torch.from_numpy(x[..., 0])[None, None] for x in (first, first * 0.5)]
    by_range = [
        float(MultiScaleSSIMMetric(2, data_range=r, weights=tuple(scale_weights(2)))(*planes)) for r in (1.0, 2.0)
    ]
    assert by_range[1] - by_range[0] > 0.01
    assert ms_ssim(first, first * 0.5) == pytest.approx(by_range[1], abs=1e-5)


def test_the_same_is_one_and_the_opposite_is_nothing() -> None:
    cine = smooth((24, 24, 2, 3), 4)
    assert ms_ssim(cine, cine) == pytest.approx(1)
    assert ms_ssim(cine, -cine) < 0.05


def test_pairs_are_different_sorted_and_never_twice() -> None:
    assert draw_pairs(4, 100).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    drawn = draw_pairs(50, 100, seed=1)
    assert drawn.shape == (100, 2)
    assert (drawn[:, 0] < drawn[:, 1]).all()
    assert drawn.max() < 50
    assert len(np.unique(drawn, axis=0)) == 100
    assert (np.diff(drawn[:, 0]) >= 0).all()
    assert np.array_equal(draw_pairs(50, 100, seed=1), drawn)
    assert not np.array_equal(draw_pairs(50, 100, seed=2), drawn)


def test_every_pair_is_drawn_as_often_as_any_other() -> None:
    counts = np.zeros((6, 6))
    for seed in range(1500):
        np.add.at(counts, tuple(draw_pairs(6, 5, seed).T), 1)
    drawn = counts[np.triu_indices(6, 1)]
    assert drawn == pytest.approx(500, rel=0.2)


@pytest.mark.parametrize(
    ("kept", "expected_loads"),
    [(0, 10 + 3), (diversity_module.KEPT, 5)],  # the second of each pair and a few first ones; each sample once
)
def test_samples_are_loaded_once_where_memory_allows(
    monkeypatch: pytest.MonkeyPatch, kept: int, expected_loads: int
) -> None:
    monkeypatch.setattr(diversity_module, "KEPT", kept)
    cines = [smooth((16, 16, 2, 2), seed) for seed in range(5)]
    loads: list[int] = []

    def load(index: int) -> np.ndarray:
        loads.append(index)
        return cines[index]

    found = diversity(load, 5)
    assert len(loads) == expected_loads
    expected = [ms_ssim(cines[i], cines[j]) for i in range(5) for j in range(i)]
    assert found.ms_ssim.value == pytest.approx(np.mean(expected))
    assert (found.scales, found.axes, found.pairs, found.frames) == (1, "HW", 10, (0, 1))
    assert "1 of 5 scales" in found.ms_ssim.notes[0]


def test_samples_of_two_sizes_are_refused() -> None:
    cines = [smooth((16, 16, 2, 2), 0), smooth((16, 16, 2, 3), 1)]
    with pytest.raises(CardioDiTError, match=r"Sample 1 has the size \(16, 16, 2, 3\), and those before it"):
        diversity(lambda index: cines[index], 2)


def test_few_frames_of_a_long_cine_are_compared() -> None:
    first, second = smooth((16, 16, 2, 8), 5), smooth((16, 16, 2, 8), 6)
    found = diversity(lambda index: (first, second)[index], 2)
    assert found.frames == (0, 2, 4, 6)
    assert found.ms_ssim.value == pytest.approx(ms_ssim(first[..., ::2], second[..., ::2]))
    assert found.ms_ssim.low is None  # two samples are one pair


@pytest.mark.parametrize("pairs", [1000, 60])
def test_the_interval_knows_that_pairs_share_samples(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs of numbers whose products have a known mean; as if pairs were independent, it would hold far less often."""
    from cardiodit.evaluation.metrics import diversity as module

    monkeypatch.setattr(module, "ms_ssim", lambda a, b: float(a[0, 0, 0] * b[0, 0, 0]))
    repetitions, held = 150, 0
    for seed in range(repetitions):
        numbers = np.random.default_rng(seed).uniform(0, 1, 20)
        found = diversity(lambda i, x=numbers: np.full((11, 11, 1), x[i]), 20, pairs=pairs, seed=seed).ms_ssim
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.25 <= found.high
    assert 0.89 <= held / repetitions <= 0.995


def test_other_ranges_sizes_and_holes_are_refused() -> None:
    good = smooth((16, 16, 2), 7)
    for bad, message in (
        (good * 3, "expected images in"),
        (good[:12], "images of one size"),
        (np.full_like(good, np.nan), "NaN"),
        (good[0], r"expected \(H"),
    ):
        with pytest.raises(CardioDiTError, match=message):
            diversity(lambda index, bad=bad: (good, bad)[index], 2)
    with pytest.raises(CardioDiTError, match="11 × 11"):
        ms_ssim(good[:8, :8], good[:8, :8])
    with pytest.raises(CardioDiTError, match="two samples"):
        diversity(lambda index: good, 1)
