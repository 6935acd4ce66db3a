"""Which weights a fingerprint tells apart, and which it takes for the same."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from cardiodit import DiT4DTransformerModel
from cardiodit.hub.bundled_models import PHANTOM_MODEL, bundled_model
from cardiodit.models.fingerprint import TOLERANCE, distance, fingerprint_of, fits, is_readable


@pytest.fixture(scope="module")
def phantom() -> DiT4DTransformerModel:
    return DiT4DTransformerModel.from_pretrained(bundled_model(PHANTOM_MODEL) / "transformer")


def moved(model: torch.nn.Module, share: float) -> torch.nn.Module:
    """All weights, by a share of their size."""
    generator, other = torch.Generator().manual_seed(1), deepcopy(model)
    for parameter in other.parameters():
        size = parameter.detach().square().mean().sqrt()
        parameter.data += share * size * torch.randn(parameter.shape, generator=generator)
    return other


def fine_tuned(model: DiT4DTransformerModel, steps: int, rate: float) -> DiT4DTransformerModel:
    """As stage 2 trains, on noise."""
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


def test_what_float16_cannot_hold_does_not_count(make_dit: Callable) -> None:
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
    other = moved(phantom, 0.005)
    assert distance(fingerprint_of(phantom), fingerprint_of(other)) == pytest.approx(0.005, rel=0.3)
    assert not fits(fingerprint_of(phantom), other)


def test_a_head_alone_is_seen(phantom: DiT4DTransformerModel) -> None:
    """It is half a percent of the weights."""
    other = deepcopy(phantom)
    other.proj_out = moved(phantom.proj_out, 0.05)
    assert not fits(fingerprint_of(phantom), other)


def test_names_and_values_count_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    known = fingerprint_of(model)
    assert fingerprint_of(torch.nn.Sequential(*model)) == fingerprint_of(torch.compile(model)) == known
    assert not fits(known, torch.nn.Sequential(model[1], model[0]))
    assert is_readable(known) and not any(map(is_readable, [None, [0.1] * 8, "3: 0.1"]))
