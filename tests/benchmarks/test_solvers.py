"""Tests of `benchmarks/solvers.py`."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from cardiodit import make_scheduler


@pytest.mark.parametrize(("solver", "steps", "distance"), [("dpm++", 25, 0.6), ("unipc", 25, 0.6), ("ddim", 50, 3.0)])
def test_distances_to_the_exact_solution_are_those_of_the_documentation(
    load_script: Callable[[str], ModuleType], solver: str, steps: int, distance: float
) -> None:
    """For the Gaussian, in percent: docs/solvers.md."""
    script = load_script("solvers")
    problem = script.problems()[0]
    scheduler = make_scheduler(solver)
    start = torch.randn(4, *script.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = script.exact(problem, start, make_scheduler("ddim").alphas_cumprod.double())
    measured, _ = script.errors(problem, script.solve(problem, scheduler, start, steps), expected)
    assert measured == pytest.approx(distance, abs=0.1)
