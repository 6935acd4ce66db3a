"""Free text in NIfTI headers, DICOM by content, and comments in pictures, in our own and in others' files."""

import gzip
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.data import get_testdata_file

from cardiodit.hub.checks.images import findings_in_nifti, is_dicom, picture_extras
from cardiodit.imaging import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.pictures import write_gif, write_sheet, write_slices

VOXELS = np.zeros((4, 4, 2, 3), np.float32)


def listed(path: Path) -> Path:
    """List a volume as generated."""
    (path.parent / "samples.jsonl").write_text(json.dumps({"file": path.name}) + "\n")
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("spacing", [None, (1.5, 1.5, 8.0)])
def test_our_own_volumes_pass(tmp_path: Path, name: str, spacing: tuple | None) -> None:
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


def test_a_volume_without_a_record_of_its_generation_is_refused(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", VOXELS, Geometry())
    assert "there is no evidence that it was generated" in next(findings_in_nifti(tmp_path / "a.nii.gz"))
    (tmp_path / "b.nii.gz").write_bytes(b"no image")
    assert "cannot be read as NIfTI" in next(findings_in_nifti(tmp_path / "b.nii.gz"))


def test_dicom_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "readme.txt"
    path.write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    assert is_dicom(path)
    path.write_bytes(b"DICM")
    assert not is_dicom(path)


PICTURE = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
NAME = "DOE^JANE"


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = NAME
    return tags


def text_chunks(compressed: bool = False) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Patient", NAME, zip=compressed)
    chunks.add_itxt("Author", NAME)
    return chunks


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_a_picture_without_comments_passes(kind: str) -> None:
    assert picture_extras(saved(kind)) == []


def test_our_own_pictures_pass(tmp_path: Path) -> None:
    cine = np.random.default_rng(0).uniform(-1, 1, (12, 12, 2, 4))
    write_gif(tmp_path / "a.gif", cine)
    write_gif(tmp_path / "masked.gif", cine, masks=(cine > 0).astype(int))
    write_sheet(tmp_path / "b.png", cine)
    write_slices(tmp_path / "c.png", cine[..., 0])
    assert [picture_extras(path.read_bytes()) for path in sorted(tmp_path.iterdir())] == [[]] * 4


@pytest.mark.parametrize(
    "content, extras",
    [
        (saved("PNG", pnginfo=text_chunks()), ["tEXt chunk", "iTXt chunk"]),
        (saved("PNG", pnginfo=text_chunks(compressed=True)), ["zTXt chunk", "iTXt chunk"]),
        (saved("PNG", exif=exif()), ["eXIf chunk"]),
        (saved("GIF", comment=NAME.encode()), ["comment"]),
        (saved("JPEG", comment=NAME.encode()), ["comment"]),
        (saved("JPEG", exif=exif()), ["APP1 block (EXIF, XMP or similar)"]),
        *((saved(kind) + NAME.encode(), ["data after its end"]) for kind in ("PNG", "GIF", "JPEG")),
    ],
)
def test_everything_besides_the_picture_is_found(content: bytes, extras: list[str]) -> None:
    assert picture_extras(content) == extras


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_truncated_pictures(kind: str) -> None:
    whole = saved(kind)
    for size in (4, 15, len(whole) // 2, len(whole) - 3):
        with pytest.raises(ValueError):
            picture_extras(whole[:size])


def test_other_files_are_not_pictures() -> None:
    with pytest.raises(ValueError, match="not a PNG, GIF or JPEG"):
        picture_extras(b"hello")
