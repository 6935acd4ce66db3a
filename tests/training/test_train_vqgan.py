"""Stage 1 as a user runs it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cardiodit import VQModel3D, VQModel4D
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.similarity import psnr
from cardiodit.hub.load import open_vae
from cardiodit.imaging import Preprocessing, read_manifest, read_nifti, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.models.codebook import perplexity
from cardiodit.models.discriminator import PatchDiscriminator

from ..conftest import copy_chests
from .conftest import STEPS, VQGAN, Cohorts, lines_of, merged


def test_a_run_leaves_a_model_that_knows_its_data(train_a_vqgan: Callable) -> None:
    run = train_a_vqgan("coder", training={"report_to": "tensorboard"})
    model = open_vae(run)
    assert isinstance(model, VQModel4D)
    steps = Preprocessing.from_dict(model.config.preprocessing)
    assert (steps.size, steps.frames) == (STEPS.size, STEPS.frames)
    assert steps.intensity.typical is not None and steps.intensity.typical[0] < steps.intensity.typical[1]
    assert model.config.spacing == pytest.approx((4.5, 4.5, 25.0)) and model.config.frame_time > 0
    PatchDiscriminator.from_pretrained(run / "best" / "discriminator")
    for step in (6, 12):
        with Image.open(run / "reconstructions" / f"step-{step}.gif") as picture:
            assert picture.n_frames == 8
    assert any(b"GIF8" in path.read_bytes() for path in run.rglob("events.out.tfevents*"))
    best = json.loads((run / "best" / "state.json").read_text())
    assert best["value"] == min(lines_of(run, "validation_l1").values())


def test_a_compiled_run_learns_the_same(train_a_vqgan: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Autoencoder and critic; torch's tracer runs, but no C++ compiler."""
    compiled, original = [], torch.nn.Module.compile

    def trace(self: torch.nn.Module, *arguments: object, **how: object) -> None:
        compiled.append(type(self).__name__)
        original(self, *arguments, **{**how, "backend": "eager"})

    monkeypatch.setattr(torch.nn.Module, "compile", trace)
    short = {"max_train_steps": 4, "validation_steps": 4}
    losses = {"adversarial_start_epoch": 0, "adversarial_ramp_epochs": 1}
    plain = train_a_vqgan("plain", training=short, losses=losses)
    assert not compiled
    run = train_a_vqgan("compiled", training={**short, "compile": True}, losses=losses)
    assert compiled.count("VQVAEResidualUnit") == 4 and "PatchDiscriminator" in compiled
    for key in ("loss", "discriminator", "validation_l1"):
        assert lines_of(run, key) == pytest.approx(lines_of(plain, key), rel=1e-4) and lines_of(run, key), key
    assert not any("_orig_mod" in name for name, _ in open_vae(run).named_parameters())
    torch.compiler.reset()


