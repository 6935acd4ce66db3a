"""Loss of the autoencoder (stage 1) alone, in the images and the heart function of real volumes."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from cardiodit.evaluation.metrics.estimate import LEVEL, Estimate
from cardiodit.evaluation.metrics.function import heart_function
from cardiodit.evaluation.metrics.registry import ANY, HIGHER, LOWER, NEAR_REAL, RECONSTRUCTION, Scoring, metric
from cardiodit.evaluation.volume_sets import Loaded

MEASURES = {
    "psnr": ("PSNR of reconstructions", "dB", HIGHER, ANY),
    "ssim": ("SSIM of reconstructions", "", HIGHER, (-1.0, 1.0)),
    "l1": ("L1 of reconstructions", "", LOWER, (0.0, 2.0)),
    "lv_ef_shift_percent": ("Shift of LV ejection fraction by reconstruction", "%", NEAR_REAL, (-100.0, 100.0)),
    "lv_ef_error_percent": ("Error of LV ejection fraction by reconstruction", "%", LOWER, (0.0, 100.0)),
    "lv_edv_shift_ml": ("Shift of LV end-diastolic volume by reconstruction", "mL", NEAR_REAL, ANY),
}


def _mean_metric(scoring: Scoring, *, name: str) -> Estimate | None:
    """Return the mean over the real volumes; None unless at least two were reconstructed."""
    values = scoring.real.known(f"reconstruction_{name}")
    if len(values) < 2:
        return None
    reach = float(student_t.ppf((1 + LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    mean = float(np.mean(values))
    method = f"mean over {len(values)} real volumes passed through the autoencoder; Student's interval"
    return Estimate(mean, mean - reach, mean + reach, method=method)


for _name, (_title, _unit, _better, _bounds) in MEASURES.items():
    metric(f"reconstruction_{_name}", _title, group=RECONSTRUCTION, better=_better, unit=_unit, bounds=_bounds)(
        partial(_mean_metric, name=_name)
    )


def reconstruction_numbers(
    vae: Any, loaded: Loaded, segment: Callable[[np.ndarray], np.ndarray] | None
) -> dict[str, float | None]:
    """Measure the reconstruction of one real volume.

    Args:
        segment: label maps of a cine's voxels, for heart function; None without a segmenter.
    """
    from cardiodit.evaluation.reconstruction import judge, reconstruct

    if loaded.prepared is None:
        return {}
    volume = loaded.volume
    result = reconstruct(vae, loaded.prepared)
    quality = judge(1, "", volume.voxels, result)
    numbers: dict[str, float | None] = {}
    for name in ("psnr", "ssim", "l1"):
        value = getattr(quality, name)
        numbers[f"reconstruction_{name}"] = float(value) if math.isfinite(value) else None
    if segment is None or not volume.is_cine:
        return numbers
    before, after = (heart_function(segment(voxels), volume.geometry).lv for voxels in (volume.voxels, result.voxels))
    return {
        **numbers,
        "reconstruction_lv_ef_shift_percent": after.ef - before.ef,
        "reconstruction_lv_edv_shift_ml": after.edv - before.edv,
        "reconstruction_lv_ef_error_percent": abs(after.ef - before.ef),
    }
