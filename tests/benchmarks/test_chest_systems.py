"""Tests of `benchmarks/chest_systems.py` except training: lungs, processor time, and the tables."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="module")
def systems(load_script: Callable[[str], ModuleType]) -> Any:
    return load_script("chest_systems")


def test_lungs_are_dark_and_enclosed_and_not_in_the_outermost_slices(systems: Any) -> None:
    volume = np.full((12, 12, 6), -1.0)
    volume[2:10, 2:10] = 0.1
    volume[4:8, 4:7] = -0.8
    volume[2:4, 8] = -0.8  # open to one side: not lung
    labels = systems.lungs(volume, None)
    expected = np.zeros((12, 12, 6), int)
    expected[4:8, 4:7, 1:-1] = systems.LUNGS
    assert np.array_equal(labels, expected) and systems.lungs.structures == {"lungs": systems.LUNGS}


def test_latent_systems_and_prdit_have_the_same_time(systems: Any) -> None:
    totals = {name: sum(stage.seconds for stage in system.stages) for name, system in systems.SYSTEMS.items()}
    assert totals["medlord"] == totals["voldit"] == totals["prdit"] - systems.VQGAN.seconds
    steering = [system.steering.seconds for system in systems.SYSTEMS.values() if system.steering]
    assert len(steering) == 2 and len(set(steering)) == 1


def test_the_time_of_an_interrupted_stage_counts(systems: Any, tmp_path: Path) -> None:
    proof = systems.Proof(tmp_path, 25)
    first = proof._run("stage", "models", "--json")
    with pytest.raises(systems.subprocess.CalledProcessError):
        systems.Proof(tmp_path, 25)._run("stage", "train", "no-stage")
    kept = json.loads((tmp_path / "progress.json").read_text())["seconds"]["stage"]
    assert 0 < first < kept


def test_the_tables_show_means_and_ranges_over_the_seeds(systems: Any) -> None:
    def report(value: float) -> dict[str, Any]:
        return {"metrics": [{"name": n, "value": value, "floor": {"value": 0.5}} for n in systems.METRICS]}

    reports = {"medlord": [report(1.0), report(3.0)], "medlord, steered": [report(2.0), report(2.0)]}
    lines = systems.table(reports).splitlines()
    assert lines[0] == "| metric | MedLoRD | MedLoRD, steered | real against real |"
    assert lines[2].endswith("| 2 (1 to 3) | 2 (2 to 2) | 0.5 |") and len(lines) == 2 + len(systems.METRICS)
    assert systems.map_of(reports["medlord"])["frechet_spatial"] == [1.0, 3.0]
    stages = [s for system in systems.SYSTEMS.values() for s in (*system.stages, system.steering) if s]
    seconds = {f"{stage.config}-0": 100.0 for stage in stages} | {"vqgan": 90.0, "encode": 20.0}
    seconds |= {f"sample-{name}-0": 64.0 for name in systems.SYSTEMS}
    told = systems.times({"seconds": seconds, "steps": {s.config: 7 for s in (systems.VQGAN, *stages)}}, seeds=1)
    assert "| VQ-GAN, with encoding | 7 | 110 |" in told and "| PRDiT, one sample | | 1 (1 to 1) |" in told
