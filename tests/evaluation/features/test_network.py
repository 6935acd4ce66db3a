"""Which changes of a heart each kind of rows detects, and which it ignores; which volumes and networks are refused."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import Choice, load_network
from cardiodit.evaluation.features.inputs import InputRules
from cardiodit.evaluation.features.network import TorchNetwork, order_free_mean

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
    """Median distance between two hearts."""
    found = {}
    for network in (spatial, spatiotemporal):
        rows = [network.features(make_heart(i)) for i in range(5)]
        distances = [np.linalg.norm(rows[i] - rows[j]) for i in range(5) for j in range(i)]
        found[network.kind] = float(np.median(distances))
    return found


def moved(network: TorchNetwork, heart: np.ndarray, deformed: np.ndarray) -> float:
    return float(np.linalg.norm(network.features(deformed) - network.features(heart)))


def test_shuffled_slices_are_detected_by_spatial_rows_only(
    heart: np.ndarray, spatial: TorchNetwork, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    shuffled = heart[:, :, SHUFFLED_SLICES]
    assert moved(spatial, heart, shuffled) > 0.5 * between["spatial"]
    assert np.array_equal(spatiotemporal.features(shuffled), spatiotemporal.features(heart))


def test_shuffled_frames_are_detected_by_spatiotemporal_rows_only(
    heart: np.ndarray, spatial: TorchNetwork, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    shuffled = heart[..., SHUFFLED_FRAMES]
    assert moved(spatiotemporal, heart, shuffled) > 0.5 * between["spatiotemporal"]
    assert np.array_equal(spatial.features(shuffled), spatial.features(heart))


def freeze(heart: np.ndarray) -> np.ndarray:
    return np.repeat(heart[..., :1], heart.shape[3], axis=3)


def jitter(heart: np.ndarray) -> np.ndarray:
    """Swap neighbouring frames."""
    return heart[..., [1, 0, 3, 2, 5, 4, 7, 6]]


@pytest.mark.parametrize("deform", [freeze, jitter])
def test_wrong_motion_is_detected_by_spatiotemporal_rows(
    deform: Deform, heart: np.ndarray, spatiotemporal: TorchNetwork, between: dict[str, float]
) -> None:
    assert moved(spatiotemporal, heart, deform(heart)) > 0.3 * between["spatiotemporal"]


def test_a_frozen_heart_has_the_differences_of_an_empty_one(heart: np.ndarray, spatiotemporal: TorchNetwork) -> None:
    half = spatiotemporal.width
    frozen, black = spatiotemporal.features(freeze(heart)), spatiotemporal.features(0 * heart)
    np.testing.assert_array_equal(frozen[half:], black[half:])
    assert not np.allclose(frozen[:half], black[:half])


def test_a_foreground_z_score_does_not_depend_on_the_order_either(heart: np.ndarray) -> None:
    """Its mean and deviation over the whole cine must not depend on the order either, not even in the last bit."""
    network = replace(load_network("random", Choice(kind="spatiotemporal")), rules=InputRules("foreground z-score"))
    assert np.array_equal(network.features(heart[:, :, SHUFFLED_SLICES]), network.features(heart))
    weaker = heart.mean(axis=3, keepdims=True) * 0.7 + heart * 0.3
    assert moved(network, heart, weaker) > 0  # movement is not scaled away


def test_rows_are_means_of_single_ones(heart: np.ndarray, spatial: TorchNetwork) -> None:
    singles = [spatial.features(heart[..., t]) for t in (0, 2, 4, 6)]
    four = load_network("random", Choice(frames=4))
    np.testing.assert_allclose(four.features(heart), np.mean(singles, axis=0), rtol=1e-12)


def test_spatiotemporal_rows_need_a_cine(heart: np.ndarray, spatiotemporal: TorchNetwork) -> None:
    for still in (heart[..., 0], heart[..., :1]):
        with pytest.raises(CardioDiTError, match="need a cine"):
            spatiotemporal.features(still)


def test_the_mean_of_rows_does_not_depend_on_their_order() -> None:
    rows = list(np.random.default_rng(0).normal(size=(50, 20)) * 10.0 ** np.arange(20))
    assert np.array_equal(order_free_mean(rows), order_free_mean(rows[::-1]))
    np.testing.assert_allclose(order_free_mean(rows), np.mean(rows, axis=0), rtol=1e-9)


@pytest.mark.parametrize(
    ("voxels", "sentence"),
    [
        (np.zeros((4, 4), np.float32), "got the shape"),
        (np.full((4, 4, 4), np.nan, np.float32), "not finite numbers"),
        (np.full((4, 4, 4), 40.0, np.float32), r"range from 40 to 40; they must lie in \[-1, 1\]"),
        (np.zeros((4, 0, 4), np.float32), "got the shape"),
    ],
)
def test_invalid_volumes_are_refused(voxels: np.ndarray, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        load_network("random").features(voxels)


def test_a_row_of_another_width_is_refused() -> None:
    network = replace(load_network("random"), width=7)
    with pytest.raises(CardioDiTError, match=r"returned \(1, 512\) for one volume; expected \(1, 7\)"):
        network.features(np.zeros((8, 8, 4), np.float32))
