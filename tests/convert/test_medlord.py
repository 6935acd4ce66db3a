"""Converted MedLoRD models, with and without the ControlNet, compute what the authors' models compute."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cardiodit import MedLoRDControlPipeline, MedLoRDPipeline, VQModel3D, change_solver, make_scheduler
from cardiodit.cli import main
from cardiodit.convert.cardiodit import load_discriminator, load_vq_model
from cardiodit.convert.medlord import convert_medlord, load_controlnet, load_unet
from cardiodit.convert.upstream_config import read_vqgan_config
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.intensity import to_source
from cardiodit.schedulers import cosine_betas
from cardiodit.schedulers.solvers import ddim_step, use_exact_betas
from cardiodit.training.objectives import Denoising

from ..medlord_cases import CASE, RULED, TRAINED, checkpoints, condition, drawn, expected, given, weights

# Latents of the test's own 300 steps, which meet the authors' at times 200, 100 and 0; written when the proof passed.
AFTER_TIME_20 = Path(__file__).parents[1] / "fixtures" / "medlord_after_time_20.safetensors"
TIMES = torch.tensor(CASE["inputs"]["timestep"])


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return checkpoints(tmp_path_factory.mktemp("authors"))


@pytest.fixture(scope="module")
def stages(files: dict[str, Path]) -> dict[str, Path]:
    """The files without those of the ControlNet."""
    return {name: path for name, path in files.items() if not name.startswith("controlnet")}


@pytest.fixture(scope="module")
def controlled(files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the authors sample: an averaged ControlNet over the raw U-Net."""
    return convert_medlord(**files, output_dir=tmp_path_factory.mktemp("c") / "model", spacing=(0.7, 0.7, 1.25))


# --- Golden values ---


@torch.no_grad()
def test_the_models_with_published_weights_match() -> None:
    """Two levels, a ControlNet as wide as the U-Net, without averages of its own."""
    reference = expected(TRAINED)
    unet = load_unet(TRAINED / "ldm_best_checkpoint.pth", TRAINED / "ldm.yaml")
    controlnet = load_controlnet(TRAINED / "controlnet_best_model.pth", TRAINED / "controlnet.yaml")
    latents, times = reference["hidden_states"], reference["timestep"]
    assert_matches(unet(latents, times).sample, reference["sample"])
    embedded = controlnet.embed(reference["condition"], unet, unet.grid_of(latents.shape[2:]))
    scale = float(reference["conditioning_scale"])
    residuals = controlnet(latents, times, embedded, scale)
    for number, residual in enumerate(residuals.down_block_res_samples):
        assert_matches(residual, reference[f"down_residual_{number}"])
    assert_matches(residuals.mid_block_res_sample, reference["mid_residual"])
    control = controlnet.control(embedded, unet, latents, times, scale)
    assert_matches(unet(latents, times, **control).sample, reference["controlled_sample"])
    assert controlnet.conditions.keys == ("a", "b")


@torch.no_grad()
def test_unet_and_controlnet_of_three_levels_match(files: dict[str, Path]) -> None:
    """Half as wide as the U-Net, three masks, over raw and averaged weights."""
    reference, latents = expected(), given("hidden_states")
    controlnet = load_controlnet(files["controlnet_ckpt"], files["controlnet_cfg"])
    for kind in ("raw", "ema"):
        unet = load_unet(files["diff_ckpt"], files["diff_cfg"], ema=kind == "ema")
        assert_matches(unet(latents, TIMES).sample, reference[f"sample_{kind}"])
        embedded = controlnet.embed(condition(), unet, unet.grid_of(latents.shape[2:]))
        for scale in (1.0, 0.4):
            control = controlnet.control(embedded, unet, latents, TIMES, scale)
            assert_matches(unet(latents, TIMES, **control).sample, reference[f"controlled_{kind}_base_scale_{scale}"])
    residuals = controlnet(latents, TIMES, embedded, 0.4)
    for number in (0, 4, 8):
        assert_matches(residuals.down_block_res_samples[number][:1], reference[f"down_residual_{number}"])
    assert_matches(residuals.mid_block_res_sample, reference["mid_residual"])