def test_mixed_voxel_sizes_are_told_before_hours_are_spent(
    train_a_vqgan: Callable, cohorts: Cohorts, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    case = read_manifest(cohorts.images[0])[0]
    image = read_nifti(case.image)
    write_nifti(tmp_path / "fine.nii.gz", image.voxels, replace(image.geometry, spacing=(3.0, 3.0, 25.0)))
    rows = [{"image": str(tmp_path / "fine.nii.gz"), "subject": "a"}, {"image": str(case.image), "subject": "b"}]
    write_manifest(tmp_path / "mixed.csv", rows)
    more = ["--training_ids", str(tmp_path / "mixed.csv"), "--max_train_steps", "1"]
    assert open_vae(train_a_vqgan("mixed", *more)).config.spacing is None
    said = capsys.readouterr().out
    assert "different voxel sizes, 3 to 4.5 × 3 to 4.5 × 25 mm" in said
    assert "stop this run and set data.preprocessing.spacing: [3.75, 3.75, 25]" in said
    same = merged(VQGAN["data"], {"preprocessing": {"spacing": [3.75, 3.75, 25]}})
    assert open_vae(train_a_vqgan("same", *more, data=same)).config.spacing == pytest.approx((3.75, 3.75, 25))
    assert "voxel sizes" not in capsys.readouterr().out


def test_the_critic_trains_once_its_weight_rises(train_a_vqgan: Callable) -> None:
    """8 hearts, 2 a step: an epoch has 4 steps; the ramp goes over 2 epochs from the first on."""
    run = train_a_vqgan("run", training={"max_train_steps": 16})
    weights = lines_of(run, "adversarial_weight")
    assert [weights[step] for step in (1, 5, 7, 9, 13, 16)] == pytest.approx([0, 0, 0.00125, 0.0025, 0.005, 0.005])
    assert min(lines_of(run, "discriminator")) == 6
    assert min(lines_of(run, "adversarial")) == 6


def test_validation_changes_nothing_and_is_repeatable(train_a_vqgan: Callable) -> None:
    often = train_a_vqgan("often", training={"validation_steps": 1})
    assert lines_of(often) == lines_of(train_a_vqgan("seldom", training={"validation_steps": 100}))
    still = train_a_vqgan(
        "still",
        training={"learning_rate": 0.0, "discriminator_learning_rate": 0.0, "validation_steps": 4},
        model={"codebook_data_init": False, "codebook_restart": False, "decay": 1.0},
    )
    assert len(set(lines_of(still, "validation_l1").values())) == 1


def test_fine_tuning_starts_from_model_critic_and_preprocessing(train_a_vqgan: Callable) -> None:
    base = train_a_vqgan("base")
    nothing = {"learning_rate": 0.0, "discriminator_learning_rate": 0.0, "max_train_steps": 1}
    tuned = train_a_vqgan("tuned", "--init_from", str(base), data={"preprocessing": {}}, training=nothing)
    first, second = open_vae(base), open_vae(tuned)
    assert torch.equal(first.encoder.blocks[0].conv.weight, second.encoder.blocks[0].conv.weight)
    assert second.config.preprocessing["size"] == list(STEPS.size)
    critics = [PatchDiscriminator.from_pretrained(run / "best" / "discriminator") for run in (base, tuned)]
    assert all(torch.equal(a, b) for a, b in zip(critics[0].parameters(), critics[1].parameters()))
    with pytest.raises(CardioDiTError, match="num_embeddings is 32 in the config and 64 in the model"):
        train_a_vqgan("other", "--init_from", str(base), model={"num_embeddings": 32})


def test_volumes_are_coded_too(train_a_vqgan: Callable, tmp_path) -> None:
    """The 3D model on boxes of chest CTs, through the same script."""
    chests = [copy_chests(tmp_path / f"chests-{seed}", num=2, seed=seed, size=(32, 32, 32)) for seed in (0, 1)]
    ids = ["--training_ids", str(chests[0]), "--validation_ids", str(chests[1])]
    data = {"preprocessing": {"size": [32, 32, 32], "frames": None, "intensity": {"low": -1000, "high": 1000}}}
    run = train_a_vqgan(
        "chest",
        *ids,
        dimensions=3,
        data={**data, "crop": [16, 16, 16]},
        training={"max_train_steps": 4, "validation_steps": 4},
    )
    model = open_vae(run)
    assert isinstance(model, VQModel3D)
    assert model.config.frame_time is None
    assert (run / "reconstructions" / "step-4.png").is_file()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data": {"preprocessing": {"size": [30, 32, 4]}}},
            r"makes height 30; it must be a multiple of 4, such as 28",
        ),
        ({"data": {"crop": [10, 16, 8]}}, r"data.crop makes height 10; it must be a multiple of 4"),
        ({"data": {"crop": [16, 16]}}, r"data.crop \[16, 16\] must have three numbers"),
        ({"data": {"crop": [64, 64, 8]}}, r"data.crop makes height 64, more than the available 32"),
        ({"data": {"preprocessing": {"preset": "cin"}}}, r"There is no preset 'cin'; choose one of cine"),
        ({"losses": {"adversarial_weight": -1.0}}, r"adversarial_weight"),
    ],
)
def test_what_cannot_work_is_said_before_the_first_step(train_a_vqgan: Callable, changes: dict, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        train_a_vqgan("run", **changes)


def test_a_disk_cache_trains_the_same(train_a_vqgan: Callable, tmp_path) -> None:
    on_disk = train_a_vqgan("disk", data={"cache": "disk"})
    assert lines_of(on_disk) == lines_of(train_a_vqgan("memory"))
    assert list((tmp_path / "cache").glob("*.npy"))


def test_an_unreadable_and_a_shared_subject_are_found(train_a_vqgan: Callable, cohorts: Cohorts, tmp_path) -> None:
    with pytest.raises(CardioDiTError, match="seed0-phantom-0000 is in training and in validation"):
        train_a_vqgan("run", "--validation_ids", str(cohorts.images[0]))
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"no image")
    manifest = tmp_path / "broken.csv"
    manifest.write_text(f"image,subject\n{broken},p\n")
    other = tmp_path / "other.csv"
    other.write_text(manifest.read_text().replace(",p", ",q"))
    with pytest.raises(CardioDiTError) as error:  # what is wrong with both comes at once
        train_a_vqgan("run", "--training_ids", str(other), "--validation_ids", str(manifest))
    assert str(error.value).count("The volumes cannot be used") == 2
    other.write_text(manifest.read_text())
    with pytest.raises(CardioDiTError) as error:
        train_a_vqgan("run", "--training_ids", str(other), "--validation_ids", str(manifest))
    assert "p is in training and in validation" in str(error.value) and "broken.nii.gz" in str(error.value)


def test_perplexity_in_closed_form() -> None:
    assert float(perplexity(torch.ones(7))) == pytest.approx(7)
    assert float(perplexity(torch.tensor([5.0, 0.0, 0.0]))) == pytest.approx(1)
    assert float(perplexity(torch.tensor([3.0, 1.0]))) == pytest.approx(4 / 27**0.25)


def test_psnr_in_closed_form() -> None:
    assert psnr(4.0) == pytest.approx(0)
    assert psnr(0.01) == pytest.approx(10 * math.log10(400), rel=1e-5)


def test_no_step_waits_for_the_device(train_a_vqgan: Callable, waits_of: Callable) -> None:
    """With the critic, the spectral loss and restarts of codes, which once counted the dead ones on the CPU."""
    losses = {"adversarial_start_epoch": 0, "adversarial_ramp_epochs": 0, "spectral_weight": 0.1}

    def train(training: dict) -> None:
        train_a_vqgan("run", losses=losses, training={**training, "gradient_accumulation_steps": 2})

    assert waits_of(train) == []
