"""WAD-Div: how far volumes of a set lie from each other, compared with real ones."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.neighbours import neighbour_distances, wad_div
from cardiodit.evaluation.metrics.registry import Features, built_in_metrics


def rows(count: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, (count, 6))


def value(real: np.ndarray, synthetic: np.ndarray, k: int = 3) -> float:
    return wad_div(Features("spatial", real, synthetic), k).estimate.value


def test_neighbours_are_the_nearest_others() -> None:
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert neighbour_distances(line, 2).reshape(4, 2).tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_it_is_the_distance_of_the_pools() -> None:
    real, synthetic = rows(20, 0), rows(20, 1, 0.5)
    pools = [neighbour_distances(each, 5) for each in (real, synthetic)]
    assert value(real, synthetic, 5) == pytest.approx(wasserstein_distance(*pools))
    assert value(real, real) == 0


def test_copies_of_few_patients_score_worse_than_many_patients() -> None:
    """100 volumes of 1, 10 and 100 patients, as in the metric's publication."""
    real = rows(100, 0)
    found = [value(real, rows(100, 1)[np.arange(100) % patients]) for patients in (1, 10, 100)]
    assert found[0] > found[1] * 0.99 > 0 and found[1] > 5 * found[2]
    floor = wad_div(Features("spatial", real, rows(100, 1)), 3).floor
    assert floor is not None and floor.high is not None


def test_sets_are_cut_to_the_same_size() -> None:
    real, synthetic = rows(500, 0), rows(25, 1)
    result = wad_div(Features("spatial", real, synthetic), 3)
    assert any("25 volumes were drawn" in note for note in result.estimate.notes)
    uncut = wasserstein_distance(neighbour_distances(real, 3), neighbour_distances(synthetic, 3))
    assert result.estimate.value < 0.75 * uncut


def test_too_few_volumes_are_said() -> None:
    with pytest.raises(CardioDiTError, match="10 neighbours need more than 10 volumes in each set, and one has 8"):
        value(rows(20, 0), rows(8, 1), 10)
    assert "No floor" in wad_div(Features("spatial", rows(6, 0), rows(6, 1)), 3).estimate.notes[-1]


def test_it_is_registered_for_each_number_of_neighbours() -> None:
    assert {"wad_div_3", "wad_div_5", "wad_div_10"} <= {each.name for each in built_in_metrics()}
