"""Bad files of every kind, through every reader and a share of the commands: one clear sentence, or a result."""

import json
import logging
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest

from cardiodit import CardioDiTError
from cardiodit._util import foreign_files
from cardiodit._util.foreign_files import check_expansion, check_file
from cardiodit.imaging.nifti import read_nifti

MUST_FAIL = ("cut at", "text", "zeros", "bomb", "missing", "a pipe", "/dev/zero", "a link", "a folder", "nested")


@pytest.fixture(scope="module")
def script(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("bad_input")


# A share of the cases: `benchmarks/bad_input.py` runs all.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("group", "every"), [("readers", 13), ("images", 15), ("models", 60), ("cards", 25), ("conversions", 25)]
)
def test_bad_files_end_in_a_clear_sentence(
    script: ModuleType, group: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # nibabel's handler holds the stream of an earlier test
    bad, checked = [], 0
    for case in islice(getattr(script, group)(tmp_path), 0, None, every):
        end, said = case.run()
        checked += 1
        if end not in (script.SENTENCE, script.RESULT):
            bad.append((case.target, case.name, end, said))
        if group == "readers" and case.name.startswith(MUST_FAIL) and "dicom" not in case.target:
            assert end == script.SENTENCE, (case.target, case.name)
    assert not bad
    assert checked > 10


def test_there_are_enough_cases(script: ModuleType, tmp_path: Path) -> None:
    assert sum(1 for _ in script.readers(tmp_path)) > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--features", "os.path:join", "--features_size", 16, 16, 8), "os.path:join"),
        (("--segmenter", "json:loads"), "json:loads"),
        (("--device", "gpu"), "--device gpu: this machine has no such device"),
    ],
)
def test_what_is_no_network_or_device_is_named(
    script: ModuleType, options: tuple, message: str, tmp_path: Path
) -> None:
    manifest = script.FIXTURES / "saved/run-0.1/images/validation/manifest.csv"
    sets = ("--real", manifest, "--synthetic", manifest, "--output_dir", tmp_path, "--preprocessing", "cine")
    end, said = script.command("evaluate", *sets, *options)
    assert end == script.SENTENCE and message in said


def test_a_name_that_is_not_utf8_is_a_problem_of_its_file(script: ModuleType, tmp_path: Path) -> None:
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    for name in (b"a.nii", b"b.nii", b"\xff.nii"):
        (cohort / os.fsdecode(name)).write_bytes(script.plain_nifti(tmp_path / "good.nii"))
    end, said = script.command("prepare", "folder", cohort, "--output_dir", tmp_path / "prepared")
    assert end == script.SENTENCE and "has a name that is not UTF-8 text" in said


def test_sizes_are_checked_before_anything_is_allocated(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CardioDiTError, match="claims to hold 100000000000"):
        check_expansion(tmp_path / "a.nii.gz", 10**11, 1000)
    check_expansion(tmp_path / "a.nii.gz", 2**30, 1000)  # a mask of zeros
    monkeypatch.setattr(foreign_files, "physical_memory", lambda: 2**20)
    script.plain_nifti(tmp_path / "a.nii")
    with pytest.raises(CardioDiTError, match="more than this machine's memory"):
        check_expansion(tmp_path / "a.nii.gz", 2**21, 2**20)
    with pytest.raises(CardioDiTError, match="at most 10 were expected"):
        check_file(tmp_path / "a.nii", longest=10)
    monkeypatch.undo()
    assert read_nifti(tmp_path / "a.nii").voxels.shape == (24, 20, 4, 8)


def test_an_exported_folder_is_sampled_without_its_code(script: ModuleType, tmp_path: Path) -> None:
    model = script.FIXTURES / "saved/cardiodit-0.1"
    assert script.command("export", model, "--output_dir", tmp_path / "exported")[0] == script.RESULT
    index = json.loads((tmp_path / "exported/model_index.json").read_text())
    assert index["vae"] == ["autoencoder_vq", "VQModel4D"]
    for code in (tmp_path / "exported").rglob("*.py"):
        code.write_text("raise SystemExit('this code must not run')\n")
    steps = ("--num_inference_steps", 1)
    for folder in (model, tmp_path / "exported"):
        output = tmp_path / f"samples of {folder.name}"
        assert script.command("sample", folder, "--output_dir", output, *steps)[0] == script.RESULT
    one, other = (read_nifti(next(tmp_path.glob(f"samples of {name}/*.nii.gz"))) for name in (model.name, "exported"))
    assert (one.voxels == other.voxels).all()
