"""Planted copies: altered versions of a volume, from faint to strong, by which a detector's sensitivity is measured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import affine_transform, gaussian_filter, map_coordinates, shift

from cardiodit.evaluation.volume_sets import Item, load
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.resampling import resample_beat
from cardiodit.privacy.detectors import DetectorConfig, open_detector
from cardiodit.privacy.search import References
from cardiodit.privacy.statistics import proportion_interval

PLAIN, INTENSITY, WARPED, PARTIAL = "plain", "intensity", "warped", "partial"


class Alteration(Protocol):
    """Alters a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1]; `other` is a volume of somebody else."""

    def __call__(self, voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Kind:
    """A kind of copies.

    Args:
        title: in words, for reports.
        group: "plain", "intensity", "warped" or "partial".
        alter: makes a copy of this kind.
        cine_only: whether it needs frames.
    """

    title: str
    group: str
    alter: Alteration
    cine_only: bool = False


def kinds_for(is_cine: bool) -> dict[str, Kind]:
    """Return the kinds of copies of cines or of volumes, by name."""
    return {name: kind for name, kind in KINDS.items() if is_cine or not kind.cine_only}


def plant(name: str, voxels: np.ndarray, other: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a copy of a volume of one kind, in [-1, 1]."""
    return np.clip(KINDS[name].alter(voxels, rng, other), -1, 1).astype(np.float32)


