"""NIfTI headers and DICOM files."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from cardiodit.hub.checks.images import findings_in_nifti, is_dicom
from cardiodit.imaging import Geometry
from cardiodit.imaging.nifti import write_nifti

VOXELS = np.zeros((4, 4, 2, 3), np.float32)


def listed(path: Path) -> Path:
    """As a generated volume, named in a list of samples."""
    (path.parent / "samples.jsonl").write_text(json.dumps({"file": path.name}) + "\n")
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 8.0)])
def test_our_own_files_tell_nothing(tmp_path: Path, name: str, spacing: tuple | None) -> None:
    write_nifti(listed(tmp_path / name), VOXELS, Geometry(spacing, 0.04))
    assert list(findings_in_nifti(tmp_path / name)) == []


ONE, TWO = nibabel.Nifti1Image, nibabel.Nifti2Image
FIELDS = [(kind, field) for kind in (ONE, TWO) for field in ("descrip", "aux_file", "intent_name")]


@pytest.mark.parametrize("kind, field", [*FIELDS, (ONE, "db_name")])
def test_free_text_is_found(tmp_path: Path, kind: type, field: str) -> None:
    image = kind(VOXELS, np.eye(4))
    image.header[field] = b"DOE JANE"
    nibabel.save(image, listed(tmp_path / "a.nii.gz"))
    (finding,) = findings_in_nifti(tmp_path / "a.nii.gz")
    assert f"'DOE JANE' in its header's {field}" in finding


def test_header_extensions_are_found(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"DOE JANE"))
    nibabel.save(image, listed(tmp_path / "a.nii"))
    (finding,) = findings_in_nifti(tmp_path / "a.nii")
    assert "header extensions" in finding


def test_a_name_from_before_compression_is_found(tmp_path: Path) -> None:
    write_nifti(tmp_path / "doe.nii", VOXELS, Geometry())
    with (listed(tmp_path / "a.nii.gz")).open("wb") as file, gzip.GzipFile("doe.nii", "wb", fileobj=file) as packed:
        packed.write((tmp_path / "doe.nii").read_bytes())
    (finding,) = findings_in_nifti(tmp_path / "a.nii.gz")
    assert "before it was compressed" in finding


def test_a_volume_that_nobody_says_was_generated_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOXELS, Geometry())
    assert "nothing says that it was generated" in next(findings_in_nifti(tmp_path / "a.nii.gz"))
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    assert "cannot be read as NIfTI" in next(findings_in_nifti(tmp_path / "b.nii.gz"))


def test_dicom_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "readme.txt"
    path.write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    assert is_dicom(path)
    path.write_bytes(b"DICM")
    assert not is_dicom(path)
