"""Positions of tokens: the published modes on every grid, and closed forms of what they are made of."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cardiodit import CardioDiTError, DiT3DTransformerModel, DiT4DTransformerModel
from cardiodit.convert.cardiodit import fused_shape, normalised, part_of, transformer_name
from cardiodit.convert.dit_config import DiTParams
from cardiodit.models.positions import circular_pool, pairs_of_axis, rotate, times_of_phase

GOLDEN = Path(__file__).parents[1] / "fixtures/golden/cardiodit_positions"
CASES = json.loads((GOLDEN / "cases.json").read_text())


@cache
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def assert_matches(ours: torch.Tensor, reference: torch.Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def params_of(name: str) -> DiTParams:
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in CASES[name]["params"].items()}
    return DiTParams(**lists)


def model_of(name: str) -> DiT4DTransformerModel:
    """The recorded model; its weights hold everything but the positions."""
    params = params_of(name)
    model = DiT4DTransformerModel(**params.of_model)
    weights = normalised(load_file(GOLDEN / CASES[name]["weights"]), params)
    ours = model.state_dict()
    names = {key: transformer_name(key) for key in ours}
    assert set(names.values()) == set(weights)
    assert all(fused_shape(key, names[key], ours[key]) == weights[names[key]].shape for key in ours)
    model.load_state_dict({key: part_of(key, theirs, weights[theirs]) for key, theirs in names.items()})
    return model.eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_published_mode(name: str) -> None:
    golden, case = expected(), CASES[name]
    model, latents = model_of(name), golden[case["hidden_states"]]
    phase = None if case["alpha_t"] is None else golden[case["alpha_t"]]
    if case["params"].get("pos_embed_mode") in ("interpolated_rescaled",):
        phase = None  # these positions do not depend on it
    assert_matches(model(latents, golden["timestep"], phase=phase).sample, golden[f"{name}.sample"])
    grid = model.grid_of(latents.shape[2:])
    tokens = torch.zeros(1, math.prod(grid), params_of(name).hidden_size)
    if f"{name}.added" in golden:
        added = model.positions.added(grid, tokens, phase)
        assert added is not None
        assert_matches(added.expand_as(golden[f"{name}.added"]), golden[f"{name}.added"])
    if f"{name}.stored" in golden:
        assert_matches(model.positions.stored_table(tokens.shape[-1])[None], golden[f"{name}.stored"])


def test_times_of_frames_are_as_recorded() -> None:
    golden = expected()
    for name in ("time_rope", "time_rope_given", "time_rope_cyclic"):
        case, model = CASES[name], model_of(name)
        phase = None if case["alpha_t"] is None else golden[case["alpha_t"]]
        grid = model.grid_of(golden[case["hidden_states"]].shape[2:])
        times = model.positions._times(grid[-1], torch.device("cpu"), phase).repeat(1, math.prod(grid[:-1]))
        reference = golden[f"{name}.rotary"].reshape(-1, math.prod(grid))
        assert_matches(times.expand_as(reference), reference)


@pytest.mark.parametrize("axes", [3, 4])
def test_axial_rotation_depends_only_on_distances(axes: int) -> None:
    """Attention between two tokens is the same wherever they lie: what makes other grids possible."""
    kind = DiT4DTransformerModel if axes == 4 else DiT3DTransformerModel
    size, patch = (2, 4, 4, 4)[:axes], (1, 2, 2, 2)[-axes:]
    model = kind(sample_size=size, patch_size=patch, num_layers=1, attention_head_dim=24, position_mode="axial_rope")
    grid = (3,) * axes
    angles = model.positions.angles(grid, 24, torch.zeros(1), None)
    assert angles is not None and angles.shape == (1, 3**axes, 12)
    rotation = angles.cos()[:, :, None], angles.sin()[:, :, None]
    query, key = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    turned = [rotate(x.expand(1, 3**axes, 1, 24), rotation)[0, :, 0] for x in (query, key)]
    scores = (turned[0] @ turned[1].T).view(*grid, *grid)
    first, second = (0,) * axes, (1,) * axes
    assert scores[first + second] == pytest.approx(float(scores[second + (2,) * axes]), abs=1e-4)
    assert scores[first + second] != pytest.approx(float(scores[first + first]), abs=1e-2)


@pytest.mark.parametrize(
    ("pairs", "shares"), [(8, [2, 2, 2, 2]), (11, [3, 2, 2, 3]), (9, [3, 2, 2, 2]), (4, [1, 1, 1, 1])]
)
def test_left_over_pairs_go_to_the_first_and_the_last_axis(pairs: int, shares: list[int]) -> None:
    assert [pairs_of_axis(axis, 4, pairs) for axis in range(4)] == shares


def test_one_odd_phase_does_not_change_the_others_of_a_batch() -> None:
    beat = torch.linspace(0, 1, 4)
    together = times_of_phase(torch.stack([beat, beat * 7]), 4, is_cycle=False)
    torch.testing.assert_close(together[0], beat * 3)
    torch.testing.assert_close(together[1], beat * 7)


def test_a_circular_mean_of_phases_around_the_end_of_the_beat() -> None:
    pooled = circular_pool(torch.tensor([0.9, 0.1, 0.4, 0.6]), 2)
    assert min(pooled[0].item(), 1 - pooled[0].item()) < 1e-6
    assert pooled[1].item() == pytest.approx(0.5)


SMALL: dict[str, Any] = {
    "sample_size": (2, 8, 8, 4),
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"position_mode": "rope"}, "position_mode='rope' is not one of absolute"),
        ({"position_mode": "axial_rope", "attention_head_dim": 6}, "heads of at least 8 features"),
        ({"position_mode": "phase", "attention_head_dim": 18}, "multiple of 8, found 36"),
        ({"phase_schema": "cyclic"}, "phase_schema='cyclic' is not one of frames, cycle"),
        ({"position_steps": (1.0, 2.0)}, "expected 4 positive numbers"),
        ({"position_steps": (1.0, 2.0, 0.0, 1.0)}, "expected 4 positive numbers"),
        ({"position_time_scale": 0.0}, "position_time_scale=0.0 must be a positive number"),
        ({"max_sample_size": (2, 8, 8, 2)}, r"\(2, 8, 8, 4\) exceed the largest size of this model"),
        ({"max_sample_size": (2, 8, 8)}, "max_sample_size=.* has 3 numbers"),
        ({"learn_sigma": True, "prediction_type": "flow"}, "learn_sigma needs a process with a variance"),
    ],
)
def test_positions_that_make_no_sense(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(CardioDiTError, match=words):
        DiT4DTransformerModel(**{**SMALL, **settings})


def test_frames_have_no_time_in_a_volume() -> None:
    with pytest.raises(CardioDiTError, match="this model has no frames: use absolute or axial_rope"):
        DiT3DTransformerModel(sample_size=(8, 8, 8), num_layers=1, position_mode="time_rope")


def test_what_a_call_does_not_accept() -> None:
    model, latents = DiT4DTransformerModel(**SMALL, max_sample_size=(4, 8, 8, 4)), torch.zeros(1, 8, 6, 8, 8, 4)
    with pytest.raises(CardioDiTError, match=r"\(6, 8, 8, 4\) exceed the largest size of this model, max_sample_size"):
        model(latents, 0)
    with pytest.raises(
        CardioDiTError, match="phase was given, but positions of the mode 'absolute' do not depend on it"
    ):
        model(latents[:, :, :2], 0, phase=torch.zeros(4))
    with pytest.raises(CardioDiTError, match="self_condition was given, but this model was trained without it"):
        model(latents[:, :, :2], 0, self_condition=latents[:, :, :2])
