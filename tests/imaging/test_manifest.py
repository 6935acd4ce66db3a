from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import (
    check_disjoint,
    order_of_case,
    prepare_case,
    prepare_mask,
    read_case,
    read_manifest,
    write_manifest,
)
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.phantom import Phantom
from cardiodit.imaging.volume import Volume


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.nii.gz").touch()
    return tmp_path


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "manifest.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_relative_paths_start_at_the_manifest(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    path = write(folder, f"image,subject,label\nimages/a.nii.gz,one,x\n{folder}/images/b.nii.gz,two,\n")
    first, second = read_manifest(path)
    assert first.image == folder / "images/a.nii.gz" and second.image == folder / "images/b.nii.gz"
    assert (first.subject, first.row["label"]) == ("one", "x")
    assert first.path("mask") is None


def test_without_subjects_each_image_is_a_subject(folder: Path) -> None:
    cases = read_manifest(write(folder, "image\nimages/a.nii.gz\nimages/b.nii.gz\n"))
    assert len({case.subject for case in cases}) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_spreadsheet_dialects_are_read(folder: Path, separator: str, encoding: str) -> None:
    text = "image, ed_frame\nimages/a.nii.gz, 3\n\nimages/b.nii.gz,\n".replace(",", separator)
    first, second = read_manifest(write(folder, text, encoding))
    assert first.number("ed_frame") == 3 and second.number("ed_frame") is None


def test_all_problems_are_reported_at_once(folder: Path) -> None:
    text = f"image,label,mask\nimages/a.nii.gz,x,\nimages/a.nii.gz,x,gone.nii\n,y,\n{folder}/none.nii.gz,,\n"
    with pytest.raises(CardioDiTError) as error:
        read_manifest(write(folder, text), columns=["label"])
    message = str(error.value)
    assert "line 3: the image images/a.nii.gz is already listed in line 2" in message
    assert f"line 3: the mask gone.nii ({folder}/gone.nii) does not exist" in message
    assert "line 4: the column 'image' is empty" in message
    assert "line 5: the column 'label' is empty" in message
    assert f"line 5: the image {folder}/none.nii.gz does not exist" in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na,b\n", "has no column 'image'. It has path, label"),
        ("image,label\n", "has no rows"),
        ("", "has no column 'image'. It has none"),
        ("image,label\nimages/a.nii.gz,x,y\n", "Line 2 .* more or fewer cells than the 2 columns"),
        ("image,label\nimages/a.nii.gz\n", "Line 2 .* more or fewer cells than the 2 columns"),
    ],
)
def test_malformed_tables(folder: Path, text: str, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        read_manifest(write(folder, text))


def test_tables_that_are_not_text_or_do_not_exist(folder: Path) -> None:
    with pytest.raises(CardioDiTError, match="not UTF-8"):
        read_manifest(write(folder, "image\nMüller\n", "latin-1"))
    with pytest.raises(CardioDiTError, match="does not exist"):
        read_manifest(folder / "none.csv")


def test_a_cell_that_is_not_a_number(folder: Path) -> None:
    (case,) = read_manifest(write(folder, "image,ed_frame\nimages/a.nii.gz,first\n"))
    with pytest.raises(CardioDiTError, match="ed_frame='first' of .* is not a number"):
        case.number("ed_frame")


@pytest.mark.parametrize("cell", ["2.5", "nan", "inf", "-1"])
def test_a_cell_that_is_no_frame(folder: Path, cell: str) -> None:
    """A part of a frame used to be cut off silently."""
    (case,) = read_manifest(write(folder, f"image,ed_frame\nimages/a.nii.gz,{cell}\n"))
    with pytest.raises(CardioDiTError, match=f"ed_frame='{cell}' of .*a.nii.gz (is not the number of a|must be a fin)"):
        order_of_case(case, Volume(np.zeros((4, 4, 4, 4)), Geometry()), Preprocessing())


def test_a_written_manifest_reads_back(folder: Path) -> None:
    rows = [{"image": "images/a.nii.gz", "label": 'said "so", twice'}, {"image": "images/b.nii.gz", "label": "ö"}]
    write_manifest(folder / "manifest.csv", rows)
    assert [case.row for case in read_manifest(folder / "manifest.csv")] == rows


def test_a_subject_in_two_splits_is_reported(folder: Path) -> None:
    cases = read_manifest(write(folder, "image,subject\nimages/a.nii.gz,x\nimages/b.nii.gz,x\nimages/c.nii.gz,y\n"))
    check_disjoint(training=cases[:2], test=cases[2:])
    with pytest.raises(CardioDiTError, match="x is in training and in test"):
        check_disjoint(training=cases[:1], test=cases[1:])


@pytest.fixture
def stored_heart(tmp_path: Path, small_heart: Callable[..., Phantom]) -> Callable[..., Path]:
    """Write a heart from apex to base, beginning in systole, with a header that calls milliseconds seconds."""

    def make(**row: str) -> Path:
        heart = small_heart()
        for name, voxels in (("image", heart.image), ("mask", heart.labels)):
            stored = Volume(voxels, Geometry((1.4, 1.4, 10.0), 50.0)).flip(2).roll(3)
            write_nifti(tmp_path / f"{name}.nii.gz", stored.voxels, stored.geometry)
        cells = {"frame_time": "0.05", "ed_frame": "5", "slices": "apex to base", **row}
        write_manifest(tmp_path / "manifest.csv", [{"image": "image.nii.gz", "mask": "mask.nii.gz", **cells}])
        return tmp_path / "manifest.csv"

    return make


def test_the_manifest_overrides_the_header(stored_heart: Callable, small_heart: Callable[..., Phantom]) -> None:
    (case,) = read_manifest(stored_heart())
    heart = small_heart()
    assert read_case(case).geometry.frame_time == 0.05
    prepared = prepare_case(case, Preprocessing())
    expected = Preprocessing()(Volume(heart.image, Geometry((1.4, 1.4, 10.0), 0.05)))
    assert np.array_equal(prepared.volume.voxels, expected.volume.voxels)
    assert np.array_equal(prepare_mask(case, prepared).voxels, heart.labels)
    assert prepare_mask(case, prepared, "ed_mask") is None
    assert np.array_equal(prepared.inverse().voxels, read_case(case).voxels)


def test_errors_name_the_file(stored_heart: Callable) -> None:
    (case,) = read_manifest(stored_heart(frame_time=""))
    with pytest.raises(CardioDiTError, match=r"image.nii.gz says that a frame lasts 50 sec"):
        prepare_case(case, Preprocessing())
    (case,) = read_manifest(stored_heart(ed_frame="12"))
    with pytest.raises(CardioDiTError, match=r"image.nii.gz cannot be prepared. End-diastole cannot be frame 12"):
        prepare_case(case, Preprocessing())
    (case,) = read_manifest(stored_heart(slices="sideways"))
    with pytest.raises(CardioDiTError, match=r"cannot be prepared. slices='sideways'"):
        prepare_case(case, Preprocessing())
