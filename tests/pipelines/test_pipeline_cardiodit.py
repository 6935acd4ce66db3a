import contextlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from safetensors.torch import load_file

from cardiodit import (
    CardioDiTError,
    CardioDiTPipeline,
    DiT3DTransformerModel,
    VolDiTPipeline,
    change_solver,
    make_scheduler,
    open_pipeline,
)
from cardiodit._util.randomness import generator_for
from cardiodit.convert.cardiodit import load_transformer
from cardiodit.pipelines import inputs
from cardiodit.schedulers import SOLVERS, cosine_betas

from ..device_waits import waits_in_sampling

SMALL_3D = {"sample_size": (8, 8, 4), "patch_size": (2, 2, 2), "num_layers": 1, "attention_head_dim": 12}
GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "cardiodit"


def latents_of(pipe: CardioDiTPipeline, **call) -> torch.Tensor:
    return pipe(num_inference_steps=call.pop("num_inference_steps", 4), output_type="latent", **call).volumes


def test_defaults_give_one_volume_of_the_trained_size(make_pipe) -> None:
    out = make_pipe()()
    assert out.volumes.shape == (1, 32, 32, 2, 16)  # (B, H, W, D, T)
    assert out.volumes.dtype == torch.float32 and out.volumes.device.type == "cpu"
    assert out.volumes.min() >= -1 and out.volumes.max() <= 1 and out.volumes.std() > 0
    assert out.records[0]["num_inference_steps"] == 25


def test_the_authors_ddim_trajectory(make_vae) -> None:
    """Five DDIM steps with their spacing from their start; only `leading` visits their timesteps."""
    golden = load_file(GOLDEN / "dit_expected.safetensors")
    transformer = load_transformer(GOLDEN / "dit_best_model.pth", GOLDEN / "dit.yaml")
    scheduler = change_solver(make_scheduler("ddpm", 300, cosine_betas(300)), "ddim")
    scheduler.register_to_config(timestep_spacing="leading")
    pipe = CardioDiTPipeline(make_vae(), transformer, scheduler)
    timesteps: list[int] = []

    def note(pipe, index, timestep, tensors):
        timesteps.append(int(timestep))

    start = golden["hidden_states"][:1]
    found = latents_of(pipe, latents=start, num_inference_steps=5, callback_on_step_end=note)
    assert timesteps == golden["ddim5_timesteps"].tolist()
    assert (found - golden["ddim5_final"]).abs().max() < 1e-5 * golden["ddim5_final"].abs().max()


def test_guidance_without_labels_warns(make_pipe, caplog: pytest.LogCaptureFixture) -> None:
    """Both predictions have the null label, so that nothing is guided and only time is lost."""
    pipe = make_pipe(num_classes=2, class_dropout_prob=0.1)
    logging.getLogger("diffusers").propagate = True
    call = {"seed": 0, "num_inference_steps": 1}
    inputs._warn_once.cache_clear()
    guided = pipe(guidance_scale=3.5, **call).volumes
    assert "guidance_scale=3.5 has no effect without class labels" in caplog.text
    assert torch.equal(guided, pipe(**call).volumes)
    caplog.clear()
    inputs._warn_once.cache_clear()
    pipe(guidance_scale=3.5, class_labels=1, **call)
    assert "no effect" not in caplog.text


