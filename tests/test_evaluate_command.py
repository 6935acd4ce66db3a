"""`cardiodit evaluate` as a user runs it: what it prints, what it returns, and that it goes on where it was stopped."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cardiodit.cli import main
from cardiodit.imaging import Intensity, Preprocessing
from cardiodit.imaging.phantom import write_cohort

FILES = ("report.json", "table.md", "model-index.yaml")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cohorts")
    for seed, name in enumerate(("real", "synthetic")):
        write_cohort(root / name, 4, seed=seed, size=(32, 32, 5, 8))
    steps = Preprocessing(intensity=Intensity("p0.5", "p99.5"))
    (root / "steps.json").write_text(json.dumps(steps.to_dict()))
    return root


def arguments(cohorts: Path, output_dir: Path) -> list[str]:
    sets = [text for name in ("real", "synthetic") for text in (f"--{name}", str(cohorts / name / "manifest.csv"))]
    return ["evaluate", *sets, "--preprocessing", str(cohorts / "steps.json"), "--output_dir", str(output_dir)]


def test_it_prints_the_table_and_returns_nothing_wrong(
    cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(arguments(cohorts, tmp_path / "out")) == 0
    printed = capsys.readouterr()
    assert (tmp_path / "out" / "table.md").read_text() in printed.out
    assert f"Wrote {tmp_path / 'out' / 'report.json'}" in printed.out and "report.html" in printed.out
    assert "Goes on" not in printed.err


def test_a_corrupt_file_shows_in_the_exit_code(cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    damaged = cohorts / "synthetic" / "images" / "phantom-0001.nii.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    try:
        assert main(arguments(cohorts, tmp_path)) == 2
    finally:
        damaged.write_bytes(whole)
    printed = capsys.readouterr()
    assert "1 file could not be evaluated and is listed above and in the report" in printed.err
    assert "synthetic phantom-0001.nii.gz: phantom-0001.nii.gz is damaged or was cut off" in printed.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [problem["file"] for problem in report["problems"]] == [damaged.name]
    assert report["protocol"]["counts"] == {"real": 4, "synthetic": 3}


def test_errors_are_one_sentence(cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = arguments(cohorts, tmp_path)
    for more, expected in (
        (["--features", "nothing"], "There is no feature network 'nothing'"),
        (["--processes", "0"], "processes=0 must be at least 1"),
        (["--segmenter", "nobody"], "There is no segmenter nobody"),
        (["--depth", "3", "--synthetic", str(tmp_path / "none")], "neither a folder nor a manifest"),
    ):
        assert main([*given, *more]) == 1
        error = capsys.readouterr().err
        assert error.startswith("cardiodit: error: ") and expected in error and error.count("\n") == 1


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    command = [sys.executable, "-m", "cardiodit", *arguments(cohorts, killed)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(killed.glob("measured/[!.]*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (killed / "report.json").exists()
    held = len(list(killed.glob("measured/[!.]*.npz")))
    assert held >= 1
    assert main(arguments(cohorts, killed)) == 0
    assert f"Goes on: {held} of 8 volumes were measured by an earlier run." in capsys.readouterr().err
    assert main(arguments(cohorts, straight)) == 0
    for name in FILES:
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_a_damaged_measurement_is_made_anew(cohorts: Path, tmp_path: Path) -> None:
    assert main(arguments(cohorts, tmp_path)) == 0
    before = (tmp_path / "report.json").read_bytes()
    kept = sorted((tmp_path / "measured").glob("*.npz"))
    content = bytearray(kept[0].read_bytes())
    content[len(content) // 2] ^= 255
    kept[0].write_bytes(bytes(content))
    kept[1].write_bytes(b"")
    with pytest.warns(UserWarning, match="is damaged"):
        assert main(arguments(cohorts, tmp_path)) == 0
    assert (tmp_path / "report.json").read_bytes() == before
