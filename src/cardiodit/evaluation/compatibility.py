"""Whether two sets can be compared at all: the same grid and the same grey values, or a sentence that names both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.loading import Loaded, OtherIntensityError, load
from cardiodit.evaluation.sets import REAL, SYNTHETIC, Item, VolumeSet
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.preprocessing import Preprocessing

LOOKED_AT = 3  # volumes of each set, before anything long begins
SPACING_TOLERANCE = 0.05  # relative, of the sets' medians
FEWEST_IN_COMMON = 0.25  # of two ranges of units, their intersection over their union
BULK = (0.1, 99.9)  # percentiles that a volume's values are told by: a few stray voxels say nothing of its scaling
HALF_FILLED = 3 / 8  # of a range: so wide are values that fill one half of it
SLACK = 0.05  # of a range: so far they may reach into the other half
LEAST_WIDTH = 1e-3  # of values in [-1, 1]: what is narrower is one value, and no range of another scaling
OTHER_WIDTH = 0.25  # so much wider or narrower than the real set's range, a set's values get a note

Size = tuple[int, ...]


@dataclass(frozen=True)
class Facts:
    """What must agree of a volume, or of a set: its voxels, their size in mm, and its values in [-1, 1].

    Args:
        intensity: the values that all but the darkest and the brightest thousandth of the voxels lie between.
        units: what -1 and 1 are in the file, where that is known.
    """

    size: Size
    spacing: Triple | None
    frame_time: float | None
    intensity: Range
    units: Range | None


def facts_of(loaded: Loaded) -> Facts:
    voxels, geometry = loaded.volume.voxels, loaded.volume.geometry
    low, high = np.percentile(voxels, BULK)
    return Facts(voxels.shape, geometry.spacing, geometry.frame_time, (float(low), float(high)), loaded.units)


def facts_of_set(volumes: Sequence[Facts]) -> Facts:
    """The usual size, and the medians of intensities and, where they are known, of spacing, frame time and units."""
    size, _ = Counter(facts.size for facts in volumes).most_common(1)[0]
    usual = [facts for facts in volumes if facts.size == size]
    spacings = [facts.spacing for facts in usual if facts.spacing is not None]
    times = [facts.frame_time for facts in usual if facts.frame_time is not None]
    units = [facts.units for facts in usual if facts.units is not None]
    return Facts(
        size,
        None if len(spacings) < len(usual) else _triple(spacings),
        float(np.median(times)) if times else None,
        _pair([facts.intensity for facts in usual]),
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
        off = _apart(real.spacing, synthetic.spacing)
        if off > SPACING_TOLERANCE:
            raise CardioDiTError(
                f"The sets differ in voxel size: {_mm(real.spacing)} of the real volumes against "
                f"{_mm(synthetic.spacing)} of the synthetic ones, {off:.0%} apart. Resample one of them, or mend the "
                "headers."
            )
    _check_values(real, synthetic)
    _check_units(real, synthetic)


def _check_values(real: Facts, synthetic: Facts) -> None:
    for one, other in ((real, synthetic), (synthetic, real)):
        if _fills_bright_half(other.intensity, one.intensity) or _fills_dark_half(other.intensity, one.intensity):
            raise CardioDiTError(
                f"The sets differ in intensity range: real volumes go from {_range(real.intensity)}, synthetic ones "
                f"from {_range(synthetic.intensity)}, where -1 is the darkest and 1 the brightest. Nothing is rescaled "
                "in silence: write the synthetic volumes in [-1, 1]."
            )


def _fills_bright_half(values: Range, of: Range) -> bool:
    """As [0, 1] lies in [-1, 1]: scaled otherwise. A bad model's grey fills no half of anything, and is measured.

    Neither does anything fill half of a collapsed model's one value.
    """
    low, high = of
    if high - low < LEAST_WIDTH:
        return False
    is_wide = values[1] - values[0] >= HALF_FILLED * (high - low)
    return is_wide and values[0] >= (low + high) / 2 - SLACK * (high - low)


def _fills_dark_half(values: Range, of: Range) -> bool:
    return _fills_bright_half((-values[1], -values[0]), (-of[1], -of[0]))


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


def unlike_most(items: Sequence[Item], facts: Sequence[Facts]) -> list[str | None]:
    """For each volume of a set why it cannot stand beside the others, None where it can.

    Generated volumes have one voxel size where most of them do; that of patients differs from one to the next, unless
    their preprocessing resamples.
    """
    usual = facts_of_set(facts)
    generated = [own.spacing for item, own in zip(items, facts, strict=True) if item.case is None]
    alike = [spacing for spacing in generated if _is_near(spacing, usual.spacing)]
    has_one_spacing = 2 * len(alike) > len(generated)
    return [
        _unlike(item, own, usual, has_one_spacing and item.case is None) for item, own in zip(items, facts, strict=True)
    ]


def _unlike(item: Item, own: Facts, usual: Facts, has_one_spacing: bool) -> str | None:
    if own.size != usual.size:
        return f"It has {_voxels(own.size)}, and most {item.set} volumes have {_voxels(usual.size)}."
    if _fills_bright_half(own.intensity, usual.intensity):
        return (
            f"Its values go from {_range(own.intensity)}, and those of most {item.set} volumes from "
            f"{_range(usual.intensity)}: it was scaled otherwise."
        )
    if has_one_spacing and own.spacing and usual.spacing and not _is_near(own.spacing, usual.spacing):
        return f"Its voxels have {_mm(own.spacing)}, and those of most {item.set} volumes {_mm(usual.spacing)}."
    return None


def notes_on_voxel_sizes(real: Sequence[Facts], synthetic: Sequence[Facts]) -> list[str]:
    """What a reader must know of voxel sizes that differ within a set, or that only one set tells."""
    notes = []
    for name, facts in ((REAL, real), (SYNTHETIC, synthetic)):
        known = np.array([own.spacing for own in facts if own.spacing is not None])
        if len(known) and (known.max(axis=0) / known.min(axis=0)).max() > 1 + SPACING_TOLERANCE:
            least, most = (_mm(tuple(spacing)) for spacing in (known.min(axis=0), known.max(axis=0)))
            notes.append(
                f"The voxel sizes of the {name} volumes differ, from {least} to {most} along the axes; the sets are "
                "compared by their medians."
            )
    usual = [(REAL, facts_of_set(real).spacing), (SYNTHETIC, facts_of_set(synthetic).spacing)]
    for (name, unknown), (other, spacing) in (usual, usual[::-1]):
        if unknown is None and spacing is not None:
            notes.append(
                f"The voxel size of the {name} volumes is unknown, that of the {other} ones is {_mm(spacing)}: whether "
                "they are the same could not be checked."
            )
    return notes


def notes_on_contrast(real: Facts, synthetic: Facts) -> list[str]:
    """Of values that are neither refused nor right: a bad model's contrast, or a scaling that no rule has caught."""
    widths = [high - low for low, high in (real.intensity, synthetic.intensity)]
    if widths[1] < LEAST_WIDTH <= widths[0]:
        return [
            f"Most synthetic volumes hold one value alone, {synthetic.intensity[0]:.4g} in the median, and real ones "
            f"go from {_range(real.intensity)}: their model has collapsed. They are measured as they are."
        ]
    if abs(widths[1] - widths[0]) <= OTHER_WIDTH * widths[0]:
        return []
    return [
        f"The contrast differs: synthetic volumes go from {_range(synthetic.intensity)}, and real ones from "
        f"{_range(real.intensity)}. They are measured as they are. If the model is not to blame, see how the synthetic "
        "files were scaled."
    ]


def without_folders(text: str, paths: Sequence[Path]) -> str:
    """A sentence that names files by their names alone: a report leaves the house."""
    for path in paths:
        for written in (path, path.resolve()):
            text = text.replace(str(written), path.name)
    return text


def _voxels(size: Size) -> str:
    return " × ".join(map(str, size[:3])) + " voxels" + (f" × {size[3]} frames" if len(size) == 4 else "")


def _apart(first: Triple, second: Triple) -> float:
    """Relative, along the axis in which two voxel sizes differ most."""
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
