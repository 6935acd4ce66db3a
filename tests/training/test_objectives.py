"""The published loss against closed forms and golden values; draws that depend on nothing but the visit."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.pipelines.scheduler_utils import SchedulerStep, set_timesteps
from cardiodit.training.harness.schedule import DistributedSampler
from cardiodit.training.noisy_samples import LabelledSamples, Noising, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import Denoising, FlowMatching, gaussian_nll

SHAPE = (4, 2, 4, 4, 2)
PATIENTS = LabelledSamples([torch.full(SHAPE, float(i)) for i in range(5)], list("abcde"), [0, 1, 2, 0, 1])
NOISING = Noising(Denoising(300), seed=0, null_label=3, label_dropout=0.3)


class Oracle(torch.nn.Module):
    """Predicts what it is told."""

    def __init__(self, answer: torch.Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, hidden_states, timestep, class_labels=None, return_dict=True):
        return (self.answer,)


def batch_of(noise: torch.Tensor, timestep: int) -> dict:
    return {"noise": noise, "timestep": torch.full((len(noise),), timestep)}


def alpha_bar(t: int, steps: int = 300) -> float:
    """Nichol and Dhariwal's equation 17 after t + 1 of the steps."""
    share = (t + 1) / steps
    return (math.cos((share + 0.008) / 1.008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2


@pytest.mark.parametrize("timestep", [0, 40, 150, 290])
def test_velocity_in_closed_form(timestep: int) -> None:
    clean, noise = torch.randn(2, *SHAPE), torch.randn(2, *SHAPE)
    denoising = Denoising()
    abar = alpha_bar(timestep)
    expected = math.sqrt(abar) * noise - math.sqrt(1 - abar) * clean
    timesteps = torch.full((2,), timestep)
    torch.testing.assert_close(denoising.target(clean, noise, timesteps), expected, rtol=1e-4, atol=1e-4)
    losses = denoising.losses(Oracle(expected), clean, batch_of(noise, timestep))
    assert losses.max() < 1e-7


@pytest.mark.parametrize(("loss", "expected"), [("mse", 4.0), ("l1", 2.0), ("smooth_l1", 1.5)])
def test_errors_of_a_constant_offset(loss: str, expected: float) -> None:
    """Off by 2: 4, 2, and 2 - 1/2 for Huber's loss with its corner at 1."""
    clean, noise = torch.randn(3, *SHAPE), torch.randn(3, *SHAPE)
    denoising = Denoising(loss=loss, prediction_type="epsilon")
    losses = denoising.losses(Oracle(noise + 2), clean, batch_of(noise, 100))
    torch.testing.assert_close(losses, torch.full((3,), expected), rtol=1e-5, atol=1e-5)


def test_the_clean_sample_can_be_predicted() -> None:
    clean, noise = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    denoising = Denoising(prediction_type="sample")
    assert denoising.losses(Oracle(clean), clean, batch_of(noise, 200)).item() == 0


def test_a_learned_variance_is_the_errors_own() -> None:
    """exp(-s)·e² + s is least at s = log e², where it is 1 + log e²; s is kept within -20 and 5."""
    target = torch.zeros(1, 1, 8)
    error = torch.full((1, 1, 8), 0.5)
    best = math.log(0.25)
    values = {
        s: gaussian_nll(error, torch.full_like(error, s), target).mean().item() for s in (best, best - 1, best + 1)
    }
    assert min(values, key=values.__getitem__) == best
    assert values[best] == pytest.approx(1 + best)
    assert gaussian_nll(target, torch.full_like(target, -100.0), target).mean().item() == -20
    clean, noise = torch.randn(1, *SHAPE), torch.randn(1, *SHAPE)
    denoising = Denoising(prediction_type="epsilon")
    both = torch.cat([noise, torch.zeros_like(noise)], dim=1)
    assert denoising.losses(Oracle(both), clean, batch_of(noise, 10)).item() == 0


def test_a_visit_is_the_same_in_every_process_and_batch() -> None:
    def seen(batch: int, processes: int, workers: int = 0) -> dict[int, dict]:
        found = {}
        for process in range(processes):
            share = DistributedSampler(2, 4, batch, 1, process, processes)
            loader = DataLoader(NoisyDataset(PATIENTS.shuffled(0), NOISING), batch_sampler=share, num_workers=workers)
            for visits, items in zip(share, loader):
                for place, visit in enumerate(visits):
                    found[visit] = {key: items[key][place] for key in items}
        return found

    one = seen(4, 1)
    assert sorted(one) == list(range(8, 16))
    for other in (seen(2, 2), seen(1, 4), seen(4, 1, workers=2)):
        for visit, item in one.items():
            assert item["subject"] == other[visit]["subject"]
            assert all(torch.equal(item[key], other[visit][key]) for key in ("sample", "noise", "timestep", "label"))


def test_timesteps_noise_and_dropped_labels_are_distributed_as_said() -> None:
    visits = NoisyDataset(PATIENTS.shuffled(1), Noising(Denoising(300), 1, (64,), null_label=3, label_dropout=0.3))
    items = [visits[i] for i in range(3000)]
    timesteps = torch.stack([item["timestep"] for item in items]).float()
    assert (timesteps.min(), timesteps.max()) == (0, 299)
    assert timesteps.mean().item() == pytest.approx(149.5, abs=4 * 86.6 / math.sqrt(3000))
    dropped = sum(int(item["label"]) == 3 for item in items) / 3000
    assert dropped == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 3000))
    noise = torch.stack([item["noise"] for item in items])
    assert noise.std().item() == pytest.approx(1, abs=0.01)


