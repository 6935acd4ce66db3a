"""Series written file by file with pydicom, read back as one volume."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.dicom import read_dicom
from cardiodit.imaging.phantom import Phantom
from cardiodit.imaging.volume import Volume


@pytest.fixture
def heart(small_heart: Callable[..., Phantom]) -> Volume:
    phantom = small_heart(size=(24, 20, 4, 6))
    return Volume(phantom.image, phantom.geometry)


def assert_is(found: Volume, heart: Volume) -> None:
    """The same heart: slices are stored along the plane's normal, which may be from either end."""
    if np.array(found.geometry.direction)[:, 2] @ np.array(heart.geometry.direction)[:, 2] < 0:
        found = found.flip(2)
    assert np.array_equal(found.voxels, heart.voxels)
    assert np.allclose(found.geometry.affine, heart.geometry.affine, atol=1e-4)
    assert found.geometry.frame_time == pytest.approx(heart.geometry.frame_time, rel=1e-3)


def test_a_series_becomes_a_volume(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path / "a" / "b", heart)
    (tmp_path / "README.txt").write_text("not a picture")
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert found.volume.voxels.dtype == np.int16 and found.notes == []


@pytest.mark.parametrize(
    "without",
    [
        ("TriggerTime",),
        ("TriggerTime", "TemporalPositionIdentifier"),
        ("TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime"),
    ],
)
def test_phases_are_ordered_by_what_is_there(tmp_path: Path, heart: Volume, write_dicom: Callable, without) -> None:
    write_dicom(tmp_path, heart, **dict.fromkeys(without))
    assert_is(read_dicom(tmp_path).volume, heart)  # the frame time comes from the beat's length then


def test_trigger_times_that_are_all_equal_do_not_order(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, TriggerTime=0)
    assert_is(read_dicom(tmp_path).volume, heart)


def test_nothing_orders_the_phases(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, TriggerTime=0, TemporalPositionIdentifier=1, AcquisitionTime="1015", InstanceNumber=1)
    with pytest.raises(CardioDiTError, match="cannot be ordered in time: none of TriggerTime, .* InstanceNumber"):
        read_dicom(tmp_path)


def test_a_missing_phase_is_reported_with_its_slice(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart)[8].unlink()
    with pytest.raises(CardioDiTError, match="unequal numbers of phases") as error:
        read_dicom(tmp_path)
    counts = [line.split(" has ")[1].split()[0] for line in str(error.value).splitlines() if " has " in line]
    assert sorted(counts) == ["5", "6", "6", "6"]


def test_a_missing_slice_is_reported(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    for path in write_dicom(tmp_path, heart)[6:12]:
        path.unlink()
    with pytest.raises(CardioDiTError, match="mm apart: one seems to be missing"):
        read_dicom(tmp_path)


def test_the_short_axis_is_found_among_others_and_they_are_named(
    tmp_path: Path, heart: Volume, write_dicom: Callable
) -> None:
    write_dicom(tmp_path / "sax", heart)
    long_axis = heart.permute((2, 0, 1))
    chamber = Volume(long_axis.voxels[:, :, :1], long_axis.geometry)
    write_dicom(tmp_path / "4ch", chamber, SeriesDescription="cine_4ch", SeriesInstanceUID="1.2.9")
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert "left others out: cine_4ch" in found.notes[0]


def test_of_a_slice_taken_twice_the_last_is_used(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path / "first", heart.crop((0, 0, 1), (24, 20, 1)), SeriesNumber=2, SeriesInstanceUID="1.2.2")
    (tmp_path / "first").rename(tmp_path / "z")
    write_dicom(tmp_path / "all", heart)
    first = next((tmp_path / "z").iterdir())
    data = pydicom.dcmread(first)
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(first)
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert "was taken 2 times" in found.notes[0]


def test_a_part_of_the_beat_is_noted(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, NominalInterval=round(heart.beat_time * 1300))
    assert "a beat lasts" in read_dicom(tmp_path).notes[0]


def test_rescaled_ct_slices_become_hounsfield_units(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    still = Volume(heart.voxels[..., :1], heart.geometry)
    without = dict.fromkeys(["TriggerTime", "TemporalPositionIdentifier", "NominalInterval"])
    write_dicom(tmp_path, still, RescaleSlope=1, RescaleIntercept=-1024, Modality="CT", **without)
    found = read_dicom(tmp_path).volume
    assert found.voxels.shape == (24, 20, 4) and found.voxels.dtype == np.int16
    assert found.voxels.min() == heart.voxels[..., 0].min() - 1024
    assert found.geometry.frame_time is None


def test_all_frames_in_one_file(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    """Enhanced MR: one file, and for each frame its place and its delay after the trigger."""
    paths = write_dicom(tmp_path, heart)
    pictures = [pydicom.dcmread(path) for path in paths]
    whole = pictures[0]
    frames = []
    for picture in pictures:
        frame = pydicom.Dataset()
        for group, names in {
            "PlanePositionSequence": ["ImagePositionPatient"],
            "PlaneOrientationSequence": ["ImageOrientationPatient"],
            "PixelMeasuresSequence": ["PixelSpacing", "SliceThickness"],
        }.items():
            item = pydicom.Dataset()
            for name in names:
                setattr(item, name, picture[name].value)
            setattr(frame, group, Sequence([item]))
        cardiac = pydicom.Dataset()
        cardiac.NominalCardiacTriggerDelayTime = float(picture.TriggerTime)
        frame.CardiacSynchronizationSequence = Sequence([cardiac])
        frames.append(frame)
    whole.PerFrameFunctionalGroupsSequence = Sequence(frames)
    whole.NumberOfFrames = len(frames)
    whole.PixelData = b"".join(picture.PixelData for picture in pictures)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "TriggerTime", "SliceThickness"):
        delattr(whole, name)
    for path in paths:
        path.unlink()
    whole.save_as(tmp_path / "enhanced.dcm")
    assert_is(read_dicom(tmp_path).volume, heart)


def test_a_folder_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="No DICOM file"):
        read_dicom(tmp_path)
