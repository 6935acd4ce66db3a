"""Features that diffusers offers for any transformer, tested on all of ours."""

import copy
import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FirstBlockCacheConfig, TaylorSeerCacheConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from peft import LoraConfig

from cardiodit import CardioDiTError, DiT3DTransformerModel, DiT4DTransformerModel
from cardiodit.models import transformer_prdit
from cardiodit.models.loading import DenoiserMixin
from cardiodit.models.transformer_prdit import PRDiTTransformerModel

from ..conftest import PREPARED

SMALL: dict[str, Any] = {
    "num_layers": 3,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
}
LABELS: dict[str, Any] = {"num_classes": 3, "class_dropout_prob": 0.1}
CLASSES = {
    DiT4DTransformerModel: {"sample_size": (2, 8, 8, 4), **SMALL, **LABELS},
    DiT3DTransformerModel: {"sample_size": (8, 8, 4), "patch_size": (2, 2, 2), **SMALL, **LABELS},
    PRDiTTransformerModel: {"sample_size": (32, 16, 16), "patch_size": 8, **SMALL},
}


@pytest.fixture(params=list(CLASSES), ids=["4D", "3D", "voxels"])
def model(request: pytest.FixtureRequest) -> DenoiserMixin:
    torch.manual_seed(0)
    model = request.param(**CLASSES[request.param])
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def inputs(model: DenoiserMixin, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    shape = (batch, model.config.in_channels, *model.config.sample_size)
    return {
        "hidden_states": torch.randn(shape, generator=torch.Generator().manual_seed(seed)),
        "timestep": torch.arange(batch) * 40 + 5,
        **({"class_labels": torch.arange(batch) % 3} if model.config.get("num_classes") else {}),
    }


@torch.no_grad()
def predict(model: DenoiserMixin, **changes: Any) -> torch.Tensor:
    return model(**{**inputs(model), **changes}).sample


# Attention


@pytest.fixture
def restored_backend() -> Iterator[None]:
    """Restore diffusers' attention backend, which is global."""
    active = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry._active_backend = active


@pytest.mark.parametrize("backend", ["native", "_native_math", "_native_flash", "flex"])
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_attention_backends_agree(model: DenoiserMixin, backend: str, restored_backend: None) -> None:
    expected = predict(model)
    model.set_attention_backend(backend)
    assert {block.attn.processor._attention_backend.value for block in model.transformer_blocks} == {backend}
    assert torch.allclose(predict(model), expected, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests errors on machines without a GPU")
@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("_native_cudnn", "needs a CUDA GPU, and none was found. Use 'native'"),
        ("_native_efficient", "needs a CUDA GPU, and none was found. Use 'native'"),
        ("flash", "install `flash-attn"),
        ("_flash_3", "FA3"),
        ("sage", "install `sageattention"),
        ("xformers", "install `xformers"),
        ("quick", "must be one of the following"),
    ],
)
def test_backends_that_cannot_run_here_are_refused(
    model: DenoiserMixin, backend: str, message: str, restored_backend: None
) -> None:
    expected = predict(model)
    with pytest.raises((CardioDiTError, RuntimeError, ValueError), match=message):
        model.set_attention_backend(backend)
    assert torch.equal(predict(model), expected)


def test_fused_projections_compute_the_same(model: DenoiserMixin) -> None:
    expected = predict(model)
    names = set(model.state_dict())
    model.fuse_qkv_projections()
    assert any("to_qkv" in name for name in model.state_dict())
    assert torch.allclose(predict(model), expected, atol=1e-6)
    model.unfuse_qkv_projections()
    assert set(model.state_dict()) == names and torch.allclose(predict(model), expected, atol=1e-6)


def test_a_custom_attention_processor_is_used(model: DenoiserMixin) -> None:
    class Silent:
        def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(hidden_states)

    expected = predict(model)
    model.set_attn_processor(Silent())
    assert len(model.attn_processors) == 3 and not torch.allclose(predict(model), expected)


# Cost


