"""Checkpoints of the authors' newest code: rotary positions, self-conditioning, flow matching, normalised latents."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from safetensors.torch import load_file

from cardiodit import CardioDiTError, CardioDiTPipeline, VolDiTPipeline, change_solver
from cardiodit.cli import main
from cardiodit.convert import convert_cardiodit, load_transformer, load_vq_model
from cardiodit.convert.checkpoint import read_checkpoint
from cardiodit.convert.upstream_config import read_their_yaml
from cardiodit.convert.voldit import convert_voldit
from cardiodit.latents import channel_statistics
from cardiodit.models import DiT3DTransformerModel
from cardiodit.schedulers.solvers import use_exact_betas
from cardiodit.training.objectives import Denoising, FlowMatching

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"
ROPE, FLOW, VOLDIT = (GOLDEN / name for name in ("cardiodit_rope4d", "cardiodit_flow", "voldit_flow"))
VQ = {"cardiodit_rope4d": ROPE, "cardiodit_flow": ROPE, "voldit_flow": GOLDEN / "voldit"}
SYSTEMS = {"cardiodit_rope4d": "cardiodit", "cardiodit_flow": "cardiodit", "voldit_flow": "voldit"}
FREQUENCIES = load_file(GOLDEN / "time_frequencies.safetensors")["frequencies"]


class RecordedTimes(torch.nn.Module):
    """The embedding of times with the frequencies that exp() gave on the machine which recorded the golden values.

    Another exp(), such as NumPy's, rounds some of them to a neighbouring number. The angle of time 999 then differs by
    6e-5, and predictions by up to 3e-5, so that two machines cannot agree to 1e-5 there.
    """

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        angles = time[:, None].float() * FREQUENCIES
        return torch.cat([angles.cos(), angles.sin()], dim=-1)


def assert_matches(ours: torch.Tensor, reference: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= tolerance * reference.abs().max()


def expected(folder: Path, name: str = "dit") -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}_expected.safetensors")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The pipelines that the command makes of the recorded checkpoints."""
    pipelines: dict[str, Any] = {}

    def convert(name: str) -> Any:
        if name not in pipelines:
            output = tmp_path_factory.mktemp("converted") / name
            files = [("stage1_ckpt", VQ[name] / "vqgan_best_model.pth"), ("stage1_cfg", VQ[name] / "vqgan.yaml")]
            files += [("diff_ckpt", GOLDEN / name / "dit_best_model.pth"), ("diff_cfg", GOLDEN / name / "dit.yaml")]
            options = [word for option, file in files for word in (f"--{option}", str(file))]
            assert main(["convert", SYSTEMS[name], *options, "--output_dir", str(output)]) == 0
            kind = VolDiTPipeline if name == "voldit_flow" else CardioDiTPipeline
            pipelines[name] = kind.from_pretrained(output)
            pipelines[name].transformer.time_proj = RecordedTimes()
            pipelines[name].set_progress_bar_config(disable=True)
        return pipelines[name]

    return convert


# --- Networks ---


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_transformer(name: str, converted: Callable[[str], Any]) -> None:
    golden, folder = expected(GOLDEN / name), GOLDEN / name
    inputs = golden["hidden_states"], golden["timestep"]
    model = converted(name).transformer
    assert_matches(model(*inputs).sample, golden["sample_ema_weights"])
    conditioned = model(*inputs, self_condition=golden["self_condition"]).sample
    assert_matches(conditioned, golden["sample_self_condition"])
    kind = {"kind": DiT3DTransformerModel} if name == "voldit_flow" else {}
    raw = load_transformer(folder / "dit_best_model.pth", folder / "dit.yaml", ema=False, **kind)
    raw.time_proj = RecordedTimes()
    assert_matches(raw(*inputs).sample, golden["sample_raw_weights"])
    if "small_sample" in golden:
        small = model(golden["small_hidden_states"], golden["timestep"][-1:]).sample
        assert_matches(small, golden["small_sample"])


