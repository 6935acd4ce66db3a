from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.npz import read_npz

STORED = np.random.default_rng(0).integers(-1000, 1000, (5, 7, 6)).astype(np.int16)  # slices, rows, columns
SPACING = (0.8, 0.8, 0.8)


def save(folder: Path, **arrays: np.ndarray) -> Path:
    np.savez_compressed(folder / "a.npz", **arrays)
    return folder / "a.npz"


def test_columns_rows_and_slices_go_left_back_and_down(tmp_path: Path) -> None:
    volume, notes = read_npz(save(tmp_path, ct=STORED), (0.8, 0.9, 1.0))
    assert volume.voxels.shape == (6, 7, 5) and volume.voxels[4, 3, 2] == STORED[2, 3, 4] and notes == []
    assert volume.geometry.spacing == (0.8, 0.9, 1.0) and not volume.geometry.in_scanner
    assert (np.diag(volume.geometry.affine)[:3] < 0).all()
    assert np.allclose(volume.geometry.affine @ [2.5, 3, 2, 1], [0, 0, 0, 1])
    write_nifti(tmp_path / "a.nii.gz", volume.voxels, volume.geometry)
    again = read_nifti(tmp_path / "a.nii.gz")
    assert np.array_equal(again.voxels, volume.voxels) and again.geometry.is_close(volume.geometry)


def test_fractions_are_rounded_with_a_note(tmp_path: Path) -> None:
    volume, notes = read_npz(save(tmp_path, ct=STORED + 0.25), SPACING)
    assert np.array_equal(volume.voxels.T, STORED) and "by at most 0.25" in notes[0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"volume": STORED}, "has no array 'ct'. It has volume"),
        ({"ct": STORED[0]}, r"holds 'ct' of shape \(7, 6\)"),
        ({"ct": STORED > 0}, "type bool; numbers along slices"),
        ({"ct": STORED.astype(object)}, "cannot be read as a NumPy archive: .*allow_pickle"),
        ({"ct": STORED + np.inf}, "values that are not numbers"),
        ({"ct": STORED.astype(int) + 40000}, "has values from 3"),
    ],
)
def test_other_contents_are_refused(arrays: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=message) as error:
        read_npz(save(tmp_path, **arrays), SPACING)
    assert "a.npz" in str(error.value)


def test_damage_is_reported(tmp_path: Path) -> None:
    path = save(tmp_path, ct=STORED)
    whole = path.read_bytes()
    for broken in (whole[:-40], whole[: len(whole) // 2], b"", whole[:200] + b"\0" * 50 + whole[250:], b"text"):
        path.write_bytes(broken)
        with pytest.raises(CardioDiTError, match=r"a\.npz is damaged or was cut off"):
            read_npz(path, SPACING)
    np.save(tmp_path / "b.npy", STORED)
    path.write_bytes((tmp_path / "b.npy").read_bytes())
    with pytest.raises(CardioDiTError, match=r"a\.npz is not a NumPy archive"):
        read_npz(path, SPACING)
