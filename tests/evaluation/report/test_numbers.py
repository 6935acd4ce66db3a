"""Numbers are written with their significant digits only."""

import math

import numpy as np
import pytest

from cardiodit.evaluation.report.numbers import mean_and_sd, p_value, readable, value_and_interval, with_unit


@pytest.mark.parametrize(
    "value, text",
    [
        (58.2349, "58.2"),
        (1234.5, "1234"),
        (0.012345, "0.0123"),
        (-3.0, "−3.00"),
        (0.0, "0"),
        (-0.0, "0"),
        (7, "7"),
        (np.float32(0.5), "0.500"),
        (1.23456e-9, "1.23e−09"),
        (4e12, "4.00e+12"),
        (math.nan, "–"),
        (-math.inf, "−∞"),
        (None, "–"),
        (True, "1"),
        ("12", "–"),
    ],
)
def test_three_significant_digits(value: object, text: str) -> None:
    assert readable(value) == text


@pytest.mark.parametrize(
    "numbers, texts",
    [
        ((12.3456, 8.01, 16.6), ("12.3", "8.0 to 16.6")),
        ((1234.56, 1100.0, 1400.0), ("1235", "1100 to 1400")),
        ((0.00123, 0.0011, 0.0013), ("0.00123", "0.00110 to 0.00130")),
        ((-0.001, -0.6, 0.5), ("0.00", "−0.60 to 0.50")),
        ((3e-9, 1e-9, 5e-9), ("3.00e−09", "1.00e−09 to 5.00e−09")),
        ((0.5, None, None), ("0.500", "")),
        ((0.5, None, 0.7), ("0.500", "")),
        ((2.0, 2.0, 2.0), ("2.00", "2.00 to 2.00")),
        ((None, 1.0, 2.0), ("–", "1.00 to 2.00")),
    ],
)
def test_a_value_is_as_precise_as_its_interval(numbers: tuple, texts: tuple[str, str]) -> None:
    assert value_and_interval(*numbers) == texts


def test_a_mean_is_as_precise_as_its_deviation() -> None:
    values = np.array([50.0, 60.0, 70.0])
    assert mean_and_sd(values, "mL") == "60 ± 10\N{NO-BREAK SPACE}mL"
    assert mean_and_sd(values / 1000) == "0.060 ± 0.010"
    assert mean_and_sd(values[:1], "%") == "50.0%" and mean_and_sd(values[:0], "%") == "–"
    assert with_unit("–", "mL") == "–" and with_unit("5", None) == "5"


@pytest.mark.parametrize("p, text", [(0.0005, "p < 0.001"), (0.0123, "p = 0.012"), (0.5, "p = 0.50"), (None, "p –")])
def test_p_values(p: float | None, text: str) -> None:
    assert p_value(p).replace("\N{NO-BREAK SPACE}", " ") == text