def test_a_pipeline_refuses_models_of_another_number_of_axes(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe()
    pipe.save_pretrained(tmp_path / "heart")
    told = "A VolDiTPipeline needs a VQModel3D, and this model has a VQModel4D.*cardiodit.open_pipeline"
    with pytest.raises(CardioDiTError, match=told):
        VolDiTPipeline.from_pretrained(tmp_path / "heart")
    with pytest.raises(CardioDiTError, match=told):
        VolDiTPipeline(pipe.vae, pipe.transformer, pipe.scheduler)
    with pytest.raises(CardioDiTError, match="A CardioDiTPipeline needs a DiT4DTransformerModel"):
        CardioDiTPipeline(pipe.vae, DiT3DTransformerModel(**SMALL_3D), pipe.scheduler)
    assert type(open_pipeline(tmp_path / "heart")) is CardioDiTPipeline


def test_the_output_cannot_be_encoded_by_mistake_in_the_order_of_files(make_pipe) -> None:
    pipe = make_pipe()
    call = {"seed": 0, "num_inference_steps": 1}
    told = r"volumes \(B, C, D, H, W, T\) with 1 channel, got 5 axes, \(1, 32, 32, 2, 16\).*output_type=.pt."
    with pytest.raises(CardioDiTError, match=told):
        pipe.vae.encode(pipe(**call).volumes)
    with torch.no_grad():
        assert pipe.vae.encode(pipe(output_type="pt", **call).volumes).latents.shape == (1, 8, 2, 8, 8, 4)


def test_axes_arrive_where_they_belong(make_pipe) -> None:
    pipe = make_pipe()
    call = {"seed": 3, "num_inference_steps": 2, "depth": 3, "height": 48, "width": 16, "frames": 8}
    volumes, tensor, array = (pipe(output_type=t, **call).volumes for t in ("volumes", "pt", "np"))
    assert volumes.shape == (1, 48, 16, 3, 8) and tensor.shape == (1, 1, 3, 48, 16, 8)
    assert torch.equal(volumes, tensor[:, 0].permute(0, 2, 3, 1, 4))
    assert isinstance(array, np.ndarray) and np.array_equal(array, volumes.numpy())
    latents = latents_of(pipe, **call)
    assert latents.shape == (1, 8, 3, 12, 4, 2)
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    assert torch.allclose(decoded, tensor, atol=1e-5)


@pytest.mark.parametrize("solver, eta", [*((s, 0.0) for s in SOLVERS), ("ddim", 1.0)])
def test_a_sample_does_not_depend_on_its_batch(make_pipe, solver, eta) -> None:
    pipe = make_pipe(solver)
    together = latents_of(pipe, num_samples=5, seed=11, eta=eta)
    for i in (0, 2, 4):
        alone = latents_of(pipe, num_samples=1, seed=11, first_sample=i, eta=eta)
        assert (together[i : i + 1] - alone).abs().max() < 1e-4
        codes = [pipe.vae.quantize(z).indices for z in (together[i : i + 1], alone)]
        assert (codes[0] == codes[1]).float().mean() >= 0.999
    assert (together[0] - together[1]).abs().max() > 0.1


def test_noise_is_equal_to_the_bit_whatever_the_batch(make_pipe) -> None:
    """A model that predicts nothing leaves the initial and the per-step noise to be compared."""
    pipe = make_pipe("ddpm")
    for parameter in pipe.transformer.parameters():
        parameter.data.zero_()
    together = latents_of(pipe, num_samples=4, seed=2, num_inference_steps=6)
    alone = [latents_of(pipe, seed=2, first_sample=i, num_inference_steps=6) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))


