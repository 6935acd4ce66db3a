import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.intensity import Intensity, to_model, to_source, whole_hounsfield


@pytest.fixture
def scan() -> np.ndarray:
    return np.random.default_rng(0).gamma(2, 200, (20, 20, 5)).astype(np.int16)


def test_minimum_and_maximum_become_minus_one_and_one(scan: np.ndarray) -> None:
    scaled = to_model(scan, Intensity().limits(scan))
    assert scaled.dtype == np.float32 and (scaled.min(), scaled.max()) == (-1, 1)
    assert np.array_equal(to_source(scaled, Intensity().limits(scan), np.int16), scan)


def test_percentiles_cut_what_lies_beyond(scan: np.ndarray) -> None:
    intensity = Intensity("p1", "p99")
    scaled = to_model(scan, intensity.limits(scan))
    assert 0.005 < (scaled == 1).mean() < 0.015
    inner = np.abs(scaled) < 1
    assert np.array_equal(to_source(scaled, intensity.limits(scan), np.int16)[inner], scan[inner])


def test_a_percentile_can_be_bounded(scan: np.ndarray) -> None:
    percentile = float(np.percentile(scan, 99.5))
    for bound, expected in ((percentile - 100.5, percentile - 100.5), (percentile + 50, percentile)):
        intensity = Intensity(-1000, f"p99.5 at most {bound}")
        assert intensity.limits(scan) == (-1000, expected)
        assert Intensity(**intensity.to_dict()) == intensity
    with pytest.raises(CardioDiTError, match="NaN"):
        Intensity(0, "p99.5 at most 1000").limits(np.array([1.0, np.nan]))


def test_unbounded_percentiles_are_written_as_before_bounds_existed() -> None:
    """Names of cached volumes and identities of latents are hashes of this dictionary."""
    assert Intensity("p0.5", "p99.5").to_dict() == {"low": "p0.5", "high": "p99.5", "typical": None}


def test_hounsfield_units_come_back_as_whole_numbers() -> None:
    hounsfield = np.arange(-1200, 1400, dtype=np.int16)
    limits = Intensity(-1000, 1000).limits(hounsfield)
    assert limits == (-1000, 1000)
    back = to_source(to_model(hounsfield, limits), limits, np.int16)
    assert np.array_equal(back, hounsfield.clip(-1000, 1000))


def test_a_generated_volume_has_units_if_they_are_known() -> None:
    assert Intensity(-1000, 1000).units == (-1000.0, 1000.0)
    assert Intensity("p0.5", "p99.5").units is None
    assert Intensity("p0.5", "p99.5", typical=[3, 900]).units == (3, 900)


def test_whole_numbers_stay_within_their_type() -> None:
    assert to_source(np.array([-1.0, 1.0]), (-50.0, 400.0), np.uint8).tolist() == [0, 255]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("p101", "maximum"),
        ("smallest", "maximum"),
        (0, "p"),
        (float("nan"), 1),
        (True, 2),
        (5, 5),
        (0, "p99.5 at most "),
        (0, "p99.5 at most nan"),
        (0, "maximum at most 1000"),
    ],
)
def test_limits_are_checked(low: object, high: object) -> None:
    with pytest.raises(CardioDiTError, match="of the intensity must be|is empty"):
        Intensity(low, high)


def test_empty_or_nan_volumes_are_reported() -> None:
    with pytest.raises(CardioDiTError, match="Is the volume empty"):
        Intensity().limits(np.zeros((3, 3, 3)))
    with pytest.raises(CardioDiTError, match="NaN"):
        Intensity().limits(np.array([0.0, np.nan]))


def test_whole_hounsfield_units_are_unchanged() -> None:
    for dtype in (np.int16, np.int32, np.float32):
        voxels, notes = whole_hounsfield(np.array([-3024, 0, 3071], dtype))
        assert voxels.dtype == np.int16 and voxels.tolist() == [-3024, 0, 3071] and notes == []


def test_rounding_of_hounsfield_units_is_noted() -> None:
    voxels, notes = whole_hounsfield(np.array([0.25, 99.6]))
    assert voxels.tolist() == [0, 100] and notes == ["was rounded to whole Hounsfield units, by at most 0.4"]


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not numbers"), (40000.0, "within -32768 and 32767")])
def test_values_that_are_not_hounsfield_units_are_refused(value: float, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        whole_hounsfield(np.array([0.0, value]))
