"""MedLoRD's stages 2 and 3 as a user runs them: the U-Net, and the ControlNet on a U-Net that stays as it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cardiodit import (
    CardioDiTError,
    MedLoRDControlPipeline,
    MedLoRDPipeline,
    MedLoRDUNetModel,
    VQModel3D,
    make_scheduler,
)
from cardiodit.cli import main
from cardiodit.imaging import Intensity, Preprocessing
from cardiodit.imaging.manifest import read_manifest, write_manifest
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.phantom import chest_scene
from cardiodit.latents import LatentCohort, encode_cohort, measure_scale, write_scale
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.training import train_controlnet, train_dit, train_tgca, train_unet
from cardiodit.training.adapter_data import drop_masks
from cardiodit.training.adapter_model import Steered, new_controlnet
from cardiodit.training.harness.command_line import read_command_line
from cardiodit.training.harness.state import WEIGHTS
from cardiodit.training.settings import ConditionSettings, ControlNetSettings, UNetSettings, VQGANSettings
from cardiodit.training.upstream_config import translate_controlnet, translate_unet, translate_vqgan

from ..conftest import begin_two, copy_chests, randomise
from ..medlord_cases import RULED
from .conftest import PATIENCE, arguments_of, lines_of, merged
from .processes_at_work import work_off

STEPS = Preprocessing(size=(16, 16, 16), intensity=Intensity(-1000, 1000), orient=False)
SHAPE: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_levels": [False, True],
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}
BRIEF = {
    "train_batch_size": 2,
    "max_train_steps": 4,
    "learning_rate": 1e-3,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "dataloader_num_workers": 0,
    "report_to": "none",
}
SPACING = chest_scene.default_spacing((16, 16, 16))
UNET: dict[str, Any] = {"model": SHAPE, "training": {**BRIEF, "preview_samples": 0}}
CONTROLNET: dict[str, Any] = {
    "conditions": {"keys": ["mask"], "labels": [[1, 2, 3]], "other_labels": "background"},
    "training": BRIEF,
}


@pytest.fixture(scope="module")
def chests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """The folder of a VQ model and a base pipeline, and manifests of latents with masks."""
    folder = tmp_path_factory.mktemp("chests")
    torch.manual_seed(0)
    small: dict[str, Any] = {"channels": (8, 8), "num_res_channels": (8, 8), "num_res_layers": 1, "num_embeddings": 64}
    vae = VQModel3D(**small, embedding_dim=4, preprocessing=STEPS.to_dict(), spacing=SPACING).eval()
    manifests = []
    for seed, (split, number) in enumerate((("training", 4), ("validation", 2))):
        images = copy_chests(folder / split, number, seed, size=(16, 16, 16))
        encode_cohort(images, vae, folder / f"latents-{split}", report=lambda _: None, condition_keys=["mask"])
        manifests.append(folder / f"latents-{split}" / "manifest.csv")
    vae.save_pretrained(folder / "vae")
    write_scale(folder / "vae", measure_scale(iter(LatentCohort.open(manifests[0]))))
    unet = MedLoRDUNetModel(sample_size=(4, 4, 4), in_channels=4, **SHAPE)
    pipe = MedLoRDPipeline(VQModel3D.from_pretrained(folder / "vae"), randomise(unet), make_scheduler())
    pipe.save_pretrained(folder / "base")
    return folder, (manifests[0], manifests[1])


@pytest.fixture
def train(chests: Any, tmp_path: Path) -> Callable[..., Path]:
    """Trains in this process, and returns the run's folder."""
    folder, manifests = chests

    def run(script: Any, name: str, *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        config = merged(UNET if script is train_unet else CONTROLNET, changes)
        origin = ["--vae", str(folder / "vae")] if script is train_unet else ["--base", str(folder / "base")]
        script.main(arguments_of(tmp_path, name, config, manifests, *origin, *more))
        return tmp_path / name

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- The U-Net ---


def test_a_run_ends_in_a_pipeline_that_samples(train: Callable[..., Path]) -> None:
    previews = {"preview_samples": 1, "preview_steps": 4, "preview_inference_steps": 2}
    run = train(train_unet, "chest", training=previews)
    assert all(np.isfinite(value) for value in lines_of(run).values()) and (run / "previews" / "step-4.png").is_file()
    pipe = MedLoRDPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(num_inference_steps=2, seed=0)
    assert output.volumes.shape == (1, 16, 16, 16) and output.units == (-1000, 1000)
    assert equal(weights(run / "best" / "unet"), weights(run / "pipeline" / "unet"))
    assert not equal(weights(run / "checkpoint-4" / "unet"), weights(run / "checkpoint-4" / "unet_ema"))
    card = (run / "pipeline" / "README.md").read_text()
    for told in (
        "from cardiodit import MedLoRDPipeline",
        "| Denoiser (`unet`) | `MedLoRDUNetModel`",
        "| U-Net | levels of 16, 32 channels, attention: levels of 32 channels |",
        "### Stage 2, the denoiser (`train_unet`)",
        "byte for byte those of this run's best step",
    ):
        assert told in card, told


def test_a_unet_takes_clinical_conditions(train: Callable[..., Path]) -> None:
    run = train(train_unet, "asked", condition_columns=["lungs_ml"])
    pipe = MedLoRDPipeline.from_pretrained(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    randomise(pipe.unet)
    lungs = pipe.conditions["lungs_ml"]
    call = {"num_inference_steps": 1, "seed": 0, "output_type": "latent"}
    small, large, none = (pipe(conditions={"lungs_ml": v}, **call).volumes for v in (lungs.low, lungs.high, None))
    assert all(not torch.allclose(a, b, atol=1e-4) for a, b in ((small, large), (small, none), (large, none)))
    assert torch.equal(none, pipe(**call).volumes)


def test_a_unet_is_resumed_to_the_bit(train: Callable[..., Path]) -> None:
    whole = train(train_unet, "whole")
    train(train_unet, "parts", "--max_train_steps", "2")
    parts = train(train_unet, "parts")
    assert lines_of(whole) == lines_of(parts)
    for name in ("unet", "unet_ema"):
        assert equal(weights(whole / "checkpoint-4" / name), weights(parts / "checkpoint-4" / name))


def test_a_unet_is_fine_tuned_with_lora(train: Callable[..., Path]) -> None:
    base = train(train_unet, "base")
    lora = {"lora_rank": 2, "use_ema": False, "learning_rate": 1e-2}
    run = train(train_unet, "tuned", "--init_from", str(base / "pipeline"), training=lora)
    assert all("lora_" in name for name in weights(run / "checkpoint-4" / "unet"))
    plain = MedLoRDPipeline.from_pretrained(base / "pipeline")
    fused = MedLoRDPipeline.from_pretrained(run / "pipeline").unet
    noise, time = torch.randn(1, 4, 4, 4, 4), torch.tensor([100])
    before = plain.unet(noise, time).sample
    plain.load_lora_weights(run / "lora")
    with torch.no_grad():
        adapted, expected = plain.unet(noise, time).sample, fused(noise, time).sample
    torch.testing.assert_close(adapted, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(adapted, before)


def test_images_turn_about_all_axes_before_they_are_encoded(train: Callable[..., Path], chests: Any) -> None:
    ids = [f"--{split}_ids={chests[0] / split / 'manifest.csv'}" for split in ("training", "validation")]
    always = {"rotation_probability": 1.0, "rotation_axes": [0, 1, 2], "flip_probability": 0.5, "flip_axes": [1]}
    plain, turned = train(train_unet, "plain", *ids), train(train_unet, "turned", *ids, image_augmentation=always)
    steps = [[value for _, value in sorted(lines_of(run).items())] for run in (plain, turned)]
    assert len(steps[0]) == len(steps[1]) == 4 and all(a != b for a, b in zip(*steps))
    train(train_unet, "parts", *ids, "--max_train_steps", "2", image_augmentation=always)
    assert lines_of(train(train_unet, "parts", *ids, image_augmentation=always)) == lines_of(turned)
    with pytest.raises(CardioDiTError, match="changes images before they are encoded, but the manifests list latents"):
        train(train_unet, "latents", image_augmentation=always)


def test_models_of_other_scripts_are_refused(train: Callable[..., Path], chests: Any, tmp_path: Path) -> None:
    folder, manifests = chests
    places = ["--vae", str(folder / "vae"), "--init_from", str(folder / "base")]
    with pytest.raises(CardioDiTError, match="has denoiser MedLoRDUNetModel"):
        train_dit.main(arguments_of(tmp_path, "dit", {"training": BRIEF}, manifests, *places))
    AcceleratorState._reset_state(reset_partial_state=True)
    config = {"conditions": {"keys": ["mask"]}, "training": BRIEF}
    with pytest.raises(CardioDiTError, match="has denoiser MedLoRDUNetModel"):
        train_tgca.main(arguments_of(tmp_path, "tgca", config, manifests, "--base", str(folder / "base")))
    with pytest.raises(CardioDiTError, match=r"block_out_channels is \[8, 8\] in the config and \[16, 32\] in the mod"):
        train(train_unet, "u", "--init_from", str(folder / "base"), model={"block_out_channels": [8, 8]})


# --- The ControlNet ---


@pytest.fixture
def controlled(train: Callable[..., Path]) -> Path:
    return train(train_controlnet, "control", training={"learning_rate": 1e-2})


def test_the_unet_stays_as_it_is_to_the_bit_and_is_steered(controlled: Path, chests: Any) -> None:
    assert equal(weights(chests[0] / "base" / "unet"), weights(controlled / "pipeline" / "unet"))
    assert not (controlled / "checkpoint-4" / "unet").exists()
    pipe, plain = (
        MedLoRDControlPipeline.from_pretrained(controlled / "pipeline"),
        MedLoRDPipeline.from_pretrained(chests[0] / "base"),
    )
    for one in (pipe, plain):
        one.set_progress_bar_config(disable=True)
    assert pipe.controlnet.config.fingerprint == fingerprint_of(plain.unet)
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[4:10, 4:10] = 3
    settings: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    unsteered = plain(**settings).volumes
    steered = pipe(mask, **settings)
    assert (steered.volumes - unsteered).abs().max() > 1e-4
    assert torch.equal(pipe(mask, conditioning_scale=0.0, **settings).volumes, unsteered)
    assert torch.equal(pipe(mask, control_guidance_start=1.0, **settings).volumes, unsteered)
    late = pipe(mask, control_guidance_start=0.5, condition_guidance_scale=2.0, **settings)
    assert not torch.equal(late.volumes, steered.volumes) and late.records[0]["condition_guidance_scale"] == 2.0
    assert torch.allclose(pipe([mask, mask], **settings).volumes[:1], steered.volumes, atol=1e-5)
    with pytest.raises(CardioDiTError, match="holds 1.5, which is not a label"):
        pipe(mask * 0.5, **settings)


def test_a_controlnet_is_resumed_to_the_bit(train: Callable[..., Path]) -> None:
    whole = train(train_controlnet, "whole")
    train(train_controlnet, "parts", "--max_train_steps", "2")
    parts = train(train_controlnet, "parts")
    for name in ("controlnet", "controlnet_ema"):
        assert equal(weights(whole / "checkpoint-4" / name), weights(parts / "checkpoint-4" / name))


def test_checkpointing_changes_no_gradient(train: Callable[..., Path]) -> None:
    plain = train(train_controlnet, "plain")
    saving = train(train_controlnet, "saving", training={"gradient_checkpointing": True})
    assert list(lines_of(saving).values()) == pytest.approx(list(lines_of(plain).values()), rel=1e-5)


def test_the_base_is_in_eval_mode_while_the_controlnet_trains(chests: Any) -> None:
    base = MedLoRDPipeline.from_pretrained(chests[0] / "base")
    settings = ControlNetSettings()
    model = Steered(base.unet, new_controlnet(settings, base.unet, base.voxels_per_latent)).train()
    assert model.adapter.training and not model.base.training
    assert model.adapter.config.condition_widths == [32, 64] and model.adapter.config.block_out_channels == [16, 32]
    noisy, time = torch.randn(2, 4, 4, 4, 4), torch.tensor([10, 200])
    mask = torch.rand(2, 1, 16, 16, 16).round()
    assert torch.equal(model(noisy, time, condition=mask).sample, base.unet(noisy, time).sample)  # begins as nothing
    model(noisy, time, condition=mask).sample.square().mean().backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert model.adapter.controlnet_mid_block.weight.grad.abs().sum() > 0


def test_mask_levels_must_fit_the_autoencoder(train: Callable[..., Path]) -> None:
    with pytest.raises(CardioDiTError, match="divide masks by 8, but the autoencoder divides volumes by 4. Give 2 con"):
        train(train_controlnet, "wrong", controlnet={"condition_widths": [8, 8, 8]})


def test_each_mask_is_dropped_for_itself_with_all_its_channels() -> None:
    settings = ConditionSettings(
        keys=("lung", "heart"),
        labels=((1, 2), (3,)),
        dropout_prob=0.0,
        channel_dropout_prob=0.0,
        key_dropout_prob=0.3,
    )
    seen = []
    for seed in range(2000):
        kept = drop_masks(torch.ones(3, 2, 2, 2), settings, torch.Generator().manual_seed(seed)).amax(dim=(1, 2, 3))
        assert kept[0] == kept[1]
        seen.append(kept[1:] == 0)
    shares = torch.stack(seen).float().mean(dim=0)
    both = torch.stack(seen).all(dim=1).float().mean()
    assert shares.tolist() == pytest.approx([0.3, 0.3], abs=0.04) and float(both) == pytest.approx(0.09, abs=0.03)


def test_a_table_of_masks_and_a_checkpoint_are_sampled(controlled: Path, chests: Any, tmp_path: Path) -> None:
    case = read_manifest(chests[0] / "validation" / "manifest.csv")[0]
    write_manifest(tmp_path / "masks.csv", [{"mask": str(case.path("mask"))}])
    words = ["--masks", str(tmp_path / "masks.csv"), "--num_inference_steps", "2", "--output_dir"]
    assert main(["sample", str(controlled / "pipeline"), *words, str(tmp_path / "s")]) == 0
    assert main(["sample", str(controlled), "--checkpoints", "4", "4", "1", *words, str(tmp_path / "course")]) == 0
    made = [read_nifti(next((tmp_path / at).glob("*.nii.gz"))).voxels for at in ("s", "course/checkpoint-4")]
    assert made[0].shape == (16, 16, 16) and made[0].dtype == np.int16
    assert main(["sample", str(controlled / "pipeline"), *words, str(tmp_path / "s"), "--estimate"]) == 0


# --- Two processes ---


def test_two_processes_train_as_one_does(train: Callable[..., Path], chests: Any, tmp_path: Path) -> None:
    """The U-Net and the ControlNet, with one sample a process instead of two accumulated ones."""
    alone = {"train_batch_size": 1, "gradient_accumulation_steps": 2}
    both = {"train_batch_size": 1}
    plan, pairs = [], []
    for script, stage, config, origin in (
        (train_unet, "train_unet", UNET, ["--vae", str(chests[0] / "vae")]),
        (train_controlnet, "train_controlnet", CONTROLNET, ["--base", str(chests[0] / "base")]),
    ):
        one = train(script, f"{stage}-1", "--cpu", training=alone)
        changed = merged(config, {"training": both})
        arguments = arguments_of(tmp_path, f"{stage}-2", changed, chests[1], *origin, "--cpu")
        plan.append({"stage": stage, "arguments": arguments, "sharded": False})
        pairs.append((one, tmp_path / f"{stage}-2"))
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    processes = begin_two(work_off, tmp_path / "plan.json", said=tmp_path / "said")
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "said").read_text()
    for one, two in pairs:
        for key in ("loss", "gradient_norm", "validation_loss"):
            assert lines_of(two, key) == pytest.approx(lines_of(one, key), rel=1e-4), key
        assert json.loads((two / "run.json").read_text())["sessions"][0]["processes"] == 2


# --- The authors' configs ---


def settings_of(config: Path, kind: type, translate: Any) -> Any:
    places = ["--training_ids", "a.csv", "--validation_ids", "b.csv", "--output_dir", "o", "--run_name", "r"]
    return read_command_line(["--config", str(config), *places], kind, "d", "e", translate).settings


def test_the_authors_configs_are_understood() -> None:
    unet = settings_of(RULED / "ldm.yaml", UNetSettings, translate_unet)
    assert unet.model.block_out_channels == (64, 64, 128) and unet.model.attention_head_dim == 32
    assert (unet.training.learning_rate, unet.training.lr_gamma, unet.training.ema_decay) == (5e-5, 0.9995, 0.999)
    assert unet.training.lr_scheduler == "exponential" and unet.diffusion.num_train_timesteps == 300
    control = settings_of(RULED / "controlnet.yaml", ControlNetSettings, translate_controlnet)
    assert control.conditions.keys == ("lung", "heart", "aorta")
    assert (control.conditions.key_dropout_prob, control.conditions.dropout_prob) == (0.1, 0.0)
    assert (control.controlnet.width_ratio, control.controlnet.condition_widths) == (0.5, (8, 16))
    assert (control.training.learning_rate, control.training.lr_gamma) == (7.5e-5, 0.999)
    vqgan = settings_of(RULED / "vqgan.yaml", VQGANSettings, translate_vqgan)
    assert vqgan.dimensions == 3 and vqgan.data.crop == (32, 32, 32) and vqgan.discriminator.norm == "INSTANCE"
    training = vqgan.training
    assert (training.learning_rate, training.discriminator_learning_rate) == (3e-5, 1e-4)
    assert (training.lr_scheduler, training.adam_beta1, training.weight_decay) == ("constant", 0.9, 0.01)
    assert vqgan.losses.spectral_weight == 1.0
    augmentation = vqgan.data.augmentation
    assert (augmentation.rotation_axes, augmentation.flip_axes) == ((0, 1, 2), (1,))
    assert (augmentation.rotation_degrees, augmentation.rotation_probability) == (5.0, 0.2)


def test_what_the_authors_code_cannot_read_is_read_and_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """ds4_new lacks a key, and ds4_small contains a tab."""
    text = (RULED / "vqgan.yaml").read_text()
    plain = yaml.safe_load(text)
    del plain["training"]["use_persistent"]
    (tmp_path / "ds4_new.yaml").write_text(yaml.safe_dump(plain))
    (tmp_path / "ds4_small.yaml").write_text(text.replace("  n_epochs: 1\n", "\tn_epochs: 1\n"))
    expected = settings_of(RULED / "vqgan.yaml", VQGANSettings, translate_vqgan)
    capsys.readouterr()
    for name, said in [("ds4_new", "lacks training.use_persistent"), ("ds4_small", "contains a tab")]:
        assert settings_of(tmp_path / f"{name}.yaml", VQGANSettings, translate_vqgan) == expected
        assert f"{name}.yaml {said}" in capsys.readouterr().err


def test_checkpoints_of_a_unet_are_sampled(train: Callable[..., Path], chests: Any, tmp_path: Path) -> None:
    run = train(train_unet, "course")
    shutil.rmtree(run / "pipeline")
    words = ["--checkpoints", "2", "4", "2", "--vae", str(chests[0] / "vae"), "--num_inference_steps", "2"]
    assert main(["sample", str(run), *words, "--output_dir", str(tmp_path / "s")]) == 0
    assert len(list((tmp_path / "s").glob("*/*.nii.gz"))) == 2


@pytest.mark.parametrize("script", [train_unet, train_controlnet])
def test_no_step_waits_for_the_device(train: Callable[..., Path], waits_of: Callable, script: Any) -> None:
    assert waits_of(lambda training: train(script, "run", training=training)) == []