def test_frequencies_of_times() -> None:
    """Those of this machine are the recorded ones or their neighbours."""
    ours = DiT3DTransformerModel(sample_size=(4, 4, 4), num_layers=1).time_proj(torch.ones(1))
    assert (ours[0, :128].acos() - FREQUENCIES).abs().max() < 1e-3
    assert_matches(ours[0], RecordedTimes()(torch.ones(1))[0], 2e-7)


@torch.no_grad()
def test_vq_model() -> None:
    golden = expected(ROPE, "vqgan")
    model = load_vq_model(ROPE / "vqgan_best_model.pth", ROPE / "vqgan.yaml")
    latents = model.encode(golden["image"]).latents
    assert_matches(latents, golden["latents"])
    quantized = model.quantize(latents)
    assert torch.equal(quantized.indices, golden["indices"])
    assert_matches(quantized.latents, golden["stage2_inputs"])
    assert_matches(quantized.commitment_loss.reshape(1), golden["commitment_loss"])
    assert_matches(model.decode(golden["decode_input"]).sample, golden["decoded_quantized"])
    direct = model.decode(golden["decode_input"], force_not_quantize=True).sample
    assert_matches(direct, golden["decoded_direct"])
    model.register_to_config(quantize_latents=False)
    assert torch.equal(model.decode(golden["decode_input"]).sample, direct)


@torch.no_grad()
def test_a_dead_code_moves_to_a_vector_of_the_batch() -> None:
    golden = expected(ROPE, "vqgan")
    model = load_vq_model(ROPE / "vqgan_best_model.pth", ROPE / "vqgan.yaml").train()
    model.quantize(golden["latents"])
    assert_matches(model.quantizer.weight, golden["train_codebook"])
    assert_matches(model.quantizer.ema_counts, golden["train_ema_cluster_size"])
    assert_matches(model.quantizer.ema_sums, golden["train_ema_w"])


# --- Sampling ---


@pytest.mark.parametrize("name", ["cardiodit_flow", "voldit_flow"])
@torch.no_grad()
def test_euler_trajectories_hand_the_estimate_on(name: str, converted: Callable[[str], Any]) -> None:
    pipe, golden = converted(name), expected(GOLDEN / name)
    states: list[torch.Tensor] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        states.append(tensors["latents"])
        return {}

    given = {"latents": golden["initial_noise"], "num_inference_steps": 6, "output_type": "latent"}
    result = pipe(**given, callback_on_step_end=note).volumes
    assert_matches(torch.cat(states), golden["euler_states"])
    assert_matches(pipe.vae.unscale_latents(result), golden["final_latent"])


