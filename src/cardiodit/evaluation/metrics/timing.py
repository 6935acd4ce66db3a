"""Timing of the beat: in which direction it runs, where it begins, and whether it closes.

Volumes, rates and changes between frames say little about this: a cine that is played backwards, or that begins in the
middle of the beat, has nearly the same ones. All times are shares of the beat, so that no frame time is needed.
"""

from collections.abc import Sequence

import numpy as np

from cardiodit.evaluation.metrics.numbers import Quantity, register_quantities
from cardiodit.evaluation.metrics.registry import TIMING

FEWEST_FRAMES = 4
EARLY, LATE = 0.9, 0.1  # shares of the stroke volume between which ejection and filling are timed
QUANTITIES = (
    Quantity("lv_ed_phase_percent", "LV end-diastole, distance from the first frame", "%"),
    Quantity("lv_systole_percent", "LV time from end-diastole to end-systole, of the beat", "%"),
    Quantity("lv_filling_ejection_ratio", "LV filling time over ejection time"),
    Quantity("farthest_frame_percent", "Time of the frame that differs most from the first, of the beat", "%"),
    Quantity("lv_closing_percent", "LV volume step from last to first frame, of the stroke volume", "%"),
    Quantity("cycle_gap", "Label change from last to first frame, over the largest other one"),
)

register_quantities(
    QUANTITIES,
    group=TIMING,
    if_unknown=f"no volume has this number. It needs a left ventricle that beats, and at least {FEWEST_FRAMES} frames.",
)


def beat_timing(volumes: Sequence[float]) -> dict[str, float | None]:
    """Return the timing of one whole beat from the left ventricle's volume in each frame; None for hearts at rest.

    End-diastole is signed, from -50 to 50% of the beat, because a maximum in the last frame is early, not late.
    Ejection and filling are timed between 90% and 10% of the stroke volume, interpolated linearly. The step from the
    last to the first frame is signed, too.
    """
    curve = np.asarray(volumes, dtype=np.float64)
    names = [quantity.name for quantity in QUANTITIES if quantity.name.startswith("lv_")]
    frames, stroke = len(curve), float(np.ptp(curve))
    if frames < FEWEST_FRAMES or stroke == 0:
        return dict.fromkeys(names)
    end_diastole, end_systole = int(curve.argmax()), int(curve.argmin())
    share = np.roll((curve - curve.min()) / stroke, -end_systole)  # begins at 0, at end-systole
    filling = _time_to_reach(share, EARLY) - _time_to_reach(share, LATE)
    backwards = np.roll(share[::-1], 1)
    ejection = _time_to_reach(backwards, EARLY) - _time_to_reach(backwards, LATE)
    values = (
        100 * ((end_diastole / frames + 0.5) % 1 - 0.5),
        100 * ((end_systole - end_diastole) % frames) / frames,
        filling / ejection,
        100 * float(curve[0] - curve[-1]) / stroke,
    )
    return dict(zip(names, values, strict=True))


def farthest_frame_percent(cine: np.ndarray) -> float:
    """Return when a cine `(H, W, D, T)` differs most from its first frame: near end-systole; needs no labels."""
    apart = [float(np.abs(cine[..., t] - cine[..., 0]).sum(dtype=np.float64)) for t in range(cine.shape[3])]
    return 100 * int(np.argmax(apart)) / len(apart)


def _time_to_reach(rising: np.ndarray, level: float) -> float:
    """Return the time in frames at which a curve that begins at 0 first reaches a level."""
    after = int(np.argmax(rising >= level))
    before = float(rising[after - 1])
    return after - 1 + (level - before) / (float(rising[after]) - before)
