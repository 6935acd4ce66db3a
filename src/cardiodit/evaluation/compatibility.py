"""Checks that two sets can be compared: the same grid, voxel size and intensity range."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.volume_sets import REAL, SYNTHETIC, Item, Loaded, OtherIntensityError, VolumeSet, load
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.preprocessing import Preprocessing

INSPECTED = 3  # volumes of each set that are checked before the long computation starts
SPACING_TOLERANCE = 0.05  # relative, of the sets' medians
FEWEST_IN_COMMON = 0.25  # of two ranges of units, their intersection over their union
BULK = (0.1, 99.9)  # percentiles that describe a volume's values: a few stray voxels say nothing about its scaling
HALF_FILLED = 3 / 8  # of a range: values at least this wide fill one half of it
SLACK = 0.05  # of a range: how far such values may reach into the other half
LEAST_WIDTH = 1e-3  # of values in [-1, 1]: narrower ones are a single value, not a range with another scaling
LEAST_LOPSIDED = 0.1  # of a range: how far its median must be from its middle, for a mirrored one to be noticed
OTHER_WIDTH = 0.25  # relative difference of the two sets' widths above which a note is written

Size = tuple[int, ...]


@dataclass(frozen=True)
class VolumeStats:
    """Properties that must agree between volumes and between sets: size, voxel size in mm, values in [-1, 1].

    Args:
        intensity: range of all but the darkest and the brightest thousandth of the voxels.
        middle: median of the voxels; None if unknown.
        units: what -1 and 1 are in the file, if known.
    """

    size: Size
    spacing: Triple | None
    frame_time: float | None
    intensity: Range
    units: Range | None
    middle: float | None = None


def summarize(loaded: Loaded) -> VolumeStats:
    voxels, geometry = loaded.volume.voxels, loaded.volume.geometry
    low, middle, high = map(float, np.percentile(voxels, [BULK[0], 50, BULK[1]]))
    return VolumeStats(voxels.shape, geometry.spacing, geometry.frame_time, (low, high), loaded.units, middle)


def summarize_set(volumes: Sequence[VolumeStats]) -> VolumeStats:
    """Return the most common size, and the medians of intensity and, where known, of spacing, frame time and units."""
    size, _ = Counter(stats.size for stats in volumes).most_common(1)[0]
    usual = [stats for stats in volumes if stats.size == size]
    spacings = [stats.spacing for stats in usual if stats.spacing is not None]
    times = [stats.frame_time for stats in usual if stats.frame_time is not None]
    units = [stats.units for stats in usual if stats.units is not None]
    middles = [stats.middle for stats in usual if stats.middle is not None]
    return VolumeStats(
        size,
        None if len(spacings) < len(usual) else _triple(spacings),
        float(np.median(times)) if times else None,
        _pair([stats.intensity for stats in usual]),
        _pair(units) if units else None,
        float(np.median(middles)) if middles else None,
    )


def inspect(volumes: VolumeSet, steps: Preprocessing) -> VolumeStats:
    """Summarize the first readable volumes of a set; the others' problems are reported one by one later."""
    found: list[VolumeStats] = []
    problems: list[CardioDiTError | OSError] = []
    for item in volumes.items:
        if len(found) == INSPECTED:
            break
        try:
            found.append(summarize(load(item, steps)))
        except (CardioDiTError, OSError) as error:
            problems.append(error)
        if not found and len(problems) == INSPECTED and all(isinstance(p, OtherIntensityError) for p in problems):
            break
    if found:
        return summarize_set(found)
    if isinstance(problems[0], OtherIntensityError):
        raise CardioDiTError(
            f"The {volumes.name} volumes have another intensity range than the real ones, which are scaled to "
            f"[-1, 1]: {problems[0]} They are not rescaled silently: write them in [-1, 1], or with their model's "
            "units in samples.jsonl, or list them in a manifest, to be preprocessed as the real ones are."
        )
    raise CardioDiTError(
        f"None of the {len(volumes.items)} {volumes.name} volumes can be used. The first problem: {problems[0]}"
    )


