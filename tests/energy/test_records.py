"""Every command leaves a record of its energy, in the folder that it writes; one that does nothing leaves none."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardiodit.cli import main
from cardiodit.energy import forecast
from cardiodit.energy.records import mean_of_samples, read_records


def sample(model: Path, folder: Path, *more: str) -> int:
    given = ["sample", str(model), "--output_dir", str(folder), "--num_inference_steps", "2", "--device", "cpu"]
    return main([*given, *more])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_pipe: Callable) -> Path:
    folder = tmp_path_factory.mktemp("energy") / "hearts"
    make_pipe().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sampled(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sampled")
    assert sample(model, folder, "--num_samples", "2", "--country", "DEU", "--pue", "1.2") == 0
    return folder


def test_a_command_is_measured_whole(sampled: Path) -> None:
    (record,) = read_records(sampled)
    energy = record["energy"]
    assert (record["command"], record["status"]) == ("sample", "finished") and record["seconds"] > 0
    assert energy["kwh_of"]["cpu"] > 0 and energy["kwh_of"]["memory"] > 0 and not energy["is_at_least"]
    assert energy["electricity"]["country"] == "DEU" and energy["electricity"]["pue"] == 1.2
    low, high = energy["co2_grams_range"]
    assert low < energy["co2_grams"] < high
    assert energy["co2_grams"] == pytest.approx(energy["kwh"] * 1.2 * 380.95, rel=0.1)


def test_the_forecast_is_compared_with_what_was_measured(sampled: Path) -> None:
    (record,) = read_records(sampled)
    forecast, lines = record["forecast"], (sampled / "samples.jsonl").read_text().splitlines()
    measured = sum(json.loads(line)["energy_kwh"] for line in lines)
    assert forecast["measured_kwh"] == pytest.approx(measured, rel=0.06) and forecast["kwh"] > 0
    assert forecast["ratio"] == pytest.approx(forecast["kwh"] / forecast["measured_kwh"], rel=0.1)


def test_a_model_that_cannot_be_forecast_samples_all_the_same(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(forecast, "FakeTensorMode", None)  # as with a version of torch that lacks it
    assert sample(model, tmp_path / "out") == 0
    (record,) = read_records(tmp_path / "out")
    assert "forecast" not in record and "The energy is not forecast: A forecast" in capsys.readouterr().err


def test_each_sample_knows_its_emissions(sampled: Path) -> None:
    records = [json.loads(line) for line in (sampled / "samples.jsonl").read_text().splitlines()]
    for record in records:
        assert record["energy"]["kwh"] == record["energy_kwh"] > 0
        assert record["energy"]["electricity"]["country"] == "DEU"
    mean = mean_of_samples(records)
    assert mean is not None and mean["volumes"] == 2 and mean["electricity"] == records[0]["energy"]["electricity"]
    assert mean_of_samples([{"energy_kwh": 1.0}, *records]) is None  # a sample of an earlier version


def test_an_estimate_and_a_failure_leave_nothing(model: Path, tmp_path: Path) -> None:
    assert sample(model, tmp_path / "estimated", "--estimate") == 0
    assert not (tmp_path / "estimated").exists()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert sample(model, tmp_path / "thesis") == 1
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    assert sample(model, tmp_path / "nowhere", "--country", "Atlantis") == 1
    assert not (tmp_path / "nowhere").exists()


def test_a_command_that_fails_after_work_records_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cardiodit.pipelines.output import VolumePipelineOutput

    save, calls = VolumePipelineOutput.save, []

    def fail(self: Any, *given: Any) -> Any:
        calls.append(given)
        if len(calls) > 1:
            raise OSError("the disk has gone")
        return save(self, *given)

    monkeypatch.setattr(VolumePipelineOutput, "save", fail)
    assert sample(model, tmp_path / "out", "--num_samples", "2") == 1
    (record,) = read_records(tmp_path / "out")
    assert record["status"] == "failed" and record["energy"]["kwh"] > 0


def test_a_record_that_cannot_be_written_is_no_failure(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert sample(model, tmp_path / "out") == 0
    (tmp_path / "out" / "energy.jsonl").unlink()
    (tmp_path / "out" / "energy.jsonl").mkdir()  # as in a folder of somebody else's, which may only be read
    assert sample(model, tmp_path / "out", "--num_samples", "2") == 0
    assert "The energy of this command was not recorded" in capsys.readouterr().err


def test_totals_over_folders(sampled: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "runs" / "dit"
    run.mkdir(parents=True)
    energy = read_records(sampled)[0]["energy"]
    sessions = [{"energy": {**energy, "kwh": 2.0, "co2_grams": 900.0, "co2_grams_range": [500.0, 2000.0]}}, {}]
    (run / "run.json").write_text(json.dumps({"sessions": sessions}))
    assert main(["energy", "total", str(tmp_path), str(sampled)]) == 0
    printed = capsys.readouterr().out
    assert "dit: training: 2 kWh, 900 g CO2-equivalent" in printed and f"{sampled.name}: sample" in printed
    assert "Together: at least 2 kWh, 900 g CO2-equivalent (500 g to 2 kg), 8.4 km by car." in printed
    assert "Training sessions without recorded energy: 1." in printed
    assert main(["energy", "total", str(tmp_path / "nothing")]) == 1
    assert "No energy is recorded" in capsys.readouterr().err
