"""Anatomy of CT volumes: Hounsfield units, the volumes of structures in mL, how often they are found, and their shares.

Label maps come from a segmenter whose `structures` name its labels. A structure that is cut off by the border of the
volume has no volume, and one that is absent counts for the detection rate, but not as 0 mL. Shares are MedLoRD's
relative regional volumes: of each structure in the sum of all that its region holds.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.estimate import Estimate, Floor
from cardiodit.evaluation.metrics.numbers import Quantity, compare, register_quantities
from cardiodit.evaluation.metrics.registry import (
    ANATOMY,
    HIGHER,
    LOWER,
    NOT_NEGATIVE,
    Features,
    Result,
    Scoring,
    metric,
)
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.intensity import Range, to_source

TOTALSEGMENTATOR = {
    "spleen": 1,
    "kidney_right": 2,
    "kidney_left": 3,
    "gallbladder": 4,
    "liver": 5,
    "stomach": 6,
    "pancreas": 7,
    "lung_upper_lobe_left": 10,
    "lung_lower_lobe_left": 11,
    "lung_upper_lobe_right": 12,
    "lung_middle_lobe_right": 13,
    "lung_lower_lobe_right": 14,
    "vertebrae_l3": 29,
    "vertebrae_l2": 30,
    "vertebrae_l1": 31,
    "heart": 51,
    "aorta": 52,
}  # of the task "total", version 2: the structures that the authors of VolDiT measure
REGIONS = {
    "lung": ("upper_lobe_left", "lower_lobe_left", "upper_lobe_right", "middle_lobe_right", "lower_lobe_right"),
    "kidney": ("left", "right"),
}
# Names under which structures are compared; a segmenter may name others, whose numbers are only listed.
STRUCTURES = (*TOTALSEGMENTATOR, "lungs", "airways", "trachea", "vessels", "nodules", "spine", "bones")
PERCENTILES = (5, 25, 50, 75, 95)
FOREGROUND = -300.0  # HU; above it lies everything but air, lung and the surroundings
PERCENT = (0.0, 100.0)
BINS, WINDOW = 200, (-1000.0, 1000.0)
HISTOGRAM, HISTOGRAM_FOREGROUND = "hu_histogram", "hu_histogram_foreground"


def _title(structure: str) -> str:
    return structure.replace("_", " ")


HU = (
    Quantity("hu_mean", "Mean intensity", "HU"),
    Quantity("hu_sd", "Standard deviation of intensities", "HU"),
    *(Quantity(f"hu_p{p}", f"Percentile {p} of intensities", "HU") for p in PERCENTILES),
    Quantity("hu_foreground_percent", f"Voxels above {FOREGROUND:g} HU", "%"),
)
VOLUMES = tuple(Quantity(f"volume_ml_{name}", f"Volume, {_title(name)}", "mL") for name in STRUCTURES)
SHARES = tuple(
    Quantity(f"share_percent_{region}_{part}", f"Share of {_title(part)} in the {region}", "%")
    for region, parts in REGIONS.items()
    for part in parts
)
register_quantities([*HU, *VOLUMES, *SHARES], group=ANATOMY, if_unknown="no volume has this number.")


def hounsfield(voxels: np.ndarray, units: Range) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return numbers of one volume's Hounsfield units, and its histograms as rows of features."""
    values = to_source(voxels, units, np.float32).ravel()
    foreground = values[values > FOREGROUND]
    percentiles = np.percentile(values, PERCENTILES)
    numbers = {
        "hu_mean": float(values.mean(dtype=np.float64)),
        "hu_sd": float(values.std(dtype=np.float64)),
        **{f"hu_p{p}": float(value) for p, value in zip(PERCENTILES, percentiles, strict=True)},
        "hu_foreground_percent": 100 * len(foreground) / len(values),
    }
    rows = {HISTOGRAM: _histogram(values), HISTOGRAM_FOREGROUND: _histogram(foreground)}
    return numbers, rows


def _histogram(values: np.ndarray) -> np.ndarray:
    counts, _ = np.histogram(values.clip(*WINDOW), BINS, WINDOW)
    return (counts / max(1, counts.sum())).astype(np.float32)


def anatomy(labels: np.ndarray, structures: Mapping[str, int], geometry: Geometry) -> dict[str, float | None]:
    """Return for each structure its volume (None if it is absent or cut off), whether it was found, and its share.

    Args:
        labels: `(H, W, D)` integers.
        structures: label of each structure.
        geometry: with the voxel size; without it there are no volumes.
    """
    counts = {name: int((labels == label).sum()) for name, label in structures.items()}
    border = _at_border(labels)
    voxel = None if geometry.spacing is None else float(np.prod(geometry.spacing)) / 1000
    numbers: dict[str, float | None] = {}
    for name, label in structures.items():
        is_whole = counts[name] > 0 and label not in border
        numbers[f"found_{name}"] = float(counts[name] > 0)
        numbers[f"volume_ml_{name}"] = counts[name] * voxel if is_whole and voxel is not None else None
    for region, parts in REGIONS.items():
        names = [f"{region}_{part}" for part in parts]
        total = sum(counts.get(name, 0) for name in names)
        if all(name in structures for name in names):
            for part, name in zip(parts, names, strict=True):
                numbers[f"share_percent_{region}_{part}"] = 100 * counts[name] / total if total else None
    return numbers


