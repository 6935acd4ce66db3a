"""Tests of `benchmarks/prdit.py`: gradients, verdict, settings, operations of a step."""

import argparse
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cardiodit import PRDiTTransformerModel


@pytest.fixture(scope="module")
def prdit(load_script: Callable[[str], ModuleType]) -> Any:
    return load_script("prdit")


def test_the_gradient_of_a_ramp_is_its_slope_and_noise_is_smoothed_away(prdit: Any) -> None:
    x, y, z = np.meshgrid(*(np.arange(n, dtype=float) for n in (9, 8, 7)), indexing="ij")
    ramp = (0.3 * x - 0.4 * y + 1.2 * z)[None]
    assert prdit.gradient_length(ramp) == pytest.approx(1.3)
    noisy = ramp + np.random.default_rng(0).normal(size=ramp.shape)
    assert prdit.gradient_length(noisy) > 1.5
    smooth = prdit.gradient_length(prdit.smoothed(noisy)[:, 2:-2, 2:-2, 2:-2])
    assert smooth == pytest.approx(1.3, rel=0.1)


@pytest.mark.parametrize(
    ("frechet", "gradient", "verdict"),
    [(1.0, 0.9, True), (1.0, 1.09, True), (1.0, 0.88, False), (1.0, 1.0, True), (2.5, 1.0, False), (1.0, 1.2, False)],
)
def test_the_verdict_requires_both(prdit: Any, frechet: float, gradient: float, verdict: bool) -> None:
    """A lower distance, and a gradient at least 10% closer to that of the phantoms."""
    local = {"frechet": 2.0, "gradient": 0.88, "gradient_of_real": 1.0}
    refined = {"frechet": frechet, "gradient": gradient, "gradient_of_real": 1.0}
    assert prdit.better(local, refined) is verdict


def test_a_folder_keeps_the_settings_it_was_started_with(prdit: Any, tmp_path: Path) -> None:
    arguments = argparse.Namespace(samples=64, train=[])
    for _ in range(2):
        assert prdit.check_settings(tmp_path / "settings.json", arguments) == {"samples": 64, "train": []}
    with pytest.raises(SystemExit, match=r"was started with .*64.*, not .*8.*Choose another --output"):
        prdit.check_settings(tmp_path / "settings.json", argparse.Namespace(samples=8, train=[]))


def test_operations_of_a_step_are_those_of_its_matrix_products(prdit: Any) -> None:
    """Two per weight and token, those of the time embedding once, and the products of attention."""
    hidden, width, predicted = 16, 8**3, 2 * 8**3
    model = PRDiTTransformerModel((16, 16, 16), 8, 1, 1, 2, hidden // 2)
    local = 6 * width**2 + width * predicted  # two gated MLPs, the head
    refiner = 5 * width * hidden + 4 * hidden**2 + 12 * hidden**2 + hidden * predicted
    time = 256 * hidden + hidden * width + width * 6 * width + hidden**2 * (1 + 6 + 2)
    for side, tokens in ((16, 8), (32, 64)):
        attention = 2 * tokens**2 * hidden
        cost = prdit.cost_of(model, side)
        assert cost.operations == 2 * (tokens * (local + refiner) + attention + time)
        assert 0 < cost.sampling < cost.training
