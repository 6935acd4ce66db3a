"""MedLoRD's U-Net and ControlNet compute what the published ones compute, with what diffusers offers for any model."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig

from cardiodit import CardioDiTError, MedLoRDControlNetModel, MedLoRDUNetModel
from cardiodit.models.adapter_tgca import fingerprint_of

from ..conftest import randomise

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": (False, True),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}


@pytest.fixture
def unet() -> MedLoRDUNetModel:
    return randomise(MedLoRDUNetModel(sample_size=(8, 8, 4), **SMALL), std=0.1)


@pytest.fixture
def controlnet(unet: MedLoRDUNetModel) -> MedLoRDControlNetModel:
    made = MedLoRDControlNetModel(
        **SMALL, condition_channels=2, condition_widths=(4, 8), fingerprint=fingerprint_of(unet)
    )
    return randomise(made, seed=1, std=0.1)


def latents(*shape: int) -> torch.Tensor:
    return torch.randn(shape or (2, 4, 8, 8, 4), generator=torch.Generator().manual_seed(0))


TIMES = torch.tensor([5, 240])


@torch.no_grad()
def predict(unet: MedLoRDUNetModel, **changes: Any) -> torch.Tensor:
    return unet(**{"sample": latents(), "timestep": TIMES, **changes}).sample


def relative_error(found: torch.Tensor, reference: torch.Tensor) -> float:
    return float((found.float() - reference).norm() / reference.norm())


# --- Shapes ---


def test_sizes_that_cannot_be_halved_are_refused(unet: MedLoRDUNetModel) -> None:
    assert unet(latents(1, 4, 6, 10, 2), 7).sample.shape == (1, 4, 6, 10, 2)
    with pytest.raises(CardioDiTError, match="depth axis has size 3, .* cannot halve 1 times: depth must be a multi"):
        unet(latents(1, 4, 8, 8, 3), 7)
    with pytest.raises(CardioDiTError, match="latents of 4 channels, got 5"):
        unet(latents(1, 5, 8, 8, 4), 7)
    with pytest.raises(CardioDiTError, match=r"expects \(batch, channel, height, width, depth\), got 4 axes"):
        unet(latents(1, 4, 8, 8), 7)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": (1, 1, 1)}, r"layers_per_block=\[1, 1, 1\] must have one entry for each of the 2 levels"),
        ({"norm_num_groups": 12}, "Level 0 has 16 channels, which 12 groups of normalisation do not divide"),
        ({"attention_head_dim": (0, 16)}, "Level 0 has 16 channels, which heads of 0 do not divide"),
        ({"attention_head_dim": 24}, "Level 1 has 32 channels, which heads of 24 do not divide"),
        ({"prediction_type": "v"}, "prediction_type='v' is not one of v_prediction, epsilon, sample"),
        ({"sample_size": (8, 8, 5)}, "depth must be a multiple of 2"),
    ],
)
def test_shapes_that_no_model_can_have(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        MedLoRDUNetModel(**{"sample_size": (8, 8, 4), **SMALL, **changes})


def test_the_class_default_of_the_published_controlnet_is_refused_in_words() -> None:
    """A quarter of 64 channels cannot be normalised in 32 groups."""
    with pytest.raises(CardioDiTError, match="Level 0 has 16 channels, which 32 groups of normalisation do not divide"):
        MedLoRDControlNetModel(width_ratio=0.25)


def test_blocks_may_differ_between_levels() -> None:
    model = MedLoRDUNetModel(
        sample_size=(8, 8, 4), **{**SMALL, "layers_per_block": (1, 2), "attention_head_dim": (16, 8)}
    )
    assert [len(level.blocks) for level in (*model.down_blocks, *model.up_blocks)] == [1, 2, 3, 2]
    assert model.middle_block.attention.attn.heads == 4
    assert predict(model).abs().max() == 0  # an untrained model predicts zero


# --- Steering ---


def test_an_untrained_controlnet_changes_nothing(unet: MedLoRDUNetModel) -> None:
    controlnet = MedLoRDControlNetModel(**SMALL, condition_channels=2, condition_widths=(4, 8)).eval()
    masks = torch.rand(2, 2, 32, 32, 16).round()
    control = controlnet.control(controlnet.embed(masks, unet, (4, 4, 2)), unet, latents(), TIMES)
    assert torch.equal(predict(unet, **control), predict(unet))


@torch.no_grad()
def test_masks_steer_in_proportion_to_the_scale(unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel) -> None:
    masks = torch.rand(2, 2, 32, 32, 16).round()
    embedded = controlnet.embed(masks, unet, (4, 4, 2))
    whole = controlnet(latents(), TIMES, embedded)
    half = controlnet(latents(), TIMES, embedded, conditioning_scale=0.5)
    for full, less in zip(whole.down_block_res_samples, half.down_block_res_samples, strict=True):
        assert torch.allclose(full / 2, less) and full.abs().max() > 0
    off = controlnet.control(embedded, unet, latents(), TIMES, conditioning_scale=0.0)
    assert torch.equal(predict(unet, **off), predict(unet))


def test_a_controlnet_belongs_to_one_unet(unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel) -> None:
    controlnet.check_base(unet)
    other = randomise(MedLoRDUNetModel.from_config(unet.config), seed=2)
    with pytest.raises(CardioDiTError, match="ControlNet was trained on another U-Net"):
        controlnet.check_base(other)
    wider = MedLoRDUNetModel(sample_size=(8, 8, 4), **{**SMALL, "block_out_channels": (16, 64)})
    with pytest.raises(CardioDiTError, match=r"another U-Net than this one: block_out_channels .*32.*, not .*64"):
        controlnet.check_base(wider)


def test_masks_of_the_wrong_size_or_number(unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel) -> None:
    with pytest.raises(CardioDiTError, match=r"takes masks \(batch, .*, height, width, depth\), got \(1, 3, 32, 32"):
        controlnet.embed(torch.zeros(1, 3, 32, 32, 16), unet, (4, 4, 2))
    with pytest.raises(CardioDiTError, match=r"at \(16, 16, 8\), but the latents are \(8, 8, 4\): condition_widths"):
        controlnet.embed(torch.zeros(1, 2, 64, 64, 32), unet, (4, 4, 2))


# --- What diffusers offers ---


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash"])
def test_attention_backends_agree(unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel, backend: str) -> None:
    active = _AttentionBackendRegistry._active_backend
    masks = torch.ones(2, 2, 32, 32, 16)

    def steered() -> torch.Tensor:
        with torch.no_grad():
            embedded = controlnet.embed(masks, unet, (4, 4, 2))
            return predict(unet, **controlnet.control(embedded, unet, latents(), TIMES))

    expected = steered()
    try:
        for model in (unet, controlnet):
            model.set_attention_backend(backend)
        assert len(unet.attn_processors) == 4 and len(controlnet.attn_processors) == 4
        assert relative_error(steered(), expected) < 1e-5
    finally:
        _AttentionBackendRegistry._active_backend = active


def test_fused_projections_compute_the_same(unet: MedLoRDUNetModel) -> None:
    expected = predict(unet)
    unet.fuse_qkv_projections()
    assert any("to_qkv" in name for name in unet.state_dict())
    assert relative_error(predict(unet), expected) < 1e-5


def saved_bytes(run: Callable[[], torch.Tensor], model: torch.nn.Module) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes that a forward pass keeps for the backward pass, and the gradients."""
    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = run().square().mean()
    loss.backward()
    return held, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_needs_less_memory_for_equal_gradients(
    unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel
) -> None:
    unet.requires_grad_(False)
    masks = torch.ones(2, 2, 32, 32, 16)

    def steered() -> torch.Tensor:
        embedded = controlnet.embed(masks, unet, (4, 4, 2))
        return unet(latents(), TIMES, **controlnet.control(embedded, unet, latents(), TIMES)).sample

    for model, run in ((controlnet, steered), (unet, lambda: unet(latents(), TIMES).sample)):
        unet.requires_grad_(model is unet)
        whole, expected = saved_bytes(run, model)
        model.enable_gradient_checkpointing()
        less, found = saved_bytes(run, model)
        assert less < (0.5 if model is unet else 0.9) * whole
        assert found.keys() == expected.keys() and len(found) == len(list(model.parameters()))
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_lora_is_added_saved_loaded_and_fused(unet: MedLoRDUNetModel, tmp_path: Path) -> None:
    original = predict(unet)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name="mine")
    adapted = predict(unet)
    assert relative_error(adapted, original) > 1e-4
    unet.save_lora_adapter(tmp_path, adapter_name="mine")
    unet.delete_adapters("mine")
    assert torch.allclose(predict(unet), original, atol=1e-6)
    unet.load_lora_adapter(tmp_path, prefix=None, adapter_name="again")
    assert torch.allclose(predict(unet), adapted, atol=1e-6)
    unet.fuse_lora()
    unet.unload_lora()
    assert relative_error(predict(unet), adapted) < 1e-5


