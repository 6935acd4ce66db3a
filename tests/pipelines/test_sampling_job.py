"""Many samples: interrupted, in another batch size, over processes."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from cardiodit._util.sample_records import merge_sample_lists
from cardiodit.cli import main
from cardiodit.energy.records import read_records
from cardiodit.errors import CardioDiTError
from cardiodit.pipelines.sampling_job import SamplingJob, consecutive, missing_samples, sample_many

from ..prepared_python import python

SETTINGS = {"num_inference_steps": 2}


def make_job(count: int = 5, first: int = 0, **more) -> SamplingJob:
    return SamplingJob(3, first, count, settings={**SETTINGS, **more})


def voxels(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: np.asarray(nibabel.load(path).dataobj) for path in sorted(folder.glob("*.nii.gz"))}


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_runs_of_numbers() -> None:
    assert list(consecutive([1, 2, 5, 7, 8, 9])) == [[1, 2], [5], [7, 8, 9]]
    assert list(consecutive([])) == []


def test_what_is_there_is_not_made_again(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe()
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert len(list(sample_many(pipe, whole, make_job(), batch_size=5))) == 5
    assert len(list(sample_many(pipe, parts, make_job(2, first=1)))) == 2
    before = {path: path.stat().st_mtime_ns for path in parts.glob("*.nii.gz")}
    made = list(sample_many(pipe, parts, make_job(), batch_size=3))
    assert sorted(path.name for path in made) == [f"seed3-0000{i}.nii.gz" for i in (0, 3, 4)]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert list(sample_many(pipe, parts, make_job())) == []
    for name, values in voxels(whole).items():
        np.testing.assert_allclose(voxels(parts)[name], values, atol=1e-3)
    assert sorted(record["index"] for record in records(parts)) == list(range(5))


def test_a_volume_that_was_written_but_not_recorded_is_made_again(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe()
    list(sample_many(pipe, tmp_path / "s", make_job(2)))
    log = tmp_path / "s" / "samples.jsonl"
    log.write_text(log.read_text().splitlines(keepends=True)[0])
    assert missing_samples(pipe, tmp_path / "s", make_job(2)) == [1]
    assert [path.name for path in sample_many(pipe, tmp_path / "s", make_job(2))] == ["seed3-00001.nii.gz"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"num_inference_steps": 3}, "num_inference_steps was 2, now 3"),
        ({"eta": 0.5}, "eta was 0.0, now 0.5"),
        ({"depth": 4}, r"latent_size was \[2, 8, 8, 4\], now \[4, 8, 8, 4\]"),
    ],
)
def test_samples_made_otherwise_are_not_mixed(make_pipe: Callable, tmp_path: Path, more: dict, sentence: str) -> None:
    pipe = make_pipe("ddim")
    list(sample_many(pipe, tmp_path / "s", make_job(1)))
    with pytest.raises(CardioDiTError, match=sentence):
        list(sample_many(pipe, tmp_path / "s", make_job(2, **more)))


def test_labels_in_turn_whatever_is_missing(make_pipe: Callable, tmp_path: Path) -> None:
    pipe = make_pipe(num_classes=3, class_dropout_prob=0.1, class_names=["a", "b", "c"])
    labelled = SamplingJob(0, 0, 5, labels=("a", 2), settings=SETTINGS)
    list(sample_many(pipe, tmp_path / "s", SamplingJob(0, 3, 1, labels=("a", 2), settings=SETTINGS)))
    list(sample_many(pipe, tmp_path / "s", labelled, batch_size=4))
    labels = {record["index"]: record["class_label"] for record in records(tmp_path / "s")}
    assert labels == {0: "a", 1: "c", 2: "a", 3: "c", 4: "a"}
    with pytest.raises(CardioDiTError, match="class_label was a, now b"):
        missing_samples(pipe, tmp_path / "s", SamplingJob(0, 0, 1, labels=("b",), settings=SETTINGS))


def test_processes_share_and_the_result_is_the_same(
    make_pipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Two real processes of the command, and this one."""
    make_pipe().save_pretrained(tmp_path / "model")
    arguments = ["sample", str(tmp_path / "model"), "--num_samples", "4", "--num_inference_steps", "2", "--seed", "3"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()}
    torchrun = [python(), "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "cardiodit"]
    shared = subprocess.run(
        [*torchrun, *arguments, "--output_dir", str(tmp_path / "two")], env=environment, capture_output=True, text=True
    )
    assert shared.returncode == 0, shared.stderr
    assert shared.stdout.count(".nii.gz") == 4
    assert main([*arguments, "--output_dir", str(tmp_path / "one")]) == 0
    assert [path.name for path in (tmp_path / "two").glob("samples*.jsonl")] == ["samples.jsonl"]  # merged
    assert sorted(record["process"] for record in read_records(tmp_path / "two")) == [0, 1]
    one, two = voxels(tmp_path / "one"), voxels(tmp_path / "two")
    assert set(one) == set(two) and len(one) == 4
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=1e-3)
    assert main([*arguments, "--output_dir", str(tmp_path / "one")]) == 0
    assert "All requested samples are already in" in capsys.readouterr().out


def test_a_process_that_comes_late_makes_its_own_share(make_pipe: Callable, tmp_path: Path) -> None:
    """The first process has written a sample when the second looks what is missing."""
    pipe = make_pipe()
    first = sample_many(pipe, tmp_path / "s", make_job(4), process=0, processes=2)
    next(first)
    list(sample_many(pipe, tmp_path / "s", make_job(4), process=1, processes=2))
    list(first)
    # Each has a list of its own, since appending to one file from several machines can lose lines.
    lists = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "s").glob("*.jsonl")}
    assert lists == {"samples.jsonl": 0, "samples-00000.jsonl": 2, "samples-00001.jsonl": 2}
    assert missing_samples(pipe, tmp_path / "s", make_job(4)) == []
    merge_sample_lists(tmp_path / "s")
    assert sorted(record["index"] for record in records(tmp_path / "s")) == [0, 1, 2, 3]
    assert len(list((tmp_path / "s").glob("*.jsonl"))) == 1


def test_a_broken_record_is_named(make_pipe: Callable, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "samples.jsonl").write_text('{"seed": 1}\n')
    with pytest.raises(CardioDiTError, match=r"Line 1 of .*samples.jsonl is not a record of a sample"):
        missing_samples(make_pipe(), tmp_path / "s", make_job(1))