@torch.no_grad()
def test_the_parts_of_the_cost_run_as_often_as_in_a_forward_pass(model: DenoiserMixin) -> None:
    names = ["transformer_blocks.0", *(["local"] if isinstance(model, PRDiTTransformerModel) else [])]
    tokens = dict.fromkeys(names, 0.0)

    def count(name: str, weight: float) -> Any:
        def add(module: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> None:
            tokens[name] += weight * output.shape[1]

        return model.get_submodule(name).register_forward_hook(add)

    length = math.prod(model.grid_of(model.config.sample_size))
    for part, times in model.cost_parts(inputs(model)["hidden_states"]):
        hooks = [count(name, times) for name in names]
        part()
        for hook in hooks:
            hook.remove()
    assert tokens == {name: (3 if name == "transformer_blocks.0" else 1) * length for name in names}


@torch.no_grad()
def test_the_patches_of_some_tokens_stand_for_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformer_prdit, "PROBE_TOKENS", 2)
    local_denoiser = PRDiTTransformerModel(
        sample_size=(32, 16, 16), patch_size=8, num_layers=0, num_attention_heads=2, attention_head_dim=8
    )
    ((part, times),) = local_denoiser.cost_parts(torch.randn(1, 1, 32, 16, 16))
    assert times == 8 and part()[0].shape == (1, 2, 1024)


# Training


