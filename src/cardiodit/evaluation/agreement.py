"""Whether two sets can be compared at all: the same grid and the same grey values, or a sentence that names both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.loading import Loaded, OtherIntensityError, load
from cardiodit.evaluation.sets import Item, VolumeSet
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.preprocessing import Preprocessing

LOOKED_AT = 3  # volumes of each set, before anything long begins
SPACING_TOLERANCE = 0.05  # relative, of the sets' medians
FEWEST_IN_COMMON = 0.25  # of two ranges of units, their intersection over their union

Size = tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What must agree of a volume, or of a set: its voxels, their size in mm, and its values in [-1, 1]."""

    size: Size
    spacing: Triple | None
    frame_time: float | None
    intensity: Range
    units: Range | None


def facts_of(loaded: Loaded) -> Facts:
    voxels, geometry = loaded.volume.voxels, loaded.volume.geometry
    values = (float(voxels.min()), float(voxels.max()))
    return Facts(voxels.shape, geometry.spacing, geometry.frame_time, values, loaded.units)


def facts_of_set(volumes: Sequence[Facts]) -> Facts:
    """The usual size, median spacing, frame time and units where they are known, and the range of all values."""
    size, _ = Counter(facts.size for facts in volumes).most_common(1)[0]
    usual = [facts for facts in volumes if facts.size == size]
    spacings = [facts.spacing for facts in usual if facts.spacing is not None]
    times = [facts.frame_time for facts in usual if facts.frame_time is not None]
    units = [facts.units for facts in usual if facts.units is not None]
    lows, highs = zip(*(facts.intensity for facts in usual), strict=True)
    return Facts(
        size,
        None if len(spacings) < len(usual) else _triple(spacings),
        float(np.median(times)) if times else None,
        (min(lows), max(highs)),
        _pair(units) if units else None,
    )


def look(volumes: VolumeSet, steps: Preprocessing) -> Facts:
    """The facts of the first volumes that can be read; what is wrong with the others is told volume by volume later."""
    found: list[Facts] = []
    problems: list[CardioDiTError | OSError] = []
    for item in volumes.items:
        if len(found) == LOOKED_AT:
            break
        try:
            found.append(facts_of(load(item, steps)))
        except (CardioDiTError, OSError) as error:
            problems.append(error)
        if not found and len(problems) == LOOKED_AT and all(isinstance(p, OtherIntensityError) for p in problems):
            break
    if found:
        return facts_of_set(found)
    if isinstance(problems[0], OtherIntensityError):
        raise CardioDiTError(
            f"The {volumes.name} volumes have another intensity range than the real ones, which are prepared to "
            f"[-1, 1]: {problems[0]} They are not rescaled in silence: write them in [-1, 1], or with the units of "
            "their model in samples.jsonl, or list them in a manifest, to be prepared as the real ones are."
        )
    raise CardioDiTError(
        f"None of the {len(volumes.items)} {volumes.name} volumes can be used. The first of them: {problems[0]}"
    )


def check_agreement(real: Facts, synthetic: Facts) -> None:
    """Raises one sentence for the first thing in which two sets differ too much to be compared."""
    if real.size != synthetic.size:
        raise CardioDiTError(
            f"The sets differ in size: real volumes have {_voxels(real.size)} after their preprocessing, synthetic "
            f"ones {_voxels(synthetic.size)}. Compare volumes of one size: sample at the size of the training volumes, "
            "or give the preprocessing that fits the samples (--preprocessing, --depth)."
        )
    if real.spacing and synthetic.spacing:
        off = np.abs(np.array(synthetic.spacing) / real.spacing - 1).max()
        if off > SPACING_TOLERANCE:
            raise CardioDiTError(
                f"The sets differ in voxel size: {_mm(real.spacing)} of the real volumes against "
                f"{_mm(synthetic.spacing)} of the synthetic ones, {off:.0%} apart. Resample one of them, or mend the "
                "headers."
            )
    _check_values(real, synthetic)
    _check_units(real, synthetic)


def _check_values(real: Facts, synthetic: Facts) -> None:
    """A set that fills one half of the other's range was scaled otherwise, [0, 1] for [-1, 1] above all.

    One that lies in a small part of that half is a bad model's grey, and is measured.
    """
    for one, other in ((real, synthetic), (synthetic, real)):
        low, high = one.intensity
        middle = (low + high) / 2
        slack = 0.01 * (high - low)
        if other.intensity[1] - other.intensity[0] < (high - low) / 4 - slack:
            continue
        if other.intensity[0] >= middle - slack or other.intensity[1] <= middle + slack:
            raise CardioDiTError(
                f"The sets differ in intensity range: real volumes go from {_range(real.intensity)}, synthetic ones "
                f"from {_range(synthetic.intensity)}, where -1 is the darkest and 1 the brightest. Nothing is rescaled "
                "in silence: write the synthetic volumes in [-1, 1]."
            )


def _check_units(real: Facts, synthetic: Facts) -> None:
    if real.units is None or synthetic.units is None:
        return
    low, high = zip(real.units, synthetic.units, strict=True)
    common = max(0.0, min(high) - max(low)) / (max(high) - min(low))
    if common < FEWEST_IN_COMMON:
        raise CardioDiTError(
            f"The sets differ in intensity range: -1 and 1 stand for {_range(real.units)} in the real files and for "
            f"{_range(synthetic.units)} in the synthetic ones. Nothing is rescaled in silence: bring them to the same "
            "units, or write the synthetic volumes in [-1, 1]."
        )


def unlike_most(item: Item, facts: Facts, usual: Facts) -> str | None:
    """Why a volume cannot stand beside the others of its set."""
    if facts.size == usual.size:
        return None
    return f"It has {_voxels(facts.size)}, and most {item.set} volumes have {_voxels(usual.size)}."


def without_folders(text: str, paths: Sequence[Path]) -> str:
    """A sentence that names files by their names alone: a report leaves the house."""
    for path in paths:
        for written in (path, path.resolve()):
            text = text.replace(str(written), path.name)
    return text


def _voxels(size: Size) -> str:
    return " × ".join(map(str, size[:3])) + " voxels" + (f" × {size[3]} frames" if len(size) == 4 else "")


def _mm(spacing: Triple) -> str:
    return " × ".join(f"{mm:.4g}" for mm in spacing) + " mm"


def _range(pair: Range) -> str:
    return f"{pair[0]:.4g} to {pair[1]:.4g}"


def _triple(values: Sequence[Triple]) -> Triple:
    h, w, d = np.median(np.array(values), axis=0)
    return float(h), float(w), float(d)


def _pair(values: Sequence[Range]) -> Range:
    low, high = np.median(np.array(values), axis=0)
    return float(low), float(high)
