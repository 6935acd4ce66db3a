"""The words of an audit: of several detectors, the one that recognized most copies is stated."""

from typing import Any

from cardiodit.hub.card.owner_facts import OwnerFacts, with_audit
from cardiodit.privacy.conclusions import conclusion, limits
from cardiodit.privacy.report import summary_rows

KINDS = ("exact copy", "flipped", "mixed")


def found_by(name: str, excess: float, *found: float) -> dict[str, Any]:
    share = {"observed": excess + 0.05, "null": 0.05, "p_value": 0.001, "true_level": [0.03, 0.08]}
    share["excess"] = {"value": excess, "low": excess - 0.02, "high": excess + 0.02}
    rule = {"patients": 0.1, "copies": 0.1, "expected_of_a_generator_that_copies_nobody": 0.05}
    kinds = [{"title": title, "found": each} for title, each in zip(KINDS, found, strict=True)]
    return {
        "detector": {"name": name},
        "copies": share,
        "patients": share,
        "published_rule": rule,
        "false_discovery_rate": 0.1,
        "sensitivity": kinds,
    }


def report(*parts: dict[str, Any]) -> dict[str, Any]:
    sizes = {"volumes": 100, "patients": 100}
    written = {"detectors": list(parts), "samples": [{"is_copy": False}], "attacks": [], "generalisation_gap": None}
    written["sets"] = dict.fromkeys(("training", "held-out", "synthetic"), sizes)
    return {**written, "conclusion": conclusion(written)}


def test_the_detector_that_found_most_is_stated_wherever_it_stands() -> None:
    weak, strong = found_by("pixels", -0.01, 1, 0.2, 0.4), found_by("reconstructions", 0.3, 1, 1, 0.4)
    for parts in ((weak, strong), (strong, weak)):
        written = report(*parts)
        assert written["conclusion"][0].startswith("By reconstructions, which of 2 detectors found most: 35.0% of the")
        assert "evidence that the model reproduces" in written["conclusion"][-1]
        assert any("(reconstructions) | 30.0% (28.0 to 32.0%)" in row for row in summary_rows(written))
        metrics = with_audit(OwnerFacts(), written).metrics or ()
        assert metrics[-1].value == 30.0
    assert report(strong)["conclusion"][0].startswith("35.0% of the samples")


def test_copies_that_every_detector_misses_are_a_limit() -> None:
    weak, strong = found_by("pixels", -0.01, 1, 0.2, 0.4), found_by("reconstructions", 0.3, 1, 1, 0.4)
    assert "Most planted copies of these kinds are missed by every detector: mixed." in limits(report(weak, strong))
    assert "Most planted copies of these kinds are missed by pixels: flipped, mixed." in limits(report(weak))
