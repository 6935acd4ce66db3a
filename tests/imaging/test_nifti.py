from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from cardiodit import CardioDiTError
from cardiodit.imaging import Geometry, write_nifti
from cardiodit.imaging.nifti import notes_on_header, read_nifti


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


def test_unknown_geometry_stays_unknown(tmp_path: Path) -> None:
    write_nifti(tmp_path / "heart.nii.gz", np.zeros((5, 6, 3, 4), np.float32), Geometry())
    header = nibabel.load(tmp_path / "heart.nii.gz").header
    assert header["sform_code"] == header["qform_code"] == 0
    assert header.get_xyzt_units() == ("unknown", "unknown")
    assert header["pixdim"][4] == 0
    assert b"unknown" in header["descrip"].tobytes()


def test_3d_volumes(tmp_path: Path) -> None:
    write_nifti(tmp_path / "lung.nii.gz", np.zeros((5, 6, 3), np.float32), Geometry((1.0, 1.0, 2.0)))
    image = nibabel.load(tmp_path / "lung.nii.gz")
    assert image.shape == (5, 6, 3) and image.header.get_zooms() == (1.0, 1.0, 2.0)


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_invalid_spacing(spacing: tuple) -> None:
    with pytest.raises(CardioDiTError, match="three positive numbers in mm"):
        Geometry(spacing)


def test_invalid_frame_time() -> None:
    with pytest.raises(CardioDiTError, match="positive number of seconds"):
        Geometry((1.0, 1.0, 1.0), 0.0)


OBLIQUE = np.array([[-1.2, -0.5, -6.0, 40], [-0.7, 1.0, 5.0, -20], [0.4, 1.1, -6.0, 7], [0, 0, 0, 1.0]])

