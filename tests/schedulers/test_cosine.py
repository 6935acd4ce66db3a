from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from cardiodit.schedulers import cosine_betas, make_scheduler

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture(params=["cardiodit", "cardiodit_labels"])
def golden(request) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / request.param / "dit_expected.safetensors")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def converted(solver: str) -> DDPMScheduler:
    return make_scheduler(solver, 300, cosine_betas(300))


def test_betas_are_the_authors_to_the_bit(golden) -> None:
    assert torch.equal(torch.tensor(cosine_betas(300)), golden["betas"])
    assert difference(converted("ddpm").alphas_cumprod, golden["alphas_cumprod"]) < 1e-6


def test_diffusers_own_schedule_differs_in_the_last_beta_alone(golden) -> None:
    betas = make_scheduler("ddpm").betas
    assert difference(betas[:-1], golden["betas"][:-1]) < 1e-6
    assert betas[-1] == pytest.approx(0.999) and golden["betas"][-1] == pytest.approx(0.9999)


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_noising(golden, solver) -> None:
    noisy = converted(solver).add_noise(golden["hidden_states"], golden["noise"], golden["timestep"])
    assert difference(noisy, golden["noisy"]) < 1e-5


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_velocity(golden, solver) -> None:
    found = converted(solver).get_velocity(golden["hidden_states"], golden["noise"], golden["timestep"])
    assert difference(found, golden["velocity"]) < 1e-5


@pytest.mark.parametrize("timestep, tolerance", [(299, 1e-5), (150, 1e-5), (1, 1e-3), (0, 1e-3)])
def test_ddpm_steps(golden, monkeypatch, timestep, tolerance) -> None:
    """The recorded noise takes the place of the drawn one."""
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: golden[f"ddpm_step{timestep}_noise"]
    )
    scheduler = converted("ddpm")
    scheduler.set_timesteps(300)
    step = scheduler.step(golden["velocity"], timestep, golden["noisy"])
    assert difference(step.pred_original_sample, golden[f"ddpm_step{timestep}_x0"]) < tolerance
    assert difference(step.prev_sample, golden[f"ddpm_step{timestep}_prev"]) < tolerance
