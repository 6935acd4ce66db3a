"""Format numbers for the report: significant digits only, with units."""

import math

import numpy as np

MISSING = "–"
MINUS = "\N{MINUS SIGN}"
TINY, HUGE = 1e-4, 1e7  # outside this range, numbers are written with a power of ten
TIGHT_UNITS = ("", "%", "°")  # written without a space


def is_number(value: object) -> bool:
    """Return True for a finite number; a bool is not one."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and math.isfinite(float(value))


def finite(*values: object) -> list[float]:
    """Return the finite numbers among the values."""
    return [float(value) for value in values if is_number(value)]  # type: ignore[arg-type]


def readable(value: object, digits: int = 3) -> str:
    """Format a number with that many significant digits, keeping all digits before the decimal point."""
    if not isinstance(value, int | float | np.number):
        return MISSING
    number = float(value)
    if not math.isfinite(number):
        return MISSING if math.isnan(number) else f"{MINUS if number < 0 else ''}∞"
    if number == 0:
        return "0"
    if isinstance(value, int):
        return _signed(str(int(value)))
    if not TINY <= abs(number) < HUGE:
        return _signed(f"{number:.{digits - 1}e}")
    return fixed(number, digits - 1 - math.floor(math.log10(abs(number))))


def fixed(value: object, decimals: int) -> str:
    """Format a number with a fixed number of decimals."""
    if not is_number(value):
        return readable(value)
    text = f"{float(value):.{max(0, decimals)}f}"  # type: ignore[arg-type]
    return _signed(text if text.strip("-0.") else text.lstrip("-"))  # no −0.0


def decimals_for(spread: float) -> int:
    """Return the decimals that show a spread, a number's uncertainty, with two digits."""
    return min(9, max(0, 1 - math.floor(math.log10(spread)))) if spread > 0 and math.isfinite(spread) else 3


def value_and_interval(value: object, low: object, high: object) -> tuple[str, str]:
    """Return texts such as `("12.1", "8.0 to 16.2")`, as precise as the interval, which may be empty."""
    ends = finite(low, high)
    if len(ends) < 2 or ends[0] == ends[1]:
        return readable(value), "" if len(ends) < 2 else f"{readable(low)} to {readable(high)}"
    decimals = decimals_for(abs(ends[1] - ends[0]) / 2)
    if decimals >= 6:  # a power of ten is easier to read than so many zeros
        return readable(value), f"{readable(low)} to {readable(high)}"
    return fixed(value, decimals), f"{fixed(low, decimals)} to {fixed(high, decimals)}"


def with_unit(text: str, unit: str | None) -> str:
    if not unit or text == MISSING:
        return text
    return f"{text}{unit}" if unit in TIGHT_UNITS else f"{text}\N{NO-BREAK SPACE}{unit}"


def p_value(value: object) -> str:
    """Return `p = 0.012` or `p < 0.001`."""
    if not is_number(value):
        return f"p {MISSING}"
    p = float(value)  # type: ignore[arg-type]
    words = "p < 0.001" if p < 0.001 else f"p = {fixed(p, 3 if p < 0.0995 else 2)}"
    return words.replace(" ", "\N{NO-BREAK SPACE}")


def mean_and_sd(values: np.ndarray, unit: str = "") -> str:
    """Return `58.2 ± 6.1%`, or the value alone if there is only one."""
    if len(values) < 2:
        return with_unit(readable(float(values[0]) if len(values) else None), unit)
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    if not sd or decimals_for(sd) >= 6:
        return with_unit(f"{readable(mean)} ± {readable(sd)}", unit)
    decimals = decimals_for(sd)
    return with_unit(f"{fixed(mean, decimals)} ± {fixed(sd, decimals)}", unit)


def counted(count: int, noun: str) -> str:
    """Return `1 volume`, `3 volumes`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
