"""What each kind of rows sees of a heart, and what it is blind to."""

from collections.abc import Callable

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import Choice, load_network
from cardiodit.evaluation.features.network import TorchNetwork
from cardiodit.evaluation.features.rows import mean_of_set, spread

SHUFFLED_SLICES = [3, 0, 5, 1, 4, 2]
SHUFFLED_FRAMES = [5, 2, 7, 0, 3, 6, 1, 4]
Deform = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def spatial() -> TorchNetwork:
    return load_network("random", Choice(frames=None))


@pytest.fixture(scope="module")
def spatiotemporal() -> TorchNetwork:
    return load_network("random", Choice(kind="spatiotemporal"))


@pytest.fixture(scope="module")
def between(
    make_heart: Callable[[int], np.ndarray], spatial: TorchNetwork, spatiotemporal: TorchNetwork
) -> dict[str, float]:
    """How far apart two hearts usually are."""
    found = {}
    for network in (spatial, spatiotemporal):
        rows = [network.features(make_heart(i)) for i in range(5)]
        distances = [np.linalg.norm(rows[i] - rows[j]) for i in range(5) for j in range(i)]
        found[network.kind] = float(np.median(distances))
    return found


def moved(network: TorchNetwork, heart: np.ndarray, deformed: np.ndarray) -> float:
    return float(np.linalg.norm(network.features(deformed) - network.features(heart)))


def test_shuffled_slices_are_seen_by_spatial_rows_alone(
    heart: np.ndarray, spatial: TorchNetwork, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    shuffled = heart[:, :, SHUFFLED_SLICES]
    assert moved(spatial, heart, shuffled) > 0.5 * between["spatial"]
    assert np.array_equal(spatiotemporal.features(shuffled), spatiotemporal.features(heart))


def test_shuffled_frames_are_seen_by_spatiotemporal_rows_alone(
    heart: np.ndarray, spatial: TorchNetwork, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    shuffled = heart[..., SHUFFLED_FRAMES]
    assert moved(spatiotemporal, heart, shuffled) > 0.5 * between["spatiotemporal"]
    assert np.array_equal(spatial.features(shuffled), spatial.features(heart))


def freeze(heart: np.ndarray) -> np.ndarray:
    return np.repeat(heart[..., :1], heart.shape[3], axis=3)


def jitter(heart: np.ndarray) -> np.ndarray:
    """Neighbouring frames change places."""
    return heart[..., [1, 0, 3, 2, 5, 4, 7, 6]]


@pytest.mark.parametrize("deform", [freeze, jitter])
def test_time_that_goes_wrong_is_seen(
    deform: Deform, heart: np.ndarray, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    assert moved(spatiotemporal, heart, deform(heart)) > 0.3 * between["spatiotemporal"]


def test_a_frozen_heart_has_the_differences_of_an_empty_one(heart: np.ndarray, spatiotemporal: TorchNetwork) -> None:
    half = spatiotemporal.width
    frozen, black = spatiotemporal.features(freeze(heart)), spatiotemporal.features(0 * heart)
    np.testing.assert_array_equal(frozen[half:], black[half:])
    assert not np.allclose(frozen[:half], black[:half])


def test_a_foreground_z_score_is_as_blind_to_the_order(heart: np.ndarray) -> None:
    """Its mean and deviation are of the whole cine: they must not know the order either, not to the last bit."""
    from dataclasses import replace

    from cardiodit.evaluation.features.inputs import InputRules

    network = replace(load_network("random", Choice(kind="spatiotemporal")), rules=InputRules("foreground z-score"))
    assert np.array_equal(network.features(heart[:, :, SHUFFLED_SLICES]), network.features(heart))
    weaker = heart.mean(axis=3, keepdims=True) * 0.7 + heart * 0.3
    assert moved(network, heart, weaker) > 0  # movement is not scaled away


def test_rows_are_means_of_single_ones(heart: np.ndarray, spatial: TorchNetwork) -> None:
    singles = [spatial.features(heart[..., t]) for t in (0, 2, 4, 6)]
    four = load_network("random", Choice(frames=4))
    np.testing.assert_allclose(four.features(heart), np.mean(singles, axis=0), rtol=1e-12)


def test_only_cines_move(heart: np.ndarray, spatiotemporal: TorchNetwork) -> None:
    for still in (heart[..., 0], heart[..., :1]):
        with pytest.raises(CardioDiTError, match="of a cine"):
            spatiotemporal.features(still)


def test_indices_are_spread_evenly() -> None:
    assert spread(8, 4, cycle=True) == [0, 2, 4, 6] and spread(8, 4) == [1, 3, 5, 7]
    assert spread(25, 4, cycle=True) == [0, 6, 12, 18]
    assert spread(3, 5) == spread(3, None) == spread(3, 3) == [0, 1, 2]
    assert spread(9, 1) == [4] and spread(9, 1, cycle=True) == [0]


def test_a_mean_of_a_set_has_no_order() -> None:
    rows = list(np.random.default_rng(0).normal(size=(50, 20)) * 10.0 ** np.arange(20))
    assert np.array_equal(mean_of_set(rows), mean_of_set(rows[::-1]))
    np.testing.assert_allclose(mean_of_set(rows), np.mean(rows, axis=0), rtol=1e-9)
