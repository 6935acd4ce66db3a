"""Attacks beyond copies: known members are found, the loss is the training loss, weights and data have identities."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cardiodit import CardioDiTPipeline
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.volume_sets import open_real
from cardiodit.imaging.cache import PreparedVolumes
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents.dataset import LatentCohort
from cardiodit.latents.encoder import encode_cohort
from cardiodit.pipelines.output import revision_of
from cardiodit.privacy.attacks import LossMeter, authenticity, generalisation_gap, loss_attacks, sample_attacks
from cardiodit.privacy.identities import (
    cohort_identities,
    identity_of_weights,
    known_cohort,
    model_folder,
    revision_of_folder,
)
from cardiodit.schedulers import make_scheduler
from cardiodit.training.objectives import Denoising


def test_members_are_nearer_to_samples_than_others() -> None:
    rng = np.random.default_rng(0)
    training, held_out = rng.uniform(0.8, 1, (40, 60)), rng.uniform(0.8, 1, (40, 60))
    training[np.arange(20), np.arange(20)] = 0.1  # half of the members are copied
    for attack in sample_attacks(training, held_out):
        assert attack.result.auc.low > 0.5
        assert attack.result.rates[0.01].value == pytest.approx(0.5, abs=0.1)
        assert attack.needs == "samples"


def test_copies_are_not_authentic() -> None:
    own = np.full(30, 0.5)
    samples = np.full((30, 20), 0.6)
    samples[np.arange(10), np.arange(10)] = 0.01
    found = authenticity(samples, np.full((30, 25), 0.6), own)
    assert (found.samples, found.held_out) == (0.5, 1.0)
    assert found.attack.auc.value == pytest.approx(0.75)


def test_the_loss_is_that_of_training(pipe: CardioDiTPipeline, tmp_path: Path) -> None:
    meter = LossMeter(pipe, 2, "weights", tmp_path)
    steps = int(pipe.scheduler.config.num_train_timesteps)
    kind = pipe.scheduler.config.prediction_type
    objective = Denoising(steps, kind)
    clean, noise = torch.randn(2, 1, 4, 2, 8, 8, 4)
    times = torch.tensor([meter.times[1]])
    noisy, target = meter._corrupt(clean, noise, times)
    assert torch.allclose(noisy, objective.corrupt(clean, noise, times), atol=1e-5)
    assert torch.allclose(target, objective.target(clean, noise, times), atol=1e-5)


class Memory(torch.nn.Module):
    """A denoiser of voxels that knows some volumes by heart: it returns their noise exactly, and else nothing."""

    null_label, dtype = None, torch.float32

    def __init__(self, known: list[torch.Tensor], scheduler: Any) -> None:
        super().__init__()
        self.known, self.kept, self.config = known, scheduler.alphas_cumprod, {}

    def forward(self, noisy: torch.Tensor, times: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        kept = self.kept[times]
        guesses = [(noisy - kept.sqrt() * volume) / (1 - kept).sqrt() for volume in self.known]
        return (min(guesses, key=lambda noise: abs(float(noise.std()) - 1)),)


class MemoryPipeline:
    """A pipeline without an autoencoder, with only the parts that an attack uses."""

    _execution_device = torch.device("cpu")

    def __init__(self, known: list[torch.Tensor]) -> None:
        self.scheduler = make_scheduler("ddpm", 50, prediction_type="epsilon")
        self.denoiser = Memory(known, self.scheduler)


def test_a_model_that_knows_its_patients_by_heart_is_found_out(
    cohorts: dict[str, Path], steps: Preprocessing, tmp_path: Path
) -> None:
    items = [open_real(cohorts[name]).items[:8] for name in ("training", "held_out")]
    known = PreparedVolumes(read_manifest(cohorts["training"])[:8], steps)
    meter = LossMeter(MemoryPipeline([known[i] for i in range(8)]), 2, "memory", tmp_path)
    losses = [np.stack([meter.losses(item, item.id, steps) for item in each]) for each in items]
    attacks = loss_attacks(meter, *losses)
    assert [attack.level for attack in attacks] == [*meter.shares, None]
    assert all(attack.result.auc.value == 1 for attack in attacks)
    assert generalisation_gap(*losses).low > 1
    blind = loss_attacks(meter, *losses, references=losses)[-1]  # a reference that is as good: nothing is left
    assert (blind.name, blind.result.auc.value) == ("loss_calibrated", 0.5)
    assert len(list(tmp_path.glob("*.loss.json"))) == 16


def test_the_gap_of_a_model_that_generalises_is_zero() -> None:
    rng = np.random.default_rng(0)
    gap = generalisation_gap(rng.normal(1, 0.1, (80, 3)), rng.normal(1, 0.1, (60, 3)))
    assert gap.low < 0 < gap.high


def test_weights_have_one_identity_however_they_were_saved(
    model: Path, pipe: CardioDiTPipeline, tmp_path: Path
) -> None:
    identity = identity_of_weights(model)
    pipe.save_pretrained(tmp_path / "again")
    assert identity_of_weights(tmp_path / "again") == identity
    assert revision_of_folder(model) == revision_of(CardioDiTPipeline.from_pretrained(model))
    file = next((model / "transformer").glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1e-3
    save_file(weights, file)
    assert identity_of_weights(model) != identity


def test_a_cohort_is_recognized_from_images_as_training_recorded_it(
    cohorts: dict[str, Path], steps: Preprocessing, make_vae: Callable, tmp_path: Path
) -> None:
    vae = make_vae()
    cases = read_manifest(cohorts["training"])[:3]
    manifest = tmp_path / "three.csv"
    manifest.write_text("image,slices,ed_frame\n" + "".join(f"{c.image},base to apex,0\n" for c in cases))
    cases = read_manifest(manifest)
    identities = cohort_identities(cases, steps, vae)
    assert identities[0] == PreparedVolumes(cases, steps).identity
    encode_cohort(manifest, vae, tmp_path / "latents", steps=steps, report=lambda sentence: None)
    assert LatentCohort.open(tmp_path / "latents" / "manifest.csv").identity in identities
    assert not set(identities) & set(cohort_identities(cases[::-1], steps, vae))


def test_a_run_stands_for_its_pipeline(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "run" / "pipeline")
    (tmp_path / "run" / "run.json").write_text(json.dumps({"stage": "train_dit", "data": {"training_data": "a1"}}))
    assert model_folder(str(tmp_path / "run")) == tmp_path / "run" / "pipeline"
    assert model_folder(str(model)) == model


def test_the_card_says_which_cohort_it_was(model: Path) -> None:
    assert known_cohort(model) is None
    (model / "README.md").write_text("| Identity of the training data | `0123456789abcdef` |\n")
    known = known_cohort(model)
    assert known is not None and known.match(["0123456789abcdef0000"]) == "the model card"
    assert known.match(["ff"]) is None
    with pytest.raises(CardioDiTError, match="is not a training run"):
        known_cohort(model, model)


@pytest.mark.parametrize(
    ("origin", "volumes", "is_known"),
    [("differ from the file that", 12, True), ("differ from the file that", 11, False), ("byte for byte", 12, False)],
)
def test_images_of_stage_1_count_where_the_vq_model_was_rounded(
    model: Path, origin: str, volumes: int, is_known: bool
) -> None:
    """Its latents are no longer those of stage 2; and they must have been as many."""

    def stage(number: int, identity: str, count: int, origin: str) -> str:
        rows = {"Volumes trained on": count, "Identity of the training data": f"`{identity}`"}
        rows["Weights in this folder"] = origin
        return f"\n### Stage {number}, one\n\n" + "".join(f"| {key} | {value} |\n" for key, value in rows.items())

    images, latents = "0123456789abcdef", "fedcba9876543210"
    (model / "README.md").write_text(stage(1, images, 12, origin) + stage(2, latents, volumes, "byte for byte"))
    known = known_cohort(model)
    assert known is not None and known.match([latents]) == "the model card" and known.match(["ff"]) is None
    assert (known.match([f"{images}00"]) is not None) == is_known


def test_the_bundled_model_knows_its_cohort() -> None:
    known = known_cohort(model_folder("cardiodit-phantom"))
    assert known is not None and "stage 1 in the model card" in str(known.match(["6475a2f8368ed183"]))
