"""Publishing needs an audit of these weights against this cohort, or a reason why there is none."""

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.repocard import metadata_load
from safetensors.torch import load_file, save_file

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.hub.audit_gate import REASON, audit_problems, check_push, complete_push, write_reason
from cardiodit.hub.checks.files import INTERNAL_MARK
from cardiodit.hub.model_card import is_as_made
from cardiodit.hub.publishing import check_folder
from cardiodit.pipelines.load import open_pipeline
from cardiodit.privacy.identities import identity_of_weights

COHORT = "3fbeeb8fb851b911ec1dc7eac60e8a91"  # as the runs of conftest.py record it


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "method": "bootstrap"}


@pytest.fixture
def audit(model: Path, tmp_path: Path) -> Path:
    """An audit of the small model, as far as the gate and the card read it."""
    sets = {"training": (32, 32), "held-out": (40, 40), "synthetic": (64, None)}
    excess = {"observed": 0.07, "null": 0.05, "excess": estimate(0.02), "p_value": 0.2, "true_level": [0.01, 0.1]}
    rule = {"patients": 0.17, "copies": 0.18, "threshold": 0.3, "expected_of_a_generator_that_copies_nobody": 0.185}
    attack = {"needs": "weights", "auc": estimate(0.53), "found_at": {"0.01": estimate(0.02)}}
    report = {
        "schema": "cardiodit-audit/1",
        "model": {"weights": identity_of_weights(model), "cohort": [COHORT]},
        "sets": {name: {"volumes": n, "patients": p, "identity": "0" * 64} for name, (n, p) in sets.items()},
        "detectors": [{"detector": {"name": "pixels"}, "published_rule": rule, "copies": excess, "patients": excess}],
        "attacks": [attack],
        "generalisation_gap": estimate(0.01),
        "conclusion": ["This audit found no evidence."],
    }
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "audit.json").write_text(json.dumps(report))
    return tmp_path / "audit"


def test_an_audit_fills_the_card_and_opens_the_gate(complete: Path, audit: Path, facts: Path, runs: list[Path]) -> None:
    (problem,) = audit_problems(complete, None)
    assert "cardiodit audit" in problem and "--without_audit" in problem
    named = ["--run", *map(str, runs), "--facts", str(facts)]
    assert main(["card", str(complete), *named, "--audit", str(audit)]) == 0
    assert list(audit_problems(complete, None)) == []
    assert check_folder(complete, "lab/hearts").found == []
    card = (complete / "README.md").read_text()
    assert "beyond held-out patients (pixels) | 2.0% (1.0 to 3.0%), p = 0.200 |" in card
    assert "AUC 0.53 (0.52 to 0.54); 2.0% found at 1% false alarms" in card
    assert "copies_excess" in metadata_load(complete / "README.md")["metrics"]
    assert main(["publish", str(complete), "lab/hearts", "--dry_run"]) == 0


def test_an_audit_of_other_weights_or_of_another_cohort_is_refused(
    complete: Path, audit: Path, facts: Path, capsys: pytest.CaptureFixture
) -> None:
    (complete / "audit.json").write_bytes((audit / "audit.json").read_bytes())
    assert list(audit_problems(complete, None)) == []
    report = json.loads((audit / "audit.json").read_text())
    report["model"]["cohort"] = ["another"]
    (complete / "audit.json").write_text(json.dumps(report))
    (problem,) = audit_problems(complete, None)
    assert "searched another cohort" in problem and COHORT[:16] in problem

    file = complete / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["proj_out.bias" if "proj_out.bias" in weights else sorted(weights)[0]] += 1
    save_file(weights, file, {"format": "pt"})
    assert main(["card", str(complete), "--facts", str(facts), "--audit", str(audit)]) == 1
    assert "The audit is of the weights" in capsys.readouterr().err
    assert main(["publish", str(complete), "lab/hearts", "--dry_run"]) == 1


def test_an_audit_of_samples_only_belongs_to_no_weights(complete: Path, audit: Path) -> None:
    report = json.loads((audit / "audit.json").read_text())
    report["model"]["weights"] = None
    (complete / "audit.json").write_text(json.dumps(report))
    (problem,) = audit_problems(complete, None)
    assert "without --model" in problem


def test_a_reason_is_written_into_the_card(complete: Path) -> None:
    assert list(audit_problems(complete, "Phantoms are nobody.")) == []
    assert list(audit_problems(complete, " ")) == ["--without_audit needs a reason, which is written into the card."]
    write_reason(complete, "It will follow.")
    write_reason(complete, "Phantoms are\nnobody.")
    card = (complete / "README.md").read_text()
    assert card.count(REASON) == 1 and f"## Privacy\n\n{REASON} Phantoms are nobody.\n" in card
    assert is_as_made(card)
    assert check_folder(complete, "lab/hearts").found == []


def test_a_pushed_pipeline_takes_the_audit_of_its_folder_along(complete: Path, audit: Path, tmp_path: Path) -> None:
    pipe = open_pipeline(complete)
    with pytest.raises(CardioDiTError, match="There is no audit of whether the model reproduces"):
        check_push(pipe._origin, None)
    with pytest.raises(CardioDiTError, match="--without_audit needs a reason"):
        check_push(pipe._origin, " ")
    (complete / "audit.json").write_bytes((audit / "audit.json").read_bytes())
    check_push(pipe._origin, None)
    pipe.save_pretrained(tmp_path / "pushed")
    complete_push(tmp_path / "pushed", pipe._origin, None)
    assert (tmp_path / "pushed" / "audit.json").read_bytes() == (audit / "audit.json").read_bytes()

    next(pipe.transformer.parameters()).data += 1
    pipe.save_pretrained(tmp_path / "changed")
    with pytest.raises(CardioDiTError, match="The audit is of the weights"):
        complete_push(tmp_path / "changed", pipe._origin, None)


def test_pages_with_patients_are_refused(complete: Path) -> None:
    (complete / "audit.html").write_text(f"<meta name='{INTERNAL_MARK}'>")
    (problem,) = check_folder(complete).found
    assert "audit.html shows images of patients" in problem
