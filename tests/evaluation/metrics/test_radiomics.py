"""Radiomics: features of patterns with closed forms, and the distance's behaviour."""

import numpy as np
import pytest

from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.metrics.radiomics import (
    DIRECTIONS,
    LEVELS,
    averaged,
    cooccurrence,
    filtered,
    grey_levels,
    intensities,
    neighbourhood_differences,
    radiomics,
    radiomics_distance,
    run_lengths,
    standardised,
    zones,
)

# Order of the features of runs and zones.
SHORT, LONG, LOW, HIGH = 0, 1, 2, 3
UNIFORM_LEVELS, UNIFORM_SIZES, PER_VOXEL, LEVEL_VARIANCE, SIZE_VARIANCE, ENTROPY = 8, 9, 12, 13, 14, 15


def stripes() -> np.ndarray:
    """Planes of the levels 1 and 3 in turn along the last axis."""
    return np.where(np.arange(6) % 2, 3, 1) * np.ones((4, 5, 6), int)


def test_there_are_thirteen_directions() -> None:
    assert len(DIRECTIONS) == 13
    assert len({tuple(s * d for d in way) for way in DIRECTIONS for s in (1, -1)}) == 26


def test_grey_levels_span_the_range() -> None:
    values = np.array([-1.0, -1.5, 1.0, 1.5, -1 + 2 / LEVELS - 1e-9, -1 + 2 / LEVELS + 1e-9])
    assert grey_levels(values).tolist() == [1, 1, LEVELS, LEVELS, 1, 2]


def test_intensities_of_a_uniform_distribution() -> None:
    image = np.linspace(-1, 1, 51000)
    found = intensities(image, grey_levels(image))
    low, p10, median, p90, high, extent, quartiles, mean, deviation, robust, rms, sd, skewness, kurtosis = found[:14]
    assert (low, median, high, extent) == pytest.approx((-1, 0, 1, 2), abs=1e-9)
    assert (p10, p90, quartiles, mean) == pytest.approx((-0.8, 0.8, 1.0, 0.0), abs=1e-3)
    assert (deviation, robust, rms, sd) == pytest.approx((0.5, 0.4, 3**-0.5, 3**-0.5), rel=1e-3)
    assert (skewness, kurtosis) == pytest.approx((0, 1.8), abs=1e-3)
    assert found[14:] == pytest.approx([np.log2(LEVELS), 1 / LEVELS], rel=1e-3)


def test_runs_of_stripes() -> None:
    """Along the stripes runs are as long as the volume, across and diagonally of one voxel."""
    levels = np.where(np.arange(6) % 2, 3, 1) * np.ones((5, 5, 6), int)
    found = run_lengths(levels)
    crossing = sum(way[2] != 0 for way in DIRECTIONS)  # 9: runs of one voxel
    straight = 2  # along rows and columns: runs of 5
    diagonal = 2  # in the plane: lines of 1, 1, 2, 2, 3, 3, 4, 4 and 5 voxels
    lines = np.array([1, 1, 2, 2, 3, 3, 4, 4, 5], float)
    means = [np.mean(f) for f in (1 / lines**2, lines**2)]
    assert found[SHORT] == pytest.approx((crossing + straight / 25 + diagonal * means[0]) / 13)
    assert found[LONG] == pytest.approx((crossing + straight * 25 + diagonal * means[1]) / 13)
    assert (found[LOW], found[HIGH], found[LEVEL_VARIANCE]) == pytest.approx(((1 + 1 / 9) / 2, 5, 1))
    assert found[PER_VOXEL] == pytest.approx((crossing + straight / 5 + diagonal * 9 / 25) / 13)


def test_zones_of_stripes_and_of_touching_corners() -> None:
    found = zones(stripes())  # six zones of 20 voxels, three of each level
    assert (found[SHORT], found[LONG], found[PER_VOXEL]) == pytest.approx((1 / 400, 400, 6 / 120))
    assert (found[UNIFORM_LEVELS], found[UNIFORM_SIZES], found[ENTROPY]) == pytest.approx((3, 6, 1))
    assert found[SIZE_VARIANCE] == 0 and found[LEVEL_VARIANCE] == 1
    corners = np.ones((2, 2, 2), int)
    corners[0, 0, 0] = corners[1, 1, 1] = 2
    assert zones(corners)[PER_VOXEL] == pytest.approx(2 / 8)  # corners are neighbours, too


