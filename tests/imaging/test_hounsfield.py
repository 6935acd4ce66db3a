import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.hounsfield import whole_hounsfield


def test_whole_numbers_stay_as_they_are() -> None:
    for dtype in (np.int16, np.int32, np.float32):
        voxels, notes = whole_hounsfield(np.array([-3024, 0, 3071], dtype))
        assert voxels.dtype == np.int16 and voxels.tolist() == [-3024, 0, 3071] and notes == []


def test_rounding_is_said() -> None:
    voxels, notes = whole_hounsfield(np.array([0.25, 99.6]))
    assert voxels.tolist() == [0, 100] and notes == ["was rounded to whole Hounsfield units, by at most 0.4"]


@pytest.mark.parametrize(("value", "message"), [(np.nan, "not numbers"), (40000.0, "within -32768 and 32767")])
def test_what_does_not_fit_is_refused(value: float, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        whole_hounsfield(np.array([0.0, value]))
