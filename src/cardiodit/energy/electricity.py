"""From energy to CO2: where the electricity comes from, how much of it a building adds, and what that emits.

kWh × PUE × g/kWh gives grams of CO2-equivalent; divided by 107.5 g/km, kilometres by car. Every figure has a range:
that of the measurement times that of the electricity. Nothing is looked up online.
"""

import argparse
import csv
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from cardiodit.energy.meter import Energy, two_digits
from cardiodit.errors import CardioDiTError

TABLE = Path(__file__).with_name("electricity.csv")
WORLD = "WLD"
COUNTRY, PUE, MONTHS = "CARDIODIT_COUNTRY", "CARDIODIT_PUE", "CARDIODIT_MONTHS"
GRAMS_A_KILOMETRE = 107.5  # new cars in the European Union, 2020 (European Environment Agency)
MANY = 10_000  # volumes, as the published studies of emissions count them
LARGEST_INTENSITY, LARGEST_PUE = 2000.0, 10.0
USUAL_PUE = 1.58  # mean of data centres, 2023 (Uptime Institute): the upper end of the range if none is stated
# The intensity of single hours and other years lies between these multiples of the figure.
STATED, MONTHLY, YEARLY = (0.9, 1.1), (0.8, 1.2), (0.5, 1.5)


@dataclass(frozen=True)
class Electricity:
    """The electricity that a computation uses.

    Args:
        grams: g CO2-equivalent per kWh.
        low, high: range in which the true value lies.
        place: name of the country, or how it was stated.
        code: the country's ISO 3166 code of three letters; None for a number.
        year: year of the figure.
        pue: power usage effectiveness of the building: all its energy over that of its computers; None if unknown.
        months: factors of January to December, with mean 1.
        is_monthly: True for the figure of the months in which the computation ran.
    """

    grams: float
    low: float
    high: float
    place: str
    code: str | None = None
    year: int | None = None
    pue: float | None = None
    months: tuple[float, ...] | None = None
    is_monthly: bool = False

    def during(self, began: datetime, ended: datetime) -> "Electricity":
        """Return the electricity of some hours, which differs if the months are known."""
        if self.months is None:
            return self
        factor = _mean_factor(self.months, began, ended)
        low, high = (factor * self.grams * reach for reach in MONTHLY)
        return replace(self, grams=factor * self.grams, low=low, high=high, months=None, is_monthly=True)

    @property
    def source(self) -> str:
        """The figure and its origin, in words."""
        year = f", {'months of' if self.is_monthly else 'mean of'} {self.year}" if self.year else ""
        building = "PUE not stated" if self.pue is None else f"PUE {self.pue:g}"
        return f"{self.grams:.0f} g/kWh ({self.place}{year}), {building}"

    def to_dict(self) -> dict[str, Any]:
        figure = "months from a file" if self.is_monthly else "yearly mean; months differ by up to half"
        known = {"grams_per_kwh": round(self.grams, 2), "place": self.place, "country": self.code, "year": self.year}
        known |= {"figure": figure if self.year else None}
        return {**{key: value for key, value in known.items() if value is not None}, "pue": self.pue}


@dataclass(frozen=True)
class Footprint:
    """What a computation cost the climate.

    Args:
        energy: energy of the hardware.
        electricity: where it came from.
    """

    energy: Energy
    electricity: Electricity

    @property
    def grams(self) -> tuple[float, float, float]:
        """Grams of CO2-equivalent: the figure and the ends of its range."""
        energy, used = self.energy, self.electricity
        pue = 1.0 if used.pue is None else used.pue
        highest = USUAL_PUE if used.pue is None else used.pue
        return energy.kwh * pue * used.grams, energy.low * pue * used.low, energy.high * highest * used.high

    @property
    def kilometres(self) -> float:
        return self.grams[0] / GRAMS_A_KILOMETRE

    def to_dict(self) -> dict[str, Any]:
        """Return the record of a run or of a sample, with two digits."""
        grams, *ends = map(two_digits, self.grams)
        return {
            "kwh": two_digits(self.energy.kwh),
            "kwh_range": [two_digits(self.energy.low), two_digits(self.energy.high)],
            "kwh_of": {p.name: None if p.kwh is None else two_digits(p.kwh) for p in self.energy.parts},
            "co2_grams": grams,
            "co2_grams_range": ends,
            "kilometres_by_car": two_digits(self.kilometres),
            "is_at_least": self.energy.is_at_least,
            "method": self.energy.method,
            "electricity": self.electricity.to_dict(),
        }

    def __str__(self) -> str:
        least = "at least " if self.energy.is_at_least else "about "
        grams, low, high = self.grams
        return (
            f"{least}{two_digits(self.energy.kwh):g} kWh, {format_grams(grams)} ({format_grams(low, '')} to "
            f"{format_grams(high, '')}), {format_kilometres(self.kilometres)} by car; {self.electricity.source}"
        )