@torch.no_grad()
def test_the_autoencoder_and_its_discriminator_match(files: dict[str, Path]) -> None:
    reference = expected()
    vae = load_vq_model(files["stage1_ckpt"], files["stage1_cfg"], VQModel3D)
    latents = vae.encode(given("image")).latents
    quantized = vae.quantize(latents)
    assert_matches(latents, reference["vq_latents"])
    assert torch.equal(quantized.indices, reference["vq_indices"].long())
    assert_matches(quantized.latents, reference["vq_stage2_inputs"])
    assert_matches(quantized.commitment_loss.reshape(1), reference["vq_commitment_loss"])
    assert_matches(vae.decode(quantized.latents).sample, reference["vq_reconstruction"])
    critic = load_discriminator(files["stage1_ckpt"], files["stage1_cfg"])
    assert critic is not None
    assert_matches(critic(given("discriminator_image"))[-1], reference["discriminator_logits"])


def test_noise_and_single_steps_match() -> None:
    reference = expected()
    betas = torch.tensor(cosine_betas(300), dtype=torch.float64)
    assert (betas - reference["betas_float64"]).abs().max() < 1e-7
    objective = Denoising()
    clean, noise = given("clean"), given("training_noise")
    assert_matches(objective.corrupt(clean, noise, TIMES), reference["noisy"])
    assert_matches(objective.target(clean, noise, TIMES), reference["velocity"])
    scheduler = make_scheduler("ddpm", 300, cosine_betas(300, is_exact=True))
    use_exact_betas(scheduler)
    for time in (299, 150, 1, 0):
        scheduler.set_timesteps(300)
        variance = scheduler._get_variance(time)
        step = scheduler.step(reference["velocity"], time, reference["noisy"], generator=ZeroNoise()).prev_sample
        draw = drawn(f"noise/step{time}", CASE["inputs"]["step_noise"]["shape"]) if time else 0.0
        assert_matches(step + variance**0.5 * draw * (time > 0), reference[f"ddpm_step{time}_prev"])


class ZeroNoise(torch.Generator):
    """Stands for recorded noise, which is added afterwards."""


@pytest.fixture(autouse=True)
def no_noise_of_schedulers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test adds the recorded noise, the scheduler's own is zero."""
    from diffusers.schedulers import scheduling_ddpm

    original = scheduling_ddpm.randn_tensor

    def zeros(shape: Any, generator: Any = None, **rest: Any) -> torch.Tensor:
        drawn = original(shape, generator=generator, **rest)
        return torch.zeros_like(drawn) if isinstance(generator, ZeroNoise) else drawn

    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", zeros)


@torch.no_grad()
def test_ten_steps_of_ddim_match(files: dict[str, Path]) -> None:
    reference, start = expected(), given("hidden_states")[:1]
    times = reference["ddim_timesteps"].long().tolist()
    scheduler = make_scheduler("ddim", 300, cosine_betas(300, is_exact=True))
    use_exact_betas(scheduler)
    controlnet = load_controlnet(files["controlnet_ckpt"], files["controlnet_cfg"])
    unets = {ema: load_unet(files["diff_ckpt"], files["diff_cfg"], ema=ema) for ema in (True, False)}
    embedded = controlnet.embed(condition()[:1], unets[True], (2, 3, 1))

    def sample(ema: bool, scale: float | None) -> torch.Tensor:
        latents, unet = start, unets[ema]
        for time, previous in zip(times, [*times[1:], -1]):
            step = torch.tensor([time])
            control = {} if scale is None else controlnet.control(embedded, unet, latents, step, scale)
            latents = ddim_step(scheduler, unet(latents, step, **control).sample, time, previous, latents)
        return latents

    assert_matches(sample(True, None), reference["ddim_final"])
    assert_matches(sample(True, 0.4), reference["ddim_controlled_ema_base_scale_0.4"])
    assert_matches(sample(False, 1.0), reference["ddim_controlled_raw_base_scale_1.0"])