def adherence(
    labels: np.ndarray, structures: Mapping[str, int], masks: Mapping[str, np.ndarray]
) -> dict[str, float | None]:
    """Return the Dice coefficient in percent of each requested structure with the one that a segmenter found.

    Args:
        labels: the segmenter's, `(H, W, D)`.
        structures: label of each structure.
        masks: requested masks on the same grid. A mask that has a structure's name is that structure; any other is a
            label map with the segmenter's numbers.
    """
    requested: dict[str, np.ndarray] = {}
    for key, mask in masks.items():
        if mask.shape != labels.shape:
            raise CardioDiTError(f"The mask {key} is {mask.shape} on the model's grid, the volume {labels.shape}.")
        if key.lower() in structures:
            requested[key.lower()] = mask > 0
        else:
            requested |= {name: mask == label for name, label in structures.items() if (mask == label).any()}
    numbers: dict[str, float | None] = {}
    for name, mask in requested.items():
        found = labels == structures[name]
        total = int(mask.sum()) + int(found.sum())
        numbers[f"dice_percent_{name}"] = 200 * int((mask & found).sum()) / total if mask.any() else None
    return numbers


def _at_border(labels: np.ndarray) -> set[int]:
    """Return the labels that touch the first or last slice, where a scan ends inside the body."""
    return set(np.unique(labels[..., [0, -1]]).tolist()) - {0}


def _detection(scoring: Scoring, *, structure: str) -> Result | None:
    """Return |synthetic − real| of the share of volumes in which a structure was found, with Newcombe's interval.

    Of values that are 0 or 1, this difference is the Wasserstein distance, so its floor and test are the same.
    """
    real, synthetic = scoring.numbers(f"found_{structure}")
    if min(len(real), len(synthetic)) < 2:
        return None
    compared = compare(real, synthetic, seed=scoring.seed)
    rates = [100 * compared.real.mean, 100 * compared.synthetic.mean]
    low, high = _newcombe(sum(real), len(real), sum(synthetic), len(synthetic))
    note = (
        f"Found in {rates[0]:.4g}% of the real and {rates[1]:.4g}% of the synthetic volumes; difference "
        f"{rates[1] - rates[0]:.3g} points ({100 * low:.3g} to {100 * high:.3g})."
    )
    value = 100 * compared.wasserstein
    return Result(
        Estimate(value, method="difference of detection rates", notes=(note,)),
        Floor(100 * compared.floor, None, 100 * compared.floor_high, value, None),
        p_value=compared.p_value,
    )


def _adherence(scoring: Scoring, *, structure: str) -> Result | None:
    """Return the mean Dice of requested and found structures; that of real volumes' own masks stands beside it."""
    real, synthetic = scoring.numbers(f"dice_percent_{structure}")
    if len(synthetic) < 2:
        return None
    mean, reach = _mean_with_reach(synthetic)
    notes = [f"{len(synthetic)} samples; what the segmenter misses counts against them."]
    floor = None
    if len(real) >= 2:
        own, _ = _mean_with_reach(real)
        low, high = np.percentile(real, (5, 95))
        floor = Floor(own, float(low), float(high), mean, None)
        notes.append("The reference is the Dice of the segmenter with real volumes' own masks.")
    method = "mean Dice coefficient; interval by Student's t"
    return Result(Estimate(mean, mean - reach, mean + reach, method=method, notes=tuple(notes)), floor)


def _mean_with_reach(values: Sequence[float]) -> tuple[float, float]:
    from scipy import stats

    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return float(np.mean(values)), error * float(stats.t.ppf(0.975, len(values) - 1))


def _newcombe(found: float, count: int, found_too: float, count_too: int) -> tuple[float, float]:
    """Return the 95% interval of the difference of two shares, second − first (Newcombe 1998, method 10)."""
    (p, low, high), (q, low_too, high_too) = _wilson(found, count), _wilson(found_too, count_too)
    difference = q - p
    below = np.hypot(q - low_too, high - p)
    above = np.hypot(high_too - q, p - low)
    return float(difference - below), float(difference + above)


def _wilson(found: float, count: int, z: float = 1.959964) -> tuple[float, float, float]:
    share = found / count
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return share, float(centre - reach), float(centre + reach)


for _structure in STRUCTURES:
    metric(
        f"detection_{_structure}",
        f"Difference of the detection rates, {_title(_structure)}",
        group=ANATOMY,
        better=LOWER,
        unit="points",
        bounds=PERCENT,
        label=f"Detection rate, {_title(_structure)}",
    )(partial(_detection, structure=_structure))
    metric(
        f"adherence_{_structure}",
        f"Adherence to the mask, {_title(_structure)}",
        group=ANATOMY,
        better=HIGHER,
        unit="%",
        bounds=PERCENT,
        label=f"Adherence to the mask, {_title(_structure)}",
    )(partial(_adherence, structure=_structure))


def _pooled_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Return the Wasserstein-1 distance in HU of two sets' mean histograms."""
    width = (WINDOW[1] - WINDOW[0]) / BINS
    gap = np.cumsum(real.mean(axis=0, dtype=np.float64) - synthetic.mean(axis=0, dtype=np.float64))
    return float(np.abs(gap).sum() * width)


def _histogram_metric(scoring: Scoring, *, kind: str) -> Result | None:
    features: Features | None = scoring.features(kind)
    if features is None:
        return None
    estimate = Estimate(
        _pooled_distance(features.real, features.synthetic),
        method=f"Wasserstein-1 distance of pooled histograms, {BINS} bins from {WINDOW[0]:g} to {WINDOW[1]:g} HU",
    )
    return features.beside_floor(estimate, _pooled_distance)


for _kind, _words in ((HISTOGRAM, "all voxels"), (HISTOGRAM_FOREGROUND, f"above {FOREGROUND:g} HU")):
    metric(
        f"wasserstein_{_kind}",
        f"Distribution of Hounsfield units, {_words}",
        group=ANATOMY,
        better=LOWER,
        unit="HU",
        place=0,
        bounds=NOT_NEGATIVE,
    )(partial(_histogram_metric, kind=_kind))