def test_cooccurrence_of_stripes() -> None:
    """Within the plane pairs are equal; across, they always differ by 2."""
    found = cooccurrence(stripes())
    within = sum(way[2] == 0 for way in DIRECTIONS) / 13
    across = 1 - within
    mean, contrast, correlation, energy, entropy = found[1], found[5], found[6], found[10], found[11]
    assert mean == pytest.approx(2) and contrast == pytest.approx(4 * across)
    assert correlation == pytest.approx(within - across)
    assert energy == pytest.approx(0.5) and entropy == pytest.approx(1)
    assert found[7] == pytest.approx(2 * across)  # mean absolute difference
    assert found[-1] == pytest.approx(1)  # variance
    assert cooccurrence(np.full((4, 4, 4), 7))[6] == 1 and cooccurrence(np.full((4, 4, 1), 7))[5] == 0


def test_neighbourhood_differences_of_two_levels() -> None:
    """A single voxel of level 2 among voxels of level 1, by hand."""
    levels = np.ones((3, 3, 3), int)
    levels[1, 1, 1] = 2
    neighbours = np.array([7, 11, 17])  # of a corner, an edge and a face voxel
    s1 = (np.array([8, 12, 6]) / neighbours).sum()  # each sees the middle among them
    s2, p1, p2 = 1.0, 26 / 27, 1 / 27
    weighted = p1 * s1 + p2 * s2
    expected = [
        1 / weighted,
        2 * p1 * p2 / 2 * (s1 + s2) / 27,
        weighted / (2 * abs(p1 - 2 * p2)),
        2 * (p1 * s1 + p2 * s2) / (p1 + p2) / 27,
        2 * (p1 + p2) / (s1 + s2),
    ]
    assert neighbourhood_differences(levels) == pytest.approx(expected)
    assert neighbourhood_differences(np.full((3, 3, 3), 4)) == [1e6, 0, 0, 0, 0]


def test_filters_answer_where_they_should() -> None:
    """Only the lowest band keeps a constant; the band of one axis answers to a change along it."""
    images = list(filtered(np.full((8, 8, 8), 0.5)))
    assert len(images) == 13 and np.allclose(images[5], 0.5)
    assert all(np.allclose(image, 0, atol=0.01) for image in [*images[1:5], *images[6:]])
    alternating = np.where(np.arange(8) % 2, 1.0, -1.0) * np.ones((8, 8, 8))
    bands = [float(np.abs(image[..., :-1]).mean()) for image in list(filtered(alternating))[5:]]
    assert bands == pytest.approx([0, 1, 0, 0, 0, 0, 0, 0])


def test_large_volumes_are_averaged_over_blocks() -> None:
    image = np.arange(300.0)[:, None, None] * np.ones((1, 4, 3))
    small = averaged(image)
    assert small.shape == (100, 4, 3) and np.allclose(small[:, 0, 0], np.arange(100) * 3 + 1)


def test_features_are_finite_even_of_a_constant_volume() -> None:
    rows = [radiomics(volume) for volume in (np.zeros((8, 8, 8)), np.random.default_rng(0).uniform(-1, 1, (9, 8, 7)))]
    assert rows[0].shape == rows[1].shape == (13 * 75,) and all(np.isfinite(row).all() for row in rows)


def test_the_distance_is_that_of_standardised_features() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal([1.0, 100.0, 7.0], [1.0, 50.0, 0.0], (400, 3))
    moved = real + [1.0, 50.0, 0.0]
    assert radiomics_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert radiomics_distance(real, moved) == pytest.approx(2, rel=0.1)  # one standard deviation along two features
    assert frechet_distance(*standardised(real, moved)) == pytest.approx(2, rel=0.1)
    assert standardised(real, real + [0, 0, 3.0])[1][0, 2] == pytest.approx(3)  # a constant feature keeps its unit


def test_noise_and_blur_are_noticed_beyond_the_floor() -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)

    def draw(number: int) -> list[np.ndarray]:
        return [gaussian_filter(rng.normal(size=(8, 8, 8)), 1.0) for _ in range(number)]

    real, other, third = draw(5), draw(5), draw(5)
    rows = [
        np.stack([radiomics(volume) for volume in volumes])
        for volumes in (real, other, [volume + 0.1 * rng.normal(size=volume.shape) for volume in third])
    ]
    assert radiomics_distance(rows[0], rows[2]) > 3 * radiomics_distance(rows[0], rows[1])
