"""A lower bound of the Wasserstein-1 distance between features, by a critic (Gulrajani et al. 2017).

W₁ is the largest E D(real) − E D(synthetic) of all critics D whose gradient is nowhere longer than 1 (Kantorovich and
Rubinstein). A trained critic is one of them once it is divided by its longest gradient, hence a lower bound. It is
trained on half of the volumes, stopped early by a quarter, and measured on the last quarter, never seen before: on
its training volumes, any critic finds a distance between equal distributions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, checked_features
from cardiodit.evaluation.metrics.registry import DISTRIBUTION, LOWER, NOT_NEGATIVE, Features, Result, metric
from cardiodit.evaluation.workers import one_thread

FEWEST = 16  # volumes of each kind
PENALTY = 10.0  # λ of Gulrajani et al.
BATCH = 256
CHECK_EVERY, PATIENCE = 20, 6  # steps between checks on the stopping volumes; checks without improvement
SEEDS = 3  # critics per distance
FLOOR_REPEATS = 2  # draws of the floor, each of which trains twice as many critics as there are seeds


@metric(
    "critic",
    "Wasserstein distance by a critic",
    group=DISTRIBUTION,
    better=LOWER,
    on_features=True,
    place=5,
    label="Critic",
    option="critic",
    bounds=NOT_NEGATIVE,
)
def critic_metric(features: Features) -> Result:
    seeds = range(features.seed, features.seed + SEEDS)

    def distance(real: np.ndarray, synthetic: np.ndarray) -> float:
        return critic_distance(real, synthetic, seeds=seeds).value

    estimate = critic_distance(features.real, features.synthetic, seeds=seeds)
    return features.beside_floor(estimate, distance, repeats=FLOOR_REPEATS)


@dataclass(frozen=True)
class _Part:
    """Some volumes of both kinds, `(n, f)` and `(m, f)`."""

    real: Tensor
    synthetic: Tensor

    def scaled(self, centre: Tensor, scale: Tensor) -> "_Part":
        return _Part((self.real - centre) / scale, (self.synthetic - centre) / scale)


def critic_distance(
    real: np.ndarray,
    synthetic: np.ndarray,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 600,
    width: int = 64,
    device: str | torch.device = "cpu",
) -> Estimate:
    """Return the mean over the seeds, each with its own split and critic, in the features' unit.

    There is no interval: a critic bounds the distance from below, and seeds share volumes. The notes list the value of
    each seed.
    """
    real, synthetic = checked_features(real, synthetic, FEWEST)
    if not seeds or steps < 1:
        raise CardioDiTError("A critic needs at least one seed and one step.")
    samples = [torch.from_numpy(features.astype(np.float64)).to(device) for features in (real, synthetic)]
    with one_thread():
        values = [_one_critic(samples[0], samples[1], seed, steps, width) for seed in seeds]
    disagreement = f"By seed: {', '.join(f'{value:.4g}' for value in values)}."
    return Estimate(
        float(np.mean(values)),
        None,
        None,
        method=(
            f"Wasserstein-1 distance by {len(values)} critics with gradient penalty, measured on volumes that neither "
            "training nor stopping has seen, divided by the longest gradient there"
        ),
        notes=("A lower bound; no interval, since seeds share volumes and the bound's slack is unknown.", disagreement),
    )


def _one_critic(real: Tensor, synthetic: Tensor, seed: int, steps: int, width: int) -> float:
    rng = np.random.default_rng([seed, len(real), len(synthetic)])
    learning, stopping, measuring = _split(real, synthetic, rng)
    pooled = torch.cat([learning.real, learning.synthetic])
    centre = pooled.mean(dim=0)
    scale = (pooled - centre).square().sum(dim=1).mean().sqrt()  # one number: directions keep their lengths
    if scale == 0:
        return 0.0
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    critic = _new_critic(real.shape[1], width, generator).to(real.device)
    parts = [part.scaled(centre, scale) for part in (learning, stopping, measuring)]
    _train(critic, parts[0], parts[1], steps, generator)
    return _measured(critic, parts[2]) * float(scale)


def _split(real: Tensor, synthetic: Tensor, rng: np.random.Generator) -> tuple[_Part, _Part, _Part]:
    """Split each kind into a half for training, a quarter for stopping and a quarter for measuring."""
    pieces = []
    for features in (real, synthetic):
        order = torch.from_numpy(rng.permutation(len(features))).to(features.device)
        half, quarter = len(features) // 2, len(features) // 4
        pieces.append(features[order].split([half, quarter, len(features) - half - quarter]))
    learning, stopping, measuring = (_Part(*pair) for pair in zip(*pieces, strict=True))
    return learning, stopping, measuring


def _new_critic(features: int, width: int, generator: torch.Generator) -> nn.Module:
    """Return a small MLP whose weights are drawn from the generator."""
    critic = nn.Sequential(
        nn.utils.skip_init(nn.Linear, features, width, dtype=torch.float64),
        nn.SiLU(),
        nn.utils.skip_init(nn.Linear, width, width, dtype=torch.float64),
        nn.SiLU(),
        nn.utils.skip_init(nn.Linear, width, 1, dtype=torch.float64),
    )
    for layer in critic:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
    return critic


def _train(critic: nn.Module, learning: _Part, stopping: _Part, steps: int, generator: torch.Generator) -> None:
    """Train the critic, and restore its state at the largest distance of the stopping volumes."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=5e-3, betas=(0.5, 0.9))
    best, kept, checks = -float("inf"), _copy(critic), 0
    for step in range(steps):
        real, synthetic = (_batch(part, generator) for part in (learning.real, learning.synthetic))
        between = _between(real, synthetic, generator)
        lengths = _gradient_lengths(critic, between, for_training=True)
        # Gulrajani et al., equation 3, one-sided: a length below 1 is not penalized. The two-sided penalty keeps a
        # critic that began as a slope from ever reversing part of it, which a difference in spread requires.
        penalty = PENALTY * (lengths - 1).clamp(min=0).square().mean()
        loss = critic(synthetic).mean() - critic(real).mean() + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % CHECK_EVERY:
            continue
        value, checks = _measured(critic, stopping), checks + 1
        if value > best:
            best, kept, checks = value, _copy(critic), 0
        if checks >= PATIENCE:
            break
    critic.load_state_dict(kept)


