"""The noise schedule and DDPM steps against golden values, and all solvers on a problem with a known solution."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from cardiodit import CardioDiTError, NoiseAndImageScheduler, change_solver, make_scheduler
from cardiodit.pipelines.scheduler_utils import SchedulerStep, set_timesteps
from cardiodit.schedulers import SOLVERS, cosine_betas
from cardiodit.schedulers.solvers import ddim_step

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@pytest.fixture(params=["cardiodit", "cardiodit_labels"])
def golden(request) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / request.param / "dit_expected.safetensors")


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def converted(solver: str) -> DDPMScheduler:
    return make_scheduler(solver, 300, cosine_betas(300))


def test_betas_equal_the_authors_to_the_bit(golden) -> None:
    assert torch.equal(torch.tensor(cosine_betas(300)), golden["betas"])
    assert difference(converted("ddpm").alphas_cumprod, golden["alphas_cumprod"]) < 1e-6


def test_the_schedule_of_diffusers_differs_only_in_its_last_beta(golden) -> None:
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


STD = 0.5


def gaussian_velocity(scheduler, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """The exact v-prediction where the data are N(0, STD²): E[ε | x] and E[x0 | x] are linear in x."""
    alpha = scheduler.alphas_cumprod[int(timestep)].double()
    variance = alpha * STD**2 + 1 - alpha
    clean = alpha.sqrt() * STD**2 / variance * sample
    noise = (1 - alpha).sqrt() / variance * sample
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def sample_gaussian(scheduler, steps: int, eta: float = 0.0, count: int = 20_000) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    set_timesteps(scheduler, steps)
    stepper = SchedulerStep(scheduler, eta, generator)
    sample = torch.randn(count, 1, 1, 1, 1, 1, generator=generator).double()
    for index, timestep in enumerate(scheduler.timesteps):
        sample = stepper(gaussian_velocity(scheduler, sample, timestep), index, timestep, sample)
    return sample


@pytest.mark.parametrize("exact", [False, True], ids=["squaredcos", "authors"])
@pytest.mark.parametrize(
    "solver, steps, tolerance",
    [
        ("dpm++", 20, 0.01),
        ("unipc", 20, 0.01),
        ("ddim", 20, 0.06),
        ("ddim", 300, 0.01),
        ("ddpm", 300, 0.02),
        ("dpm++", 23, 0.01),
        ("dpm++", 28, 0.01),
        ("unipc", 28, 0.01),
        ("ddim", 28, 0.05),
        ("ddim", 299, 0.01),
        ("ddim", 200, 0.01),
        ("ddpm", 247, 0.02),
        ("ddpm", 200, 0.02),
    ],
)
def test_solvers_reach_a_known_gaussian(solver: str, steps: int, tolerance: float, exact: bool) -> None:
    """Also where the number of steps does not divide the schedule, and at 28 and 247, where diffusers miscounts."""
    scheduler = make_scheduler(solver, betas=cosine_betas() if exact else None)
    found = sample_gaussian(scheduler, steps)
    assert abs(float(found.std()) - STD) < tolerance
    assert abs(float(found.mean())) < 0.02


def test_ddim_of_diffusers_is_wrong_if_the_steps_do_not_divide_the_schedule() -> None:
    """The reason for our own step: if this fails, diffusers has fixed it and `ddim_step` can be removed."""
    scheduler = make_scheduler("ddim")
    sample = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0)).double()
    scheduler.set_timesteps(200)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(gaussian_velocity(scheduler, sample, timestep), timestep, sample).prev_sample
    assert abs(float(sample.std()) - STD) > 0.1


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon", "sample"])
def test_our_ddim_step_equals_that_of_diffusers_if_the_steps_divide_the_schedule(
    eta: float, prediction_type: str
) -> None:
    scheduler = make_scheduler("ddim", prediction_type=prediction_type)
    scheduler.set_timesteps(20)
    sample, output = torch.randn(2, 8, 2, 4, 4, 2), torch.randn(2, 8, 2, 4, 4, 2)
    for timestep in (299, 149, 14):
        ours, theirs = (
            step(output, timestep, sample, eta=eta, generator=torch.Generator().manual_seed(1), **more)
            for step, more in [
                (lambda o, t, s, **kw: ddim_step(scheduler, o, t, t - 15, s, **kw), {}),
                (lambda o, t, s, **kw: scheduler.step(o, t, s, **kw).prev_sample, {}),
            ]
        )
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("total", [300, 1000])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_number_of_steps_starts_at_noise_and_visits_real_timesteps(solver: str, total: int) -> None:
    scheduler = make_scheduler(solver, total)
    for steps in range(1, total + 1):
        set_timesteps(scheduler, steps)
        timesteps = scheduler.timesteps
        assert len(timesteps) == steps == scheduler.num_inference_steps
        assert timesteps[0] == total - 1 and timesteps[-1] >= 0 and (timesteps.diff() < 0).all()
        if hasattr(scheduler, "sigmas"):
            assert len(scheduler.sigmas) == steps + 1 and scheduler.sigmas[-1] == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_settings_survive_saving_and_changing(solver: str, tmp_path) -> None:
    scheduler = make_scheduler("ddpm", 300, cosine_betas(300))
    changed = change_solver(scheduler, solver)
    changed.save_pretrained(tmp_path)
    loaded = type(changed).from_pretrained(tmp_path)
    for one in (changed, loaded):
        assert one.config.timestep_spacing == "trailing"
        assert one.config.prediction_type == "v_prediction"
        assert not one.config.get("clip_sample", False)
        assert torch.equal(one.betas, scheduler.betas)
        one.set_timesteps(25)
        assert one.timesteps[0] == 299


def test_unknown_solvers_and_schedules() -> None:
    with pytest.raises(CardioDiTError, match="no solver 'heun'; choose one of ddpm, ddim"):
        make_scheduler("heun")
    with pytest.raises(CardioDiTError, match="no solver 'hot' for a DDIMScheduler; choose one of ddpm, ddim"):
        change_solver(DDIMScheduler(), "hot")
    with pytest.raises(CardioDiTError, match="no solver 'ddim' for a NoiseAndImageScheduler; choose one of hot, euler"):
        change_solver(NoiseAndImageScheduler(), "ddim")
    with pytest.raises(CardioDiTError, match="'linear'"):
        change_solver(DDIMScheduler(), "dpm++")
    with pytest.raises(CardioDiTError, match="trained by flow matching; choose one of euler, heun, rk4, pc, pc_heun"):
        change_solver(FlowMatchEulerDiscreteScheduler(), "dpm++")


def test_other_diffusers_solvers_work_too() -> None:
    scheduler = EulerDiscreteScheduler.from_config(
        make_scheduler("ddim").config, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    set_timesteps(scheduler, 28)
    assert len(scheduler.timesteps) == 28 and len(scheduler.sigmas) == 29
