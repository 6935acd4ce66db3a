"""The table of the published study, for any model: one axis at a time, and the quality where it was measured."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cardiodit.cli import main
from cardiodit.energy.electricity import choose_electricity
from cardiodit.energy.forecast import Work, find_device
from cardiodit.energy.scenarios import Choices, Cost, Evaluated, Scenario, all_scenarios, along, at_equal_quality

SMALL, LARGE = Cost("8 × 8", Work(1.0), Work(0.0, 2.0)), Cost("16 × 16", Work(4.0), Work(0.0, 8.0))


def scenarios(model: str = "hearts", *evaluations: Evaluated) -> list[Scenario]:
    places = [choose_electricity("DEU"), choose_electricity("SWE")]
    choices = Choices((25, 10, 50), {1.0: [SMALL, LARGE], 2.0: [LARGE]}, (1, 4), places)
    return all_scenarios(model, choices, find_device("a100-80"), evaluations)


def test_all_combinations_and_each_axis() -> None:
    found = scenarios()
    assert len(found) == 3 * 3 * 2 * 2
    default = found[0]
    assert (default.steps, default.size, default.width, default.devices, default.country) == (
        *(25, "8 × 8", 1.0, 1, "Germany"),
    )
    assert [s.steps for s in along(found, "steps")] == [10, 25, 50]
    assert [s.country for s in along(found, "country")] == ["Sweden", "Germany"]
    small, large = along(found, "size")
    assert large.grams == pytest.approx(4 * small.grams, rel=0.06)  # two digits each
    one, four = along(found, "devices")
    assert one.hours == pytest.approx(4 * four.hours, rel=0.06) and one.grams == four.grams


def test_grams_at_an_equal_distance() -> None:
    good = scenarios("good", Evaluated("good", 10, 3.0, None), Evaluated("good", 25, 1.0, None))
    poor = scenarios("poor", Evaluated("poor", 25, 4.0, None), Evaluated("poor", 50, 2.5, 0.3))
    equal = at_equal_quality([*good, *poor])
    assert equal is not None and equal[0] == 2.5
    assert [(s.model, s.steps) for s in equal[1]] == [("good", 25), ("poor", 50)]
    strict = at_equal_quality([*good, *poor], 1.5)
    assert strict is not None and [s.model for s in strict[1]] == ["good"]
    assert at_equal_quality(scenarios()) is None


def report(path: Path, model: str, steps: int, value: float) -> Path:
    metric = {"name": "frechet_spatial", "title": "Fréchet distance", "value": value}
    synthetic = {"made_by": {"model": model, "num_inference_steps": steps}}
    content = {"schema": "cardiodit-evaluation/1", "sets": {"synthetic": synthetic}, "metrics": [metric]}
    path.write_text(json.dumps(content))
    return path


def test_the_command_writes_table_page_and_picture(
    make_pipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_pipe().save_pretrained(tmp_path / "hearts")
    reports = [report(tmp_path / f"{steps}.json", "hearts", steps, value) for steps, value in ((5, 2.0), (10, 1.25))]
    given = ["energy", "scenarios", str(tmp_path / "hearts"), "--output_dir", str(tmp_path / "out")]
    given += ["--steps", "5", "10", "--sizes", "2", "--widths", "2", "--countries", "SWE", "--country", "DEU"]
    assert main([*given, "--evaluation", *map(str, reports)]) == 0
    printed = capsys.readouterr().out
    assert "At a Fréchet distance of at most 1.25" in printed and "hearts, 10 steps" in printed
    rows = list(csv.DictReader((tmp_path / "out/scenarios.csv").open()))
    assert {row["country"] for row in rows} == {"Germany", "Sweden"} and {row["width"] for row in rows} == {
        "1.0",
        "2.0",
    }
    assert {(row["steps"], row["frechet"]) for row in rows if row["frechet"]} == {("5", "2.0"), ("10", "1.25")}
    by_size = {row["size"]: float(row["kwh"]) for row in rows if row["steps"] == "10" and row["width"] == "1.0"}
    assert len(by_size) == 2 and max(by_size.values()) > 3 * min(by_size.values())
    page = (tmp_path / "out/scenarios.html").read_text()
    assert "At a Fréchet distance" in page and "Sweden" in page and "{{" not in page and "https:" not in page
    assert Image.open(tmp_path / "out/scenarios.png").width > 600

    assert main([*given, "--evaluation", str(report(tmp_path / "other.json", "lungs", 5, 1.0))]) == 1
    assert "the samples come from lungs, which is not among hearts" in capsys.readouterr().err


def test_months_become_an_axis(make_pipe: Callable, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    make_pipe().save_pretrained(tmp_path / "hearts")
    lines = ["month,g"] + [f"{month},{200 if month == 1 else 100}" for month in range(1, 13)]
    (tmp_path / "months.csv").write_text("\n".join(lines))
    given = ["energy", "scenarios", str(tmp_path / "hearts"), "--output_dir", str(tmp_path / "out"), "--steps", "5"]
    given += ["--sizes", "1", "--widths", "1", "--devices", "1", "--countries", "DEU", "--country", "DEU"]
    assert main([*given, "--months", str(tmp_path / "months.csv")]) == 0
    assert "January" in capsys.readouterr().out and "December" in (tmp_path / "out/scenarios.html").read_text()