def check_agreement(real: VolumeStats, synthetic: VolumeStats) -> None:
    """Raise an error for the first property in which two sets differ too much to be compared."""
    if real.size != synthetic.size:
        raise CardioDiTError(
            f"The sets differ in size: real volumes have {_voxels(real.size)} after their preprocessing, synthetic "
            f"ones {_voxels(synthetic.size)}. Compare volumes of one size: sample at the size of the training volumes, "
            "or give the preprocessing that matches the samples (--preprocessing, --depth)."
        )
    if real.spacing and synthetic.spacing:
        off = _apart(real.spacing, synthetic.spacing)
        if off > SPACING_TOLERANCE:
            raise CardioDiTError(
                f"The sets differ in voxel size: {_mm(real.spacing)} of the real volumes against "
                f"{_mm(synthetic.spacing)} of the synthetic ones, {off:.0%} apart. To compare them, resample the real "
                f"ones with --spacing {' '.join(f'{mm:.4g}' for mm in synthetic.spacing)}. If the samples' model was "
                "trained on volumes of that other size, its voxel size is wrong: encode its training volumes again, "
                "with `cardiodit encode --spacing`, and train it on them."
            )
    _check_values(real, synthetic)
    _check_units(real, synthetic)


def _check_values(real: VolumeStats, synthetic: VolumeStats) -> None:
    for one, other in ((real, synthetic), (synthetic, real)):
        if _fills_bright_half(other.intensity, one.intensity) or _fills_dark_half(other.intensity, one.intensity):
            raise CardioDiTError(
                f"The sets differ in intensity range: real volumes go from {_range(real.intensity)}, synthetic ones "
                f"from {_range(synthetic.intensity)}, where -1 is the darkest and 1 the brightest. Nothing is "
                "rescaled silently: write the synthetic volumes in [-1, 1]."
            )


def _fills_bright_half(values: Range, of: Range) -> bool:
    """Return whether values fill only the bright half of a range, as [0, 1] in [-1, 1]: they were scaled differently.

    Low contrast from a bad model does not fill half of the range and is measured; neither does anything fill half of
    the single value of a collapsed model.
    """
    low, high = of
    if high - low < LEAST_WIDTH:
        return False
    is_wide = values[1] - values[0] >= HALF_FILLED * (high - low)
    return is_wide and values[0] >= (low + high) / 2 - SLACK * (high - low)


def _fills_dark_half(values: Range, of: Range) -> bool:
    return _fills_bright_half((-values[1], -values[0]), (-of[1], -of[0]))


def _check_units(real: VolumeStats, synthetic: VolumeStats) -> None:
    if real.units is None or synthetic.units is None:
        return
    low, high = zip(real.units, synthetic.units, strict=True)
    common = max(0.0, min(high) - max(low)) / (max(high) - min(low))
    if common < FEWEST_IN_COMMON:
        raise CardioDiTError(
            f"The sets differ in intensity range: -1 and 1 stand for {_range(real.units)} in the real files and for "
            f"{_range(synthetic.units)} in the synthetic ones. Nothing is rescaled silently: bring them to the same "
            "units, or write the synthetic volumes in [-1, 1]."
        )


def find_outliers(items: Sequence[Item], stats: Sequence[VolumeStats]) -> list[str | None]:
    """Return for each volume of a set why it cannot be compared with the others; None if it can.

    If most generated volumes share one voxel size, all must. Patients' voxel sizes differ unless their preprocessing
    resamples.
    """
    usual = summarize_set(stats)
    generated = [own.spacing for item, own in zip(items, stats, strict=True) if item.case is None]
    near = [spacing for spacing in generated if _is_near(spacing, usual.spacing)]
    has_one_spacing = 2 * len(near) > len(generated)
    return [
        _difference(item, own, usual, has_one_spacing and item.case is None)
        for item, own in zip(items, stats, strict=True)
    ]


def _difference(item: Item, own: VolumeStats, usual: VolumeStats, has_one_spacing: bool) -> str | None:
    if own.size != usual.size:
        return f"It has {_voxels(own.size)}, and most {item.set} volumes have {_voxels(usual.size)}."
    if _fills_bright_half(own.intensity, usual.intensity):
        return (
            f"Its values go from {_range(own.intensity)}, and those of most {item.set} volumes from "
            f"{_range(usual.intensity)}: it was scaled differently."
        )
    if has_one_spacing and own.spacing and usual.spacing and not _is_near(own.spacing, usual.spacing):
        return f"Its voxels have {_mm(own.spacing)}, and those of most {item.set} volumes {_mm(usual.spacing)}."
    return None


