"""The documented commands for cohorts as they lie on a hospital's disk, run on such folders."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cardiodit.cli import main
from cardiodit.imaging import read_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.volume import Volume

PAGE = (Path(__file__).parents[3] / "docs" / "your-data.md").read_text()
LINES = re.findall(r"^cardiodit prepare .*/data/.*$", PAGE, re.MULTILINE)


@pytest.fixture
def data(tmp_path: Path, acdc: Path, mnms: Path, patient: Callable, write_dicom: Callable) -> Path:
    """Everything that the page finds in /data."""
    (tmp_path / "our-cines").mkdir()
    for number in range(4):
        heart = patient(number)
        write_nifti(tmp_path / "our-cines" / f"s{number}.nii.gz", heart.image, heart.geometry)
        write_dicom(tmp_path / "exported" / f"s{number}", Volume(heart.image, heart.geometry))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "patients.csv").write_text(
        "subject,label\n" + "".join(f"s{n},group{n % 2}\n" for n in range(4))
    )
    return tmp_path


def test_they_write_manifests(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(LINES) == 4
    monkeypatch.chdir(data / "here")
    for line in LINES:
        words = shlex.split(line.replace("/data", str(data)).replace("--workers 4", "--workers 1"))
        assert main(words[1:]) == 0, line
        output = Path(words[words.index("--output_dir") + 1])
        assert len(read_manifest(output / "manifest.csv")) >= 4
        assert (output / "training.csv").is_file()