@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
@torch.no_grad()
def test_trajectories_of_zero_terminal_snr(
    solver: str, converted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their grids: evenly spaced with both ends (DDPM), and from 0 (DDIM)."""
    pipe, golden = converted("cardiodit_rope4d"), expected(ROPE)
    assert_matches(torch.tensor(pipe.scheduler.config.trained_betas), golden["betas"])
    scheduler = change_solver(pipe.scheduler, solver)
    use_exact_betas(scheduler)
    assert torch.equal(scheduler.alphas_cumprod.float(), golden["alphas_cumprod"])
    scheduler.register_to_config(timestep_spacing="linspace" if solver == "ddpm" else "leading")
    draws = iter(golden["ddpm_step_noise"])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(draws)[None])
    times: list[int] = []
    states: list[torch.Tensor] = []

    def note(pipe: Any, index: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        times.append(int(timestep))
        states.append(tensors["latents"])
        return {}

    steps = len(golden[f"{solver}_timesteps"])
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    given = {"latents": golden["initial_noise"], "num_inference_steps": steps, "output_type": "latent"}
    result = pipe(**given, callback_on_step_end=note).volumes
    assert times == golden[f"{solver}_timesteps"].tolist()
    assert_matches(torch.cat(states), golden[f"{solver}_states"])
    if solver == "ddpm":
        assert_matches(pipe.vae.unscale_latents(result), golden["final_latent"])


@torch.no_grad()
def test_decoding(converted: Callable[[str], Any]) -> None:
    pipe, golden = converted("cardiodit_rope4d"), expected(ROPE)
    scaled = pipe.vae.scale_latents(golden["final_latent"])
    assert_matches(pipe._decode(scaled, 4, "pt")[0, 0], golden["decoded_quantized"])


@pytest.mark.parametrize("solver", [None, "unipc", "ddim", "ddpm"])
def test_every_solver_samples_where_the_last_step_is_pure_noise(
    solver: str | None, converted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = converted("cardiodit_rope4d")
    if solver:
        monkeypatch.setattr(pipe, "scheduler", change_solver(pipe.scheduler, solver))
    volumes = pipe(seed=0, num_inference_steps=7).volumes
    assert pipe.scheduler.timesteps[0] == 999 and torch.isfinite(volumes).all()


# --- The process in training ---


def test_normalisation_of_latents(converted: Callable[[str], Any]) -> None:
    golden = expected(ROPE)
    valid = golden["statistics_latents_padded"][0][..., golden["statistics_mask_padded"][0] > 0]
    mean, deviation = channel_statistics([*golden["statistics_latents"], valid])
    assert_matches(torch.tensor(mean), golden["latent_mean"].flatten())
    assert_matches(torch.tensor(deviation), golden["latent_std"].flatten())
    of_voldit = expected(VOLDIT)
    mean, deviation = channel_statistics([*of_voldit["statistics_a"], *of_voldit["statistics_b"]])
    assert_matches(torch.tensor(mean), of_voldit["latent_mean"].flatten())
    assert_matches(torch.tensor(deviation), of_voldit["latent_std"].flatten())
    for name in SYSTEMS:
        recorded, vae = expected(GOLDEN / name), converted(name).vae
        assert_matches(vae.scale_latents(recorded["latents"]), recorded["scaled_latents"])
        assert_matches(vae.unscale_latents(recorded["scaled_latents"]), recorded["latents"])


def test_flow_matching_in_three_dimensions(converted: Callable[[str], Any]) -> None:
    golden, flow = expected(VOLDIT), FlowMatching()
    inputs = golden["scaled_latents"], golden["noise"], golden["model_timestep"]
    assert_matches(flow.corrupt(*inputs), golden["noisy"])
    assert_matches(flow.target(*inputs), golden["target"])
    assert isinstance(converted("voldit_flow").scheduler, FlowMatchEulerDiscreteScheduler)


@torch.no_grad()
def test_the_estimate_that_training_hands_on(converted: Callable[[str], Any]) -> None:
    for name, objective in (
        ("cardiodit_rope4d", Denoising(1000, zero_terminal_snr=True)),
        ("cardiodit_flow", FlowMatching()),
    ):
        golden = expected(GOLDEN / name)
        time = golden["timestep"] if name == "cardiodit_rope4d" else golden["model_timestep"]
        noise = golden.get("offset_noise", golden["noise"])
        model, clean = converted(name).transformer, golden["scaled_latents"]
        noisy = objective.corrupt(clean, noise, time)
        assert_matches(noisy, golden["noisy"])
        predicted = model(noisy, time).sample
        assert_matches(predicted, golden["prediction"])
        estimate = objective.clean_from(predicted, noisy, time)
        assert_matches(estimate, golden["self_condition_estimate"])
        again = model(noisy, time, self_condition=estimate).sample
        batch = {"noise": noise, "timestep": time}
        expected_loss = objective.error(again, objective.target(clean, noise, time)).mean()
        torch.testing.assert_close(objective.losses(model, clean, batch, with_estimate=True).mean(), expected_loss)


# --- Files ---


def test_interpolations_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_ROOT", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    (tmp_path / "a.yaml").write_text(
        "model: {params: {input_size: [1, 2], deep: '${model.params.input_size}'}}\n"
        "path: '${oc.env:NOWHERE,${oc.env:LATENT_ROOT}/x}/y'\nlost: '${oc.env:NOWHERE}'\nloop: '${loop}'\n"
    )
    read = read_their_yaml(tmp_path / "a.yaml")
    assert read["model"]["params"]["deep"] == [1, 2]
    assert (read["path"], read["lost"]) == ("here/x/y", "${oc.env:NOWHERE}")
    assert read["loop"] == "${loop}"


def test_the_file_that_points_at_the_last_checkpoint(tmp_path: Path) -> None:
    shutil.copy(FLOW / "dit_best_model.pth", tmp_path / "epoch_7.pth")
    pointer = tmp_path / "last_checkpoint.json"
    pointer.write_text(json.dumps({"pointer_schema": 1, "target": "epoch_7.pth"}))
    assert read_checkpoint(pointer).file == "epoch_7.pth"
    pointer.write_text(json.dumps({"target": "../epoch_7.pth"}))
    with pytest.raises(CardioDiTError, match="does not name a checkpoint in its folder"):
        read_checkpoint(pointer)


def convert_rope(output: Path, tmp_path: Path, change: Callable[[dict], Any], of: str = "cfg") -> Path:
    """Convert the rotary model with its config or its checkpoint changed."""
    files = {"stage1_ckpt": ROPE / "vqgan_best_model.pth", "stage1_cfg": ROPE / "vqgan.yaml"}
    files |= {"diff_ckpt": ROPE / "dit_best_model.pth", "diff_cfg": ROPE / "dit.yaml"}
    changed = tmp_path / files[f"diff_{of}"].name
    if of == "cfg":
        content = yaml.safe_load(files["diff_cfg"].read_text())
        change(content)
        changed.write_text(yaml.safe_dump(content))
    else:
        content = dict(read_checkpoint(files["diff_ckpt"]).entries)
        change(content)
        torch.save(content, changed)
    return convert_cardiodit(output_dir=output, **{**files, f"diff_{of}": changed})


def test_positions_that_older_versions_stored_in_vain(tmp_path: Path) -> None:
    def store(content: dict[str, Any]) -> None:
        content["model"] = {**content["model"], "pos_embed": torch.zeros(1, 48, 48)}

    folder = convert_rope(tmp_path / "model", tmp_path, store, of="ckpt")
    assert json.loads((folder / "transformer/config.json").read_text())["position_mode"] == "axial_rope"


@pytest.mark.parametrize(
    ("of", "change", "words"),
    [
        ("cfg", lambda c: c["training"].update(normalize_latents=False), "trained with normalize_latents True"),
        ("cfg", lambda c: c["training"].update(loss_type="l1"), "objective_loss mse and loss_type l1 differ"),
        ("cfg", lambda c: c["training"].update(batch_strategy="mask"), "batch_strategy mask is refused"),
        ("cfg", lambda c: c["training"].update(self_conditioning=False), "self_conditioning is False in training"),
        ("cfg", lambda c: c["optim"].update(total_updates=7), "target_optimizer_updates 300000 and total_updates 7"),
        (
            "cfg",
            lambda c: c.update(scheduler_type="flow_matching"),
            "zero_terminal_snr and offset_noise_strength belong",
        ),
        ("cfg", lambda c: c.update(scheduler_type="edm"), "scheduler_type 'edm' is not one of flow_matching"),
        ("cfg", lambda c: c["model"]["params"].update(pos_embed_mode="rope5d"), "there are no other positions"),
        ("cfg", lambda c: c["model"]["params"].update(qk_norm=False), "unexpected: blocks.0.attn.q_norm"),
        ("ckpt", lambda c: c.pop("latent_std"), "lacks the statistics latent_std"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, of: str, change: Callable, words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        convert_rope(tmp_path / "model", tmp_path, change, of)
    assert not (tmp_path / "model").exists()


def test_no_adapter_of_theirs_steers_such_a_base(tmp_path: Path) -> None:
    old = GOLDEN / "voldit"
    with pytest.raises(CardioDiTError, match="The adapter cannot be converted: .* and dit.yaml describes another one"):
        convert_voldit(
            *(old / "vqgan_best_model.pth", old / "vqgan.yaml", VOLDIT / "dit_best_model.pth", VOLDIT / "dit.yaml"),
            tmp_path / "model",
            tgca_ckpt=old / "tgca_best_model.pth",
            tgca_cfg=old / "tgca.yaml",
        )
