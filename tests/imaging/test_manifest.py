from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import check_disjoint, read_manifest, write_manifest


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


def test_without_subjects_each_image_is_one(folder: Path) -> None:
    cases = read_manifest(write(folder, "image\nimages/a.nii.gz\nimages/b.nii.gz\n"))
    assert len({case.subject for case in cases}) == 2


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";"])
def test_what_spreadsheets_write_is_read(folder: Path, separator: str, encoding: str) -> None:
    text = "image, ed_frame\nimages/a.nii.gz, 3\n\nimages/b.nii.gz,\n".replace(",", separator)
    first, second = read_manifest(write(folder, text, encoding))
    assert first.number("ed_frame") == 3 and second.number("ed_frame") is None


def test_all_problems_come_at_once(folder: Path) -> None:
    text = f"image,label,mask\nimages/a.nii.gz,x,\nimages/a.nii.gz,x,gone.nii\n,y,\n{folder}/none.nii.gz,,\n"
    with pytest.raises(CardioDiTError) as error:
        read_manifest(write(folder, text), columns=["label"])
    message = str(error.value)
    assert "line 3: the image images/a.nii.gz is the one of line 2" in message
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
        ("image,label\nimages/a.nii.gz,x,y\n", "Line 2 .* another number of cells"),
        ("image,label\nimages/a.nii.gz\n", "Line 2 .* another number of cells"),
    ],
)
def test_tables_that_are_none(folder: Path, text: str, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        read_manifest(write(folder, text))


def test_tables_that_are_not_text_or_not_there(folder: Path) -> None:
    with pytest.raises(CardioDiTError, match="no UTF-8"):
        read_manifest(write(folder, "image\nMüller\n", "latin-1"))
    with pytest.raises(CardioDiTError, match="does not exist"):
        read_manifest(folder / "none.csv")


def test_a_word_where_a_number_is_needed(folder: Path) -> None:
    (case,) = read_manifest(write(folder, "image,ed_frame\nimages/a.nii.gz,first\n"))
    with pytest.raises(CardioDiTError, match="ed_frame='first' of .* is not a number"):
        case.number("ed_frame")


def test_what_is_written_is_read(folder: Path) -> None:
    rows = [{"image": "images/a.nii.gz", "label": 'said "so", twice'}, {"image": "images/b.nii.gz", "label": "ö"}]
    write_manifest(folder / "manifest.csv", rows)
    assert [case.row for case in read_manifest(folder / "manifest.csv")] == rows


def test_no_subject_in_two_splits(folder: Path) -> None:
    cases = read_manifest(write(folder, "image,subject\nimages/a.nii.gz,x\nimages/b.nii.gz,x\nimages/c.nii.gz,y\n"))
    check_disjoint(training=cases[:2], test=cases[2:])
    with pytest.raises(CardioDiTError, match="x is in training and in test"):
        check_disjoint(training=cases[:1], test=cases[1:])
