"""Clinical conditions of a pipeline's call and of `cardiodit sample`."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import CardioDiTError, CardioDiTPipeline
from cardiodit.cli import main
from cardiodit.pipelines.condition_rows import ConditionsLike, ConditionTable
from cardiodit.pipelines.inputs import unguided_inputs

CONDITIONS = {
    "ef": {"unit": "%", "low": 15.0, "high": 75.0},
    "edv": {"unit": "mL", "low": 80.0, "high": 280.0},
    "diagnosis": {"values": ["dilated", "normal"]},
}


@pytest.fixture(scope="module")
def pipe(make_pipe: Callable) -> CardioDiTPipeline:
    return make_pipe(conditions=CONDITIONS, num_classes=2, class_dropout_prob=0.1, class_names=("a", "b"))


def latents(pipe: CardioDiTPipeline, **call: Any) -> torch.Tensor:
    return pipe(**{"seed": 0, "num_inference_steps": 2, "output_type": "latent", **call}).volumes


def test_a_call_names_its_conditions(pipe: CardioDiTPipeline) -> None:
    out = pipe(ef=35, edv=[180, 220], conditions={"diagnosis": "dilated"}, seed=0, num_inference_steps=1)
    assert [record["conditions"] for record in out.records] == [
        {"diagnosis": "dilated", "edv": edv, "ef": 35.0} for edv in (180.0, 220.0)
    ]
    rows = [{"ef": 35, "edv": 180, "diagnosis": "dilated"}, {"ef": 35, "edv": 220, "diagnosis": "dilated"}]
    again = pipe(conditions=rows, seed=0, num_inference_steps=1)
    assert torch.equal(out.volumes, again.volumes)


def test_a_samples_conditions_are_its_own(pipe: CardioDiTPipeline) -> None:
    both = latents(pipe, ef=[20, 70])
    torch.testing.assert_close(both[1:], latents(pipe, ef=70, first_sample=1), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(both[:1], latents(pipe), atol=1e-3)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"ef": 80}, "ef=80 is outside the range of the training cohort, 15 to 75 %"),
        ({"ev": 30}, "'ev' is not a condition of this model; it has diagnosis, edv, ef. Did you mean 'e"),
        ({"conditions": [{"ef": 30}], "ef": [1, 2]}, "ambiguous: ef 2, conditions 1"),
        ({"ef": [30, 40], "num_samples": 3}, "ambiguous: num_samples 3, conditions 2"),
        ({"ef": 30, "guidance_over": ["age"]}, "'age' is not a condition"),
    ],
)
def test_wrong_requests_are_sentences(pipe: CardioDiTPipeline, call: dict, problem: str) -> None:
    with pytest.raises(CardioDiTError) as raised:
        latents(pipe, **call)
    assert problem in str(raised.value)


def test_extrapolation_is_allowed_on_request(pipe: CardioDiTPipeline) -> None:
    assert not torch.allclose(latents(pipe, ef=90, extrapolate=True), latents(pipe, ef=75), atol=1e-4)


def test_a_pipeline_without_conditions_refuses_them(make_pipe: Callable) -> None:
    plain = make_pipe()
    with pytest.raises(TypeError, match="ef is not an argument of this pipeline, and its model has no clinical"):
        plain(ef=35)
    with pytest.raises(CardioDiTError, match="trained without clinical conditions"):
        plain(conditions={"ef": 35})
    assert "conditions" not in plain(seed=0, num_inference_steps=1).records[0]


@pytest.mark.parametrize(
    ("over", "kept", "label"),
    [
        (None, [torch.nan] * 3, 2),
        (["ef"], [0.0, 200.0, torch.nan], 1),
        (["class_label"], [0.0, 200.0, 30.0], 2),
        (["ef", "diagnosis", "class_label"], [torch.nan, 200.0, torch.nan], 2),
    ],
)
def test_guidance_leads_away_from_the_chosen_conditions_only(
    pipe: CardioDiTPipeline, over: list[str] | None, kept: list[float], label: int
) -> None:
    noisy, time = torch.randn(1, 8, 2, 8, 8, 4), torch.tensor(50)
    given = {"class_labels": torch.tensor([1]), "conditions": torch.tensor([[0.0, 200.0, 30.0]])}
    pipe._guidance_scale = 3.0
    with torch.no_grad():
        full = pipe.transformer(noisy, time[None], **given).sample
        alone = pipe.transformer(noisy, time[None], torch.tensor([label]), conditions=torch.tensor([kept])).sample
        found = pipe._predict(noisy, time, given, unguided_inputs(pipe.denoiser, given, over))
    torch.testing.assert_close(found, alone + 3.0 * (full - alone))


def test_a_call_is_guided_over_what_it_names(pipe: CardioDiTPipeline) -> None:
    asked = {"conditions": {"ef": 30, "edv": 200}, "class_labels": "b", "guidance_scale": 3.0}
    guided = [latents(pipe, **asked, guidance_over=over) for over in (None, ["ef"], ["edv"], ["ef", "edv"])]
    assert all(not torch.allclose(one, other, atol=1e-3) for i, one in enumerate(guided) for other in guided[:i])


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_drawn_from_a_cohort_are_its_rows_and_depend_on_the_index_alone(
    pipe: CardioDiTPipeline, tmp_path: Path
) -> None:
    rows = [{"image": f"{i}.nii.gz", "ef": 20 + i, "edv": 100 + 10 * i, "weight": 70} for i in range(8)]
    drawn = ConditionsLike(write_table(tmp_path / "cohort.csv", rows), pipe.conditions, seed=3)
    assert drawn.missing == ["diagnosis"]
    some = [drawn[i] for i in range(200)]
    assert all(values in [{"ef": row["ef"], "edv": row["edv"]} for row in rows] for values in some)
    assert len({values["ef"] for values in some}) == 8
    assert ConditionsLike(tmp_path / "cohort.csv", pipe.conditions, seed=3)[150] == some[150]
    with pytest.raises(CardioDiTError, match="has none of the columns diagnosis, edv, ef"):
        ConditionsLike(write_table(tmp_path / "other.csv", [{"image": "a", "age": 3}]), pipe.conditions, 0)


def test_a_table_is_checked_as_a_whole(pipe: CardioDiTPipeline, tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "table.csv", [{"subject": "x", "ef": 10, "edv": ""}, {"subject": "y", "ef": "?", "edv": 300}]
    )
    with pytest.raises(CardioDiTError) as raised:
        ConditionTable.read(table, pipe.conditions)
    assert "table.csv, line 2: ef=10" in str(raised.value) and "line 3: edv=300" in str(raised.value)
    with pytest.raises(CardioDiTError, match="'weight' is not a condition"):
        ConditionTable.read(write_table(tmp_path / "other.csv", [{"ef": 30, "weight": 3}]), pipe.conditions)


def test_the_command_samples_a_heart_a_row_and_resumes(pipe: CardioDiTPipeline, tmp_path: Path, capsys: Any) -> None:
    pipe.save_pretrained(tmp_path / "model")
    table = write_table(tmp_path / "table.csv", [{"ef": 30, "diagnosis": ""}, {"ef": "", "diagnosis": "normal"}])
    command = ["sample", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--num_inference_steps", "1"]
    assert main([*command, "--conditions", str(table)]) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert [record["conditions"] for record in records] == [{"ef": 30.0}, {"diagnosis": "normal"}]
    assert main([*command, "--conditions", str(table)]) == 0
    assert "All requested samples are already" in capsys.readouterr().out
    assert main([*command, "--condition", "ef=31"]) != 0
    assert "conditions was {'ef': 30.0}, now {'ef': 31.0}" in capsys.readouterr().err
    assert main([*command, "--condition", "ef=31", "--conditions", str(table)]) != 0
    assert "exclude each other" in capsys.readouterr().err
