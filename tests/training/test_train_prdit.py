"""PRDiT from manifests to a pipeline: the local denoiser, its refiner, and from a low resolution to a high one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from cardiodit import PRDiTPipeline, PRDiTTransformerModel, change_solver
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import read_nifti, write_nifti
from cardiodit.imaging.intensity import to_model
from cardiodit.training import train_prdit
from cardiodit.training.build_prdit import is_refined
from cardiodit.training.checkpoint_gallery import open_checkpoint
from cardiodit.training.objectives import NoiseAndImage

from ..conftest import copy_chests
from .conftest import arguments_of, lines_of, merged

SIZE = (24, 16, 16)
PRDIT: dict[str, Any] = {
    "model": {"patch_size": 8, "num_attention_heads": 2, "attention_head_dim": 16},
    "data": {"preprocessing": {"size": list(SIZE), "intensity": {"low": -1000, "high": 1000}, "orient": False}},
    "training": {
        "train_batch_size": 2,
        "max_train_steps": 12,
        "learning_rate": 1e-3,
        "checkpointing_steps": 4,
        "validation_steps": 6,
        "preview_samples": 0,
        "report_to": "none",
    },
}
REFINED = {"model": {"num_layers": 2}}

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("chests")
    return (
        copy_chests(folder / "training", num=4, seed=0, size=(24, 24, 16)),
        copy_chests(folder / "validation", num=2, seed=1, size=(24, 24, 16)),
    )


@pytest.fixture(scope="module")
def train(chests: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Trains in this process, and returns the run's folder."""
    folder = tmp_path_factory.mktemp("runs")

    def run(name: str, *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        train_prdit.main(arguments_of(folder, name, merged(PRDIT, changes), chests, "--cpu", *more))
        return folder / name

    return run


@pytest.fixture(scope="module")
def local(train: Train) -> Path:
    return train("local", training={"preview_samples": 1, "preview_inference_steps": 4})


@pytest.fixture(scope="module")
def refined(train: Train, local: Path) -> Path:
    return train("refined", "--stage1", str(local), **REFINED)


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return PRDiTTransformerModel.from_pretrained(folder).state_dict()


def test_stage_1_becomes_a_pipeline_that_knows_its_data(local: Path) -> None:
    losses = list(lines_of(local).values())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    pipe = PRDiTPipeline.from_pretrained(local / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert not pipe.transformer.has_refiner
    out = pipe(num_samples=2, num_inference_steps=5, seed=0)
    assert tuple(out.volumes.shape) == (2, *SIZE)
    assert pipe.units == (-1000, 1000) and pipe.geometry.spacing is not None
    assert list((local / "previews").glob("step-*.png"))


def test_stage_2_leaves_the_local_denoiser_as_it_is(local: Path, refined: Path) -> None:
    before = weights_of(local / "best" / "transformer")
    for part in ("best/transformer", "pipeline/transformer", "checkpoint-12/transformer_ema"):
        after = weights_of(refined / part)
        assert all(torch.equal(value, before[key]) for key, value in after.items() if not is_refined(key))
        assert {key for key in after if not is_refined(key)} == set(before)
        heads = [key for key in after if key.startswith("proj_out")]
        assert all(after[key].abs().max() > 0 for key in heads)  # they began at zero
    moments = {key.rpartition("/")[0] for key in _optimizer(refined)}
    assert moments and all(map(is_refined, moments))
    assert (
        list(lines_of(refined, "validation_loss").values())[-1] < list(lines_of(local, "validation_loss").values())[-1]
    )


def _optimizer(run: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoint-12" / "optimizer.safetensors")


def test_a_run_goes_on_to_the_bit(train: Train, local: Path, refined: Path) -> None:
    train("parts", "--stage1", str(local), **merged(REFINED, {"training": {"max_train_steps": 8}}))
    parts = train("parts", "--stage1", str(local), **REFINED)
    assert lines_of(parts) == lines_of(refined)
    weights = "checkpoint-12/transformer/diffusion_pytorch_model.safetensors"
    assert (parts / weights).read_bytes() == (refined / weights).read_bytes()


@pytest.mark.parametrize("low", ["local", "refined"])
def test_a_high_resolution_starts_from_a_low_one(train: Train, low: str, request: pytest.FixtureRequest) -> None:
    """The transferred model starts with a lower loss than a fresh one: the local denoiser alone, or the whole."""
    fine = {"data": {"preprocessing": {"size": [48, 32, 32], "fit": "resize"}}, "training": {"max_train_steps": 1}}
    fresh = train(f"fresh-{low}", **fine)  # a refiner predicts nothing yet: it would begin with the same loss
    begun = train(f"begun-{low}", "--init_from", str(request.getfixturevalue(low)), **fine)
    assert lines_of(begun)[1] < 0.8 * lines_of(fresh)[1]
    model = PRDiTTransformerModel.from_pretrained(begun / "best" / "transformer")
    assert tuple(model.config.sample_size) == (48, 32, 32)


def test_a_refiner_starts_from_that_of_a_low_resolution(train: Train, local: Path, refined: Path) -> None:
    """Its own weights from `--init_from`, the local denoiser from `--stage1`, which goes before."""
    changes = {"max_train_steps": 1, "learning_rate": 0.0}
    fine = {"data": {"preprocessing": {"size": [48, 32, 32], "fit": "resize"}}, "training": changes}
    run = train("begun-refiner", "--stage1", str(local / "checkpoint-8"), "--init_from", str(refined), **fine)
    begun, stage1 = (weights_of(folder / "transformer") for folder in (run / "best", local / "checkpoint-8"))
    low = weights_of(refined / "best" / "transformer")
    assert all(torch.equal(value, (low if is_refined(key) else stage1)[key]) for key, value in begun.items())
    assert any(not torch.equal(value, low[key]) for key, value in begun.items())


def test_boxes_of_volumes_teach_the_local_denoiser(train: Train) -> None:
    run = train("boxes", data={"crop": [16, 16, 8]}, training={"max_train_steps": 2})
    config = json.loads((run / "best" / "transformer" / "config.json").read_text())
    assert tuple(config["sample_size"]) == SIZE


@pytest.mark.parametrize(
    ("changes", "more", "words"),
    [
        (REFINED, (), "give its run as --stage1"),
        ({}, ("--stage1", "LOCAL"), "--stage1 is for stage 2"),
        (merged(REFINED, {"model": {"patch_size": 10}}), ("--stage1", "LOCAL"), "patch_size is 10 here and 8 there"),
        (REFINED, ("--init_from", "LOCAL"), "num_layers is 2 in the config and 0 in the model"),
        (
            merged(REFINED, {"process": {"noise_scale": 1.0}}),
            ("--stage1", "LOCAL"),
            "process.noise_scale is 1.0 here and 0.5 there",
        ),
        (
            merged(REFINED, {"data": {"preprocessing": {"intensity": {"high": 3000}}}}),
            ("--stage1", "LOCAL"),
            "data.preprocessing.intensity is .*3000.* here and .*1000.* there",
        ),
        (
            {"process": {"num_train_timesteps": 300}},
            ("--init_from", "LOCAL"),
            "process.num_train_timesteps is 300 here and 1000 there",
        ),
        ({"data": {"preprocessing": {"size": [20, 16, 16]}}}, (), "height, which must be a multiple of 8"),
    ],
)
def test_what_does_not_fit_is_said(
    train: Train, local: Path, changes: dict[str, Any], more: tuple[str, ...], words: str
) -> None:
    with pytest.raises(CardioDiTError, match=words):
        train("wrong", *(str(local) if word == "LOCAL" else word for word in more), **changes)


def test_a_refiner_does_not_go_on_with_another_local_denoiser(train: Train, local: Path, refined: Path) -> None:
    with pytest.raises(CardioDiTError, match="local_denoiser has changed"):
        train("refined", "--stage1", str(local / "checkpoint-8"), **REFINED)
    assert refined.is_dir()


def test_what_was_trained_is_sampled_and_evaluated_by_commands(
    chests: tuple[Path, Path], refined: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The paper's metrics by name; samples in HU, and without their records by the model that made them."""
    model, samples, bare = str(refined / "pipeline"), tmp_path / "samples", tmp_path / "bare"
    sample = ["sample", model, "--output_dir", str(samples), "--num_inference_steps", "4", "--num_samples"]
    assert main([*sample, "2"]) == main([*sample, "4"]) == 0  # it goes on
    held = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    assert {line["solver"] for line in held} == {"NoiseAndImageScheduler (hot)"}
    bare.mkdir()
    for file in samples.glob("*.nii.gz"):
        volume = read_nifti(file)
        assert volume.voxels.dtype == np.int16 and volume.voxels.min() < -500  # HU
        write_nifti(bare / file.name, to_model(volume.voxels, (-1000, 1000)), volume.geometry)
    reports = []
    for name, synthetic, more in [("a", samples, []), ("b", bare, ["--model", model])]:
        asked = ["evaluate", "--real", str(chests[0]), "--synthetic", str(synthetic), "--output_dir"]
        assert main([*asked, str(tmp_path / name), *more]) == 0, capsys.readouterr().err
        reports.append(json.loads((tmp_path / name / "report.json").read_text()))
    names = {metric["name"] for metric in reports[0]["metrics"]}
    assert {"frechet_spatial", "mmd_prdit_spatial", "ms_ssim"} <= names
    assert names == {metric["name"] for metric in reports[1]["metrics"]}
    assert "critic" in json.dumps(reports[0]["protocol"])


def test_the_loss_is_that_of_the_publication() -> None:
    """MSE(ε) + MSE(x0), of each sample."""
    volumes, noise = torch.randn(2, 1, 8, 8, 8), torch.randn(2, 1, 8, 8, 8)
    guess = torch.randn(2, 2, 8, 8, 8)
    batch = {"noise": noise, "timestep": torch.tensor([3, 700])}
    losses = NoiseAndImage().losses(lambda noisy, step, return_dict: (guess,), volumes, batch)
    for i in range(2):
        wanted = (guess[i, 0] - 0.5 * noise[i, 0]).square().mean() + (guess[i, 1] - volumes[i, 0]).square().mean()
        assert losses[i] == pytest.approx(wanted.item(), rel=1e-5)


def test_no_step_waits_for_the_device(train: Train, local: Path, waits_of: Callable) -> None:
    assert waits_of(lambda training: train("waits", "--stage1", str(local), **REFINED, training=training)) == []


# --- Flow matching and super-resolution ---

FLOW = {"objective": "flow_matching"}


def test_flow_matching_in_both_stages_and_every_solver(train: Train) -> None:
    """Patches that do not overlap, of 4 voxels; the refiner starts from the local denoiser of the same process."""
    small = {"patch_size": 4, "tile_size": 4}
    local = train("flow-local", process=FLOW, model=small)
    losses = list(lines_of(local).values())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    run = train("flow", "--stage1", str(local), **merged(REFINED, {"process": FLOW, "model": small}))
    pipe = PRDiTPipeline.from_pretrained(run / "pipeline")
    assert pipe.transformer.config.prediction_type == "flow_to_data" and pipe.scheduler.config.invert_sigmas
    for solver in ("euler", "heun", "rk4", "pc", "pc_heun"):
        pipe.scheduler = change_solver(pipe.scheduler, solver)
        assert torch.isfinite(pipe(num_inference_steps=2, seed=0).volumes).all()
    gallery = open_checkpoint(run, run / "checkpoint-12")
    assert gallery.scheduler.config.invert_sigmas
    with pytest.raises(CardioDiTError, match="process.prediction_type is noise_and_image here and flow_to_data there"):
        train("mixed", "--stage1", str(local), **merged(REFINED, {"model": small}))


def test_super_resolution_corrects_a_frozen_base_and_can_then_train_it(train: Train, local: Path) -> None:
    """Its base at half the size; before training, it predicts what the base predicts."""
    sizes = {"data": {"preprocessing": {"size": [32, 32, 32], "fit": "resize"}}}
    settings = {"model": {"super_resolution": 2}, **sizes}
    base = train("base", data={"preprocessing": {"size": [16, 16, 16], "fit": "resize"}})
    run = train("sharp", "--base", str(base), **settings)
    model = PRDiTPipeline.from_pretrained(run / "pipeline").transformer
    trained = weights_of(base / "best" / "transformer")
    inside = {
        name.removeprefix("base."): value for name, value in model.state_dict().items() if name.startswith("base.")
    }
    assert inside.keys() == trained.keys() and all(torch.equal(inside[name], trained[name]) for name in trained)
    assert model.config.super_resolution == 2 and model.local.proj_out.weight.abs().max() > 0
    whole = train(
        "whole", "--init_from", str(run), **merged(settings, {"training": {"train_base": True, "max_train_steps": 2}})
    )
    moved = PRDiTPipeline.from_pretrained(whole / "pipeline").transformer.state_dict()
    assert not torch.equal(moved["base.local.proj_out.weight"], trained["local.proj_out.weight"])
    with pytest.raises(CardioDiTError, match="needs both model.super_resolution above 1"):
        train("no-base", **settings)
    with pytest.raises(CardioDiTError, match="train_base is for super-resolution"):
        train("no-sharp", training={"train_base": True})
    with pytest.raises(CardioDiTError, match="process.prediction_type is flow_to_data here"):
        train("flow-sharp", "--base", str(base), **settings, process=FLOW)