def sensitivity(
    config: DetectorConfig,
    references: References,
    threshold: float,
    training: Sequence[Item],
    others: Sequence[Item],
    steps: Preprocessing,
    workers: Workers,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Plant copies of every kind of these training volumes, and return the share that a detector finds.

    Args:
        threshold: distance below which at most 5% of held-out patients are.
        others: volumes of somebody else, such as samples, for partial copies.
    """
    tasks = [(item, others[place % len(others)], place) for place, item in enumerate(training)]
    rows = list(workers.map(partial(_planted_rows, config=config, steps=steps, seed=seed), tasks))
    report = []
    for name in rows[0]:
        distances = references.distances(lambda i, kind=name: rows[i][kind].astype(np.float32), len(rows))  # type: ignore[misc]
        found = int((distances.min(axis=1) < threshold).sum())
        low, high = proportion_interval(found, len(rows))
        known = {"kind": name, "title": KINDS[name].title, "group": KINDS[name].group}
        report.append({**known, "planted": len(rows), "found": found / len(rows), "low": low, "high": high})
    return report


def _planted_rows(
    task: tuple[Item, Item, int], config: DetectorConfig, steps: Preprocessing, seed: int
) -> dict[str, np.ndarray]:
    """Return the rows of a copy of each kind of one volume, in half precision as in the cache."""
    (item, other, place), detector = task, open_detector(config)
    volume, somebody = load(item, steps).volume, load(other, steps).volume.voxels
    rng = np.random.default_rng([seed, place])
    copies = {name: plant(name, volume.voxels, somebody, rng) for name in kinds_for(volume.is_cine)}
    spacing = volume.geometry.spacing
    return {name: detector.rows(copy, spacing, is_query=True).astype(np.float16) for name, copy in copies.items()}


def _noisy(share: float) -> Alteration:
    def alter(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
        return voxels + share * voxels.std() * rng.standard_normal(voxels.shape, dtype=np.float32)

    return alter


def _gamma(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    power = 2.0 ** rng.uniform(0.5, 1.0) ** rng.choice([-1, 1])
    return 2 * ((np.clip(voxels, -1, 1) + 1) / 2) ** power - 1


def _contrast(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return voxels * rng.uniform(0.6, 0.8) + rng.uniform(-0.2, 0.2)


def _turned(degrees: float) -> Alteration:
    def alter(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
        return rotate_plane(voxels, rng.uniform(degrees / 2, degrees) * rng.choice([-1, 1]))

    return alter


def rotate_plane(voxels: np.ndarray, degrees: float, zoom: float = 1.0) -> np.ndarray:
    """Rotate every plane of H and W around its centre and enlarge it; edge values extend outwards."""
    cosine, sine = np.cos(np.deg2rad(degrees)) / zoom, np.sin(np.deg2rad(degrees)) / zoom
    matrix = np.eye(voxels.ndim)
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    centre = (np.array(voxels.shape) - 1) / 2
    return affine_transform(voxels, matrix, centre - matrix @ centre, order=1, mode="nearest")


def _flipped(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return np.flip(voxels, int(rng.integers(2)))


def _shifted(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    reach = max(1, round(min(voxels.shape[:2]) / 12))
    moved = [int(n) for n in rng.integers(1, reach + 1, 2) * rng.choice([-1, 1], 2)]
    return shift(voxels, [*moved, *[0] * (voxels.ndim - 2)], order=0, mode="nearest")


def _zoomed(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return rotate_plane(voxels, 0, rng.uniform(1.05, 1.1) ** rng.choice([-1, 1]))


def _elastic(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    """Bend the planes smoothly, by 1 to 2% of their width (root mean square)."""
    plane = voxels.shape[:2]
    fields = []
    for size in plane:
        field = gaussian_filter(rng.standard_normal(plane), min(plane) / 8, mode="nearest")
        fields.append(field / field.std() * size * rng.uniform(0.01, 0.02))
    places = np.meshgrid(*(np.arange(n) for n in plane), indexing="ij")
    moved = [place + field for place, field in zip(places, fields, strict=True)]
    flat = voxels.reshape(*plane, -1)
    bent = [map_coordinates(flat[..., i], moved, order=1, mode="nearest") for i in range(flat.shape[-1])]
    return np.stack(bent, axis=-1).reshape(voxels.shape)


def _later_phase(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return np.roll(voxels, int(rng.integers(1, voxels.shape[3])), axis=3)


def _reversed(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return voxels[..., ::-1]


def _other_length(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    frames = max(4, round(voxels.shape[3] * rng.uniform(0.6, 0.8)))
    return resample_beat(voxels, frames)


def _one_slice(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    depth = voxels.shape[2]
    copied = other.copy()
    middle = int(rng.integers(depth // 4, max(depth // 4 + 1, depth - depth // 4)))
    copied[:, :, middle] = voxels[:, :, middle]
    return copied


def _half(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    copied = other.copy()
    half = voxels.shape[2] // 2
    part = slice(0, half) if rng.integers(2) else slice(half, None)
    copied[:, :, part] = voxels[:, :, part]
    return copied


def _mixed(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    weight = rng.uniform(0.6, 0.8)
    return weight * voxels + (1 - weight) * other


def _exact(voxels: np.ndarray, rng: np.random.Generator, other: np.ndarray) -> np.ndarray:
    return voxels.copy()


KINDS: dict[str, Kind] = {
    "exact": Kind("exact copy", PLAIN, _exact),
    "noise": Kind("copy with noise (a tenth of the standard deviation)", PLAIN, _noisy(0.1)),
    "strong_noise": Kind("copy with strong noise (a third of the standard deviation)", PLAIN, _noisy(1 / 3)),
    "gamma": Kind("other gamma", INTENSITY, _gamma),
    "contrast": Kind("other contrast and brightness", INTENSITY, _contrast),
    "rotation": Kind("rotated by 5 to 10°", WARPED, _turned(10)),
    "flip": Kind("flipped", WARPED, _flipped),
    "shift": Kind("shifted by up to a twelfth of the width", WARPED, _shifted),
    "zoom": Kind("enlarged or reduced by 5 to 10%", WARPED, _zoomed),
    "elastic": Kind("bent by 1 to 2% of the width", WARPED, _elastic),
    "phase": Kind("beat that begins with another frame", WARPED, _later_phase, cine_only=True),
    "reversed": Kind("beat played backwards", WARPED, _reversed, cine_only=True),
    "frames": Kind("beat with fewer frames", WARPED, _other_length, cine_only=True),
    "one_slice": Kind("one slice copied into another volume", PARTIAL, _one_slice),
    "half": Kind("half of the slices copied into another volume", PARTIAL, _half),
    "mixed": Kind("60 to 80% of a copy mixed with another volume", PARTIAL, _mixed),
}