def _measured(critic: nn.Module, part: _Part) -> float:
    """Return E D(real) − E D(synthetic) over the longest gradient at these volumes and halfway between them."""
    pairs = max(len(part.real), len(part.synthetic))
    real, synthetic = (x[torch.arange(pairs, device=x.device) % len(x)] for x in (part.real, part.synthetic))
    longest = _gradient_lengths(critic, torch.cat([real, synthetic, (real + synthetic) / 2])).max()
    with torch.no_grad():
        apart = critic(part.real).mean() - critic(part.synthetic).mean()
    return float(apart / longest.clamp(min=1e-12))


def _gradient_lengths(critic: nn.Module, points: Tensor, for_training: bool = False) -> Tensor:
    """Return |∇D| at each point `(n,)`."""
    points = points.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(points).sum(), points, create_graph=for_training)
    return gradient.norm(dim=1)


def _batch(features: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a batch in random order, so that pairs differ from step to step."""
    order = torch.randperm(len(features), generator=generator)[:BATCH]
    return features[order.to(features.device)]


def _between(real: Tensor, synthetic: Tensor, generator: torch.Generator) -> Tensor:
    """Draw points on the lines between pairs, where the optimal critic has gradients of length 1."""
    pairs = min(len(real), len(synthetic))
    share = torch.rand(pairs, 1, generator=generator, dtype=torch.float64).to(real.device)
    return share * real[:pairs] + (1 - share) * synthetic[:pairs]


def _copy(critic: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in critic.state_dict().items()}
