"""From kWh to grams: places, buildings, months, ranges and words."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cardiodit.energy import Energy
from cardiodit.energy.electricity import (
    Footprint,
    choose_electricity,
    electricity_from_dict,
    footprint_of,
    format_duration,
    format_grams,
    format_kilometres,
    intensities,
    read_months,
    used_electricity,
)
from cardiodit.energy.meter import EnergyPart
from cardiodit.errors import CardioDiTError

ONE_KWH = Energy((EnergyPart("gpu", 1.0, 0.9, 1.2, "GPU's counter"),))


def months(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "months.csv"
    path.write_text("\n".join(["month,g/kWh", *lines]) + "\n")
    return path


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CARDIODIT_COUNTRY", "CARDIODIT_PUE", "CARDIODIT_MONTHS"):
        monkeypatch.delenv(name, raising=False)


def test_the_table_has_every_country_and_names_its_source() -> None:
    table = intensities()
    assert len(table) == 214 and table["DEU"]["gco2_per_kwh"] == "380.95" and table["DEU"]["year"] == "2023"
    known = [float(row["gco2_per_kwh"]) for row in table.values() if float(row["gco2_per_kwh"])]
    assert min(known) == 20 and max(known) == pytest.approx(1306, abs=1)
    text = (Path(__file__).parents[2] / "src/cardiodit/energy/electricity.csv").read_text()
    assert "Our World in Data" in text and "CC BY 4.0" in text and "MIT licence" in text


@pytest.mark.parametrize("name", ["DEU", "deu", "Germany", "germany"])
def test_a_country_is_found_by_code_and_name(name: str) -> None:
    found = choose_electricity(name)
    assert (found.grams, found.code, found.year, found.place) == (380.95, "DEU", 2023, "Germany")
    assert found.source == "381 g/kWh (Germany, mean of 2023), PUE not stated"
    assert "months differ by up to half" in found.to_dict()["figure"]


def test_kwh_times_pue_times_intensity() -> None:
    footprint = footprint_of(ONE_KWH, choose_electricity("100", 1.5))
    assert footprint.grams == pytest.approx((150, 0.9 * 1.5 * 90, 1.2 * 1.5 * 110))
    assert footprint.kilometres == pytest.approx(150 / 107.5)
    assert str(footprint) == (
        "about 1 kWh, 150 g CO2-equivalent (120 g to 200 g), 1.4 km by car; 100 g/kWh (as stated), PUE 1.5"
    )


def test_a_pue_that_is_not_stated_widens_the_range_upwards_only() -> None:
    one, unknown = (Footprint(ONE_KWH, choose_electricity("100", pue)).grams for pue in (1.0, None))
    assert unknown[:2] == one[:2] and unknown[2] == pytest.approx(1.58 * one[2])


def test_an_unknown_place_is_the_world_with_a_wide_range() -> None:
    world = choose_electricity()
    assert world.grams == 480 and world.low < 60 and world.high > 690 and "no country was given" in world.source


def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CARDIODIT_COUNTRY", "FRA")
    monkeypatch.setenv("CARDIODIT_PUE", "1.2")
    monkeypatch.setenv("CARDIODIT_MONTHS", str(months(tmp_path, [f"{m},100" for m in range(1, 13)])))
    assert (choose_electricity().code, choose_electricity().pue) == ("FRA", 1.2)
    assert choose_electricity().months == (1.0,) * 12
    assert choose_electricity("DEU").code == "DEU"
    with used_electricity(choose_electricity("POL")):
        assert choose_electricity().code == "POL"
    assert choose_electricity().code == "FRA"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("Germny",), "no country 'Germny'. Did you mean Germany"),
        (("DEX",), "Did you mean"),
        (("CAF",), "Central African Republic is not known"),
        (("-5",), "from 0 to 2000"),
        (("nan",), "from 0 to 2000"),
        (("DEU", 0.9), "PUE"),
    ],
)
def test_what_makes_no_sense_is_an_error(given: tuple, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence.replace("(", r"\(")):
        choose_electricity(*given)


def test_months_count_by_the_time_that_was_spent_in_them(tmp_path: Path) -> None:
    """January 150 and June 50 g/kWh where all others have 100: factors 1.5 and 0.5 of the yearly figure."""
    lines = [f"{month},{ {1: 150, 6: 50}.get(month, 100) }" for month in range(1, 13)]
    place = choose_electricity("200", months=months(tmp_path, lines))
    january, new_year = datetime(2026, 1, 10, tzinfo=UTC), datetime(2025, 12, 31, 12, tzinfo=UTC)
    assert place.during(january, january).grams == pytest.approx(300)
    half = place.during(new_year, datetime(2026, 1, 1, 12, tzinfo=UTC))
    assert half.grams == pytest.approx(250)
    assert footprint_of(ONE_KWH, place, datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 6, 2, tzinfo=UTC)).grams[
        0
    ] == pytest.approx(100)


def test_dates_and_hours_are_averaged_to_months(tmp_path: Path) -> None:
    lines = [f"2023-{month:02d}-01 00:00,{value}" for month in range(1, 13) for value in (50, 150)]
    assert read_months(months(tmp_path, lines)) == (1.0,) * 12


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [(["1,100"], "lacks the months 2, 3"), (["13,100"], "Line 2"), (["1,much"], "Line 2"), (["1,-4"], "Line 2")],
)
def test_wrong_months_are_named(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        read_months(months(tmp_path, lines))


def test_a_record_can_be_read_back() -> None:
    for place in (choose_electricity("DEU", 1.3), choose_electricity("250")):
        again = electricity_from_dict(place.to_dict())
        assert (again.code, again.year, again.pue, again.place) == (place.code, place.year, place.pue, place.place)
        assert again.grams == pytest.approx(place.grams, abs=0.05) and again.low == pytest.approx(place.low, rel=0.01)


def test_nothing_has_three_digits() -> None:
    record = footprint_of(ONE_KWH * 1.23456, choose_electricity("DEU")).to_dict()
    numbers = [record["kwh"], *record["kwh_range"], record["co2_grams"], *record["co2_grams_range"]]
    assert all(number == float(f"{number:.2g}") for number in [*numbers, record["kilometres_by_car"]])


def test_units() -> None:
    assert [format_grams(g, "") for g in (0.0000123, 0.0123, 1.26, 999.9, 36_000, 2.5e6)] == [
        *("12 µg", "12 mg", "1.3 g", "1 kg", "36 kg", "2.5 t"),
    ]
    assert [format_kilometres(k) for k in (0.0126, 1.26, 3345)] == ["13 m", "1.3 km", "3,300 km"]
    assert [format_duration(s) for s in (0.5, 75, 10_000, 400_000)] == ["0.5 s", "1.2 min", "2.8 h", "4.6 days"]
