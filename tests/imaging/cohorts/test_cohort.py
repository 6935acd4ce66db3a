"""A cohort that is registered outside the package works like a built-in one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.commands import prepare
from cardiodit.imaging.cohorts import COHORTS, CohortFile, Search, register_cohort
from cardiodit.imaging.cohorts.cohort import subfolders
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import TIME_UNITS, read_nifti, write_nifti
from cardiodit.imaging.phantom import Phantom


@pytest.fixture
def toy_cohorts() -> Iterator[None]:
    @register_cohort("toy", "cine", title="toy hearts, NNN/heart.nii.gz", table="a toy table")
    def find_toy(source: Path, table: Path | None = None) -> Search:
        return Search([CohortFile(folder / "heart.nii.gz", folder.name, label="toy") for folder in subfolders(source)])

    @register_cohort("toy-ct", "ct", title="toy chests, *.npz", preset="prdit-lidc-64", npz_spacing=(2.0, 2.0, 3.0))
    def find_toy_ct(source: Path, table: Path | None = None) -> Search:
        return Search([CohortFile(path, path.stem) for path in sorted(source.glob("*.npz"))])

    yield
    del COHORTS["toy"], COHORTS["toy-ct"]


@pytest.mark.usefixtures("toy_cohorts")
def test_a_cine_cohort_is_prepared(tmp_path: Path, patient: Callable[[int], Phantom]) -> None:
    for number in range(3):
        (tmp_path / "data" / f"{number}").mkdir(parents=True)
        heart = patient(number)
        write_nifti(tmp_path / "data" / f"{number}" / "heart.nii.gz", heart.image, heart.geometry)
    assert main(["prepare", "toy", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]) == 0
    cases = read_manifest(tmp_path / "out/manifest.csv")
    assert [(case.subject, case.row["label"]) for case in cases] == [("0", "toy"), ("1", "toy"), ("2", "toy")]
    assert "# Cohort report (toy)" in (tmp_path / "out/report.md").read_text()


@pytest.mark.usefixtures("toy_cohorts")
def test_a_ct_cohort_is_prepared_with_its_own_preset_and_spacing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "data").mkdir()
    for number in range(3):
        voxels = np.random.default_rng(number).integers(-1000, 1000, (8, 10, 12)).astype(np.int16)
        np.savez(tmp_path / "data" / f"{number}.npz", ct=voxels)
    assert main(["prepare", "toy-ct", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]) == 0
    assert "The field of view of prdit-lidc-64" in capsys.readouterr().out
    case = read_manifest(tmp_path / "out/manifest.csv")[0]
    assert read_nifti(case.image).geometry.spacing == (2.0, 2.0, 3.0)


@pytest.mark.usefixtures("toy_cohorts")
def test_the_help_lists_every_cohort_and_its_table(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    printed = capsys.readouterr().out
    for cohort in COHORTS.values():
        assert f"  {cohort.name:<10} {cohort.title}" in printed
    assert "toy: a toy table" in printed and "prdit-radchest-128" in printed


def test_an_unknown_layout_is_an_error_that_lists_the_cohorts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prepare", "kaggle", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "no layout 'kaggle'" in error and all(name in error for name in COHORTS)


def test_time_units_are_those_of_nifti() -> None:
    assert set(prepare.TIME_UNITS) == set(TIME_UNITS)


def test_a_ct_cohort_needs_a_preset() -> None:
    with pytest.raises(ValueError, match="'odd' needs a preset"):
        register_cohort("odd", "ct", title="no preset")
