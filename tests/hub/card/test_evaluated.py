"""What an evaluation found stands in the card, and in its metadata as the Hub reads results."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

from cardiodit.cli import main
from cardiodit.evaluation.report import SCHEMA, write_report
from cardiodit.hub.card.owner_facts import Metric, OwnerFacts, with_evaluation


def line(name: str, group: str, value: float | None) -> dict[str, Any]:
    floor = {"value": 0.5, "low": 0.25, "high": 0.75, "matched": 0.625, "volumes": 4}
    common = {"better": "lower", "low": None, "high": None, "level": 0.95, "method": "", "notes": [], "unit": ""}
    return {"name": name, "title": name.title(), "group": group, "value": value, "floor": floor, **common}


def report() -> dict[str, Any]:
    spatial = {"name": "random", "weights": {"sha256": "ab" * 32}}
    return {
        "schema": SCHEMA,
        "protocol": {
            "cardiodit": "0.1",
            "features": {"spatial": spatial},
            "segmenter": None,
            "seed": 0,
            "counts": {"real": 8, "synthetic": 8},
            "left_out": [],
        },
        "sets": {"real": {"identity": "cd" * 32}, "synthetic": {}},
        "metrics": [
            line("frechet_spatial", "distribution", 1.23456),
            line("kid_spatial", "distribution", None),
            line("wasserstein_lv_ef_percent", "function", 2.0),
            line("plausible_all", "plausibility", 0.875),
        ],
        "problems": [],
    }


def test_it_stands_behind_the_owners_own_words() -> None:
    own = Metric(name="FID", value=3.0, dataset="lab/cines")
    facts = with_evaluation(OwnerFacts(evaluation="Two readers looked.", metrics=(own,)), report())
    assert facts.evaluation is not None and facts.evaluation.startswith("Two readers looked.\n\n| Metric |")
    assert [(m.type, m.value) for m in facts.metrics or ()] == [
        (None, 3.0),
        ("frechet_spatial", 1.235),
        ("plausible_all", 0.875),
    ]


def test_the_command_puts_it_into_the_card(model: Path, tmp_path: Path) -> None:
    write_report(report(), tmp_path / "report.json")
    assert main(["card", str(model), "--evaluation", str(tmp_path / "report.json")]) == 0
    card = ModelCard.load(model / "README.md")
    assert "| Wasserstein_Lv_Ef_Percent | 2 | 0.625 (n = 4) | 0.5 (0.25 to 0.75) | lower |" in card.text
    assert "`evaluation`:" not in card.text  # nothing to be stated any more
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == {"frechet_spatial": 1.235, "plausible_all": 0.875}
    assert {result.dataset_name for result in card.data.eval_results or []} == {"8 real volumes (cdcdcdcdcdcd)"}
