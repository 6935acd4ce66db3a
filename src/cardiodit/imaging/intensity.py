"""Grey values to [-1, 1] and back."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError

Limit = float | str
Range = tuple[float, float]
AT_MOST = " at most "  # separates a percentile from its upper bound in a limit such as "p99.5 at most 1000"


@dataclass(frozen=True)
class Intensity:
    """The values that become -1 and 1; values beyond them are clipped.

    Args:
        low, high: a number in the source's units (HU), "minimum", "maximum", or a percentile of each volume such as
            "p0.5" and "p99.5"; "p99.5 at most 1000" is 1000 where the percentile is higher.
        typical: what -1 and 1 usually stand for in the source's units, for generated volumes, which have no source;
            measured during training, or None. Not needed if both limits are numbers.
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
        """True if the limits are the same for every volume, as in CT."""
        return not isinstance(self.low, str) and not isinstance(self.high, str)

    @property
    def units(self) -> Range | None:
        """The values of -1 and 1 in a generated volume, if known."""
        if self.is_fixed:
            return float(self.low), float(self.high)
        return self.typical

    def limits(self, voxels: np.ndarray) -> Range:
        """Return the values of one volume that become -1 and 1."""
        flat = voxels.ravel(order="K")  # no copy, whatever the memory order
        low, high = _limit_value(self.low, flat), _limit_value(self.high, flat)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise CardioDiTError("The volume holds values that are not numbers (NaN or infinite).")
        if low >= high:
            raise CardioDiTError(
                f"Grey values cannot be scaled: {self.low} is {low:g}, {self.high} is {high:g}. Is the volume empty?"
            )
        return low, high

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values, "typical": None if self.typical is None else list(self.typical)}


def to_model(voxels: np.ndarray, limits: Range) -> np.ndarray:
    """Scale source units to float32 in [-1, 1]."""
    low, high = limits
    scaled = voxels.astype(np.float32)
    scaled -= np.float32((low + high) / 2)
    scaled *= np.float32(2 / (high - low))
    return np.clip(scaled, -1, 1, out=scaled)


def to_source(voxels: np.ndarray, limits: Range, dtype: np.dtype | type | None = None) -> np.ndarray:
    """Scale [-1, 1] to source units; for an integer `dtype`, round and clip to its range, otherwise float32."""
    low, high = limits
    values = (np.clip(voxels, -1, 1).astype(np.float64) + 1) * ((high - low) / 2) + low
    if dtype is None or np.dtype(dtype).kind not in "iu":
        return values.astype(np.float32)
    allowed = np.iinfo(dtype)
    return np.rint(values).clip(allowed.min, allowed.max).astype(dtype)


def parse_percentile(limit: str) -> tuple[float, float | None]:
    """Return the percentile of a limit such as "p99.5 at most 1000", and its upper bound if it has one."""
    percentile, _, bound = limit[1:].partition(AT_MOST)
    if AT_MOST not in limit:
        return float(percentile), None
    if not math.isfinite(float(bound)):
        raise ValueError(bound)
    return float(percentile), float(bound)


def whole_hounsfield(voxels: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Convert Hounsfield units to int16, with a note if values were rounded; raises if they do not fit."""
    if voxels.dtype == np.int16:
        return voxels, []
    if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
        raise CardioDiTError("The CT holds values that are not numbers (NaN or infinite).")
    low, high, allowed = float(voxels.min()), float(voxels.max()), np.iinfo(np.int16)
    if low < allowed.min or high > allowed.max:
        raise CardioDiTError(
            f"The CT has values from {low:g} to {high:g}. Hounsfield units lie within {allowed.min} and {allowed.max}."
        )
    whole = np.rint(voxels).astype(np.int16)
    error = float(np.abs(voxels - whole).max()) if voxels.dtype.kind == "f" else 0.0
    return whole, [f"was rounded to whole Hounsfield units, by at most {error:.2g}"] if error else []


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


def _limit_value(limit: Limit, voxels: np.ndarray) -> float:
    if not isinstance(limit, str):
        return float(limit)
    if limit == "minimum":
        return float(voxels.min())
    if limit == "maximum":
        return float(voxels.max())
    percentile, bound = parse_percentile(limit)
    value = np.percentile(voxels, percentile)
    return float(value if bound is None else np.minimum(value, bound))  # np.minimum passes NaN on, unlike min
