"""Cine and CT series written file by file with pydicom, read back as one volume."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.sequence import Sequence

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.dicom import read_dicom, read_dicom_ct
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
def test_phases_are_ordered_by_the_first_available_attribute(
    tmp_path: Path, heart: Volume, write_dicom: Callable, without
) -> None:
    write_dicom(tmp_path, heart, **dict.fromkeys(without))
    assert_is(read_dicom(tmp_path).volume, heart)  # the frame time comes from the beat's length then


def test_trigger_times_that_are_all_equal_do_not_order(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, TriggerTime=0)
    assert_is(read_dicom(tmp_path).volume, heart)


def test_phases_that_cannot_be_ordered_are_an_error(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, TriggerTime=0, TemporalPositionIdentifier=1, AcquisitionTime="1015", InstanceNumber=1)
    with pytest.raises(
        CardioDiTError, match="cannot be ordered in time: none of TriggerTime, .* has a different value"
    ):
        read_dicom(tmp_path)


def test_a_missing_phase_is_reported_with_its_slice(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart)[8].unlink()
    with pytest.raises(CardioDiTError, match="different numbers of phases") as error:
        read_dicom(tmp_path)
    counts = [line.split(" has ")[1].split()[0] for line in str(error.value).splitlines() if " has " in line]
    assert sorted(counts) == ["5", "6", "6", "6"]


def test_a_missing_slice_is_reported(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    for path in write_dicom(tmp_path, heart)[6:12]:
        path.unlink()
    with pytest.raises(CardioDiTError, match="mm apart, most slices .* mm: slices are missing between them"):
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
    assert "left out others: cine_4ch" in found.notes[0]


def test_the_last_acquisition_of_a_slice_is_used(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path / "first", heart.crop((0, 0, 1), (24, 20, 1)), SeriesNumber=2, SeriesInstanceUID="1.2.2")
    (tmp_path / "first").rename(tmp_path / "z")
    write_dicom(tmp_path / "all", heart)
    first = next((tmp_path / "z").iterdir())
    data = pydicom.dcmread(first)
    data.PixelData = bytes(len(data.PixelData))
    data.save_as(first)
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert "was acquired 2 times" in found.notes[0]


def test_a_part_of_the_beat_is_noted(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    write_dicom(tmp_path, heart, NominalInterval=round(heart.beat_time * 1300))
    found = read_dicom(tmp_path)
    assert "a beat lasts" in found.notes[0] and "part of the beat is missing (prospective gating)" in found.notes[0]
    assert found.beat_share == pytest.approx(1 / 1.3, rel=1e-2)


@pytest.mark.parametrize("number", [0, 2, 3])
def test_a_slice_that_is_shifted_in_its_plane_is_named(
    tmp_path: Path, heart: Volume, write_dicom: Callable, number: int
) -> None:
    """The position along the normal stays, so that only the place beside it is wrong."""
    paths = write_dicom(tmp_path, heart)[6 * number : 6 * number + 6]
    for path in paths:
        data = pydicom.dcmread(path)
        along = 8 * np.array(data.ImageOrientationPatient[:3], dtype=float)
        change(path, ImagePositionPatient=list(np.array(data.ImagePositionPatient, dtype=float) + along))
    with pytest.raises(CardioDiTError, match=r"(IM\w+) is 8\.0 mm beside the line through the others") as caught:
        read_dicom(tmp_path)
    assert any(path.name in str(caught.value) for path in paths)


@pytest.mark.parametrize("signed", [0, 1])
def test_inverted_grey_values_are_inverted_back(
    tmp_path: Path, heart: Volume, write_dicom: Callable, signed: int
) -> None:
    top = -1 if signed else 4095
    inverted = Volume((top - heart.voxels.astype(np.int32)).astype(np.int16), heart.geometry)
    write_dicom(tmp_path, inverted, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11)
    if signed:
        for path in tmp_path.iterdir():
            change(path, PixelRepresentation=1, BitsStored=16, HighBit=15)
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert "was stored inverted (MONOCHROME1)" in found.notes[0]


def test_pictures_in_colour_are_left_out(tmp_path: Path, heart: Volume, write_dicom: Callable) -> None:
    paths = write_dicom(tmp_path / "colour", heart.crop((0, 0, 0), (24, 20, 1)), SeriesInstanceUID="1.2.9")
    for path in paths:
        data = pydicom.dcmread(path)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelData = 7, bytes(3 * data.Rows * data.Columns)
        data.save_as(path)
    with pytest.raises(CardioDiTError, match="No DICOM file .* 6 files with colours cannot be used: IM"):
        read_dicom(tmp_path)
    write_dicom(tmp_path / "grey", heart)
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert found.notes[0].startswith("left out 6 images with colours: IM")


@pytest.mark.parametrize(
    "how",
    [
        {"ImageType": ["ORIGINAL", "PRIMARY", "P", "RETRO"]},
        {"ImageType": "PHASE MAP"},
        {"ComplexImageComponent": "PHASE"},
    ],
)
def test_phase_images_in_the_same_series_are_left_out(
    tmp_path: Path, heart: Volume, write_dicom: Callable, how: dict
) -> None:
    phase = Volume(2000 - heart.voxels, heart.geometry)
    write_dicom(tmp_path / "phase", phase, **how)
    write_dicom(tmp_path / "z", heart, ImageType="PRIMARY")
    found = read_dicom(tmp_path)
    assert_is(found.volume, heart)
    assert "left out others: cine_sax_stack (phase)" in found.notes[0]


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


def change(path: Path, **changes: object) -> None:
    data = pydicom.dcmread(path)
    for name, value in changes.items():
        setattr(data, name, value)
    data.save_as(path)


def test_a_series_becomes_a_volume_in_hounsfield_units(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path / "study" / "series", volume)
    found = read_dicom_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, volume.voxels) and found.volume.voxels.dtype == np.int16
    assert np.allclose(found.volume.geometry.affine, volume.geometry.affine, atol=1e-4)
    assert found.volume.geometry.in_scanner and found.notes == []


def test_files_that_are_not_ct_are_named_and_left_out(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path / "ct", volume)
    radiograph = Volume(ct(1).voxels[:, :, :2], volume.geometry)
    no_place = dict.fromkeys(["ImagePositionPatient", "ImageOrientationPatient"])
    write_ct(tmp_path / "dx", radiograph, Modality="DX", SeriesDescription="PA", SeriesNumber=1, **no_place)
    write_ct(tmp_path / "scout", radiograph, "s", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"], SeriesNumber=2)
    write_ct(tmp_path / "dose", radiograph, "d", SeriesNumber=999, **no_place)
    (tmp_path / "ct" / "068.xml").write_text("<nodules/>")
    found = read_dicom_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, volume.voxels)
    notes = "\n".join(found.notes)
    assert "left out DX series 1 'PA', 2 files" in notes
    assert "series 2 'Chest' (localizer), 2 files" in notes
    assert "series 999 'Chest' (without a position in the patient), 2 files" in notes
    assert "ignored 1 non-DICOM file: 068.xml" in notes


def test_only_radiographs_are_an_error_that_says_so(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    write_ct(tmp_path, ct(), Modality="CR", SeriesDescription="PA")
    with pytest.raises(CardioDiTError, match="No CT series .* left out CR series 3 'PA', 10 files"):
        read_dicom_ct(tmp_path)


def test_the_largest_of_several_series_is_used_and_named(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    large, small = ct(0, (20, 16, 12)), ct(1)
    write_ct(tmp_path / "a", small, SeriesInstanceUID="1.2.4", SeriesNumber=2, SeriesDescription="LUNG")
    write_ct(tmp_path / "b", large)
    found = read_dicom_ct(tmp_path)
    assert np.array_equal(found.volume.voxels, large.voxels)
    assert found.notes == [
        "used the largest of 2 CT series, series 3 'chest' of 12 slices, and left out series 2 'lung' of 10 slices"
    ]
    write_ct(tmp_path / "a", ct(2, (20, 16, 12)), SeriesInstanceUID="1.2.4", SeriesNumber=2)
    assert np.array_equal(read_dicom_ct(tmp_path).volume.voxels, ct(2, (20, 16, 12)).voxels)  # the earlier


def test_any_rescale_slope_gives_hounsfield_units(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    write_ct(tmp_path, volume, RescaleSlope=0.5, RescaleIntercept=-100)
    found = read_dicom_ct(tmp_path)
    assert np.abs(found.volume.voxels - ((volume.voxels + 1024) * 0.5 - 100)).max() == 0.5
    assert found.notes == ["was rounded to whole Hounsfield units, by at most 0.5"]


def test_padding_outside_the_scanners_field_of_view_is_kept(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    volume.voxels[0] = -3024
    write_ct(tmp_path, volume, PixelRepresentation=1)
    assert read_dicom_ct(tmp_path).volume.voxels.min() == -3024


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
        ("missing", "1-007.dcm and 1-005.dcm are 2.50 mm apart, most slices 1.25 mm: slices are missing"),
        ("double", "are at the same place, -295.00 mm: keep one"),
        ("shifted", "1-006.dcm is 5.0 mm beside the line through the others"),
        ("tilted", "the gantry was tilted by 9.1 degrees"),
        ("unscaled", "1-006.dcm: no RescaleIntercept converts"),
        ("no pixels", "The pixels of .*1-006.dcm cannot be read"),
        ("no header", "1-006.dcm is damaged"),
        ("too bright", "has values from .* Hounsfield units lie within"),
    ],
)
def test_a_broken_series_is_named(kind: str, message: str, tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    volume = ct()
    broken_series(kind, write_ct(tmp_path, volume), volume)
    with pytest.raises(CardioDiTError, match=message) as error:
        read_dicom_ct(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_series_from_head_to_foot_on_the_belly(tmp_path: Path, ct: Callable, write_ct: Callable) -> None:
    """Voxels keep their position in the patient for any patient orientation."""
    volume = ct()
    prone = volume.flip(0).flip(1)
    write_ct(tmp_path, prone)
    found = read_dicom_ct(tmp_path).volume
    assert np.array_equal(found.flip(0).flip(1).voxels, volume.voxels)
    assert found.geometry.is_close(prone.geometry)