def saved_bytes(model: DenoiserMixin, **arguments: torch.Tensor) -> tuple[int, dict[str, torch.Tensor]]:
    """Return the bytes that a forward pass saves for the backward pass, and the gradients."""
    held = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal held
        held += tensor.numel() * tensor.element_size()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = model(**arguments).sample.square().mean()
    loss.backward()
    return held, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_needs_less_memory_for_equal_gradients(model: DenoiserMixin) -> None:
    model.train()
    whole, expected = saved_bytes(model, **inputs(model))
    model.enable_gradient_checkpointing()
    less, found = saved_bytes(model, **inputs(model))
    assert less < 0.4 * whole
    assert found.keys() == expected.keys() and len(found) == len(list(model.parameters()))
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_lora_is_trained_saved_loaded_and_fused(model: DenoiserMixin, tmp_path: Path) -> None:
    original = predict(model)
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), adapter_name="mine")
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained and all("lora" in name for name in trained)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(5):
        loss = (model(**inputs(model)).sample - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    adapted = predict(model)
    assert not torch.allclose(adapted, original, atol=1e-4)
    model.save_lora_adapter(tmp_path, adapter_name="mine")
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    model.delete_adapters("mine")
    assert torch.allclose(predict(model), original, atol=1e-6)
    model.load_lora_adapter(tmp_path, prefix=None, adapter_name="again")
    assert torch.allclose(predict(model), adapted, atol=1e-6)
    model.fuse_lora()
    model.unload_lora()
    assert torch.allclose(predict(model), adapted, atol=1e-5)


# Compilation


def test_repeated_blocks_compile_as_one_graph(model: DenoiserMixin) -> None:
    expected = predict(model)
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for timestep in (5, 77):
            found = predict(model, timestep=torch.tensor([timestep, timestep]))
    assert torch.allclose(predict(model), expected, atol=1e-5) and not torch.allclose(found, expected)


# Memory


def test_layerwise_casting_stores_less_and_stays_close(model: DenoiserMixin) -> None:
    expected, before = predict(model), model.get_memory_footprint()
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    block = model.transformer_blocks[0]
    assert block.attn.to_q.weight.dtype == torch.float8_e4m3fn
    assert block.modulation.weight.dtype == model.proj_out.weight.dtype == torch.float32
    assert model.get_memory_footprint() < 0.8 * before
    error = (predict(model) - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.05


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_computes_the_same(model: DenoiserMixin, kind: str) -> None:
    expected = predict(model)
    blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    model.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type=kind, **blocks
    )
    hooked = [module for module in model.modules() if hasattr(module, "_diffusers_hook")]
    assert len(hooked) > 3 and torch.equal(predict(model), expected)


def test_group_offload_to_disk_leaves_no_weights_in_memory(model: DenoiserMixin, tmp_path: Path) -> None:
    expected = predict(model)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
        offload_to_disk_path=str(tmp_path),
    )
    assert any(tmp_path.iterdir()) and torch.equal(predict(model), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_timestep_exact(model: DenoiserMixin, dtype, tmp_path: Path) -> None:
    """The time embedding stays float32 on loading: in bfloat16 neighbouring timesteps would become one."""
    expected = predict(model)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    assert {p.dtype for p in half.time_embed.parameters()} == {torch.float32} and half.proj_out.weight.dtype == dtype
    found = predict(half, hidden_states=inputs(model)["hidden_states"].to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).norm() / expected.norm() < 0.03


def test_int8_weights_of_torchao(model: DenoiserMixin, tmp_path: Path) -> None:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    expected = predict(model)
    model.save_pretrained(tmp_path)
    config = TorchAoConfig(Int8WeightOnlyConfig(version=2), modules_to_not_convert=["time_embed", "proj_out"])
    small = type(model).from_pretrained(tmp_path, quantization_config=config, torch_dtype=torch.float32)
    assert type(small.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    assert (predict(small) - expected).norm() / expected.norm() < 0.02


# Caches


def count_calls(model: DenoiserMixin) -> list[int]:
    calls = [0] * len(model.transformer_blocks)
    for number, block in enumerate(model.transformer_blocks):
        inner = block.ff.register_forward_hook

        def count(*_: Any, number: int = number) -> None:
            calls[number] += 1

        inner(count)
    return calls


def drift(model: DenoiserMixin, step: int) -> dict[str, torch.Tensor]:
    """Return the inputs of consecutive sampling steps, with a little less noise each time."""
    arguments = inputs(model)
    arguments["hidden_states"] = arguments["hidden_states"] * (1 - 0.002 * step)
    arguments["timestep"] = 200 - step * torch.ones(2, dtype=torch.long)
    return arguments


@torch.no_grad()
def trajectory(model: DenoiserMixin, steps: int = 6) -> list[torch.Tensor]:
    with model.cache_context("cond"):
        return [model(**drift(model, step)).sample for step in range(steps)]


def test_first_block_cache_skips_work_and_stays_close(model: DenoiserMixin) -> None:
    expected = trajectory(model)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    calls = count_calls(model)
    found = trajectory(model)
    assert calls[0] == 6 and calls[1] == calls[2] < 6
    for ours, exact in zip(found, expected):
        assert (ours - exact).norm() / exact.norm() < 0.05
    model.disable_cache()
    assert torch.equal(trajectory(model)[-1], expected[-1])


def test_taylorseer_skips_work_and_stays_close(model: DenoiserMixin) -> None:
    expected = trajectory(model)
    model.enable_cache(TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2, max_order=1))
    calls = count_attention(model)
    found = trajectory(model)
    assert calls[0] < 6
    for ours, exact in zip(found, expected):
        assert (ours - exact).norm() / exact.norm() < 0.05


def count_attention(model: DenoiserMixin) -> list[int]:
    calls = [0]
    for block in model.transformer_blocks[:1]:
        block.attn.to_q.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


# Several processes


def _one_of_two(rank: int, port: int, model: DenoiserMixin, arguments: dict, path: str) -> None:
    from diffusers import ContextParallelConfig

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and counts no CPU
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
    seen = []
    model.transformer_blocks[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    with torch.no_grad():
        found = model(**arguments).sample
    torch.save((found, seen), f"{path}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_context_parallelism_over_two_processes_gives_the_same_result(tmp_path: Path, model: DenoiserMixin) -> None:
    """Ulysses attention; ring attention needs kernels that return log-sums, which torch has for GPUs only."""
    arguments = inputs(model, 1)
    tokens = math.prod(model.grid_of(model.config.sample_size))
    if isinstance(model, DiT3DTransformerModel | DiT4DTransformerModel):  # steered in one block
        width = model.config.num_attention_heads * model.config.attention_head_dim
        control = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(5))
        arguments["block_controls"] = [None, control, *[None] * (model.config.num_layers - 2)]
    with torch.no_grad():
        expected = model(**arguments).sample
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [
        PREPARED.Process(target=_one_of_two, args=(rank, port, copy.deepcopy(model), arguments, str(tmp_path)))
        for rank in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
        assert job.exitcode == 0
    for rank in range(2):
        found, seen = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert seen == [tokens // 2]  # each process held half of the tokens
        assert torch.allclose(found, expected, atol=1e-5 * max(1.0, float(expected.abs().max())))