FLAT = np.diag([1.5, 1.5, 8.0, 1.0])


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a NIfTI file with any header, right or wrong."""

    def save_(
        voxels: np.ndarray | None = None,
        affine: np.ndarray = OBLIQUE,
        code: int = 1,
        units: tuple = ("mm", "sec"),
        name: str = "heart.nii.gz",
        **fields: Any,
    ) -> Path:
        voxels = np.arange(5 * 6 * 3 * 4, dtype=np.int16).reshape(5, 6, 3, 4) if voxels is None else voxels
        image = nibabel.Nifti1Image(voxels, affine)
        image.set_sform(affine, code)
        image.set_qform(affine, code)
        image.header.set_xyzt_units(*units)
        for field, value in fields.items():
            image.header[field] = value
        nibabel.save(image, tmp_path / name)
        return tmp_path / name

    return save_


def test_a_written_file_reads_back(tmp_path: Path) -> None:
    voxels = np.random.default_rng(0).integers(0, 900, (5, 6, 3, 20), dtype=np.int16)
    for number, geometry in enumerate(
        (Geometry(), Geometry((1.5, 1.5, 8.0), 0.04), Geometry.of_affine(OBLIQUE, 0.04), Geometry((1.0, 1.0, 8.0)))
    ):
        write_nifti(tmp_path / f"{number}.nii.gz", voxels, geometry)
        volume = read_nifti(tmp_path / f"{number}.nii.gz")
        assert np.array_equal(volume.voxels, voxels) and volume.voxels.dtype == np.int16
        assert volume.geometry.is_close(geometry) and volume.geometry.in_scanner == geometry.in_scanner
        assert volume.geometry.frame_time == pytest.approx(geometry.frame_time)


@pytest.mark.parametrize("big", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4", "f8"])
def test_every_number_type_and_byte_order(save: Callable, kind: str, big: bool) -> None:
    voxels = np.arange(5 * 6 * 3).reshape(5, 6, 3).astype(np.dtype(kind).newbyteorder(">" if big else "<"))
    for name in ("v.nii", "v.nii.gz"):
        assert np.array_equal(read_nifti(save(voxels, name=name)).voxels, voxels)


def test_scaled_numbers_equal_nibabels(save: Callable) -> None:
    path = save(np.linspace(-3.0, 7.0, 90).reshape(5, 6, 3))
    image = nibabel.load(path)
    image.set_data_dtype(np.int16)  # nibabel chooses slope and intercept
    nibabel.save(image, path)
    assert nibabel.load(path).dataobj.slope != 1
    assert np.allclose(read_nifti(path).voxels, nibabel.load(path).get_fdata(), atol=1e-6)
    ct = save(np.arange(90, dtype=np.uint16).reshape(5, 6, 3), scl_slope=1, scl_inter=-1024, name="ct.nii")
    header = nibabel.load(ct).header
    assert (header["scl_slope"], header["scl_inter"]) != (1, -1024) or read_nifti(ct).voxels.min() == -1024


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.04, "sec", 0.04),
        (40, "msec", 0.04),
        (40, "unknown", 0.04),  # only one unit makes a heart's beat of it
        (0.04, "unknown", 0.04),
        (0, "sec", None),
        (1.0, "sec", None),  # a placeholder: 20 s or 20 ms a beat in any unit
    ],
)
def test_frame_times(save: Callable, value: float, unit: str, expected: float | None) -> None:
    path = save(np.zeros((5, 6, 3, 20), np.int16), FLAT, units=("mm", unit), pixdim=[1, 1.5, 1.5, 8, value, 0, 0, 0])
    assert read_nifti(path).geometry.frame_time == pytest.approx(expected)


@pytest.mark.parametrize(("value", "declared", "meant"), [(40, "sec", "msec"), (0.04, "msec", "sec")])
def test_mixed_up_time_units_are_reported(save: Callable, value: float, declared: str, meant: str) -> None:
    pixdim = [1, 1.5, 1.5, 8, value, 0, 0, 0]
    path = save(np.zeros((5, 6, 3, 20), np.int16), FLAT, units=("mm", declared), pixdim=pixdim)
    with pytest.raises(CardioDiTError, match=rf"{value:g} {declared}, so that its 20 frames .* In {meant}"):
        read_nifti(path)
    assert read_nifti(path, time_unit=meant).geometry.frame_time == pytest.approx(0.04)


@pytest.mark.parametrize(("value", "expected"), [(25.0, 0.04), (40.0, 0.025)])
def test_frames_per_second_become_a_frame_time(save: Callable, value: float, expected: float) -> None:
    path = save(np.zeros((5, 6, 3, 20), np.int16), FLAT, units=("mm", "hz"), pixdim=[1, 1.5, 1.5, 8, value, 0, 0, 0])
    assert read_nifti(path).geometry.frame_time == pytest.approx(expected)
    path = save(np.zeros((5, 6, 3, 20), np.int16), FLAT, units=("mm", "hz"), pixdim=[1, 1.5, 1.5, 8, 0.04, 0, 0, 0])
    with pytest.raises(CardioDiTError, match=r"0\.04 frames a second \(hz\), so that its 20 frames .* a beat of 500 s"):
        read_nifti(path)


def test_a_header_that_contradicts_itself_is_refused(save: Callable) -> None:
    """An sform of twice the size would make every volume four times as large."""
    path = save(affine=np.diag([2.8, 2.8, 10, 1]), pixdim=[1, 1.4, 1.4, 10, 0.04, 0, 0, 0])
    with pytest.raises(CardioDiTError, match=r"2\.8 × 2\.8 × 10 mm by its sform .* 1\.4 × 1\.4 × 10 mm by its pixdim"):
        read_nifti(path)
    assert read_nifti(save(affine=np.diag([1.4, 1.4, 10, 1]))).geometry.spacing == (1.4, 1.4, 10)


def test_two_affines_that_differ_are_noted_with_both(save: Callable, tmp_path: Path) -> None:
    upright = np.eye(4)
    upright[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [1.4, 1.4, 10.0]
    upright[:3, 3] = OBLIQUE[:3, 3]
    path = save(affine=upright)
    assert notes_on_header(path) == []
    image = nibabel.load(path)
    moved = np.diag([-1, 1, 1, 1.0]) @ upright
    moved[:3, 3] = 5, 6, 7
    image.set_qform(moved, 1)
    nibabel.save(image, tmp_path / "two.nii.gz")
    (note,) = notes_on_header(tmp_path / "two.nii.gz")
    assert "(40, -20, 7) mm by the sform and at (5, 6, 7) mm by the qform" in note and "The sform was used" in note


@pytest.mark.parametrize("part", [1e38, np.inf])
def test_an_impossible_qform_beside_an_sform_is_noted(save: Callable, tmp_path: Path, part: float) -> None:
    image = nibabel.load(save())
    image.header["quatern_c"] = part
    image.header["qform_code"] = 1
    nibabel.save(image, tmp_path / "odd.nii.gz")
    assert read_nifti(tmp_path / "odd.nii.gz").is_cine
    (note,) = notes_on_header(tmp_path / "odd.nii.gz")
    assert note == "has a qform whose quaternion is impossible. The sform was used"


def test_a_cut_off_file_is_reported(save: Callable) -> None:
    for name in ("a.nii.gz", "b.nii"):
        path = save(np.random.default_rng(0).integers(0, 99, (20, 20, 3, 4), dtype=np.int16), name=name)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(CardioDiTError, match="cut off"):
            read_nifti(path)
    path.write_bytes(b"this is no NIfTI file at all")
    with pytest.raises(CardioDiTError, match="cannot be read as NIfTI"):
        read_nifti(path)


def test_a_damaged_file_is_reported(save: Callable) -> None:
    path = save(np.random.default_rng(0).integers(0, 99, (20, 20, 3, 4), dtype=np.int16))
    content = bytearray(path.read_bytes())
    content[-6] ^= 0xFF  # of the checksum
    path.write_bytes(content)
    with pytest.raises(CardioDiTError, match="damaged or was cut off"):
        read_nifti(path)


@pytest.mark.parametrize("size", [0.0, -1.5, float("nan")])
def test_invalid_voxel_sizes_are_reported(save: Callable, size: float) -> None:
    path = save(pixdim=[1, 1.5, size, 8, 0.04, 0, 0, 0], name="v.nii")
    with pytest.raises(CardioDiTError, match="three positive numbers were expected"):
        read_nifti(path)


def test_an_affine_without_space_is_reported(save: Callable) -> None:
    path = save(name="v.nii")
    content = bytearray(path.read_bytes())
    content[280:328] = bytes(48)  # srow_x, srow_y, srow_z
    path.write_bytes(content)
    with pytest.raises(CardioDiTError, match="does not span space"):
        read_nifti(path)


@pytest.mark.parametrize("shape", [(4, 0, 3), (4, 5, 3, 0)])
def test_an_empty_axis_is_reported(save: Callable, shape: tuple) -> None:
    with pytest.raises(CardioDiTError, match="empty axis"):
        read_nifti(save(np.zeros(shape, np.int16)))


def test_files_that_do_not_exist_or_hold_no_grey_values(tmp_path: Path, save: Callable) -> None:
    with pytest.raises(CardioDiTError, match="none.nii does not exist"):
        read_nifti(tmp_path / "none.nii")
    with pytest.raises(CardioDiTError, match="is a folder"):
        read_nifti(tmp_path)
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(CardioDiTError, match="grey values were expected"):
        read_nifti(save(colours))


def test_a_voxel_size_alone_is_not_a_position_in_the_scanner(save: Callable) -> None:
    assert not read_nifti(save(affine=np.diag([1.5, 1.5, 8, 1]), code=2)).geometry.in_scanner
    assert read_nifti(save(affine=np.diag([-1.5, -1.5, 8, 1]), code=1)).geometry.in_scanner
    flipped = read_nifti(save(affine=np.diag([1.5, 1.5, -8, 1]), code=2))  # as we write one that was turned
    assert not flipped.geometry.in_scanner and flipped.geometry.direction[2][2] == -1
    assert read_nifti(save(affine=OBLIQUE, code=2)).geometry.in_scanner
    ct = np.arange(90, dtype=np.int16).reshape(5, 6, 3)
    assert read_nifti(save(ct, affine=np.diag([-1, -1, 2, 1]), code=2)).geometry.in_scanner
    only_pixdim = read_nifti(save(affine=np.diag([1.5, 1.5, 8, 1]), code=0)).geometry
    assert only_pixdim.spacing == (1.5, 1.5, 8.0) and not only_pixdim.in_scanner
    assert read_nifti(save(affine=np.eye(4), code=0, units=("unknown", "unknown"))).geometry.spacing is None
