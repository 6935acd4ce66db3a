"""The adapter: its gate and scales, the blocks it steers, and fingerprints of its base."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import DiT3DTransformerModel, DiT4DTransformerModel, TGCAAdapterModel
from cardiodit._util.memory import LiveMemory
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import PHANTOM_MODEL, bundled_model
from cardiodit.models.adapter_tgca import (
    TOLERANCE,
    distance,
    fingerprint_of,
    fits,
    injected_layers,
    is_readable,
    shrink,
)

from ..conftest import randomise

MASKS = (torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0)) > 0.6).float()


def make(layers: int = 2, **settings: Any) -> TGCAAdapterModel:
    """An adapter of `make_dit_3d`'s transformers with random weights, whose tokens are as large as trained ones."""
    adapter = TGCAAdapterModel(32, layers, 3, channels=(4, 8, 8), strides=((2, 2, 2), (2, 2, 1)), **settings)
    scales = [scale.item() for scale in adapter.scales]
    randomise(adapter, std=0.3)
    adapter.condition_embed.conv_out.weight.data *= 10
    for scale, first in zip(adapter.scales, scales, strict=True):
        scale.data.fill_(first)
    return adapter


@torch.no_grad()
def predict(base: DiT3DTransformerModel, adapter: TGCAAdapterModel) -> torch.Tensor:
    latents, time = torch.randn(1, 8, 8, 8, 4, generator=torch.Generator().manual_seed(1)), torch.tensor([100])
    tokens = adapter.embed(MASKS, base, base.grid_of(latents.shape[2:]))
    return base(latents, time, block_controls=adapter(tokens, base.embed_time(latents, time))).sample


def change(before: torch.Tensor, after: torch.Tensor) -> float:
    return float((after - before).norm() / before.norm())


@pytest.mark.parametrize("is_as_released", [False, True])
@pytest.mark.parametrize("part", ["scale", "gate"])
def test_gate_and_scale_act_unless_the_control_is_normalised(
    make_dit_3d: Callable, is_as_released: bool, part: str
) -> None:
    """The released code normalises the control in each block: what it was multiplied with is lost."""
    base, adapter = randomise(make_dit_3d(), std=0.2), make(normalise_control=is_as_released)
    before = predict(base, adapter)
    if part == "scale":
        for scale in adapter.scales:
            scale.data *= 10
    else:
        adapter.time_gate.bias.data += 3
    moved = change(before, predict(base, adapter))
    assert moved <= 1e-4 if is_as_released else moved > 1e-2


def test_the_gate_knows_the_time() -> None:
    gate = make().gate(torch.randn(3, 32))
    assert gate.shape == (3, 1) and gate.unique().numel() == 3 and ((gate > 0) & (gate < 1)).all()
    fresh = TGCAAdapterModel(32, 2, 3)
    assert fresh.gate(torch.randn(3, 32)).unique().tolist() == [0.5]


@pytest.mark.parametrize(
    ("asked", "steered"), [(None, [0, 1, 2, 3]), (1, [3]), (3, [1, 2, 3]), ([2, 0], [0, 2]), ((1, 1), [1])]
)
def test_blocks_that_are_steered(make_dit_3d: Callable, asked: Any, steered: list[int]) -> None:
    adapter = make(4, inject_layers=asked)
    assert adapter.injected == steered and len(adapter.scales) == len(steered)
    base = make_dit_3d(num_layers=4)
    controls = adapter(adapter.embed(MASKS, base, (4, 4, 2)), torch.randn(1, 32))
    assert [number for number, control in enumerate(controls) if control is not None] == steered


def test_controls_are_made_when_a_block_asks_for_them(make_dit_3d: Callable) -> None:
    """Those of twelve blocks at once would take as much memory as a volume's tokens twelve times."""
    base = make_dit_3d(num_layers=12)
    adapter = randomise(TGCAAdapterModel(32, 12, strides=((2, 2, 2),), channels=(4, 4)))
    tokens, time = adapter.embed(MASKS, base, (4, 4, 2)), torch.randn(1, 32)
    with torch.no_grad():
        _, peak = one_and_peak(lambda: adapter(tokens, time))
        assert peak < tokens.nbytes
        controls = adapter(tokens, time)
        assert len(controls) == 12 and torch.equal(controls[3], controls[3]) and controls[3] is not controls[3]