def notes_on_voxel_sizes(real: Sequence[VolumeStats], synthetic: Sequence[VolumeStats]) -> list[str]:
    """Return notes on voxel sizes that differ within a set, or that are known for one set only."""
    notes = []
    for name, stats in ((REAL, real), (SYNTHETIC, synthetic)):
        known = np.array([own.spacing for own in stats if own.spacing is not None])
        if len(known) and (known.max(axis=0) / known.min(axis=0)).max() > 1 + SPACING_TOLERANCE:
            least, most = (_mm(tuple(spacing)) for spacing in (known.min(axis=0), known.max(axis=0)))
            notes.append(
                f"The voxel sizes of the {name} volumes differ, from {least} to {most} along the axes; the sets are "
                "compared by their medians."
            )
    usual = [(REAL, summarize_set(real).spacing), (SYNTHETIC, summarize_set(synthetic).spacing)]
    for (name, unknown), (other, spacing) in (usual, usual[::-1]):
        if unknown is None and spacing is not None:
            notes.append(
                f"The voxel size of the {name} volumes is unknown, that of the {other} ones is {_mm(spacing)}: whether "
                "they are the same could not be checked."
            )
    return notes


def notes_on_contrast(real: VolumeStats, synthetic: VolumeStats) -> list[str]:
    """Return notes on unusual contrast that is not refused: of a bad model, or a scaling that no check caught."""
    return [*_notes_on_widths(real, synthetic), *_notes_on_polarity(real, synthetic)]


def _notes_on_polarity(real: VolumeStats, synthetic: VolumeStats) -> list[str]:
    """Return a note if the median voxels of both sets are on opposite sides of their range."""
    sides = []
    for stats in (real, synthetic):
        (low, high), middle = stats.intensity, stats.middle
        is_lopsided = middle is not None and abs(middle - (low + high) / 2) > LEAST_LOPSIDED * (high - low)
        sides.append(np.sign(middle - (low + high) / 2) if middle is not None and is_lopsided else 0)
    if sides[0] * sides[1] >= 0:
        return []
    return [
        f"The contrast may be inverted: the median voxel of real volumes is {real.middle:.4g}, and that of synthetic "
        f"ones {synthetic.middle:.4g}, on the other side of the range. If the model is not the cause, check how the "
        "synthetic files were written."
    ]


def _notes_on_widths(real: VolumeStats, synthetic: VolumeStats) -> list[str]:
    widths = [high - low for low, high in (real.intensity, synthetic.intensity)]
    if widths[1] < LEAST_WIDTH <= widths[0]:
        return [
            f"Most synthetic volumes contain a single value, {synthetic.intensity[0]:.4g} in the median, and real ones "
            f"go from {_range(real.intensity)}: their model has collapsed. They are measured as they are."
        ]
    if abs(widths[1] - widths[0]) <= OTHER_WIDTH * widths[0]:
        return []
    return [
        f"The contrast differs: synthetic volumes go from {_range(synthetic.intensity)}, and real ones from "
        f"{_range(real.intensity)}. They are measured as they are. If the model is not the cause, check how the "
        "synthetic files were scaled."
    ]


def without_folders(text: str, paths: Sequence[Path]) -> str:
    """Replace paths by file names: reports are shared, and must not reveal folders."""
    for path in paths:
        for written in (path, path.resolve()):
            text = text.replace(str(written), path.name)
    return text


def _voxels(size: Size) -> str:
    return " × ".join(map(str, size[:3])) + " voxels" + (f" × {size[3]} frames" if len(size) == 4 else "")


def _apart(first: Triple, second: Triple) -> float:
    """Return the relative difference along the axis in which two voxel sizes differ most."""
    return float(np.abs(np.array(second) / first - 1).max())


def _is_near(spacing: Triple | None, usual: Triple | None) -> bool:
    return spacing is not None and usual is not None and _apart(usual, spacing) <= SPACING_TOLERANCE


def _mm(spacing: Sequence[float]) -> str:
    return " × ".join(f"{mm:.4g}" for mm in spacing) + " mm"


def _range(pair: Range) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}"


def _triple(values: Sequence[Triple]) -> Triple:
    h, w, d = np.median(np.array(values), axis=0)
    return float(h), float(w), float(d)


def _pair(values: Sequence[Range]) -> Range:
    low, high = np.median(np.array(values), axis=0)
    return float(low), float(high)
