from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Preprocessing, prepare_case, prepare_mask, read_case, read_manifest
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import Phantom
from cardiodit.imaging.volume import Volume


@pytest.fixture
def manifest(tmp_path: Path, small_heart: Callable[..., Phantom]) -> Callable[..., Path]:
    """A heart stored from apex to base, beginning in systole, with a header that calls milliseconds seconds."""

    def make(**row: str) -> Path:
        heart = small_heart()
        for name, voxels in (("image", heart.image), ("mask", heart.labels)):
            stored = Volume(voxels, Geometry((1.4, 1.4, 10.0), 50.0)).flip(2).roll(3)
            write_nifti(tmp_path / f"{name}.nii.gz", stored.voxels, stored.geometry)
        told = {"frame_time": "0.05", "ed_frame": "5", "slices": "apex to base", **row}
        write_manifest(tmp_path / "manifest.csv", [{"image": "image.nii.gz", "mask": "mask.nii.gz", **told}])
        return tmp_path / "manifest.csv"

    return make


def test_the_manifest_goes_before_the_file(manifest: Callable, small_heart: Callable[..., Phantom]) -> None:
    (case,) = read_manifest(manifest())
    heart = small_heart()
    assert read_case(case).geometry.frame_time == 0.05
    prepared = prepare_case(case, Preprocessing())
    expected = Preprocessing()(Volume(heart.image, Geometry((1.4, 1.4, 10.0), 0.05)))
    assert np.array_equal(prepared.volume.voxels, expected.volume.voxels)
    assert np.array_equal(prepare_mask(case, prepared).voxels, heart.labels)
    assert prepare_mask(case, prepared, "ed_mask") is None
    assert np.array_equal(prepared.undo().voxels, read_case(case).voxels)


def test_errors_name_the_file(manifest: Callable) -> None:
    (case,) = read_manifest(manifest(frame_time=""))
    with pytest.raises(CardioDiTError, match=r"image.nii.gz says that a frame lasts 50 sec"):
        prepare_case(case, Preprocessing())
    (case,) = read_manifest(manifest(ed_frame="12"))
    with pytest.raises(CardioDiTError, match=r"image.nii.gz cannot be prepared. End-diastole cannot be frame 12"):
        prepare_case(case, Preprocessing())
    (case,) = read_manifest(manifest(slices="sideways"))
    with pytest.raises(CardioDiTError, match=r"cannot be prepared. slices='sideways'"):
        prepare_case(case, Preprocessing())
