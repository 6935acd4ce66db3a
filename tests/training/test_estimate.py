"""`--estimate` takes a few steps, forecasts the whole run and leaves nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.training import train_dit, train_vqgan

from .conftest import VQGAN, Cohorts, arguments_of, merged


def forecasts(printed: str) -> list[float]:
    """Return the kWh of each forecast."""
    return [float(text) for text in re.findall(r"about ([\d.e-]+) kWh", printed)]


@pytest.mark.parametrize("stage", ["dit", "vqgan"])
def test_a_forecast_of_training(
    stage: str, dit_arguments: Callable, cohorts: Cohorts, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = {"training": {"max_train_steps": 1000}}
    if stage == "dit":
        script, arguments = train_dit, dit_arguments("run", **steps)
    else:
        script, arguments = train_vqgan, arguments_of(tmp_path, "run", merged(VQGAN, steps), cohorts.images)
    before = sorted(tmp_path.rglob("*"))
    script.main([*arguments, "--estimate", "--estimate_device", "cpu", "--country", "SWE"])
    printed = capsys.readouterr().out
    assert "1000 steps" in printed and "Nothing was saved" in printed and "41 g/kWh (Sweden" in printed
    here, by_operations = forecasts(printed)
    assert here > 0 and by_operations > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_longer_run_costs_more(dit_arguments: Callable, capsys: pytest.CaptureFixture) -> None:
    found = []
    for steps in (100, 1000):
        train_dit.main([*dit_arguments("run", training={"max_train_steps": steps}), "--estimate"])
        tflop = re.search(r"steps, ([\d.e-]+) TFLOP", capsys.readouterr().out)
        assert tflop is not None
        found.append(float(tflop[1]))
    assert found[1] == pytest.approx(10 * found[0], rel=0.06)


def test_an_unknown_device_is_an_error(dit_arguments: Callable) -> None:
    with pytest.raises(CardioDiTError, match="no device 'tpu'"):
        train_dit.main([*dit_arguments("run"), "--estimate", "--estimate_device", "tpu"])