@pytest.mark.parametrize("is_training", [False, True])
def test_it_compiles_as_one_graph(unet: MedLoRDUNetModel, is_training: bool) -> None:
    expected = predict(unet)
    torch.compiler.reset()
    if is_training:
        unet.enable_gradient_checkpointing()
    unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(is_training):
        found = unet(latents(), TIMES, return_dict=False)[0]
    assert found.requires_grad == is_training and relative_error(found.detach(), expected) < 1e-5
    torch.compiler.reset()


def test_layerwise_casting_stores_less_and_stays_close(unet: MedLoRDUNetModel) -> None:
    expected, before = predict(unet), unet.get_memory_footprint()
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert unet.down_blocks[1].blocks[0].attention.attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert unet.down_blocks[0].blocks[0].resnet.conv1.conv.weight.dtype == torch.float8_e4m3fn
    assert unet.out[1].weight.dtype == unet.time_embed.linear_1.weight.dtype == torch.float32
    assert unet.get_memory_footprint() < 0.5 * before
    assert 1e-5 < relative_error(predict(unet), expected) < 0.05


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_computes_the_same(unet: MedLoRDUNetModel, kind: str) -> None:
    expected = predict(unet)
    device = torch.device("cpu")
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    unet.enable_group_offload(onload_device=device, offload_device=device, offload_type=kind, **blocks)
    assert torch.equal(predict(unet), expected)


