"""Facts files, and evaluation reports that are added to an owner's facts."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report import SCHEMA, write_report
from cardiodit.hub.card.owner_facts import Metric, OwnerFacts, read_facts, with_evaluation, write_facts


def read(folder: Path, text: str) -> OwnerFacts:
    (folder / "facts.yaml").write_text(text)
    return read_facts(folder / "facts.yaml")


def test_an_empty_file_explains_every_key(tmp_path: Path) -> None:
    write_facts(tmp_path / "facts.yaml")
    assert read_facts(tmp_path / "facts.yaml") == OwnerFacts()
    text = (tmp_path / "facts.yaml").read_text()
    for key in OwnerFacts.__dataclass_fields__:
        before, _, _ = text.partition(f"\n{key}:")
        assert before.splitlines()[-1].startswith("# "), key


def test_the_examples_of_an_empty_file_are_valid(tmp_path: Path) -> None:
    write_facts(tmp_path / "blank.yaml")
    facts = read(tmp_path, (tmp_path / "blank.yaml").read_text().replace("\n#  - ", "\n  - "))
    assert facts.datasets == ("org/name", "in words")
    assert facts.metrics is not None and facts.metrics[0].value == 12.3


def test_long_texts_and_blanks(tmp_path: Path) -> None:
    facts = read(tmp_path, "cohort: >-\n  Forty\n  volunteers.\nconsent: '  '\ndatasets: []\n")
    assert (facts.cohort, facts.consent, facts.datasets) == ("Forty volunteers.", None, None)


@pytest.mark.parametrize(
    "text, message",
    [
        ("licence: mit", "licence is not a known key; did you mean 'license'"),
        ("license: Apache-2", "'Apache-2' is not a licence identifier of the Hub; did you mean 'apache-2.0'"),
        ("license: ours", "write `other`"),
        ("license: other", "needs a license_name"),
        ("country: NO", "country must be text or null, found False"),
        ("metrics: [{name: FID, valeu: 3}]", "metrics.valeu is not a known key; did you mean 'value'"),
        ("metrics: 3", "metrics must be a list of sections or null"),
        ("carbon_intensity: 28000", "carbon_intensity: 28000 is not from 0 to 2000; it means: g CO2"),
        ("data_centre_overhead: 0.4", "0.4 is not from 1 to 10"),
        ("repository: hearts", "'hearts' is not a repository name"),
        ("just words", "holds no sections"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CardioDiTError) as error:
        read(tmp_path, text)
    assert message in str(error.value) and "facts.yaml" in str(error.value)


def test_all_wrong_values_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"(?s)Apache-2.*energy_kwh.*base_model|Apache-2.*base_model.*energy_kwh"):
        read(tmp_path, "license: Apache-2\nenergy_kwh: -1\nbase_model: mine\n")


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


def test_an_evaluation_follows_the_owners_own_words() -> None:
    own = Metric(name="FID", value=3.0, dataset="lab/cines")
    facts = with_evaluation(OwnerFacts(evaluation="Two readers looked.", metrics=(own,)), report())
    assert facts.evaluation is not None and facts.evaluation.startswith("Two readers looked.\n\n| Metric |")
    assert [(m.type, m.value) for m in facts.metrics or ()] == [
        (None, 3.0),
        ("frechet_spatial", 1.235),
        ("plausible_all", 0.875),
    ]


def test_the_command_adds_an_evaluation_to_the_card(model: Path, tmp_path: Path) -> None:
    write_report(report(), tmp_path / "report.json")
    assert main(["card", str(model), "--evaluation", str(tmp_path / "report.json")]) == 0
    card = ModelCard.load(model / "README.md")
    assert "| Wasserstein_Lv_Ef_Percent | 2 | 0.625 (n = 4) | 0.5 (0.25 to 0.75) | lower |" in card.text
    assert "`evaluation`:" not in card.text  # nothing to be stated any more
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert results == {"frechet_spatial": 1.235, "plausible_all": 0.875}
    assert {result.dataset_name for result in card.data.eval_results or []} == {"8 real volumes (cdcdcdcdcdcd)"}
