"""Clinical conditions: what a manifest's columns become, what a request may be, and what a model makes of it."""

import math
from pathlib import Path

import pytest
import torch

from cardiodit import CardioDiTError, DiT4DTransformerModel
from cardiodit._util.randomness import generator_for
from cardiodit.models.clinical_conditions import ClinicalConditions, dropped_at_random

ROWS = [
    {"ef": "20.5", "age": "70", "sex": "0", "diagnosis": "dilated"},
    {"ef": "65", "age": "", "sex": "1", "diagnosis": "normal"},
    {"ef": "", "age": "41", "sex": "", "diagnosis": ""},
]
COLUMNS = ["ef", "age [months]", "sex [category]", "diagnosis"]


@pytest.fixture
def conditions() -> ClinicalConditions:
    return ClinicalConditions.of_cohort(ROWS, COLUMNS)


def test_columns_become_numbers_with_unit_and_range_or_categories(conditions: ClinicalConditions) -> None:
    assert repr(conditions) == "age: 41 to 70 months\ndiagnosis: dilated, normal\nef: 20.5 to 65 %\nsex: 0, 1"
    assert [each.known for each in conditions.values()] == [2, 2, 2, 2]


def test_the_config_gives_the_same_conditions_back(conditions: ClinicalConditions) -> None:
    again = ClinicalConditions.of_config(conditions.to_config())
    assert again is not None and dict(again) == dict(conditions)


def test_values_survive_the_way_to_the_model_and_back(conditions: ClinicalConditions) -> None:
    (numbers,) = conditions.numbers_of([{"ef": 30, "diagnosis": "normal", "age": None, "other": "ignored"}], [""])
    assert numbers[1:3] == (1.0, 30.0) and math.isnan(numbers[0]) and math.isnan(numbers[3])
    assert conditions.values_of(numbers) == {"diagnosis": "normal", "ef": 30.0}


def test_all_problems_of_a_request_are_named_with_the_cohorts_range(conditions: ClinicalConditions) -> None:
    with pytest.raises(CardioDiTError) as raised:
        conditions.numbers_of([{"ef": 80, "diagnosis": "dilatd"}, {"age": "old"}], ["row 1", "row 2"])
    text = str(raised.value)
    assert "row 1: ef=80 is outside the range of the training cohort, 20.5 to 65 %" in text and "--extrapolate" in text
    assert "diagnosis='dilatd' is not one of dilated, normal; did you mean 'dilated'?" in text
    assert "row 2: age='old' is not a number" in text
    assert conditions.numbers_of([{"ef": 80}], [""], extrapolate=True)[0][2] == 80
    with pytest.raises(CardioDiTError, match="ef='inf' is not finite"):
        conditions.numbers_of([{"ef": "inf"}], [""], extrapolate=True)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["weight"], "'weight' does not exist"),
        (["empty"], "'empty' is empty in every row"),
        (["ef", "ef [%]"], "ef is listed twice"),
        (["mixed"], "'mixed' mixes numbers with 'unknown'"),
        (["diagnosis [mL]"], "has the unit mL, but 'dilated' is not a number"),
    ],
)
def test_columns_that_cannot_be_used_are_errors(columns: list[str], problem: str) -> None:
    rows = [{**row, "empty": "", "mixed": "3" if row["ef"] else "unknown"} for row in [*ROWS, *ROWS]]
    with pytest.raises(CardioDiTError) as raised:
        ClinicalConditions.of_cohort(rows, columns)
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    "entry", [3, {"low": 5, "high": 1}, {"low": 0}, {"values": []}, {"values": ["a", "a"]}, {"values": "normal"}]
)
def test_a_strangers_config_is_checked(entry: object) -> None:
    with pytest.raises(CardioDiTError, match="The config's condition 'ef'"):
        ClinicalConditions.of_config({"ef": entry})


def test_a_models_prediction_depends_on_each_condition_by_itself(make_dit, conditions: ClinicalConditions) -> None:
    model = make_dit(conditions=conditions.to_config())
    noisy, time = torch.randn(1, 8, 2, 8, 8, 4), torch.tensor([100])

    def predict(**values: object) -> torch.Tensor:
        numbers = torch.tensor(conditions.numbers_of([values], [""]))
        with torch.no_grad():
            return model(noisy, time, conditions=numbers).sample

    with torch.no_grad():
        assert torch.equal(predict(), model(noisy, time).sample)  # None is the same as nothing given
    found = [predict(), *(predict(**one) for one in ({"ef": 30}, {"ef": 60}, {"sex": "1"}, {"diagnosis": "normal"}))]
    for i, one in enumerate(found):
        assert all(not torch.allclose(one, other, atol=1e-5) for other in found[:i])


def test_a_model_without_conditions_has_the_weights_of_earlier_versions(make_dit) -> None:
    assert not [name for name in make_dit().state_dict() if "condition" in name]
    with pytest.raises(CardioDiTError, match="trained without clinical conditions"):
        make_dit()(torch.randn(1, 8, 2, 8, 8, 4), torch.tensor([1]), conditions=torch.zeros(1, 2))


def test_a_model_with_conditions_is_saved_and_opened(make_dit, conditions: ClinicalConditions, tmp_path: Path) -> None:
    model = make_dit(conditions=conditions.to_config())
    model.save_pretrained(tmp_path)
    opened = DiT4DTransformerModel.from_pretrained(tmp_path)
    assert dict(opened.conditions) == dict(conditions)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())


def test_conditions_have_a_gradient_when_all_are_missing(make_dit, conditions: ClinicalConditions) -> None:
    """Several processes need a gradient for every weight at every step."""
    model = make_dit(conditions=conditions.to_config()).train()
    model(torch.randn(1, 8, 2, 8, 8, 4), torch.tensor([1])).sample.square().mean().backward()
    gradients = {name: weight.grad for name, weight in model.condition_embed.named_parameters()}
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert all(gradient.any() for name, gradient in gradients.items() if name.endswith("null"))


def test_conditions_are_dropped_independently_and_together() -> None:
    values, kept, alone = torch.ones(2), torch.zeros(2, 2), 0
    for i in range(4000):
        dropped, is_alone = dropped_at_random(values, 0.3, 0.1, generator_for(0, i))
        first, second = (~dropped.isnan()).int().tolist()
        kept[first, second] += 1
        alone += is_alone
    share = kept / kept.sum()
    expected = torch.tensor([[0.1 + 0.9 * 0.09, 0.9 * 0.21], [0.9 * 0.21, 0.9 * 0.49]])
    torch.testing.assert_close(share, expected, atol=0.025, rtol=0)  # 3 standard errors of a share
    assert abs(alone / 4000 - 0.1) < 0.015