def footprint_of(
    energy: Energy, electricity: Electricity, began: datetime | None = None, ended: datetime | None = None
) -> Footprint:
    """Return the footprint of an energy that was used between two times; default: now."""
    ended = ended or datetime.now(UTC)
    return Footprint(energy, electricity.during(began or ended, ended))


def electricity_from_dict(record: Mapping[str, Any]) -> Electricity:
    """Return the electricity that a record names."""
    grams, year = float(record["grams_per_kwh"]), record.get("year")
    is_monthly = str(record.get("figure", "")).startswith("months")
    low, high = STATED if year is None else MONTHLY if is_monthly else YEARLY
    place, code, pue = str(record["place"]), record.get("country"), record.get("pue")
    return Electricity(grams, low * grams, high * grams, place, code, year, pue, is_monthly=is_monthly)


def format_grams(grams: float, what: str = " CO2-equivalent") -> str:
    """Format a mass with two digits and a suitable unit."""
    for limit, unit in ((1e6, "t"), (1e3, "kg"), (1.0, "g"), (1e-3, "mg")):
        if two_digits(grams) >= limit:
            return f"{format_number(grams / limit)} {unit}{what}"
    return f"{format_number(grams * 1e6)} µg{what}"


def format_duration(seconds: float) -> str:
    for limit, size, unit in ((2 * 86400, 86400, "days"), (7200, 3600, "h"), (60, 60, "min")):
        if seconds >= limit:
            return f"{format_number(seconds / size)} {unit}"
    return f"{format_number(seconds)} s"


def format_kilometres(kilometres: float) -> str:
    return f"{format_number(kilometres)} km" if two_digits(kilometres) >= 1 else f"{format_number(1000 * kilometres)} m"


def format_number(value: float) -> str:
    """Format with two digits and without an exponent, where that is short."""
    rounded = two_digits(value)
    return f"{rounded:g}" if abs(rounded) < 1e-4 or abs(rounded) >= 1e16 else f"{rounded:,.10g}"


# --- Choosing the electricity ---

_CHOSEN: ContextVar[Electricity | None] = ContextVar("electricity", default=None)


def choose_electricity(country: str | None = None, pue: float | None = None, months: Path | None = None) -> Electricity:
    """Return the electricity of a place; what is not given is read from the environment.

    Args:
        country: ISO code or name of a country, or a number of g/kWh. Default: CARDIODIT_COUNTRY, or the world's mean.
        pue: power usage effectiveness. Default: CARDIODIT_PUE, or unknown.
        months: CSV of a month and its g/kWh per line; its twelve values over their mean multiply the yearly figure.
            Default: CARDIODIT_MONTHS, or none.
    """
    if country is None and pue is None and months is None and (chosen := _CHOSEN.get()) is not None:
        return chosen
    place = _place(os.environ.get(COUNTRY, "") if country is None else country)
    text = os.environ.get(PUE, "") if pue is None else str(pue)
    months = months or (Path(os.environ[MONTHS]) if os.environ.get(MONTHS) else None)
    stated = _number(text, 1.0, LARGEST_PUE, f"The power usage effectiveness (PUE) {text!r}") if text else None
    return replace(place, pue=stated, months=None if months is None else read_months(months))


@contextmanager
def used_electricity(chosen: Electricity) -> Iterator[None]:
    """Make this the electricity of everything that is measured within a block."""
    token = _CHOSEN.set(chosen)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def _place(text: str) -> Electricity:
    text = text.strip()
    try:
        float(text)
    except ValueError:
        return _country(text or WORLD)
    grams = _number(text, 0.0, LARGEST_INTENSITY, f"The carbon intensity {text} (g/kWh)")
    return Electricity(grams, STATED[0] * grams, STATED[1] * grams, "as stated")


