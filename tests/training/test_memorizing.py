"""A run that begins to memorize ends, and resumes to the bit; the gap of its losses is logged; augmented latents."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cardiodit import VQModel4D
from cardiodit.errors import CardioDiTError
from cardiodit.training.denoiser_loop import generalisation_gap
from cardiodit.training.latent_augmentation import LatentAugmentation, check_augmentation, shifted
from cardiodit.training.noisy_samples import LabelledSamples, Noising, ValidationDataset
from cardiodit.training.objectives import Denoising

from .conftest import lines_of

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
# The gap of this run is above -0.5 from the first validation on; below 8 volumes no gap may end a run.
EVEN = {"lr_scheduler": "constant"}  # rates that do not depend on the number of steps
SOON = {"training": {**EVEN, "validation_steps": 3, "stop_when": "memorizing", "memorizing_gap": -0.5}}


@pytest.fixture
def few_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cardiodit.training.denoiser_loop.FEWEST", 4)


def test_the_gap_is_a_share_and_its_lower_bound_a_quantile() -> None:
    members, others = torch.tensor([1.0, 2.0, 3.0, 2.0]), torch.tensor([2.0, 3.0, 4.0, 3.0])
    found = generalisation_gap(members, others, distinct=4)
    error = math.sqrt(2 * (2 / 3) / 4)
    assert found["generalisation_gap"] == pytest.approx(0.5)
    assert found["generalisation_gap_low"] == pytest.approx((1 - 1.645 * error) / 2)
    twice = generalisation_gap(members.repeat(2), others.repeat(2), distinct=4)  # repeated volumes are no more volumes
    distinct = generalisation_gap(members.repeat(2), others.repeat(2), distinct=8)
    assert twice["generalisation_gap_low"] < distinct["generalisation_gap_low"]
    assert set(generalisation_gap(-members, others, 4)) == {"loss_of_training_volumes"}


def test_training_volumes_get_the_times_and_noises_of_the_validation_volumes() -> None:
    def samples(count: int, first: int = 0) -> LabelledSamples:
        return LabelledSamples([torch.full((1, 2), float(first + i)) for i in range(count)], list("abcdefgh")[:count])

    validation = ValidationDataset(samples(4), Noising(Denoising(300), seed=1), levels=2, multiple=3)
    for others, places in ((samples(7, 10), [0, 2, 4, 6]), (samples(2, 10), [0, 0, 1, 1])):
        own = validation.with_samples(others)
        assert len(own) == len(validation) == 9
        for i in range(9):
            assert torch.equal(own[i]["noise"], validation[i]["noise"])
            assert own[i]["timestep"] == validation[i]["timestep"] and own[i]["place"] == i % 8
        assert [int(own[2 * i]["sample"][0, 0]) - 10 for i in range(4)] == places


def test_every_validation_logs_the_gap(train_a_dit: Callable[..., Path]) -> None:
    run = train_a_dit("run")
    gaps, losses = lines_of(run, "generalisation_gap"), lines_of(run, "loss_of_training_volumes")
    held_out = lines_of(run, "validation_loss")
    assert set(gaps) == set(held_out) == {6, 12}
    assert gaps[12] == pytest.approx(held_out[12] / losses[12] - 1, abs=1e-6)
    assert all(low < gaps[step] for step, low in lines_of(run, "generalisation_gap_low").items())


def test_a_run_ends_when_it_memorizes_and_keeps_the_best_weights_until_then(
    train_a_dit: Callable[..., Path],
    few_are_enough: None,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gaps = iter([0.0, 0.0, 0.4])
    real = generalisation_gap
    monkeypatch.setattr(
        "cardiodit.training.denoiser_loop.generalisation_gap",
        lambda *given: {**real(*given), "generalisation_gap_low": next(gaps)},
    )
    changes = {"training": {**SOON["training"], "max_train_steps": 30, "memorizing_gap": 0.1}}
    run = train_a_dit("run", **changes)
    assert "Step 9: the validation loss exceeds that of training volumes by" in capsys.readouterr().out
    assert max(lines_of(run)) == 9
    assert json.loads((run / "best" / "state.json").read_text())["step"] <= 6  # not that of the last validation
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    assert (run / "pipeline" / "model_index.json").is_file()

    before = (run / "checkpoint-9" / WEIGHTS).read_bytes()
    train_a_dit("run", **changes)  # nothing left to do
    assert max(lines_of(run)) == 9 and (run / "checkpoint-9" / WEIGHTS).read_bytes() == before
    changes["training"] |= {"stop_when": "finished", "max_train_steps": 12}
    gaps = iter([0.0] * 9)
    train_a_dit("run", **changes)
    assert max(lines_of(run)) == 12


def test_a_stopped_run_that_was_interrupted_ends_at_the_same_step_to_the_bit(
    train_a_dit: Callable[..., Path], few_are_enough: None
) -> None:
    whole = train_a_dit("whole", **SOON)
    assert max(lines_of(whole)) == 3
    train_a_dit("parts", training={**SOON["training"], "max_train_steps": 2, "stop_when": "finished"})
    assert max(lines_of(whole.parent / "parts")) == 2
    parts = train_a_dit("parts", **SOON)
    assert lines_of(parts) == lines_of(whole)
    assert (parts / "checkpoint-3" / WEIGHTS).read_bytes() == (whole / "checkpoint-3" / WEIGHTS).read_bytes()


def test_too_few_volumes_cannot_end_a_run(train_a_dit: Callable[..., Path]) -> None:
    with pytest.raises(CardioDiTError, match="memorizing needs at least 8 training and 8 validation volumes"):
        train_a_dit("run", **SOON)


# --- Augmentation of latents ---


def test_latents_are_shifted_mirrored_and_begin_with_another_frame() -> None:
    latent = torch.arange(2 * 3 * 4 * 5 * 6.0).view(2, 3, 4, 5, 6)
    assert torch.equal(shifted(latent, -3, 1)[:, :, 1:], latent[:, :, :-1])
    assert torch.equal(shifted(latent, -2, -1)[..., -1, :], latent[..., -1, :])  # the edge extends outwards
    always = LatentAugmentation(shift=1, flip_probability=1.0, cycle_probability=1.0)
    for visit in range(20):
        drawn = always.draw(3, visit)
        (changed,) = always(latent[None], drawn[None], 3)
        moves = [int(number * 3) - 1 for number in drawn[2:4].tolist()]
        wanted = shifted(shifted(latent.flip(-3, -2), -3, moves[0]), -2, moves[1])
        assert torch.equal(changed, wanted.roll(int(drawn[5] * 6), -1))
    upside_down = LatentAugmentation(depth_flip_probability=1.0)
    for some, axis in ((latent, 1), (latent[:, 0], 3)):  # a cine (C, D, H, W, T), a volume (C, H, W, D)
        assert torch.equal(upside_down(some[None], drawn[None], 3)[0], some.flip(axis))
    assert torch.equal(LatentAugmentation()(latent[None], drawn[None], 3)[0], latent)
    noisy = LatentAugmentation(noise=0.1)
    both = noisy(torch.stack([latent, latent]), torch.stack([noisy.draw(3, 0), noisy.draw(3, 1)]), 3)
    assert (both - latent).std() == pytest.approx(0.1, rel=0.1) and not torch.equal(both[0], both[1])


def test_augmented_training_does_not_depend_on_interruptions(
    train_a_dit: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cardiodit.training.latent_augmentation.TOLERANCE", 2.0)  # this VQ model was never trained
    changes = {"augmentation": {"shift": 1, "noise": 0.1, "cycle_probability": 0.5}, "training": EVEN}
    whole = train_a_dit("whole", **changes)
    train_a_dit("parts", **{**changes, "training": {**EVEN, "max_train_steps": 5}})
    parts = train_a_dit("parts", **changes)
    assert lines_of(parts) == lines_of(whole)
    assert lines_of(whole) != lines_of(train_a_dit("plain", training=EVEN))


def test_changes_that_the_autoencoder_does_not_follow_are_refused(make_vae: Callable) -> None:
    torch.manual_seed(0)
    vae: VQModel4D = make_vae(embedding_dim=4)
    latent = vae.quantize(torch.randn(1, 4, 8, 8, 4)).latents[0][:, None]  # (C, D, H, W, T)
    said: list[str] = []
    check_augmentation(LatentAugmentation(shift=1), vae, [latent], said.append)
    assert len(said) == 2 and said[0].startswith("Augmentation of latents: a shift along H changes decoded volumes")
    check_augmentation(LatentAugmentation(noise=0.01), vae, [latent], said.append)
    assert "noise changes decoded volumes as intended, but for 0.0%" in said[-1]  # the codebook removes it
    with pytest.raises(CardioDiTError, match="does not decode latents after noise as volumes after noise"):
        check_augmentation(LatentAugmentation(noise=10.0), vae, [latent], said.append)
    with pytest.raises(CardioDiTError, match="does not decode latents after a flip along H as volumes after a flip"):
        check_augmentation(LatentAugmentation(flip_probability=0.5), vae, [latent], said.append)
    with pytest.raises(CardioDiTError, match="flip_probability=2 must be between 0 and 1"):
        LatentAugmentation(flip_probability=2)
