"""The adapter alone: what its gate and scales do, and which blocks it steers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cardiodit import DiT3DTransformerModel, TGCAAdapterModel
from cardiodit.errors import CardioDiTError
from cardiodit.models.adapter_tgca import injected_layers, shrink

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


@pytest.mark.parametrize("asked", [0, -1, 5, [], [4], [0, -1], "all"])
def test_blocks_that_are_not_there_are_refused(asked: Any) -> None:
    with pytest.raises(CardioDiTError, match=r"inject_layers=.*how many of the last of the 4 blocks, or a list"):
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
