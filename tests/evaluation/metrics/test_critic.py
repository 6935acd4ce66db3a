"""The critic, on distributions whose Wasserstein distance is known."""

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics import critic as module
from cardiodit.evaluation.metrics.critic import critic_distance


def gaussians(seed: int, n: int = 200, f: int = 4, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    direction = np.ones(f) / np.sqrt(f)
    return rng.normal(size=(n, f)), rng.normal(size=(n, f)) + shift * direction


def test_a_shift_is_its_length_in_the_features_unit() -> None:
    real, synthetic = gaussians(0, shift=4.0)
    apart = np.linalg.norm(real.mean(axis=0) - synthetic.mean(axis=0))
    found = critic_distance(real, synthetic, seeds=(0, 1), steps=300)
    assert found.value == pytest.approx(apart, rel=0.12)
    short = critic_distance(real, synthetic, seeds=(0,), steps=60).value
    assert critic_distance(10 * real, 10 * synthetic, seeds=(0,), steps=60).value == pytest.approx(10 * short)
    assert found.low is None
    assert found.notes


def test_equals_are_about_nothing_apart() -> None:
    assert abs(critic_distance(*gaussians(1), steps=200).value) < 0.25


def test_a_seed_is_a_number_and_nothing_global_moves() -> None:
    real, synthetic = gaussians(2, n=40, shift=1.0)
    state = torch.random.get_rng_state()
    first = critic_distance(real, synthetic, seeds=(5,), steps=30)
    assert critic_distance(real, synthetic, seeds=(5,), steps=30) == first
    assert critic_distance(real, synthetic, seeds=(6,), steps=30) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_spread_is_seen_without_any_shift() -> None:
    """In one dimension W₁ of N(0, 1) and N(0, 3²) is 2 E|z| = 1.6."""
    rng = np.random.default_rng(3)
    found = critic_distance(rng.normal(size=(400, 1)), 3 * rng.normal(size=(400, 1)), seeds=(0, 1), steps=400)
    assert found.value == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.3)


def watched_training(monkeypatch: pytest.MonkeyPatch, seen: list[float], steps: int) -> tuple[int, list, dict]:
    """Looks that were taken, the critic at each, and the one that is left, where the looks see these values."""
    states: list[dict[str, torch.Tensor]] = []

    def look(critic: torch.nn.Module, part: object) -> float:
        states.append({name: value.clone() for name, value in critic.state_dict().items()})
        return seen[len(states) - 1]

    monkeypatch.setattr(module, "_measured", look)
    real, synthetic = (torch.from_numpy(rows) for rows in gaussians(4, n=20, shift=1.0))
    generator = torch.Generator().manual_seed(0)
    critic = module._new_critic(4, 8, generator)
    part = module._Part(real, synthetic)
    module._train(critic, part, part, steps, generator)
    return len(states), states, critic.state_dict()


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_patience_ends_it_and_the_best_critic_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [1.0, 3.0, *[2.0] * 20]
    looks, states, kept = watched_training(monkeypatch, seen, steps=20 * module.CHECK_EVERY)
    assert looks == 2 + module.PATIENCE
    assert are_equal(kept, states[1]) and not are_equal(kept, states[-1])


def test_a_critic_that_gets_better_learns_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, states, kept = watched_training(monkeypatch, list(map(float, range(20))), steps=10 * module.CHECK_EVERY)
    assert looks == 10 and are_equal(kept, states[-1])


def test_copies_and_too_few_volumes() -> None:
    assert critic_distance(np.ones((20, 3)), np.ones((20, 3)), seeds=(0,)).value == 0
    with pytest.raises(CardioDiTError, match="at least 16 real volumes"):
        critic_distance(np.ones((9, 3)), np.ones((20, 3)))
    with pytest.raises(CardioDiTError, match="at least one seed"):
        critic_distance(np.ones((20, 3)), np.ones((20, 3)), seeds=())
