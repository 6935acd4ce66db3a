from pathlib import Path

import nibabel
import numpy as np
import pytest

from cardiodit import CardioDiTError
from cardiodit.imaging import Geometry, write_nifti


def test_space_and_time_are_declared(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).standard_normal((5, 6, 3, 4)).astype(np.float32)
    write_nifti(tmp_path / "heart.nii.gz", volume, Geometry((1.5, 1.25, 10.0), 0.04))
    image = nibabel.load(tmp_path / "heart.nii.gz")
    assert np.array_equal(image.get_fdata(dtype=np.float32), volume)
    assert image.header.get_data_dtype() == np.float32
    assert image.header.get_zooms() == pytest.approx((1.5, 1.25, 10.0, 0.04))
    assert image.header.get_xyzt_units() == ("mm", "sec")
    assert np.allclose(image.affine, np.diag([1.5, 1.25, 10.0, 1.0]))
    assert image.header["sform_code"] == image.header["qform_code"] == 2


def test_unknown_geometry_is_not_made_up(tmp_path: Path) -> None:
    write_nifti(tmp_path / "heart.nii.gz", np.zeros((5, 6, 3, 4), np.float32), Geometry())
    header = nibabel.load(tmp_path / "heart.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 0
    assert header.get_xyzt_units() == ("unknown", "unknown")
    assert header["pixdim"][4] == 0
    assert b"unknown" in header["descrip"].tobytes()


def test_three_dimensions(tmp_path: Path) -> None:
    write_nifti(tmp_path / "lung.nii.gz", np.zeros((5, 6, 3), np.float32), Geometry((1.0, 1.0, 2.0)))
    image = nibabel.load(tmp_path / "lung.nii.gz")
    assert image.shape == (5, 6, 3) and image.header.get_zooms() == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_impossible_spacing(spacing: tuple) -> None:
    with pytest.raises(CardioDiTError, match="three positive numbers in mm"):
        Geometry(spacing)


def test_impossible_frame_time() -> None:
    with pytest.raises(CardioDiTError, match="positive number of seconds"):
        Geometry((1.0, 1.0, 1.0), 0.0)
