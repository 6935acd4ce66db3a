"""PRDiT's network: as its definition says, and in less memory. What its authors recorded: tests/convert."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from cardiodit._util.memory import LiveMemory
from cardiodit.convert.prdit import SIZES
from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_prdit import OverlappingPatches, PRDiTTransformerModel

from ..conftest import randomise


def make(**settings: Any) -> PRDiTTransformerModel:
    small = {"sample_size": (16, 24, 8), "patch_size": 10, "num_layers": 2}
    width = {"num_attention_heads": 3, "attention_head_dim": 8}
    return randomise(PRDiTTransformerModel(**{**small, **width, **settings}))


def noisy(*size: int, batch: int = 1, channels: int = 1) -> torch.Tensor:
    return torch.randn(batch, channels, *(size or (16, 24, 8)), generator=torch.Generator().manual_seed(0))


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


# As published


@pytest.mark.parametrize(
    "size, layers, millions", [("B", 4, 93.23), ("B", 0, 39.16), ("B", 8, 135.74), ("B", 12, 178.26), ("XL", 4, 155.97)]
)
def test_published_sizes_have_the_published_number_of_weights(size: str, layers: int, millions: float) -> None:
    width, heads = SIZES[size]
    with torch.device("meta"):
        model = PRDiTTransformerModel(num_layers=layers, num_attention_heads=heads, attention_head_dim=width // heads)
    assert count(model) / 1e6 == pytest.approx(millions, abs=0.005)
    assert count(model.local) / 1e6 == pytest.approx(37.63, abs=0.005)
    if (size, layers) == ("B", 4):
        assert sum(map(count, model.refiner_parts())) / 1e6 == pytest.approx(54.07, abs=0.005)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_every_size_runs(size: str) -> None:
    """L, too, whose width its authors' positions cannot fill."""
    width, heads = SIZES[size]
    head = {"num_attention_heads": heads, "attention_head_dim": width // heads}
    model = make(sample_size=(8, 8, 16), patch_size=8, num_layers=1, **head)
    sample = model(noisy(8, 8, 16), 500).sample
    assert sample.shape == (1, 2, 8, 8, 16) and sample.isfinite().all() and sample.std() > 0


# As defined


def plain_prediction(model: PRDiTTransformerModel, volume: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Patch by patch and feature by feature, from the definition: (B, 2·C, H, W, D)."""
    w, config = model.state_dict(), model.config
    patch, heads, channels = config.patch_size, config.num_attention_heads, config.in_channels
    margin = (patch - 8) // 2
    padded = F.pad(volume, (margin,) * 6, mode="reflect") if margin else volume
    corners = list(itertools.product(*(range(0, side, 8) for side in volume.shape[2:])))
    cut = [padded[:, :, i : i + patch, j : j + patch, k : k + patch].reshape(len(volume), -1) for i, j, k in corners]
    patches = torch.stack(cut, dim=1)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))

    def normal(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def adapted(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]

    def gated(x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(
            normal(F.silu(linear(x, f"{name}.gate")) * linear(x, f"{name}.value"), f"{name}.norm"), f"{name}.out"
        )

    rates = torch.exp(-math.log(10000) * torch.arange(128) / 128)
    angles = times[:, None].float() * rates
    time = F.silu(linear(torch.cat([angles.cos(), angles.sin()], dim=1), "time_embed"))

    b1, s1, b2, s2, b3, s3 = linear(F.silu(linear(time, "local_time")), "local.modulation").chunk(6, dim=1)
    hidden = gated(adapted(patches, b1, s1), "local.mlp_1")
    hidden = gated(adapted(hidden, b2, s2), "local.mlp_2") + patches
    tiles = linear(hidden * (1 + s3[:, None]) + b3[:, None], "local.proj_out")
    if config.num_layers:
        inner = linear(F.gelu(linear(patches, "patch_embed.fc1"), approximate="tanh"), "patch_embed.fc2")
        tokens = normal(inner + linear(patches, "patch_embed.skip"), "patch_embed.norm")
        tokens = tokens + positions([side // 8 for side in volume.shape[2:]], tokens.shape[-1])
        condition = F.silu(linear(time, "refiner_time"))
        for block in range(config.num_layers):
            at = f"transformer_blocks.{block}"
            ba, sa, ga, bm, sm, gm = linear(condition, f"{at}.modulation").chunk(6, dim=1)
            shown = adapted(tokens, ba, sa)
            query, key, value = (
                linear(shown, f"{at}.attn.to_{x}").unflatten(-1, (heads, -1)).transpose(1, 2) for x in "qkv"
            )
            weights = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            attended = linear((weights @ value).transpose(1, 2).flatten(2), f"{at}.attn.to_out.0")
            tokens = tokens + ga[:, None] * attended
            widened = F.gelu(linear(adapted(tokens, bm, sm), f"{at}.ff.net.0.proj"), approximate="tanh")
            tokens = tokens + gm[:, None] * linear(widened, f"{at}.ff.net.2")
        shift, scale = linear(condition, "modulation_out").chunk(2, dim=1)
        tiles = tiles + linear(adapted(tokens, shift, scale), "proj_out")

    sample = torch.zeros(len(volume), 2 * channels, *volume.shape[2:])
    for number, (i, j, k) in enumerate(corners):
        tile = tiles[:, number].view(-1, 8, 8, 8, 2 * channels).movedim(-1, 1)
        sample[:, :, i : i + 8, j : j + 8, k : k + 8] = tile
    return sample


def positions(grid: list[int], width: int) -> torch.Tensor:
    """Feature by feature, the last axis first; what is too many is cut off."""
    number = math.ceil(width / 6)
    rows = []
    for cell in itertools.product(*(range(length) for length in grid)):
        row: list[float] = []
        for place, length in reversed(list(zip(cell, grid))):
            rates = [(0.95 * length / 2) ** (n / (number - 1)) for n in range(number)]
            angles = [2 * math.pi * rate * (place + 0.5) / length for rate in rates]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row[:width])
    return torch.tensor(rows, dtype=torch.float64).float()


@pytest.mark.parametrize(
    "patch, layers, size, channels",
    [
        (8, 2, (16, 32, 24), 1),
        (10, 2, (24, 8, 16), 1),
        (12, 1, (16, 24, 8), 1),
        (10, 1, (8, 24, 16), 2),
        (8, 0, (24, 8, 16), 2),
    ],
)
@torch.no_grad()
def test_the_model_follows_the_definition(patch: int, layers: int, size: tuple[int, ...], channels: int) -> None:
    """At sides that differ; at 20 features for each of three axes and two waves, a width that six does not divide."""
    width = 24 if channels == 1 else 20
    model = make(
        patch_size=patch, num_layers=layers, in_channels=channels, num_attention_heads=2, attention_head_dim=width // 2
    )
    volume, times = noisy(*size, batch=2, channels=channels), torch.tensor([3, 871])
    ours = model(volume, times).sample
    reference = plain_prediction(model, volume, times)
    assert (ours - reference).abs().max() < 1e-4 * reference.abs().max()


def test_a_volume_may_differ_from_the_trained_ones() -> None:
    model = make()
    with torch.no_grad():
        for size in [(8, 8, 8), (32, 8, 16)]:
            assert model(noisy(*size), 4).sample.shape == (1, 2, *size)
            assert torch.equal(model(noisy(*size), 4).sample, make(sample_size=size)(noisy(*size), 4).sample)


@torch.no_grad()
def test_samples_of_a_batch_do_not_mix_and_time_steers() -> None:
    model, volume = make(), noisy(batch=3)
    times = torch.tensor([10, 500, 10])
    together = model(volume, times).sample
    apart = torch.cat([model(v[None], t).sample for v, t in zip(volume, times)])
    assert_matches(together, apart)
    assert (model(volume[:1], 10).sample - model(volume[:1], 500).sample).abs().max() > 1e-4
    assert torch.equal(model(volume, 10.0).sample, model(volume, torch.tensor([10] * 3)).sample)


def test_tuple_output() -> None:
    model = make()
    (sample,) = model(noisy(), 3, return_dict=False)
    assert torch.equal(sample, model(noisy(), 3).sample)


# In less memory


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("chunk", [1, 4, 5, 6, 100, None])
@torch.no_grad()
def test_patches_at_a_time_change_nothing(layers: int, chunk: int | None) -> None:
    model = make(num_layers=layers)
    whole = model(noisy(batch=2), 30).sample  # 6 tokens
    model.enable_forward_chunking(chunk)
    assert torch.allclose(model(noisy(batch=2), 30).sample, whole, atol=1e-5 * float(whole.abs().max()))
    model.disable_forward_chunking()
    assert torch.allclose(model(noisy(batch=2), 30).sample, whole, atol=1e-5 * float(whole.abs().max()))


@torch.no_grad()
def test_fewer_patches_at_a_time_need_less_memory() -> None:
    model, volume = make(num_layers=1), noisy(64, 64, 64)  # 512 tokens

    def peak(chunk: int | None) -> int:
        model.enable_forward_chunking(chunk)
        with LiveMemory() as memory:
            model(volume, 3)  # the weights are known from now on
            memory.peak = before = memory.live
            model(volume, 3)
        return memory.peak - before

    patches = 512 * 10**3 * 4
    assert peak(None) > 3 * patches  # a patch, its modulated self and what is made of it
    assert peak(64) < 0.6 * peak(None)  # little more than what is predicted, and its copies


# Training


def saved_bytes(model: PRDiTTransformerModel) -> tuple[int, dict[str, torch.Tensor]]:
    """What a forward pass keeps for the backward pass, without weights, and the gradients."""
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(noisy(batch=2), torch.tensor([5, 700])).sample.square().mean()
    loss.backward()
    return sum(held.values()), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def freeze_local(model: PRDiTTransformerModel) -> set[str]:
    """As stage 2 does; returns the names of what is still trained."""
    model.requires_grad_(False)
    for part in model.refiner_parts():
        part.requires_grad_(True)
    return {name for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("chunk", [None, 2])
def test_gradient_checkpointing_keeps_less_for_equal_gradients(frozen: bool, chunk: int | None) -> None:
    model = make().train()
    model.enable_forward_chunking(chunk)
    if frozen:
        freeze_local(model)
    whole, expected_gradients = saved_bytes(model)
    model.enable_gradient_checkpointing()
    less, found = saved_bytes(model)
    assert less < 0.7 * whole
    assert found.keys() == expected_gradients.keys() and len(found) > 20
    for name, gradient in expected_gradients.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_frozen_local_part_gets_no_gradient_and_keeps_nothing(checkpointing: bool) -> None:
    model = make().train()
    if checkpointing:
        model.enable_gradient_checkpointing()
    whole, _ = saved_bytes(model)
    trained = freeze_local(model)
    assert not any(name.startswith(("local", "time_embed")) for name in trained)
    less, found = saved_bytes(model)
    assert found.keys() == trained and all(gradient.abs().max() > 0 for gradient in found.values())
    for parameter in [*model.local.parameters(), *model.local_time.parameters()]:
        parameter.data.zero_()
    as_little, _ = saved_bytes(model)
    assert less == as_little < whole
    local_alone, _ = saved_bytes(randomise(make(num_layers=0)).train())
    assert whole - less >= 0.9 * local_alone or checkpointing


@torch.no_grad()
def test_a_fresh_refiner_changes_nothing_yet() -> None:
    stage_1 = make(num_layers=0)
    stage_2 = PRDiTTransformerModel(
        sample_size=(16, 24, 8), patch_size=10, num_layers=2, num_attention_heads=3, attention_head_dim=8
    )
    missing, unexpected = stage_2.load_state_dict(stage_1.state_dict(), strict=False)
    parts = tuple(f"{name}." for name, module in stage_2.named_children() if module in set(stage_2.refiner_parts()))
    assert missing and not unexpected and all(name.startswith(parts) for name in missing)
    assert torch.equal(stage_2(noisy(), 9).sample, stage_1(noisy(), 9).sample)
    assert not any(True for _ in stage_1.refiner_parts())


@torch.no_grad()
def test_a_local_denoiser_alone_compiles() -> None:
    model = make(num_layers=0)
    expected = model(noisy(), 9).sample
    torch.compiler.reset()
    model.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(model(noisy(), 9).sample, expected)


@torch.no_grad()
def test_a_fresh_model_predicts_zero() -> None:
    model = PRDiTTransformerModel(
        sample_size=(8, 8, 8), patch_size=8, num_layers=1, num_attention_heads=2, attention_head_dim=8
    )
    assert not model(noisy(8, 8, 8), 5).sample.any()


# Files and errors


@torch.no_grad()
def test_a_saved_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    preparation = {"spacing": [2.0, 2.0, 2.0]}
    model = make(spacing=(2.0, 2.0, 2.0), preprocessing=preparation)
    model.save_pretrained(tmp_path)
    again = PRDiTTransformerModel.from_pretrained(tmp_path)
    assert torch.equal(again(noisy(), 3).sample, model(noisy(), 3).sample)
    assert again.config.preprocessing == preparation and list(again.config.sample_size) == [16, 24, 8]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("refiner_time.bias"), "missing: refiner_time.bias"),
        (lambda w: w.update(pos_embed=torch.zeros(2)), "unexpected: pos_embed"),
        (
            lambda w: w.update({"local.proj_out.bias": torch.zeros(2)}),
            "do not fit the config.json.*local.proj_out.bias",
        ),
    ],
)
def test_loading_is_strict(change: Callable, message: str, tmp_path: Path) -> None:
    make().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(CardioDiTError, match=message):
        PRDiTTransformerModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sample_size": (16, 20, 8)}, "20 voxels along width, which must be a multiple of 8"),
        ({"sample_size": (16, 8)}, "Expected a size along height, width, depth, got"),
        ({"patch_size": 11}, "patch_size=11 must be an even number of at least 8"),
        ({"patch_size": 6}, "patch_size=6 must be an even number of at least 8"),
        ({"patch_size": 24}, "8 voxels along depth, too few for patches of 24, which extend 8 voxels beyond"),
        ({"prediction_type": "epsilon"}, "prediction_type='epsilon': this model predicts 'noise_and_image'"),
    ],
)
def test_settings_that_no_model_can_have(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        make(**settings)


@pytest.mark.parametrize(
    "volume, message",
    [
        (torch.zeros(1, 1, 16, 24, 9), "9 voxels along depth, which must be a multiple of 8"),
        (torch.zeros(1, 1, 0, 24, 8), "0 voxels along height, which must be a multiple of 8"),
        (torch.zeros(1, 2, 16, 24, 8), r"takes volumes of 1 channels as .batch, channel.* got \(1, 2, 16, 24, 8\)"),
        (torch.zeros(1, 16, 24, 8), r"takes volumes of 1 channels as .batch, channel.* got \(1, 16, 24, 8\)"),
    ],
)
def test_volumes_that_do_not_fit(volume: torch.Tensor, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        make()(volume, 3)


def test_no_patch_at_a_time_is_an_error() -> None:
    with pytest.raises(CardioDiTError, match="chunk_size=0 must be at least 1, or None"):
        make().enable_forward_chunking(0)


def test_patches_are_found_without_copies_between_devices() -> None:
    """`torch.unravel_index` makes tensors from Python numbers, and the device would wait for each of them."""
    volume = torch.arange(16 * 24 * 8.0).reshape(1, 1, 16, 24, 8)
    patches = OverlappingPatches(volume, 8)
    made = []

    class Listener(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            made.append(function)
            return function(*args, **(kwargs or {}))

    with Listener():
        found = patches[torch.arange(6)]
    assert torch.tensor not in made and torch.as_tensor not in made and torch.unravel_index not in made
    assert torch.equal(found[0, 4].view(8, 8, 8), volume[0, 0, 8:, 8:16, :])
