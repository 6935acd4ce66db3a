"""Facts files."""

from pathlib import Path

import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.hub.card.owner_facts import OwnerFacts, read_facts, write_facts


def read(folder: Path, text: str) -> OwnerFacts:
    (folder / "facts.yaml").write_text(text)
    return read_facts(folder / "facts.yaml")


def test_a_blank_file_says_nothing_and_explains_every_key(tmp_path: Path) -> None:
    write_facts(tmp_path / "facts.yaml")
    assert read_facts(tmp_path / "facts.yaml") == OwnerFacts()
    text = (tmp_path / "facts.yaml").read_text()
    for key in OwnerFacts.__dataclass_fields__:
        before, _, _ = text.partition(f"\n{key}:")
        assert before.splitlines()[-1].startswith("# "), key


def test_the_examples_of_a_blank_file_are_read(tmp_path: Path) -> None:
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
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CardioDiTError) as error:
        read(tmp_path, text)
    assert message in str(error.value) and "facts.yaml" in str(error.value)


def test_everything_that_is_wrong_comes_at_once(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"(?s)Apache-2.*energy_kwh.*base_model|Apache-2.*base_model.*energy_kwh"):
        read(tmp_path, "license: Apache-2\nenergy_kwh: -1\nbase_model: mine\n")
