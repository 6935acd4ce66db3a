"""Solvers of flow matching: the published trajectories, both directions of time, and known flows."""

from typing import Any

import pytest
import torch

from cardiodit import CardioDiTError, FlowScheduler, PRDiTPipeline, change_solver
from cardiodit.pipelines.scheduler_utils import SchedulerStep, check_scheduler, set_timesteps
from cardiodit.schedulers.flow_scheduler import FLOW_SOLVERS
from cardiodit.training.objectives import FlowMatching, VoxelFlowMatching

from ..convert.test_prdit import FLOW_CASES, flow_case, flow_expected, flow_pipeline

SOLVERS = ("euler", *FLOW_SOLVERS)
RECORDED = [(name, solver) for name in FLOW_CASES for solver in SOLVERS if solver in flow_case(name)["solvers"]]


def assert_matches(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


@pytest.fixture(scope="module", params=FLOW_CASES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, PRDiTPipeline]:
    return request.param, flow_pipeline(request.param, tmp_path_factory.mktemp("flow"))


@pytest.mark.parametrize(("recorded", "solver"), RECORDED, indirect=["recorded"])
def test_published_trajectories(
    solver: str, recorded: tuple[str, PRDiTPipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, pipe = recorded
    settings, golden = flow_case(name)["solvers"][solver], flow_expected(name)
    scheduler = change_solver(pipe.scheduler, solver)
    if "err_target" in settings:
        assert scheduler.config.error_target == settings["err_target"]
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    draws = iter(golden.get(f"{solver}_draws", ()))
    monkeypatch.setattr("cardiodit.schedulers.flow_scheduler.randn_tensor", lambda *_, **__: next(draws))
    states: list[torch.Tensor] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states.append(tensors["latents"])
        return {}

    order = getattr(scheduler, "order", 1)
    given = {"latents": golden["start"], "num_inference_steps": 4, "eta": settings.get("eta", 0.0)}
    pipe(**given, output_type="latent", callback_on_step_end=note)
    assert len(states) == int(golden[f"{solver}_calls"]) == 4 * order
    assert_matches(torch.cat(states[order - 1 :: order]), golden[f"{solver}_states"])


@pytest.mark.parametrize("ends_in_data", [False, True])
@pytest.mark.parametrize(
    ("solver", "tolerance"), [("euler", 0.2), ("heun", 0.02), ("rk4", 1e-3), ("pc", 0.2), ("pc_heun", 0.02)]
)
def test_both_directions_reach_a_known_gaussian(solver: str, tolerance: float, ends_in_data: bool) -> None:
    """Data N(0, 0.5²): the exact velocity is linear in x, and so is the flow from noise to data."""
    kind = VoxelFlowMatching if ends_in_data else FlowMatching
    scheduler = kind().sampling_scheduler()
    scheduler = scheduler if solver == "euler" else change_solver(scheduler, solver)
    set_timesteps(scheduler, 8)
    step = SchedulerStep(scheduler, 0.0, None)
    start = torch.randn(5000, 1, generator=torch.Generator().manual_seed(0)).double()
    sample = start
    for index, timestep in enumerate(scheduler.timesteps):
        noise = float(timestep) / 1000
        noise = 1 - noise if ends_in_data else noise
        variance = (1 - noise) ** 2 * 0.25 + noise**2
        towards_data = ((1 - noise) * 0.25 - noise) / variance * sample
        sample = step(towards_data if ends_in_data else -towards_data, index, timestep, sample)
    assert (sample - 0.5 * start).abs().max() < tolerance * start.abs().max()


def test_renewed_noise_is_seeded_and_keeps_the_distribution() -> None:
    scheduler = FlowScheduler(1000, "pc", "flow_to_data")
    ends = []
    for _ in range(2):
        scheduler.set_timesteps(200)
        step = SchedulerStep(scheduler, 0.5, [torch.Generator().manual_seed(i) for i in range(200)])
        sample = torch.randn(200, 50, generator=torch.Generator().manual_seed(9)).double()
        for index, timestep in enumerate(scheduler.timesteps):
            t = float(timestep) / 1000
            variance = t**2 * 0.25 + (1 - t) ** 2
            sample = step((t * 0.25 - (1 - t)) / variance * sample, index, timestep, sample)
        ends.append(sample)
    assert torch.equal(*ends)
    assert abs(float(ends[0].std()) - 0.5) < 0.03


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"solver": "euler"}, "no solver 'euler' for a FlowScheduler; choose one of heun"),
        ({"prediction_type": "v_prediction"}, "this scheduler needs flow or flow_to_data"),
        ({"error_target": 0.0}, "error_target=0.0 must be a positive number"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        FlowScheduler(**settings)


def test_only_predictor_correctors_renew_noise_and_directions_are_told_apart() -> None:
    scheduler = FlowScheduler(1000, "heun")
    scheduler.set_timesteps(2)
    with pytest.raises(CardioDiTError, match="the solver heun renews no noise; pc and pc_heun do"):
        scheduler.step(torch.zeros(1, 1), scheduler.timesteps[0], torch.zeros(1, 1), eta=0.5)
    with pytest.raises(CardioDiTError, match="for models that predict flow, but this one was trained for flow_to_data"):
        check_scheduler(scheduler, "flow_to_data")