def offloaded(model: torch.nn.Module) -> None:
    device = torch.device("cpu")
    model.enable_group_offload(onload_device=device, offload_device=device, offload_type="leaf_level")


def quantised(model: torch.nn.Module) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(version=2), lambda module, name: "to_q" in name)
    assert type(model.middle_block.attention.transformer_blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"


def cast(model: torch.nn.Module) -> None:
    before = model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert model.get_memory_footprint() < 0.6 * before


@pytest.mark.parametrize(
    ("change", "tolerance"),
    [
        (offloaded, 0.0),
        (cast, 0.1),
        (quantised, 0.02),
        (lambda model: model.to(memory_format=torch.channels_last_3d), 1e-5),
    ],
    ids=["offload", "layerwise casting", "int8", "channels last"],
)
@torch.no_grad()
def test_a_controlnet_offers_what_its_unet_does(
    unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel, change: Callable[..., Any], tolerance: float
) -> None:
    masks = torch.ones(2, 2, 32, 32, 16)

    def steered() -> torch.Tensor:
        embedded = controlnet.embed(masks, unet, (4, 4, 2))
        return controlnet(latents(), TIMES, embedded).mid_block_res_sample

    expected = steered()
    change(controlnet)
    assert relative_error(steered(), expected) <= tolerance


@torch.no_grad()
def test_lora_of_a_controlnet(unet: MedLoRDUNetModel, controlnet: MedLoRDControlNetModel) -> None:
    embedded = controlnet.embed(torch.ones(2, 2, 32, 32, 16), unet, (4, 4, 2))
    plain = controlnet(latents(), TIMES, embedded).mid_block_res_sample
    controlnet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name="mine"
    )
    assert relative_error(controlnet(latents(), TIMES, embedded).mid_block_res_sample, plain) > 1e-4
    controlnet.delete_adapters("mine")
    assert torch.allclose(controlnet(latents(), TIMES, embedded).mid_block_res_sample, plain, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_timestep_exact(unet: MedLoRDUNetModel, dtype: torch.dtype, tmp_path: Path) -> None:
    expected = predict(unet)
    unet.save_pretrained(tmp_path)
    half = MedLoRDUNetModel.from_pretrained(tmp_path, torch_dtype=dtype)
    assert {p.dtype for p in half.time_embed.parameters()} == {torch.float32} and half.out[1].weight.dtype == dtype
    assert relative_error(predict(half, sample=latents().to(dtype)), expected) < 0.03


def test_int8_weights_of_torchao(unet: MedLoRDUNetModel, tmp_path: Path) -> None:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    expected = predict(unet)
    unet.save_pretrained(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=["time_embed"])
    small = MedLoRDUNetModel.from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    assert type(small.middle_block.attention.attn.to_q.weight).__name__ == "Int8Tensor"
    assert relative_error(predict(small), expected) < 0.02


def test_channels_last_computes_the_same(unet: MedLoRDUNetModel) -> None:
    expected = predict(unet)
    unet.to(memory_format=torch.channels_last_3d)
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d)
    fast = latents().to(memory_format=torch.channels_last_3d)
    assert relative_error(predict(unet, sample=fast), expected) < 1e-5


def test_caches_of_transformers_are_refused_in_words(unet: MedLoRDUNetModel) -> None:
    from diffusers import FirstBlockCacheConfig

    with pytest.raises(CardioDiTError, match="blocks of transformers, which a U-Net does not have"):
        unet.enable_cache(FirstBlockCacheConfig(threshold=0.2))


def test_the_published_layer_without_an_output_projection(unet: MedLoRDUNetModel) -> None:
    names = {name for name in unet.state_dict() if re.search(r"attention", name)}
    assert any("attn.to_q" in name for name in names) and not any("to_out" in name for name in names)
