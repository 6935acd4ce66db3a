"""Grey values to [-1, 1] and back."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError

Limit = float | str
Range = tuple[float, float]
AT_MOST = " at most "  # in a limit: between a percentile and the value that it does not exceed


@dataclass(frozen=True)
class Intensity:
    """What becomes -1 and what becomes 1; beyond, values are cut.

    Args:
        low, high: a number in the source's units (HU), "minimum", "maximum", or a percentile of each volume such as
            "p0.5" and "p99.5"; "p99.5 at most 1000" is 1000 where the percentile is higher.
        typical: what -1 and 1 usually stand for in the source's units, for generated volumes, which have no source;
            found while training, or None. Not needed where both limits are numbers.
    """

    low: Limit = "minimum"
    high: Limit = "maximum"
    typical: Range | None = None

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            _check_limit(name, getattr(self, name))
        if self.is_fixed and not float(self.low) < float(self.high):
            raise CardioDiTError(f"The intensity window from {self.low} to {self.high} is empty.")
        if self.typical is not None:
            object.__setattr__(self, "typical", tuple(self.typical))

    @property
    def is_fixed(self) -> bool:
        """The same for every volume, as in CT."""
        return not isinstance(self.low, str) and not isinstance(self.high, str)

    @property
    def units(self) -> Range | None:
        """What -1 and 1 stand for in a generated volume, if that is known."""
        if self.is_fixed:
            return float(self.low), float(self.high)
        return self.typical

    def limits(self, voxels: np.ndarray) -> Range:
        """The two limits of one volume."""
        flat = voxels.ravel(order="K")  # no copy, whatever the order of memory
        low, high = _find(self.low, flat), _find(self.high, flat)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CardioDiTError("The volume holds values that are not numbers (NaN or infinite).")
        if low >= high:
            raise CardioDiTError(
                f"The volume's grey values cannot be scaled: from {self.low} to {self.high} they go from {low:g} to "
                f"{high:g}. Is it empty?"
            )
        return low, high

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "typical": None if self.typical is None else list(self.typical)}


def to_model(voxels: np.ndarray, limits: Range) -> np.ndarray:
    """Source units → float32 in [-1, 1]."""
    low, high = limits
    scaled = voxels.astype(np.float32)
    scaled -= np.float32((low + high) / 2)
    scaled *= np.float32(2 / (high - low))
    return np.clip(scaled, -1, 1, out=scaled)


def to_source(voxels: np.ndarray, limits: Range, dtype: np.dtype | type | None = None) -> np.ndarray:
    """[-1, 1] → source units, rounded and kept within its range where the source has whole numbers."""
    low, high = limits
    values = (np.clip(voxels, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low
    if dtype is None or np.dtype(dtype).kind not in "iu":
        return values.astype(np.float32)
    held = np.iinfo(dtype)
    return np.rint(values).clip(held.min, held.max).astype(dtype)


def _check_limit(name: str, limit: Limit) -> None:
    if isinstance(limit, str):
        if limit in ("minimum", "maximum"):
            return
        try:
            if limit.startswith("p") and 0 <= parse_percentile(limit)[0] <= 100:
                return
        except ValueError:
            pass
    elif isinstance(limit, int | float) and not isinstance(limit, bool) and math.isfinite(limit):
        return
    raise CardioDiTError(
        f'{name}={limit!r} of the intensity must be a number, "minimum", "maximum" or a percentile such as "p99.5" or '
        '"p99.5 at most 1000".'
    )


def parse_percentile(limit: str) -> tuple[float, float | None]:
    """The percentile, and the value that it does not exceed, if there is one."""
    percentile, _, most = limit[1:].partition(AT_MOST)
    if AT_MOST not in limit:
        return float(percentile), None
    if not math.isfinite(float(most)):
        raise ValueError(most)
    return float(percentile), float(most)


def _find(limit: Limit, voxels: np.ndarray) -> float:
    if not isinstance(limit, str):
        return float(limit)
    if limit == "minimum":
        return float(voxels.min())
    if limit == "maximum":
        return float(voxels.max())
    percentile, most = parse_percentile(limit)
    found = np.percentile(voxels, percentile)
    return float(found if most is None else np.minimum(found, most))  # unlike min, it lets NaN through to be named
