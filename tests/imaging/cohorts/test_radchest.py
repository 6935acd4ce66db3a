"""RAD-ChestCT as it was released: archives of voxels, and a table that alone knows whose they are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.cohorts import Preparation, prepare_cohort
from cardiodit.imaging.manifest import Case, check_disjoint, read_manifest
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing

from .test_lidc import contents

NAMES = ["trn00001", "trn00002", "trn00007", "val00003", "tst00004"]
METADATA = "CT_Scan_Metadata_Complete_35747.csv"


def prepare(source: Path, output_dir: Path, *options: str) -> tuple[list[Case], str]:
    assert main(["prepare", "radchest", str(source), "--output_dir", str(output_dir), *options]) == 0
    return read_manifest(output_dir / "manifest.csv"), (output_dir / "report.md").read_text()


def stored(number: int) -> np.ndarray:
    """Slices, rows, columns, cut at ±1000 as the cohort is."""
    return np.random.default_rng(number).integers(-1000, 1001, (8, 12, 12)).astype(np.int16)


@pytest.fixture
def radchest(tmp_path: Path) -> Path:
    root = tmp_path / "RAD"
    root.mkdir()
    for number, name in enumerate(NAMES):
        np.savez_compressed(root / f"{name}.npz", ct=stored(number))
    return root


def write_metadata(path: Path, patients: list[str]) -> None:
    rows = [f"{name},{patient},{name}.npz,HU" for name, patient in zip(NAMES, patients)]
    path.write_text("\n".join(["NoteAcc_DEID,MRN_DEID,VolumeAcc_DEID,RescaleType", *rows]) + "\n")


def test_the_released_archives_with_their_own_split(
    radchest: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    before = contents(radchest)
    cases, report = prepare(radchest, tmp_path / "out", "--own_split")
    assert contents(radchest) == before
    assert [case.row["split"] for case in cases] == ["training"] * 3 + ["test", "validation"]
    first = read_nifti(cases[0].image)
    assert first.voxels.dtype == np.int16 and np.array_equal(first.voxels, stored(0).transpose(2, 1, 0))
    assert first.geometry.spacing == (0.8, 0.8, 0.8)
    assert np.allclose(np.diag(first.geometry.affine)[:3], [-0.8, -0.8, -0.8])
    assert "lists 5 of 5 CT" in report and "the cohort's own split" in report
    assert "| trn00001 | trn00001.npz | 12 × 12 × 8 voxels: H and W and D padded with air | -1000 | " in report
    assert "pad 5 with air; none is dropped" in capsys.readouterr().out


def test_training_reads_them(radchest: Path, tmp_path: Path) -> None:
    cases, _ = prepare(radchest, tmp_path / "out", "--own_split")
    volumes = PreparedVolumes(cases[:1], PRESETS["prdit-radchest-128"])
    voxels = volumes[0][0].numpy()
    assert voxels.shape == (128, 128, 128) and voxels.min() == -1 and voxels.max() <= 1
    # The middle 6 × 6 × 4 voxels are the source's, to the front and to the head, averaged after the cut.
    source = stored(0).transpose(2, 1, 0)[:, ::-1, ::-1].astype(float)
    high = np.percentile(source, 99.5)
    scaled = (source.clip(-1000, high) + 1000) / (high + 1000) * 2 - 1
    expected = scaled.reshape(6, 2, 6, 2, 4, 2).mean(axis=(1, 3, 5))
    assert np.allclose(voxels[61:67, 61:67, 62:66], expected, atol=1e-5)
    assert (np.delete(voxels, range(61, 67), axis=0) == -1).all()


def test_a_patients_images_stay_together(radchest: Path, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="do not tell which.*--table, or use its own split.*--own_split"):
        prepare_cohort("radchest", radchest, tmp_path / "out")
    write_metadata(tmp_path / METADATA, ["p1", "p2", "p1", "p3", "p4"])  # found beside the folder
    cases, _ = prepare(radchest, tmp_path / "out", "--fractions", "0.5", "0.25", "0.25")
    assert [case.subject for case in cases] == ["p1", "p2", "p1", "p4", "p3"]
    assert cases[0].row["split"] == cases[2].row["split"]
    check_disjoint(**{n: read_manifest(tmp_path / f"out/{n}.csv") for n in ("training", "validation", "test")})
    write_metadata(tmp_path / METADATA, ["p1", "p2", "p3", "p1", "p4"])
    with pytest.raises(
        CardioDiTError, match=r"val00003\.npz is in its partition validation, but another image of p1 is not"
    ):
        prepare_cohort("radchest", radchest, tmp_path / "own", how=Preparation(own_split=True))


def test_a_table_of_ones_own(radchest: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    rows = [f"{name}.npz,patient{number % 3},calcification,{number}" for number, name in enumerate(NAMES)]
    table.write_text("\n".join(["image,subject,label,age", *rows]) + "\n")
    cases, _ = prepare(radchest, tmp_path / "out", "--table", str(table))
    assert [(case.subject, case.row["label"], case.row["age"]) for case in cases][:2] == [
        ("patient0", "calcification", "0"),
        ("patient1", "calcification", "1"),
    ]
    table.write_text("\n".join(["image,subject", "trn00001,a"]) + "\n")
    with pytest.raises(CardioDiTError, match=r"tst00004\.npz: the table .* does not name the patient of tst00004"):
        prepare_cohort("radchest", radchest, tmp_path / "none", table)
    manifest = prepare_cohort("radchest", radchest, tmp_path / "one", table, Preparation(exclude=True))
    assert [case.subject for case in read_manifest(manifest)] == ["a"]
    table.write_text("name,subject\ntrn00001,a\n")
    with pytest.raises(CardioDiTError, match="must have the columns image and subject"):
        prepare_cohort("radchest", radchest, tmp_path / "none", table)


def test_damaged_archives_are_named(radchest: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (radchest / "trn00001.npz").write_bytes((radchest / "trn00001.npz").read_bytes()[:500])
    np.savez_compressed(radchest / "trn00002.npz", volume=stored(1))
    (radchest / "again").mkdir()
    np.savez_compressed(radchest / "again" / "val00003.npz", ct=stored(9))
    arguments = ["prepare", "radchest", str(radchest), "--output_dir", str(tmp_path / "out"), "--own_split"]
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert f"{radchest / 'trn00001.npz'} is damaged or was cut off" in message
    assert f"{radchest / 'trn00002.npz'} has no array 'ct'. It has volume" in message
    assert f"{radchest / 'val00003.npz'}: {radchest / 'again' / 'val00003.npz'} has the same name" in message
    assert "tst00004" not in message and not (tmp_path / "out").exists()
    assert main([*arguments, "--exclude_problems"]) == 0
    assert [case.image.name for case in read_manifest(tmp_path / "out/manifest.csv")] == [
        "val00003.nii.gz",
        "trn00007.nii.gz",
        "tst00004.nii.gz",
    ]


def test_nifti_files_are_cut_as_the_archives_were(tmp_path: Path, ct: Callable) -> None:
    """Metal of 3000 HU in a twentieth of the voxels does not make the rest darker."""
    volume, steps = ct(0, (64, 64, 64), (0.8, 0.8, 0.8)), PRESETS["prdit-radchest"]
    volume.voxels[:, :, :4] = 3000
    assert steps(volume).source.limits == (-1000, 1000)
    assert Preprocessing.from_dict(json.loads(json.dumps(steps.to_dict()))) == steps


def test_nifti_files_and_another_spacing(tmp_path: Path, ct: Callable) -> None:
    (tmp_path / "data").mkdir()
    write_nifti(tmp_path / "data/a.nii.gz", ct().voxels, ct().geometry)
    np.savez_compressed(tmp_path / "data/b.npz", ct=stored(1))
    cases, report = prepare(tmp_path / "data", tmp_path / "out", "--spacing", "0.7", "0.7", "1.5")
    spacings = {case.image.name: read_nifti(case.image).geometry.spacing for case in cases}
    assert spacings == {"a.nii.gz": (0.7, 0.7, 1.25), "b.nii.gz": (0.7, 0.7, 1.5)}
    assert "each image counts as a separate patient" in report


@pytest.mark.parametrize("layout", ["lidc", "radchest"])
def test_another_folder_than_the_cohorts_says_so(layout: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(CardioDiTError, match=r"was found in .* downloaded into|is not a folder"):
            prepare_cohort(layout, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
