"""CT series written slice by slice with pydicom, and what stands in the way of making a volume of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.dicom_ct import read_ct
from cardiodit.imaging.volume import Volume


def change(path: Path, **changes: object) -> None:
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path)


def test_a_series_becomes_a_volume_in_hounsfield_units(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path / "study" / "series", volume)
    found = read_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, volume.voxels) and found.volume.voxels.dtype == np.int16
    assert np.allclose(found.volume.geometry.affine, volume.geometry.affine, atol=1e-4)
    assert found.volume.geometry.in_scanner and found.notes == []


def test_what_is_no_ct_is_named_and_left_out(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path / "ct", volume)
    radiograph = Volume(ct(1).voxels[:, :, :2], volume.geometry)
    no_place = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient"])
    write_ct(tmp_path / "dx", radiograph, Modality="DX", SeriesDescription="PA", SeriesNumber=1, **no_place)
    write_ct(tmp_path / "scout", radiograph, "s", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=2)
    write_ct(tmp_path / "dose", radiograph, "d", SeriesNumber=999, **no_place)
    (tmp_path / "ct" / "068.xml").write_text("<nodules/>")
    found = read_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, volume.voxels)
    said = "\n".join(found.notes)
    assert "left out DX series 1 'PA', 2 files" in said
    assert "series 2 'Chest' (localizer), 2 files" in said
    assert "series 999 'Chest' (without a place in the patient), 2 files" in said
    assert "passed over 1 file of another kind than DICOM: 068.xml" in said


def test_only_radiographs_are_an_error_that_says_so(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    write_ct(tmp_path, ct(), Modality="CR", SeriesDescription="PA")
    with pytest.raises(CardioDiTError, match="No CT series .* left out CR series 3 'PA', 10 files"):
        read_ct(tmp_path)


def test_of_several_series_the_largest_is_taken_and_said(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    large, small = ct(0, (20, 16, 12)), ct(1)
    write_ct(tmp_path / "a", small, SeriesInstanceUID="1.2.4", SeriesNumber=2, SeriesDescription="LUNG")
    write_ct(tmp_path / "b", large)
    found = read_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, large.voxels)
    assert found.notes == [
        "took the largest of 2 CT series, series 3 'chest' of 12 slices, and left out series 2 'lung' of 10 slices"
    ]
    write_ct(tmp_path / "a", ct(2, (20, 16, 12)), SeriesInstanceUID="1.2.4", SeriesNumber=2)
    assert np.array_equal(read_ct(tmp_path).volume.voxels, ct(2, (20, 16, 12)).voxels)  # the earlier of two equal ones


def test_numbers_of_any_scale_become_hounsfield_units(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path, volume, RescaleSlope=0.5, RescaleIntercept=-100)
    found = read_ct(tmp_path)
    assert np.abs(found.volume.voxels - ((volume.voxels + 1024) * 0.5 - 100)).max() == 0.5
    assert found.notes == ["was rounded to whole Hounsfield units, by at most 0.5"]


def test_outside_the_scanners_circle(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    volume.voxels[0] = -3024
    write_ct(tmp_path, volume, PixelRepresentation=1)
    assert read_ct(tmp_path).volume.voxels.min() == -3024


def broken_series(kind: str, paths: list[Path], volume: Volume) -> None:
    if kind == "missing":
        paths[4].unlink()
    elif kind == "double":
        data = pydicom.dcmread(paths[4])
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        data.save_as(paths[4].with_name("copy.dcm"))
    elif kind == "shifted":
        position = list(map(float, pydicom.dcmread(paths[4]).ImagePositionPatient))
        change(paths[4], ImagePositionPatient=[position[0] + 5, *position[1:]])
    elif kind == "tilted":
        for d, path in enumerate(paths):
            position = list(map(float, pydicom.dcmread(path).ImagePositionPatient))
            change(path, ImagePositionPatient=[position[0], position[1] + 0.2 * d, position[2]])
    elif kind == "unscaled":
        data = pydicom.dcmread(paths[4])
        del data.RescaleIntercept
        data.save_as(paths[4])
    elif kind == "no pixels":
        paths[4].write_bytes(paths[4].read_bytes()[:-100])
    elif kind == "no header":
        paths[4].write_bytes(paths[4].read_bytes()[:60])
    elif kind == "too bright":
        for path in paths:
            change(path, RescaleIntercept=40000)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "1-007.dcm and 1-005.dcm lie 2.50 mm apart, most slices 1.25 mm: slices are missing"),
        ("double", "lie at the same place, -295.00 mm: keep one"),
        ("shifted", "1-006.dcm lies 5.0 mm beside the line of the others"),
        ("tilted", "the gantry was tilted by 9.1 degrees"),
        ("unscaled", "1-006.dcm: no RescaleIntercept says"),
        ("no pixels", "The pixels of .*1-006.dcm cannot be read"),
        ("no header", "1-006.dcm is damaged"),
        ("too bright", "has values from .* Hounsfield units lie within"),
    ],
)
def test_a_broken_series_is_named(kind: str, message: str, tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    broken_series(kind, write_ct(tmp_path, volume), volume)
    with pytest.raises(CardioDiTError, match=message) as error:
        read_ct(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_series_from_head_to_foot_on_the_belly(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    """Whatever way the patient lay, voxels keep their place in the patient."""
    volume = ct()
    prone = volume.flip(0).flip(1)
    write_ct(tmp_path, prone)
    found = read_ct(tmp_path).volume
    assert np.array_equal(found.flip(0).flip(1).voxels, volume.voxels)
    assert found.geometry.is_close(prone.geometry)