def test_labels_stay_where_they_are_not_to_be_dropped() -> None:
    visits = NoisyDataset(PATIENTS.shuffled(1), Noising(Denoising(300), seed=1, label_dropout=0.0))
    for i in range(50):
        item = visits[i]
        assert int(item["label"]) == PATIENTS.labels["abcde".index(item["subject"])]


def test_validation_is_fixed_stratified_and_padded_with_nothing() -> None:
    fixed = ValidationDataset(PATIENTS, NOISING, levels=4, multiple=6)
    assert len(fixed) == 24  # 5 patients at 4 levels, and 4 that weigh nothing
    items = [fixed[i] for i in range(24)]
    assert [float(item["weight"]) for item in items] == [1.0] * 20 + [0.0] * 4
    for index in range(5):
        levels = [int(items[4 * index + level]["timestep"]) // 75 for level in range(4)]
        assert levels == [0, 1, 2, 3]
    again = ValidationDataset(PATIENTS, NOISING, levels=4, multiple=1)
    assert all(torch.equal(items[i]["noise"], again[i]["noise"]) for i in range(20))
    assert all(int(item["label"]) != 3 for item in items)  # labels are never dropped here


def test_noisy_steps_may_be_visited_more_often() -> None:
    shares = (torch.arange(300) + 0.5) / 300
    assert Denoising(300).time_at(shares).tolist() == list(range(300))
    often = Denoising(300, noise_power=6.0).time_at(shares)
    assert often.min() >= 0 and often.max() == 299
    assert (often >= 270).float().mean().item() == pytest.approx(1 - 0.9**6, abs=0.01)
    samples = LabelledSamples([torch.zeros(1)] * 4, list("abcd"))
    visits = NoisyDataset(samples.shuffled(0), Noising(Denoising(300, noise_power=6.0), seed=0))
    drawn = torch.stack([visits[i]["timestep"] for i in range(400)])
    assert (drawn >= 270).float().mean().item() == pytest.approx(1 - 0.9**6, abs=0.08)


# --- Flow matching ---

FLOW = load_file(Path(__file__).parents[1] / "fixtures/golden/cardiodit_flow/dit_expected.safetensors")


def test_flow_matching_is_as_published() -> None:
    """Golden values of the authors' code: the noisy latents, the target, the losses."""
    clean, noise, time = FLOW["scaled_latents"], FLOW["noise"], FLOW["model_timestep"]
    for loss, name in (("smooth_l1", "huber"), ("mse", "mse"), ("l1", "l1")):
        flow = FlowMatching(loss=loss)
        torch.testing.assert_close(flow.corrupt(clean, noise, time), FLOW["noisy"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(flow.target(clean, noise, time), FLOW["target"], rtol=1e-5, atol=1e-6)
        found = flow.losses(Oracle(FLOW["prediction"]), clean, {"noise": noise, "timestep": time}).mean()
        torch.testing.assert_close(found, FLOW[f"loss_{name}"][0], rtol=1e-5, atol=0)


def test_a_flow_model_is_not_trained_as_a_denoiser() -> None:
    with pytest.raises(CardioDiTError, match="predicts 'flow' cannot be trained, or steered by an adapter, with the"):
        Denoising(1000, "flow")


def test_times_of_flow_matching_follow_their_distribution() -> None:
    published = torch.special.ndtr(FLOW["normal_draws"].double())  # the share of times below each of their draws
    flow = FlowMatching(logit_mean=0.5, logit_std=0.7)
    torch.testing.assert_close(flow.time_at(published) / 1000, FLOW["logit_normal_times"], rtol=1e-4, atol=1e-6)
    drawn = torch.stack([flow.draw_time(generator_for(0, i)) for i in range(2000)]) / 1000
    logits = torch.logit(drawn.double())
    assert abs(logits.mean() - 0.5) < 0.06 and abs(logits.std() - 0.7) < 0.05
    uniform = FlowMatching(sample_method="uniform").time_at(torch.tensor([0.0, 0.25, 1.0]))
    assert uniform.tolist() == [0.0, 250.0, 1000.0]


def test_the_scheduler_of_flow_matching_takes_the_published_steps() -> None:
    states = torch.cat([FLOW["initial_noise"], FLOW["euler_states"]])
    scheduler = FlowMatching().sampling_scheduler()
    set_timesteps(scheduler, 6)
    torch.testing.assert_close(scheduler.timesteps / 1000, FLOW["euler_times"])
    step = SchedulerStep(scheduler, 0.0, None)
    for k, time in enumerate(scheduler.timesteps):
        before, after = states[k : k + 1], states[k + 1 : k + 2]
        velocity = (before - after) * 6
        torch.testing.assert_close(step(velocity, k, time, before), after, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(after, FLOW["euler_last_clean"], rtol=1e-4, atol=1e-5)  # the last step ends on x0


# --- Golden values of the newest code ---

ROPE = load_file(Path(__file__).parents[1] / "fixtures/golden/cardiodit_rope4d/dit_expected.safetensors")


def test_the_zero_terminal_process_and_its_losses_are_as_published() -> None:
    clean, noise, time = ROPE["scaled_latents"], ROPE["offset_noise"], ROPE["timestep"]
    for name, settings in {
        "mse": {"loss": "mse"},
        "l1": {"loss": "l1"},
        "huber": {},
        "huber_beta_0p25": {"huber_beta": 0.25},
    }.items():
        process = Denoising(1000, zero_terminal_snr=True, **settings)  # type: ignore[arg-type]
        torch.testing.assert_close(process.corrupt(clean, noise, time), ROPE["noisy"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(process.target(clean, noise, time), ROPE["velocity"], rtol=1e-5, atol=1e-6)
        found = process.losses(Oracle(ROPE["prediction"]), clean, {"noise": noise, "timestep": time}).mean()
        torch.testing.assert_close(found, ROPE[f"loss_{name}"][0], rtol=1e-5, atol=0)


def test_min_snr_weights_are_as_published() -> None:
    """Their process ends at zero signal, where we refuse the combination; so the weights are compared by themselves."""
    for kind, name in (("v_prediction", ""), ("epsilon", "_epsilon")):
        process = Denoising(1000, kind, min_snr_gamma=5.0)  # type: ignore[arg-type]
        process.scheduler.alphas_cumprod = ROPE["alphas_cumprod"]
        weights = process.weights(ROPE["min_snr_timesteps"])
        torch.testing.assert_close(weights, ROPE[f"min_snr_weights_gamma5{name}"], rtol=1e-5, atol=1e-6)
    flow = FlowMatching(min_snr_gamma=5.0)
    weights = flow.weights(FLOW["min_snr_times"] * 1000)
    torch.testing.assert_close(weights, FLOW["min_snr_weights_gamma5"], rtol=1e-4, atol=1e-6)
    backwards = FlowMatching(min_snr_gamma=5.0, direction="noise_to_data").weights(1000 - FLOW["min_snr_times"] * 1000)
    torch.testing.assert_close(backwards, weights, rtol=1e-2, atol=1e-5)  # times near 1000 lose digits
    weighted = FlowMatching(min_snr_gamma=5.0, loss="mse")
    batch = {"noise": FLOW["noise"], "timestep": FLOW["model_timestep"]}
    found = weighted.losses(Oracle(FLOW["prediction"]), FLOW["scaled_latents"], batch).mean()
    torch.testing.assert_close(found, FLOW["loss_mse_min_snr5"][0], rtol=1e-5, atol=0)


def test_offset_noise_is_the_same_in_a_channel_and_drawn_by_the_seed() -> None:
    sample = torch.zeros(3, 4, 4, 4, 4)
    plain, shifted = (Noising(Denoising(offset_noise_strength=strength), 0) for strength in (0.0, 2.0))
    noises = [noising.noise_for(sample, generator_for(0, 0)) for noising in (plain, shifted, shifted)]
    assert torch.equal(noises[1], noises[2])
    shift = (noises[1] - noises[0]).flatten(1)
    assert shift.std(dim=1).max() < 1e-6 and len(set(shift[:, 0].tolist())) == 3 and shift.abs().max() > 0.5


def test_a_sample_prediction_is_weighted_by_the_ratio_itself() -> None:
    process = Denoising(prediction_type="sample", min_snr_gamma=5.0)
    ratio = process.scheduler.alphas_cumprod / (1 - process.scheduler.alphas_cumprod)
    torch.testing.assert_close(process.weights(torch.arange(300)), ratio.clamp(max=5.0))