def _number(text: str, low: float, high: float, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise CardioDiTError(f"{what} must be a number from {low:g} to {high:g}.")
    return value


def _country(name: str) -> Electricity:
    table = intensities()
    by_name = {row["country"].casefold(): code for code, row in table.items()}
    code = name.upper() if name.upper() in table else by_name.get(name.casefold())
    if code is None:
        near = get_close_matches(name.casefold(), [*by_name, *map(str.casefold, table)], n=1)
        hint = f" Did you mean {table[by_name.get(near[0], near[0].upper())]['country']}?" if near else ""
        raise CardioDiTError(
            f"There is no country {name!r}.{hint} Give its ISO code of three letters, such as DEU, or a number of "
            "g CO2-equivalent per kWh."
        )
    grams, year = float(table[code]["gco2_per_kwh"]), int(table[code]["year"])
    if grams == 0:
        raise CardioDiTError(
            f"The carbon intensity of {table[code]['country']} is not known. Give a number of g CO2-equivalent per kWh."
        )
    if code == WORLD:  # the place is unknown: nine tenths of the countries lie in this range
        known = sorted(float(row["gco2_per_kwh"]) for row in table.values() if float(row["gco2_per_kwh"]))
        low, high = known[len(known) // 20], known[-1 - len(known) // 20]
        return Electricity(grams, low, high, "the world, as no country was given", code, year)
    return Electricity(grams, YEARLY[0] * grams, YEARLY[1] * grams, table[code]["country"], code, year)


@cache
def intensities() -> Mapping[str, dict[str, str]]:
    """Return the rows of the table by country code."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        return {row["iso3"]: row for row in rows}


def read_months(path: Path) -> tuple[float, ...]:
    """Read the carbon intensity of twelve months, and return each over their mean.

    The first column is a month (1 to 12) or a date (2023-01, 2023-01-31 14:00), the second g/kWh; several lines of a
    month, such as hours or years, are averaged.
    """
    from cardiodit.imaging.manifest import read_table

    found: dict[int, list[float]] = {}
    for line, row in read_table(path, ()):
        values = list(row.values())
        try:
            text = values[0].strip()
            month = int(text) if text.isdecimal() else int(text.split("-")[1])
            value = float(values[1])
            if not 1 <= month <= 12 or not 0 <= value <= LARGEST_INTENSITY:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise CardioDiTError(
                f"Line {line} of {path} must have a month (1 to 12, or a date such as 2023-01) and its g/kWh."
            ) from error
        found.setdefault(month, []).append(value)
    if missing := [str(month) for month in range(1, 13) if month not in found]:
        raise CardioDiTError(f"{path} lacks the months {', '.join(missing)}; all twelve are needed.")
    means = [sum(found[month]) / len(found[month]) for month in range(1, 13)]
    if not (mean := sum(means) / 12):
        raise CardioDiTError(f"{path} has no g/kWh above 0.")
    return tuple(value / mean for value in means)


def _mean_factor(months: tuple[float, ...], began: datetime, ended: datetime) -> float:
    """Return the mean of the months' factors, weighted by the time that lies in each."""
    if ended <= began:
        return months[ended.month - 1]
    total, moment = 0.0, began
    while moment < ended:
        first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
        following = min(ended, (first + timedelta(days=32)).replace(day=1))
        total += months[moment.month - 1] * (following - moment).total_seconds()
        moment = following
    return total / (ended - began).total_seconds()


def add_place(group: argparse._ArgumentGroup) -> None:
    """Add `--country`, `--pue` and `--months`."""
    group.add_argument(
        "--country",
        help="where the electricity comes from: ISO code such as DEU, name, or a number of g CO2-equivalent per kWh. "
        "Default: the environment variable CARDIODIT_COUNTRY, or the world's mean",
    )
    group.add_argument(
        "--pue",
        type=float,
        help="power usage effectiveness of the data centre; 1 for a computer in an office, 1.58 on average. Default: "
        "CARDIODIT_PUE, or not counted",
    )
    group.add_argument(
        "--months",
        type=Path,
        metavar="CSV",
        help="carbon intensity by month: per line a month (1 to 12, or a date) and its g/kWh. Default: "
        "CARDIODIT_MONTHS, or the yearly mean",
    )
