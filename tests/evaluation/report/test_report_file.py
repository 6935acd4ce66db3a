"""The report file: numbers that are the same on every machine, and valid JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report import SCHEMA, read_report, rounded, write_report
from cardiodit.evaluation.report.markdown import model_index_yaml, table


def metric(**changes: object) -> dict:
    defaults = {"name": "m", "title": "M", "group": "distribution", "better": "lower", "value": 1.0, "low": 0.5}
    return {**defaults, "high": 1.5, "level": 0.95, "method": "", "notes": [], "floor": None, "unit": "", **changes}


def report(*metrics: dict) -> dict:
    spatial = {"name": "random", "weights": {"sha256": "ab" * 32}, "note": "random features"}
    return {
        "schema": SCHEMA,
        "protocol": {
            "cardiodit": "0.1",
            "features": {"spatial": spatial},
            "segmenter": None,
            "seed": 0,
            "counts": {"real": 5, "synthetic": 4},
            "left_out": ["Critic: too few."],
        },
        "sets": {"real": {"identity": "cd" * 32}, "synthetic": {"made_by": {"model": "org/hearts"}}},
        "metrics": list(metrics),
        "problems": [],
    }


def test_floats_keep_ten_digits_and_rounding_errors_become_zero() -> None:
    given = {"a": 1 / 3, "b": [1e-17, -1e-14], "c": (float("nan"), np.float64(2) / 3), "d": 12345678901.5, "e": True}
    assert rounded(given) == {"a": 0.3333333333, "b": [0, 0], "c": [None, 0.6666666667], "d": 12345678900.0, "e": True}


def test_a_report_is_written_and_read(tmp_path: Path) -> None:
    write_report(report(metric(value=float("inf"))), tmp_path / "report.json")
    assert read_report(tmp_path / "report.json")["metrics"][0]["value"] is None
    for content, expected in (("{", "cannot be read"), ('{"schema": "other/2"}', "its schema is other/2")):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(CardioDiTError, match=expected):
            read_report(tmp_path / "report.json")


def test_a_table_line_shows_value_interval_and_floor() -> None:
    floor = {"value": 2.0, "low": 1.0, "high": 3.0, "matched": 2.5, "volumes": 4}
    half = {**floor, "low": None}
    text = table(report(metric(floor=floor, unit="mL"), metric(low=None, high=None, floor=half), metric(title="a|b")))
    whole = table(report(metric(floor={**floor, "low": None, "high": None, "volumes": None}))).splitlines()[2]
    assert whole == "| M | 1 (0.5 to 1.5) | 2.5 (all) | 2 | lower |"
    lines = text.splitlines()
    assert lines[2] == "| M | 1 mL (0.5 to 1.5) | 2.5 mL (n = 4) | 2 mL (1 to 3) | lower |"
    assert lines[3] == "| M | 1 | 2.5 (n = 4) | 2 (up to 3) | lower |"
    assert lines[4] == "| a/b | 1 (0.5 to 1.5) | – | – | lower |"
    assert len({line.count("|") for line in lines[:5]}) == 1
    assert "- 5 real and 4 synthetic volumes, seed 0, cardiodit 0.1." in lines
    assert "- Left out: Critic: too few." in lines and "(random features)" in text


def test_the_hub_reads_the_results() -> None:
    from huggingface_hub.repocard_data import model_index_to_eval_results

    held = yaml.safe_load(model_index_yaml(report(metric(value=3.25, unit="mL"), metric(value=None))))
    name, results = model_index_to_eval_results(held["model-index"])
    assert name == "hearts" and [(r.metric_type, r.metric_name, r.metric_value) for r in results] == [
        ("m", "M (mL)", 3.25)
    ]
    assert results[0].dataset_name == "5 real volumes (cdcdcdcdcdcd)"
    assert json.dumps(held)
