"""PRDiT's scheduler against recorded values, on problems with known solutions, and its draws and memory."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import change_solver
from cardiodit._util.memory import LiveMemory
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler

from ..prdit_cases import CASES, case, expected

SOLVERS = ("hot", "euler")


def angle(timestep: Any) -> float:
    return math.pi / 2 * int(timestep) / 1000


def knowing(answer: torch.Tensor, sample: torch.Tensor, timestep: Any) -> torch.Tensor:
    """The prediction of a model that knows what comes out: then the noise is what is left."""
    beta = angle(timestep)
    return torch.cat([(sample - math.cos(beta) * answer) / math.sin(beta), answer], dim=1)


def denoise(
    scheduler: NoiseAndImageScheduler, model: Any, sample: torch.Tensor, steps: int, generator: Any = None
) -> list[torch.Tensor]:
    """The samples after each step."""
    scheduler.set_timesteps(steps)
    states = []
    for timestep in scheduler.timesteps:
        sample = scheduler.step(model(sample, timestep), timestep, sample, generator=generator).prev_sample
        states.append(sample)
    return states


# As published


@pytest.mark.parametrize("name", CASES)
def test_the_recorded_trajectory(name: str) -> None:
    golden, steps = expected(name), case(name)["num_steps"]
    answer, start = golden["sampler_mu"], golden["sampler_z"]
    states = denoise(NoiseAndImageScheduler(solver="euler"), lambda x, t: knowing(answer, x, t), start, steps)
    assert len(states) == int(golden["euler_calls"]) - 1  # the last call of the authors' model changes nothing
    for ours, reference in [(states[0], golden["euler_first"]), (states[-1], golden["euler_final"])]:
        assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_the_recorded_noise() -> None:
    """The recorded ε is half of what is drawn."""
    golden, scheduler = expected("prdit"), NoiseAndImageScheduler()
    clean, drawn = golden["sampler_mu"], golden["q_noise"] / 0.5
    for timesteps in (123, torch.tensor(123), torch.tensor([123])):
        assert torch.allclose(scheduler.add_noise(clean, drawn, timesteps), golden["q_sample_t123"], atol=1e-6)
    targets = scheduler.targets(clean, drawn)
    assert torch.allclose(targets, torch.cat([golden["q_noise"], clean], dim=1))


def test_noise_and_image_at_both_ends_and_for_each_sample() -> None:
    scheduler = NoiseAndImageScheduler(num_train_timesteps=1000)
    clean, drawn = torch.randn(3, 2, 4, 4, 4), torch.randn(3, 2, 4, 4, 4)
    noisy = scheduler.add_noise(clean, drawn, torch.tensor([0, 1000, 500]))
    assert torch.equal(noisy[0], clean[0])
    assert torch.allclose(noisy[1], 0.5 * drawn[1], atol=1e-6)
    assert torch.allclose(noisy[2], (clean[2] + 0.5 * drawn[2]) / math.sqrt(2), atol=1e-6)
    assert scheduler.add_noise(clean.bfloat16(), drawn.bfloat16(), torch.tensor([1, 2, 3])).dtype == torch.bfloat16


@pytest.mark.parametrize("steps, calls", [(1000, 999), (300, 333), (50, 49), (7, 7), (2, 1), (999, 999), (3, 3)])
def test_published_timesteps(steps: int, calls: int) -> None:
    """T // N apart, so that 300 are 334 and the last of these, 0, is left out."""
    scheduler = NoiseAndImageScheduler()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == list(range(0, 1000, 1000 // steps))[:0:-1]
    assert len(scheduler.timesteps) == calls


# Known answers


@pytest.mark.parametrize("steps", [50, 37, 300, 999])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_model_that_knows_the_answer_reaches_it(solver: str, steps: int) -> None:
    """Also where the number of steps does not divide T: the last step always ends at 0."""
    generator = torch.Generator().manual_seed(0)
    answer = torch.randn(2, 1, 8, 8, 8, generator=generator).clamp(-1, 1)
    start = 0.5 * torch.randn(answer.shape, generator=generator)
    scheduler = NoiseAndImageScheduler(solver=solver)
    end = denoise(scheduler, lambda x, t: knowing(answer, x, t), start, steps, generator)[-1]
    assert scheduler.timesteps[-1] == scheduler.step_length
    assert (end - answer).abs().max() < 1e-3 * answer.abs().max() * max(1.0, 50 / steps) ** 2


@pytest.mark.parametrize("deviation", [0.5, 0.25, 1.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_known_gaussian_is_reached(solver: str, deviation: float) -> None:
    """Of independent voxels x0 ~ N(0, σ²), E[x0 | x] and E[ε | x] are linear in x."""
    generator = torch.Generator().manual_seed(0)

    def exact(sample: torch.Tensor, timestep: Any) -> torch.Tensor:
        beta = angle(timestep)
        signal, noise = math.cos(beta) * deviation**2, math.sin(beta) * 0.25
        variance = math.cos(beta) * signal + math.sin(beta) * noise
        return torch.cat([noise / variance * sample, signal / variance * sample], dim=1)

    start = 0.5 * torch.randn(40_000, 1, 1, 1, 1, generator=generator)
    states = denoise(NoiseAndImageScheduler(solver=solver), exact, start, 100, generator)
    assert float(states[-1].std()) == pytest.approx(deviation, rel=0.03)
    assert abs(float(states[-1].mean())) < 0.03 * deviation
    if deviation == 0.5:  # then every x_t has the same deviation, at every step
        assert all(float(state.std()) == pytest.approx(0.5, rel=0.01) for state in states)


def test_only_hot_sampling_adds_noise() -> None:
    """Hot sampling steps twice as far and adds noise again, at every step but the last two."""
    answer, start = torch.zeros(1, 1, 8, 8, 8), 0.5 * torch.randn(1, 1, 8, 8, 8)
    scheduler = NoiseAndImageScheduler()
    scheduler.set_timesteps(50)
    for timestep in scheduler.timesteps:
        one, other = (
            scheduler.step(knowing(answer, start, timestep), timestep, start, torch.Generator().manual_seed(seed))
            for seed in (1, 2)
        )
        assert torch.equal(one.prev_sample, other.prev_sample) is (int(timestep) <= 40)
        assert torch.equal(one.pred_original_sample, answer)


# Draws, memory, types


def test_draws_do_not_depend_on_the_batch() -> None:
    start = 0.5 * torch.randn(3, 1, 8, 8, 8)
    model = lambda x, t: knowing(torch.zeros_like(x), x, t)  # noqa: E731
    together = denoise(NoiseAndImageScheduler(), model, start, 20, [generator_for(7, i) for i in range(3)])[-1]
    apart = [denoise(NoiseAndImageScheduler(), model, start[i : i + 1], 20, generator_for(7, i))[-1] for i in range(3)]
    noisy = denoise(NoiseAndImageScheduler(), model, start, 20, [generator_for(8, i) for i in range(3)])[-3]
    assert torch.equal(together, torch.cat(apart))
    assert not torch.equal(noisy, denoise(NoiseAndImageScheduler(), model, start, 20, None)[-3])


@pytest.mark.parametrize("solver", SOLVERS)
def test_memory_does_not_grow_with_the_steps(solver: str) -> None:
    scheduler, answer = NoiseAndImageScheduler(solver=solver), torch.zeros(1, 1, 16, 16, 16)

    def peak(steps: int) -> int:
        sample = torch.ones(1, 1, 16, 16, 16)
        scheduler.set_timesteps(steps)
        with LiveMemory() as memory:
            for timestep in scheduler.timesteps.tolist():
                sample = scheduler.step(knowing(answer, sample, timestep), timestep, sample).prev_sample
        return memory.peak

    assert peak(200) <= peak(10) < 16 * answer.nbytes


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_half_precision_model_keeps_the_sample_in_float32(solver: str) -> None:
    """Steps of a thousandth would be lost in bfloat16."""
    answer, start = torch.full((1, 1, 4, 4, 4), 0.7), torch.zeros(1, 1, 4, 4, 4)
    scheduler = NoiseAndImageScheduler(solver=solver)
    end = denoise(scheduler, lambda x, t: knowing(answer, x, t).bfloat16(), start, 1000, torch.Generator())[-1]
    assert end.dtype == torch.float32 and (end - answer).abs().max() < 0.01


# Settings


def test_settings_survive_saving_and_changing(tmp_path: Path) -> None:
    scheduler = NoiseAndImageScheduler(num_train_timesteps=500, noise_scale=0.4, solver="euler")
    scheduler.save_pretrained(tmp_path)
    for again in (NoiseAndImageScheduler.from_pretrained(tmp_path), change_solver(scheduler, "hot")):
        assert again.config.num_train_timesteps == len(again) == 500
        assert again.init_noise_sigma == again.config.noise_scale == 0.4
        again.set_timesteps(5)
        assert again.timesteps.tolist() == [400, 300, 200, 100]
    assert again.config.solver == "hot"
    assert NoiseAndImageScheduler.from_pretrained(tmp_path).config.solver == "euler"


def test_tuple_output_and_model_input() -> None:
    scheduler, sample = NoiseAndImageScheduler(solver="euler"), torch.ones(1, 1, 2, 2, 2)
    output = knowing(torch.zeros_like(sample), sample, 500)
    (previous,) = scheduler.step(output, 500, sample, return_dict=False)
    assert torch.equal(previous, scheduler.step(output, torch.tensor(500), sample).prev_sample)
    assert scheduler.scale_model_input(sample, 500) is sample


def test_invalid_settings_and_inputs_are_refused() -> None:
    with pytest.raises(CardioDiTError, match="no solver 'ddim' for a NoiseAndImageScheduler; choose one of hot, euler"):
        NoiseAndImageScheduler(solver="ddim")
    with pytest.raises(CardioDiTError, match="prediction_type='epsilon': this scheduler needs 'noise_and_image'"):
        NoiseAndImageScheduler(prediction_type="epsilon")
    scheduler = NoiseAndImageScheduler()
    for steps in (0, 1, 1001, -3):
        with pytest.raises(CardioDiTError, match=f"num_inference_steps={steps} must be from 2 to 1000"):
            scheduler.set_timesteps(steps)
    sample = torch.zeros(1, 2, 2, 2, 2)
    for channels in (1, 2, 3):
        with pytest.raises(CardioDiTError, match=f"predicted {channels} channels for samples of 2; expected noise"):
            scheduler.step(torch.zeros(1, channels, 2, 2, 2), 500, sample)