@torch.no_grad()
@pytest.mark.parametrize("steps", [20, pytest.param(300, marks=pytest.mark.proof)])
def test_the_pipeline_matches_to_the_last_of_three_hundred_steps(
    steps: int, stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published sampler, from noise to Hounsfield units; or its last steps, from where all of them have led."""
    reference, late = expected(), load_file(AFTER_TIME_20)["latents"]
    pipe = MedLoRDPipeline.from_pretrained(convert_medlord(**stages, output_dir=tmp_path / "model"))
    pipe.scheduler = change_solver(pipe.scheduler, "ddpm")
    pipe.set_progress_bar_config(disable=True)
    noise = CASE["inputs"]["trajectory_noise"]["shape"]
    seen = {}

    def add_noise(pipe: Any, index: int, time: torch.Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        latents, t = tensors["latents"], int(time)
        if t > 0:
            latents = latents + pipe.scheduler._get_variance(t) ** 0.5 * drawn(f"noise/trajectory{t}", noise)
        seen[t] = latents
        return {"latents": latents}

    def set_last_timesteps(count: int, **rest: Any) -> None:
        set_timesteps(count, **rest)
        pipe.scheduler.timesteps = pipe.scheduler.timesteps[-steps:]

    set_timesteps = pipe.scheduler.set_timesteps
    monkeypatch.setattr(pipe.scheduler, "set_timesteps", set_last_timesteps)
    size = {"height": 32, "width": 48, "depth": 16}
    settings = {"num_inference_steps": 300, "generator": ZeroNoise(), "callback_on_step_end": add_noise, **size}
    out = pipe(latents=given("hidden_states")[:1] if steps == 300 else late, **settings)
    assert list(seen) == list(reversed(range(steps)))
    if steps == 300:
        for time in (200, 100):
            assert_matches(seen[time], reference[f"ddpm_after_{time}"])
        assert_matches(seen[20], late)
    assert_matches(seen[0], reference["ddpm_final"])
    assert (out.volumes - reference["decoded_final"][:, 0].clamp(-1, 1)).abs().max() < 1e-5
    units = to_source(np.asarray(out.volumes[0]), out.units, np.int16)
    assert np.abs(units.astype(int) - reference["hu_final"].numpy().astype(int)).max() <= 1


# --- Folders ---


def test_a_controlled_model_is_steered_over_the_raw_unet(controlled: Path, stages: dict[str, Path]) -> None:
    pipe = MedLoRDControlPipeline.from_pretrained(controlled)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.vae.config.scaling_factor == 1.11 and pipe.geometry.spacing == (0.7, 0.7, 1.25)
    assert torch.equal(
        pipe.unet.middle_block.resnet_1.norm1.weight, weights("unet")["middle_block.resnet_1.norm1.weight"]
    )
    assert pipe.mask_adapter is pipe.controlnet and pipe.controlnet.conditions.keys == ("lung", "heart", "aorta")
    masks = {key: np.zeros((32, 48, 16), np.uint8) for key in pipe.controlnet.conditions.keys}
    masks["heart"][8:20, 10:30] = 1
    settings: dict[str, Any] = {"num_inference_steps": 2, "seed": 1}
    steered = pipe(masks, **settings)
    assert steered.volumes.shape == (1, 32, 48, 16) and steered.units == (-1000, 1000)
    free = MedLoRDPipeline(pipe.vae, pipe.unet, pipe.scheduler)(height=32, width=48, depth=16, **settings)
    assert not torch.allclose(steered.volumes, free.volumes)
    assert torch.equal(pipe(masks, conditioning_scale=0.0, **settings).volumes, free.volumes)
    record = json.loads((controlled / "conversion.json").read_text())
    assert set(record) == {"cardiodit_version", "stage1", "unet", "controlnet"} and record["unet"]["ema"] is False
    assert record["unet"]["epoch"] == 3 and (controlled / "discriminator" / "config.json").is_file()


def test_a_controlnet_can_steer_the_averaged_unet(files: dict[str, Path], tmp_path: Path) -> None:
    words = [f"--{name}={path}" for name, path in files.items()]
    assert main(["convert", "medlord", *words, "--ema_base", "--output_dir", str(tmp_path / "m")]) == 0
    pipe = MedLoRDControlPipeline.from_pretrained(tmp_path / "m")
    held = pipe.unet.middle_block.resnet_1.norm1.weight
    assert torch.equal(held, weights("unet_ema")["middle_block.resnet_1.norm1.weight"])


def changed(tmp_path: Path, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    is_yaml = path.suffix == ".yaml"
    content = yaml.safe_load(path.read_text()) if is_yaml else torch.load(path, weights_only=True)
    content = change(content) or content
    target = tmp_path / path.name
    if is_yaml:
        target.write_text(yaml.safe_dump(content))
    else:
        torch.save(content, target)
    return target


def test_bare_weights_are_a_checkpoint(files: dict[str, Path], tmp_path: Path) -> None:
    """The authors' final_model.pth."""
    bare = changed(tmp_path, files["diff_ckpt"], lambda content: content["model"])
    unet = load_unet(bare, files["diff_cfg"])
    assert torch.equal(unet.conv_in.bias, weights("unet")["conv_in.conv.bias"])


def test_weights_of_another_model_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    other = changed(tmp_path, files["diff_cfg"], lambda c: c["model"]["params"].update(num_res_blocks=1))
    with pytest.raises(CardioDiTError, match=r"unexpected: down_blocks\.0\.resnets\.1.*Use the config"):
        load_unet(files["diff_ckpt"], other)
    without = changed(tmp_path, files["diff_ckpt"], lambda c: c["model"].__delitem__("conv_in.conv.bias"))
    with pytest.raises(CardioDiTError, match=r"missing: conv_in\.conv\.bias|the model does not have"):
        load_unet(without, files["diff_cfg"])


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        ("controlnet", {"r": 0.25}, "Level 0 has 16 channels, which 32 groups"),
        ("controlnet", {"initial_stride": 1}, "divides masks by 2, but the autoencoder divides volumes by 4"),
        ("controlnet", {"with_conditioning": False}, "with_conditioning must be true"),
        ("controlnet", {"conditioning_embedding_in_channels": 2}, "must name as many masks"),
        ("controlnet", {"num_class_embeds": 2}, "class labels are not supported"),
        ("diff", {"resblock_updown": True}, "sizes change by convolutions"),
        ("diff", {"out_channels": 16}, "out_channels 16 must equal in_channels 8"),
        ("diff", {"in_channels": 4, "out_channels": 4}, "makes latents of 8 channels .* takes 4"),
    ],
)
def test_configs_that_do_not_fit(
    files: dict[str, Path], tmp_path: Path, stage: str, change: dict[str, Any], message: str
) -> None:
    def apply(content: dict[str, Any]) -> None:
        content[{"diff": "model"}.get(stage, stage)]["params"].update(change)

    config = changed(tmp_path, files[f"{stage}_cfg"], apply)
    with pytest.raises(CardioDiTError, match=message):
        convert_medlord(**{**files, f"{stage}_cfg": config}, output_dir=tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_stages_may_not_be_swapped(stages: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"vqgan.yaml is a stage 1 \(VQ-GAN\) config, but a MedLoRD stage 2"):
        convert_medlord(**{**stages, "diff_cfg": stages["stage1_cfg"]}, output_dir=tmp_path / "m")
    with pytest.raises(CardioDiTError, match="A ControlNet needs both"):
        convert_medlord(**stages, controlnet_cfg=RULED / "controlnet.yaml", output_dir=tmp_path / "m")


def test_a_config_with_a_tab_is_read_and_what_was_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As the authors' ds4_small, which their own code cannot read."""
    text = (RULED / "vqgan.yaml").read_text()
    for number, broken in enumerate((re.sub("^  (?=n_epochs|eval)", "\t", text, flags=re.M), f"{text}\t\n")):
        file = tmp_path / f"ds4_small_{number}.yaml"
        file.write_text(broken)
        config = read_vqgan_config(file)
        assert config.training.batch_size == 1 and config.training.base_lr == 3e-5 and config.training.disc_lr == 1e-4
        assert config.params.num_channels == (16, 24) and config.perceptual.network_type == "squeeze"
        assert f"{file.name} contains a tab, so it is not valid YAML" in capsys.readouterr().err