def test_seeds_and_generators(make_pipe) -> None:
    pipe = make_pipe()
    by_seed = latents_of(pipe, num_samples=2, seed=5)
    by_list = latents_of(pipe, generator=[generator_for(5, 0), generator_for(5, 1)])
    assert torch.equal(by_seed, by_list)
    shared = [latents_of(pipe, num_samples=2, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*shared) and not torch.equal(shared[0], by_seed)
    assert not torch.equal(latents_of(pipe), latents_of(pipe))
    torch.manual_seed(7)
    first = pipe(num_inference_steps=2)
    torch.manual_seed(7)
    assert torch.equal(pipe(num_inference_steps=2).volumes, first.volumes)
    again = pipe(num_inference_steps=2, seed=first.records[0]["seed"])
    assert torch.equal(again.volumes, first.volumes), "a drawn seed is recorded, so the sample can be made again"


def test_latents_are_divided_by_the_models_own_scaling_factor(make_pipe, tmp_path) -> None:
    plain, scaled = make_pipe(), make_pipe(vae={"scaling_factor": 2.0})
    scaled.save_pretrained(tmp_path)
    scaled = CardioDiTPipeline.from_pretrained(tmp_path)
    assert torch.equal(latents_of(plain, seed=1), latents_of(scaled, seed=1))
    start = latents_of(plain, seed=1)
    halved = plain.vae.decode(start / 2).sample.clamp(-1, 1)
    found = scaled(seed=1, num_inference_steps=4, output_type="pt").volumes
    assert torch.allclose(found, halved, atol=1e-5)


def test_decoding_in_batches_changes_nothing(make_pipe) -> None:
    pipe = make_pipe()
    one, many = (pipe(num_samples=2, seed=1, num_inference_steps=2, decode_batch_size=n).volumes for n in (1, 3))
    assert torch.allclose(one, many, atol=1e-5)


LABELLED = {"num_classes": 3, "class_dropout_prob": 0.1, "class_names": ["normal", "dilated", "infarct"]}


def test_labels_steer_by_number_and_name(make_pipe) -> None:
    pipe = make_pipe(**LABELLED)
    by_name = latents_of(pipe, class_labels=["normal", "infarct"], seed=1)
    assert torch.equal(by_name, latents_of(pipe, class_labels=torch.tensor([0, 2]), seed=1))
    assert torch.allclose(by_name[:1], latents_of(pipe, class_labels=0, seed=1), atol=1e-4)
    assert (by_name - latents_of(pipe, num_samples=2, class_labels="dilated", seed=1)).abs().max() > 1e-3
    out = pipe(class_labels=[1, 0], num_inference_steps=2)
    assert [r["class_label"] for r in out.records] == ["dilated", "normal"]


def test_guidance_is_an_extrapolation_from_the_null_label(make_pipe) -> None:
    pipe = make_pipe(**LABELLED)
    noisy, time = torch.randn(1, 8, 2, 8, 8, 4), torch.tensor(150)
    with torch.no_grad():
        conditional, null = (pipe.transformer(noisy, time, torch.tensor([label])).sample for label in (1, 3))
        pipe._guidance_scale = 3.0
        given = {"class_labels": torch.tensor([1])}
        guided = pipe._predict(noisy, time, given, inputs.unguided_inputs(pipe.denoiser, given))
    assert torch.allclose(guided, null + 3.0 * (conditional - null), atol=1e-6)
    call = {"seed": 1, "class_labels": 1}
    assert (latents_of(pipe, **call, guidance_scale=3.0) - latents_of(pipe, **call)).abs().max() > 1e-3
    # guiding nothing towards nothing is nothing
    unlabelled = latents_of(pipe, seed=1)
    assert torch.allclose(latents_of(pipe, seed=1, guidance_scale=5.0), unlabelled, atol=1e-5)


def test_learned_sigma_is_not_part_of_the_prediction(make_pipe) -> None:
    for solver in ("ddpm", "dpm++"):
        assert latents_of(make_pipe(solver, learn_sigma=True), seed=0).shape == (1, 8, 2, 8, 8, 4)


def test_callbacks_see_and_change_latents_and_can_stop(make_pipe) -> None:
    pipe, seen = make_pipe(), []

    def watch(pipe, index, timestep, tensors):
        seen.append((index, int(timestep), pipe.current_timestep, pipe.num_timesteps, tensors["latents"].shape))
        if index == 2:
            pipe._interrupt = True
        return {"latents": torch.zeros_like(tensors["latents"])}

    found = latents_of(pipe, callback_on_step_end=watch)
    assert [(i, n) for i, _, _, n, _ in seen] == [(0, 4), (1, 4), (2, 4)]
    assert all(t == current for _, t, current, _, _ in seen)
    assert not found.any()
    assert pipe.current_timestep is None


def test_tuple_output_and_progress_bar(make_pipe) -> None:
    pipe = make_pipe()
    (volumes,) = pipe(seed=1, num_inference_steps=3, return_dict=False)
    assert torch.equal(volumes, pipe(seed=1, num_inference_steps=3).volumes)
    pipe.set_progress_bar_config(disable=False)
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        pipe(num_inference_steps=3)
    assert "3/3" in shown.getvalue()


def test_no_gradients_are_kept(make_pipe) -> None:
    assert not latents_of(make_pipe()).requires_grad


def test_half_precision_draws_the_same_noise(make_pipe) -> None:
    pipe = make_pipe()
    single = latents_of(pipe, seed=1)
    half = latents_of(pipe.to(torch.bfloat16), seed=1)
    assert half.dtype == torch.float32
    assert (half - single).abs().max() < 0.1


def test_other_diffusers_solvers(make_pipe) -> None:
    pipe = make_pipe("ddim")
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    together = latents_of(pipe, num_samples=3, seed=1)
    assert (together[2:] - latents_of(pipe, seed=1, first_sample=2)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "call, message",
    [
        ({"num_inference_steps": 301}, "num_inference_steps=301.*300 steps"),
        ({"num_inference_steps": 0}, "whole number from 1 to 300"),
        ({"num_inference_steps": 2.5}, "whole number"),
        ({"height": 40}, "height=40 cannot be generated.*multiples of 16 .autoencoder 4 × patch 4.*32 or 48"),
        ({"frames": 4}, "frames=4 cannot be generated.*multiples of 8.*nearest: 8"),
        ({"depth": 0}, "depth=0 must be a whole number of at least 1"),
        ({"width": -16}, "width=-16 must be"),
        ({"output_type": "pil"}, "output_type='pil' is not one of volumes, np, pt, latent"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 requires a model trained with labels"),
        ({"class_labels": 0}, "trained without labels"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number of at least 1"),
        ({"num_samples": 3, "generator": [torch.Generator()] * 2}, "num_samples 3, generator 2. They must agree"),
        ({"seed": 1, "generator": torch.Generator()}, "either seed or generator"),
        ({"seed": -1}, "seed=-1 must be a whole number"),
        ({"first_sample": -1}, "first_sample=-1"),
        ({"decode_batch_size": 0}, "decode_batch_size=0 must be"),
        ({"eta": 0.5}, "eta=0.5 was given, but DPMSolverMultistepScheduler has no eta"),
        ({"guidance_scale": None}, "guidance_scale=None must be a number"),
        ({"height": 32.0}, "height=32.0 must be a whole number"),
        ({"latents": torch.zeros(1, 8, 2, 8, 8, 2)}, r"shape \(1, 8, 2, 8, 8, 2\), expected \(1, 8, 2, 8, 8, 4\)"),
        ({"callback_on_step_end_tensor_inputs": ["prompt"]}, "this pipeline offers"),
    ],
)
def test_bad_arguments_end_in_a_sentence(make_pipe, call, message) -> None:
    with pytest.raises(CardioDiTError, match=message):
        make_pipe()(**call)


@pytest.mark.parametrize(
    "labels, message",
    [
        (3, "no class label 3 in this model; choose 0 to 2 or normal, dilated, infarct"),
        (-1, "no class label -1"),
        ("healthy", "no class label 'healthy'"),
        (True, "no class label True"),
        ([0, 1.5], "no class label 1.5"),
    ],
)
def test_labels_that_do_not_exist(make_pipe, labels, message) -> None:
    with pytest.raises(CardioDiTError, match=message):
        make_pipe(**LABELLED)(class_labels=labels)


def test_numbers_may_be_numpys_and_lists_tuples(make_pipe) -> None:
    pipe = make_pipe(**LABELLED)
    plain = latents_of(pipe, class_labels=[1, 2], seed=3, height=32, num_inference_steps=4)
    for labels in (np.array([1, 2]), (1, 2), torch.tensor([1, 2], dtype=torch.int32), [np.int64(1), "infarct"]):
        numpys = {"seed": np.int64(3), "height": np.int32(32), "num_inference_steps": np.int64(4)}
        assert torch.equal(latents_of(pipe, class_labels=labels, **numpys), plain)
    assert torch.equal(
        latents_of(pipe, class_labels=np.int64(1), seed=3), latents_of(pipe, class_labels=torch.tensor(1), seed=3)
    )
    assert latents_of(pipe, generator=(torch.Generator(), torch.Generator()), class_labels=0).shape[0] == 2


def test_eta_is_a_share(make_pipe) -> None:
    with pytest.raises(CardioDiTError, match="eta=2.0 must be a number from 0 to 1"):
        make_pipe("ddim")(eta=2.0)


def test_a_model_without_null_label_needs_labels(make_pipe) -> None:
    pipe = make_pipe(num_classes=3)
    with pytest.raises(CardioDiTError, match="requires class_labels: 0 to 2"):
        pipe()
    with pytest.raises(CardioDiTError, match="no null label"):
        pipe(class_labels=1, guidance_scale=2.0)
    assert latents_of(pipe, class_labels=1).isfinite().all()


def test_a_scheduler_of_another_prediction_type(make_pipe) -> None:
    pipe = make_pipe()
    pipe.scheduler = make_scheduler("ddim", prediction_type="epsilon")
    with pytest.raises(CardioDiTError, match="prediction_type='epsilon', but the model was trained for 'v_prediction'"):
        pipe()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(CardioDiTError, match="for models that predict flow, but this one was trained for v_prediction"):
        pipe()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(CardioDiTError, match="FlowMatchHeunDiscreteScheduler has no prediction_type"):
        pipe()
    noise_model = make_pipe(prediction_type="epsilon")
    noise_model.scheduler = make_scheduler("ddim", prediction_type="epsilon")
    assert latents_of(noise_model).isfinite().all()


def test_leading_spacing_is_allowed_with_a_warning(make_pipe) -> None:
    from diffusers.utils import logging

    pipe = make_pipe()
    pipe.scheduler = DDPMScheduler(
        300, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False
    )
    logger = logging.get_logger("cardiodit.pipelines.scheduler_utils")
    shown: list[str] = []
    logger.addFilter(lambda record: shown.append(record.getMessage()) or True)
    pipe(num_inference_steps=2)
    assert len(shown) == 1 and "'leading'" in shown[0]


def test_sampling_while_training_leaves_the_codebook_alone(make_pipe) -> None:
    """A preview between two training steps is no lesson."""
    pipe = make_pipe()
    pipe.vae.train()
    before = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    first, second = (pipe(seed=0, num_inference_steps=2).volumes for _ in range(2))
    assert torch.equal(first, second)
    for name, tensor in pipe.vae.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_stages_that_do_not_belong_together(make_vae, make_dit) -> None:
    with pytest.raises(CardioDiTError, match="latents have 8 channels, but the transformer takes 4"):
        CardioDiTPipeline(make_vae(), make_dit(in_channels=4), make_scheduler())


def test_values_that_are_not_numbers_are_noticed(make_pipe) -> None:
    pipe = make_pipe()
    pipe.vae.decoder.blocks[0].conv.bias.data.fill_(float("nan"))
    with pytest.raises(CardioDiTError, match="NaN or infinite values"):
        pipe(num_inference_steps=1)


def test_folders_that_hold_no_pipeline(make_dit, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"contains no model_index.json, so it is not a pipeline folder"):
        CardioDiTPipeline.from_pretrained(tmp_path)
    (tmp_path / "best_model.pth").touch()
    with pytest.raises(CardioDiTError, match="cardiodit convert"):
        CardioDiTPipeline.from_pretrained(tmp_path)
    make_dit().save_pretrained(tmp_path)
    with pytest.raises(CardioDiTError, match="looks like a single model"):
        CardioDiTPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/model", "/no/such/model", "../model"])
def test_folders_that_do_not_exist(name: str) -> None:
    with pytest.raises(CardioDiTError, match=f"There is no folder {name}.*org/name"):
        CardioDiTPipeline.from_pretrained(name)


def test_a_damaged_component_is_named(make_pipe, tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CardioDiTError, match="vae are damaged or cut short"):
        CardioDiTPipeline.from_pretrained(tmp_path)
    make_pipe().save_pretrained(tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 1}))
    with pytest.raises(CardioDiTError, match=r"transformer do not fit.*unexpected: transformer_blocks.1"):
        CardioDiTPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])  # diffusers' UniPC copies coefficients to the device
@pytest.mark.parametrize("steps", [3, 7])  # DDIM takes its own step where the number does not divide the schedule
def test_the_sampling_loop_waits_for_nothing(make_pipe, monkeypatch, solver, steps) -> None:
    pipe = make_pipe(solver, num_classes=2, class_dropout_prob=0.1).to("meta")
    settings = {"num_inference_steps": steps, "seed": 0, "class_labels": 1, "guidance_scale": 2.0}
    assert waits_in_sampling(lambda: pipe(**settings), monkeypatch) == []
