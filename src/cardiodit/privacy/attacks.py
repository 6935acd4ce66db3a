"""Attacks that go beyond copies: was this patient in the training set? With samples alone, or with the weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, jackknife_interval
from cardiodit.evaluation.volume_sets import Item, load
from cardiodit.imaging.preprocessing import Preprocessing, as_tensor
from cardiodit.privacy.statistics import GROUPS, Attack, attack_of
from cardiodit.schedulers.flow_scheduler import FLOW_TO_DATA, FLOWS
from cardiodit.schedulers.solvers import prediction_of

NEIGHBOURS = 50  # nearest samples whose mean distance normalizes that to the nearest one
DRAWS = 2  # noises at each noise level
NOISE_SEED = 0


@dataclass(frozen=True)
class NamedAttack:
    """An attack with its result.

    Args:
        needs: what the attacker has: "samples" or "weights".
        level: share of the noise schedule, for attacks at one noise level.
    """

    name: str
    title: str
    needs: str
    result: Attack
    level: float | None = None


def sample_attacks(training: np.ndarray, held_out: np.ndarray) -> list[NamedAttack]:
    """Attack with samples alone.

    Args:
        training, held_out: distances `(patients, samples)` of each training and held-out patient to each sample.
    """
    scores = {
        "nearest_sample": ("Distance to the nearest sample", lambda d: d.min(axis=1)),
        "nndr": ("Distance to the nearest sample, relative to the second nearest", _nearest_ratio),
        "extraction": (f"Distance to the nearest sample, relative to the {NEIGHBOURS} nearest", _relative_to_many),
    }
    return [
        NamedAttack(name, title, "samples", attack_of(score(training), score(held_out)))
        for name, (title, score) in scores.items()
        if training.shape[1] > 1
    ]


def _nearest_ratio(distances: np.ndarray) -> np.ndarray:
    two = np.partition(distances, 1, axis=1)[:, :2]
    return two[:, 0] / np.maximum(two[:, 1], 1e-12)


def _relative_to_many(distances: np.ndarray) -> np.ndarray:
    near = np.sort(distances, axis=1)[:, :NEIGHBOURS]
    return near[:, 0] / np.maximum(near.mean(axis=1) / 2, 1e-12)


@dataclass(frozen=True)
class Authenticity:
    """Shares of volumes farther from their nearest training volume than that one is from its own nearest (Alaa 2022).

    Args:
        samples, held_out: the shares; those of held-out patients, who are not copies, are what chance gives.
        attack: how well the ratio of both distances tells samples from held-out patients; 0.5 if samples are no nearer.
    """

    samples: float
    held_out: float
    attack: Attack


def authenticity(samples: np.ndarray, held_out: np.ndarray, own: np.ndarray) -> Authenticity:
    """Return authenticity, given distances `(training, …)` and of each training volume to its nearest other one."""
    ratios = [np.take_along_axis(d, d.argmin(axis=0)[None], 0)[0] / np.maximum(own[d.argmin(axis=0)], 1e-12)
              for d in (samples, held_out)]  # fmt: skip
    return Authenticity(float((ratios[0] > 1).mean()), float((ratios[1] > 1).mean()), attack_of(*ratios))


# --- With the weights ---


class LossMeter:
    """Measures the denoising loss of volumes under a model, with the same times and noises for every volume.

    Args:
        pipe: the model's pipeline, on its device.
        levels: number of noise levels, evenly spaced over the schedule.
        identity: of the weights, for the cache.
        cache: folder in which losses are kept.
    """

    def __init__(self, pipe: Any, levels: int, identity: str, cache: Path) -> None:
        self.pipe, self.identity, self.cache = pipe, identity, cache
        total = int(pipe.scheduler.config.num_train_timesteps)
        self.times = [int((level + 0.5) / levels * total) for level in range(levels)]
        self.shares = [time / total for time in self.times]
        self.is_flow = prediction_of(pipe.scheduler) in FLOWS
        if not self.is_flow and not any(hasattr(pipe.scheduler, name) for name in ("targets", "alphas_cumprod")):
            raise CardioDiTError(
                f"The denoising loss of a {type(pipe.scheduler).__name__} cannot be measured, so that attacks with the "
                "weights were not run."
            )

    def losses(self, item: Item, content: str, steps: Preprocessing) -> np.ndarray:
        """Return the loss at each noise level, a mean over fixed noises."""
        key = json.dumps([content, self.identity, self.times, DRAWS, self._label(item)])
        file = self.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.loss.json"
        try:
            return np.array(json.loads(file.read_text()), float)
        except (OSError, ValueError):
            pass  # missing or damaged: measure it
        losses = self._measure(as_tensor(load(item, steps).volume.voxels), self._label(item))
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(losses.tolist()))
        return losses

    def _label(self, item: Item) -> int | None:
        """Return the class of a volume if its manifest names one of the model's, or the null label."""
        denoiser = self.pipe.denoiser
        names = list(denoiser.config.get("class_names") or [])
        row: Mapping[str, str] = item.case.row if item.case is not None else {}
        known = [names.index(value) for value in row.values() if value in names]
        return known[0] if known else denoiser.null_label

    @torch.no_grad()
    def _measure(self, volume: torch.Tensor, label: int | None) -> np.ndarray:
        pipe, device = self.pipe, self.pipe._execution_device
        vae = getattr(pipe, "vae", None)
        clean = volume[None].to(device, torch.float32)
        if vae is not None:
            from cardiodit.latents.encoder import encode_volume

            clean = vae.scale_latents(encode_volume(vae, volume)[None].to(device))
        extra = {} if label is None else {"class_labels": torch.tensor([label], device=device)}
        losses = np.empty((len(self.times), DRAWS))
        for place, time in enumerate(self.times):
            times = torch.tensor([time], device=device)
            for draw in range(DRAWS):
                generator = generator_for(NOISE_SEED, place * DRAWS + draw)
                noise = torch.randn(clean.shape, generator=generator).to(device)
                noisy, target = self._corrupt(clean, noise, times)
                predicted = pipe.denoiser(noisy.to(pipe.denoiser.dtype), times, return_dict=False, **extra)[0].float()
                losses[place, draw] = (predicted[:, : target.shape[1]] - target).square().mean().item()
        return losses.mean(axis=1)

    def _corrupt(
        self, clean: torch.Tensor, noise: torch.Tensor, times: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scheduler = self.pipe.scheduler
        if hasattr(scheduler, "targets"):  # PRDiT's process
            return scheduler.add_noise(clean, noise, times), scheduler.targets(clean, noise)
        if self.is_flow:
            share = (times / scheduler.config.num_train_timesteps).view(-1, *[1] * (clean.ndim - 1))
            if prediction_of(scheduler) == FLOW_TO_DATA:
                return (1 - share) * noise + share * clean, clean - noise
            return (1 - share) * clean + share * noise, noise - clean
        kept = scheduler.alphas_cumprod.to(clean.device)[times].view(-1, *[1] * (clean.ndim - 1))
        noisy = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        kind = scheduler.config.prediction_type
        velocity = kept.sqrt() * noise - (1 - kept).sqrt() * clean
        return noisy, {"epsilon": noise, "sample": clean}.get(kind, velocity)


def loss_attacks(
    meter: LossMeter, training: np.ndarray, held_out: np.ndarray, references: Sequence[np.ndarray] | None = None
) -> list[NamedAttack]:
    """Attack with the weights: members have a lower denoising loss.

    Args:
        training, held_out: losses `(patients, levels)`.
        references: the same of a reference model, which tell how difficult a volume is.
    """
    attacks = [
        NamedAttack("loss", f"Denoising loss at {share:.0%} of the noise schedule", "weights", attack_of(*pair), share)
        for share, *pair in zip(meter.shares, training.T, held_out.T, strict=True)
    ]
    attacks.append(
        NamedAttack("loss_mean", "Denoising loss over all noise levels", "weights", _over_levels(training, held_out))
    )
    if references is not None:
        calibrated = _over_levels(training - references[0], held_out - references[1])
        title = "Denoising loss, less that of the reference model"
        attacks.append(NamedAttack("loss_calibrated", title, "weights", calibrated))
    return attacks


def _over_levels(training: np.ndarray, held_out: np.ndarray) -> Attack:
    scale = np.concatenate([training, held_out]).std(axis=0) + 1e-12  # levels with large losses do not dominate
    return attack_of((training / scale).mean(axis=1), (held_out / scale).mean(axis=1))


def generalisation_gap(training: np.ndarray, held_out: np.ndarray, seed: int = 0) -> Estimate:
    """Return by which share the mean loss of held-out patients exceeds that of training patients."""

    def gap(members: np.ndarray, others: np.ndarray) -> float:
        return float((others.mean(axis=0) / members.mean(axis=0) - 1).mean())

    rng = np.random.default_rng([seed, len(training), len(held_out)])
    left_out = []
    for place, rows in enumerate((training, held_out)):
        groups = np.array_split(rng.permutation(len(rows)), min(GROUPS, len(rows)))
        kept = [np.delete(rows, group, axis=0) for group in groups]
        left_out.append(np.array([gap(k, held_out) if place == 0 else gap(training, k) for k in kept]))
    value = gap(training, held_out)
    low, high = jackknife_interval(value, *left_out)
    return Estimate(value, low, high, method="mean over noise levels; jackknife over groups of patients")
