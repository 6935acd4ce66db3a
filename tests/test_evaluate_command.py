"""`cardiodit evaluate` as a user runs it: what it prints, what it returns, and that it goes on where it was stopped."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cardiodit._util.hashing import sha256_of
from cardiodit.cli import main
from cardiodit.commands.evaluate import INCOMPLETE
from cardiodit.evaluation.features.architectures import MEDICALNET_10, ResNet
from cardiodit.evaluation.metrics import critic
from cardiodit.imaging import Intensity, Preprocessing
from cardiodit.imaging.phantom import write_cohort

from .prepared_python import python

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
    assert "Resuming" not in printed.err


def test_a_corrupt_file_shows_in_the_exit_code(cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    damaged = cohorts / "synthetic" / "images" / "phantom-0001.nii.gz"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    try:
        assert main(arguments(cohorts, tmp_path)) == INCOMPLETE
    finally:
        damaged.write_bytes(whole)
    printed = capsys.readouterr()
    assert "1 file could not be evaluated, see above and the report" in printed.err
    assert "synthetic phantom-0001.nii.gz: phantom-0001.nii.gz is damaged or was cut off" in printed.err
    report = json.loads((tmp_path / "report.json").read_text())
    assert [problem["file"] for problem in report["problems"]] == [damaged.name]
    assert report["protocol"]["counts"] == {"real": 4, "synthetic": 3}


def test_a_wrong_option_has_another_exit_code_than_a_corrupt_file(
    cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments(cohorts, tmp_path), "--no_such_option"])
    assert ended.value.code == 2 and INCOMPLETE not in (0, 1, 2)
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert f"  {INCOMPLETE}  the reports were written, but some files could not be evaluated" in capsys.readouterr().out


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_shows_on_a_terminal_and_nowhere_else(
    cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*arguments(cohorts, tmp_path), "--max_volumes", "2"]
    assert main(given) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Energy: about ")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Terminal())
        assert main(given) == 0
        shown = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "Measuring: 100%" in shown and "4/4" in shown
    assert "Scoring: 100%" in shown and re.search(r"Scoring: 100%.* (\d+)/\1 ", shown)
    assert "spatiotemporal" in shown


def test_critics_are_trained_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixteen volumes are enough for a value, and too few for the floor's halves."""
    monkeypatch.setattr(critic, "CHECK_EVERY", 2)
    monkeypatch.setattr(critic, "PATIENCE", 1)
    for seed, name in enumerate(("real", "synthetic")):
        write_cohort(tmp_path / name, 16, seed=seed, size=(16, 16, 2, 4))
    (tmp_path / "steps.json").write_text(json.dumps(Preprocessing(intensity=Intensity("p0.5", "p99.5")).to_dict()))
    assert main([*arguments(tmp_path, tmp_path / "out"), "--critic", "--seed", "2"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {metric["name"]: metric for metric in report["metrics"] if metric["name"].startswith("critic_")}
    assert report["protocol"]["critic"] is True and list(found) == ["critic_spatial", "critic_spatiotemporal"]
    for metric in found.values():
        assert metric["value"] is not None and metric["floor"] is None
        assert "No floor: This metric needs at least 16 real volumes, and there are 8." in metric["notes"]


def test_the_report_holds_the_hash_of_the_weights_file(cohorts: Path, tmp_path: Path) -> None:
    weights = tmp_path / "resnet_10.safetensors"
    torch.manual_seed(0)
    state = {f"module.{name}": tensor for name, tensor in ResNet(MEDICALNET_10).state_dict().items()}
    save_file(state, weights)
    given = ["--features", "medicalnet10", "--weights", str(weights), "--features_size", "16", "16", "8"]
    assert main([*arguments(cohorts, tmp_path / "out"), *given, "--max_volumes", "2"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["protocol"]["critic"] is False
    for kind in ("spatial", "spatiotemporal"):
        told = report["protocol"]["features"][kind]
        assert told["name"] == "medicalnet10"
        assert told["weights"] == {"source": weights.name, "sha256": sha256_of(weights)}
    assert sha256_of(weights)[:12] in (tmp_path / "out" / "table.md").read_text()


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
    command = [python(), "-m", "cardiodit", *arguments(cohorts, killed)]
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
    assert f"Resuming: {held} of 8 volumes were measured by an earlier run." in capsys.readouterr().err
    assert main(arguments(cohorts, straight)) == 0
    for name in FILES:
        assert (killed / name).read_bytes() == (straight / name).read_bytes()


def test_a_damaged_measurement_is_made_anew(cohorts: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(cohorts, tmp_path)) == 0
    before = (tmp_path / "report.json").read_bytes()
    kept = sorted((tmp_path / "measured").glob("*.npz"))
    content = bytearray(kept[0].read_bytes())
    content[len(content) // 2] ^= 255
    kept[0].write_bytes(bytes(content))
    kept[1].write_bytes(b"")
    assert main(arguments(cohorts, tmp_path)) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(warned) == 2 and all("is damaged" in line for line in warned)
    assert (tmp_path / "report.json").read_bytes() == before
