"""Preprocessing in words, for a card."""

from cardiodit.imaging.intensity import parse_percentile
from cardiodit.imaging.preprocessing import Preprocessing


def preprocessing_in_words(steps: Preprocessing, is_cine: bool) -> str:
    """What was done to the training volumes, one sentence a step."""
    whose = "volume's field of view" if steps.limits_of == "view" else "volume"
    low, high = (_limit(value, whose) for value in (steps.intensity.low, steps.intensity.high))
    lines = [
        _turned(steps, is_cine),
        _resampled(steps),
        _fitted(steps),
        _beat(steps),
        f"Intensities: {low} becomes -1, {high} becomes 1, linearly between; what lies beyond is cut.",
        f"Averaged over cubes of {steps.pool} voxels along each axis." if steps.pool > 1 else "",
    ]
    return "\n".join(f"{number}. {line}" for number, line in enumerate(filter(None, lines), start=1))


def _turned(steps: Preprocessing, is_cine: bool) -> str:
    if not steps.orient:
        return "Axes left as stored."
    return "Turned to one axis order" + (": slices from base to apex, end-diastole first." if is_cine else ".")


def _limit(value: float | str, whose: str) -> str:
    if not isinstance(value, str):
        return f"{value:g} in the source's units"
    if not value.startswith("p"):
        return f"the {value} of each {whose}"
    percentile, most = parse_percentile(value)
    return f"percentile {percentile:g} of each {whose}" + ("" if most is None else f", or {most:g} where that is less,")


def _resampled(steps: Preprocessing) -> str:
    known = {axis: s for axis, s in zip("HWD", steps.spacing, strict=True) if s is not None}
    if not known:
        return "" if steps.fit == "resize" else "Voxel size left as in the file."
    kept = [axis for axis in "HWD" if axis not in known]
    listed = ", ".join(f"{axis} {value:g} mm" for axis, value in known.items())
    return f"Resampled to {listed}" + (f"; {' and '.join(kept)} as in the file." if kept else ".")


def _fitted(steps: Preprocessing) -> str:
    sizes = {axis: n for axis, n in zip("HWD", steps.size, strict=True) if n is not None}
    if not sizes:
        return ""
    how = "Resized as a whole" if steps.fit == "resize" else "Cropped or padded around the centre"
    return f"{how} to {', '.join(f'{axis} {n}' for axis, n in sizes.items())} voxels."


def _beat(steps: Preprocessing) -> str:
    if not steps.frames or steps.frames == 1:
        return ""
    if steps.cycle == "repeat":
        return f"The beat's frames repeated and cut to {steps.frames}."
    return f"One beat resampled periodically to {steps.frames} frames."