def one_and_peak(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the most memory that it took."""
    with LiveMemory() as memory:
        result = run()
    return result, memory.peak


@pytest.mark.parametrize("asked", [0, -1, 5, [], [4], [0, -1], "all"])
def test_blocks_that_are_not_there_are_refused(asked: Any) -> None:
    with pytest.raises(
        CardioDiTError, match=r"inject_layers=.*a number of blocks from 1 to 4 counted from the last, or a list"
    ):
        injected_layers(asked, 4)


def test_masks_of_another_kind_are_refused(make_dit_3d: Callable) -> None:
    with pytest.raises(CardioDiTError, match=r"takes masks \(batch, \['liver'\], height, width, depth\), got"):
        make(condition_keys=["liver"]).embed(MASKS[:, :, 0], make_dit_3d(), (4, 4, 2))


@torch.no_grad()
def test_bfloat16_on_cpu_is_near_float32_where_the_last_axis_shrinks_to_one(make_dit_3d: Callable) -> None:
    """torch 2.13 leaves the result of its own convolution unwritten there."""
    base = make_dit_3d(sample_size=(8, 8, 2))
    adapter = TGCAAdapterModel(32, 2, 3, channels=(4, 8, 8), strides=((2, 2, 2), (2, 2, 2)))
    randomise(adapter, std=0.3)
    full = adapter.embed(MASKS[..., :4], base, (4, 4, 1))
    adapter.to(torch.bfloat16)
    for _ in range(5):
        litter = [torch.full((size,), torch.nan) for size in (50, 500, 5000)]
        del litter
        half = adapter.embed(MASKS[..., :4].bfloat16(), base, (4, 4, 1))
        assert change(full, half.float()) < 0.05
    adapter.float()
    full = adapter.embed(MASKS[..., :4], base, (4, 4, 1))
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(5):
            litter = [torch.full((size,), torch.nan) for size in (50, 500, 5000)]
            del litter
            assert change(full, adapter.embed(MASKS[..., :4], base, (4, 4, 1)).float()) < 0.05


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_shrinking_is_the_convolution(length: int) -> None:
    torch.manual_seed(0)
    conv, x = torch.nn.Conv3d(2, 3, 3, stride=(1, 2, 2), padding=1), torch.randn(1, 2, 4, 4, length)
    assert torch.allclose(shrink(conv, x), conv(x), atol=1e-6) and shrink(conv, x).shape == conv(x).shape


# --- Fingerprints ---


@pytest.fixture(scope="module")
def phantom() -> DiT4DTransformerModel:
    return DiT4DTransformerModel.from_pretrained(bundled_model(PHANTOM_MODEL) / "transformer")


def perturbed(model: torch.nn.Module, share: float) -> torch.nn.Module:
    """All weights, by a share of their size."""
    generator, other = torch.Generator().manual_seed(1), deepcopy(model)
    for parameter in other.parameters():
        size = parameter.detach().square().mean().sqrt()
        parameter.data += share * size * torch.randn(parameter.shape, generator=generator)
    return other


def fine_tuned(model: DiT4DTransformerModel, steps: int, rate: float) -> DiT4DTransformerModel:
    """Train on noise, like stage 2."""
    other, generator = deepcopy(model).train(), torch.Generator().manual_seed(2)
    optimizer = torch.optim.AdamW(other.parameters(), rate)
    for _ in range(steps):
        noisy, wanted = torch.randn(2, 2, 8, *other.config.sample_size, generator=generator)
        loss = (other(noisy, torch.tensor([100, 700])).sample - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return other


@pytest.mark.parametrize("blocks", [(0, 1), (3, 4)])
def test_exchanged_blocks_are_other_weights(phantom: DiT4DTransformerModel, blocks: tuple[int, int]) -> None:
    other, (first, second) = deepcopy(phantom), blocks
    layers = other.transformer_blocks
    layers[first], layers[second] = layers[second], layers[first]
    assert not fits(fingerprint_of(phantom), other)
    assert distance(fingerprint_of(phantom), fingerprint_of(other)) > 0.4  # told from weights of 4 bits, too


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_weights_are_the_same(make_dit: Callable, tmp_path: Path, dtype: torch.dtype) -> None:
    model = make_dit()
    known = fingerprint_of(model)
    deepcopy(model).to(dtype).save_pretrained(tmp_path / "rounded")
    for precision in (dtype, torch.float32):
        opened = DiT4DTransformerModel.from_pretrained(tmp_path / "rounded", torch_dtype=precision)
        assert fits(known, opened)
        assert 0 < distance(known, fingerprint_of(opened)) < 0.75 * TOLERANCE


def test_values_below_the_range_of_float16_do_not_count(make_dit: Callable) -> None:
    model = make_dit()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data *= 1e-6
    assert fits(fingerprint_of(model), deepcopy(model).to(torch.float16))


@pytest.mark.parametrize(("steps", "rate"), [(1, 2e-4), (24, 2e-4), (60, 1e-5)])
def test_a_short_fine_tuning_makes_other_weights(make_dit: Callable, steps: int, rate: float) -> None:
    model = make_dit()
    known, tuned = fingerprint_of(model), fine_tuned(model, steps, rate)
    assert not fits(known, tuned)
    assert not fits(known, tuned.to(torch.bfloat16))


def test_a_change_of_half_a_percent_is_seen(phantom: DiT4DTransformerModel) -> None:
    other = perturbed(phantom, 0.005)
    assert distance(fingerprint_of(phantom), fingerprint_of(other)) == pytest.approx(0.005, rel=0.3)
    assert not fits(fingerprint_of(phantom), other)


def test_a_head_alone_is_seen(phantom: DiT4DTransformerModel) -> None:
    """It is half a percent of the weights."""
    other = deepcopy(phantom)
    other.proj_out = perturbed(phantom.proj_out, 0.05)
    assert not fits(fingerprint_of(phantom), other)


def test_names_and_values_count_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    known = fingerprint_of(model)
    assert fingerprint_of(torch.nn.Sequential(*model)) == fingerprint_of(torch.compile(model)) == known
    assert not fits(known, torch.nn.Sequential(model[1], model[0]))
    assert is_readable(known) and not any(map(is_readable, [None, [0.1] * 8, "3: 0.1"]))
