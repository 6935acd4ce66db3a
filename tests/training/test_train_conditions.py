"""Stage 2 with clinical conditions."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import CardioDiTPipeline, DiT4DTransformerModel
from cardiodit.errors import CardioDiTError
from cardiodit.training import train_dit

from .conftest import DIT, Cohorts, arguments_of, lines_of, merged

COLUMNS = ["lv_ef_percent", "lv_edv_ml", "label"]
FEW = {"training": {"max_train_steps": 3, "validation_steps": 3, "checkpointing_steps": 3}, "label_column": None}


@pytest.fixture
def train(cohorts: Cohorts, tmp_path: Path) -> Callable[..., Path]:
    """Trains with some cells of the training manifest blank; returns the run's folder."""

    def run(name: str = "run", *more: str, blank: str = "", **changes: Any) -> Path:
        rows = list(csv.DictReader(cohorts.latents[0].open()))
        folder = cohorts.latents[0].parent
        for number, row in enumerate(rows):
            row["latent"] = str(folder / row["latent"])
            if number < 2 and blank:
                row[blank] = ""
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        config = merged(merged(DIT, FEW), {"condition_columns": COLUMNS, **changes})
        manifests = (tmp_path / f"{name}.csv", cohorts.latents[1])
        train_dit.main(arguments_of(tmp_path, name, config, manifests, "--vae", str(cohorts.vae), *more))
        return tmp_path / name

    return run


def test_a_model_is_trained_with_conditions_of_which_some_are_missing(train: Callable, capsys: Any) -> None:
    run = train(blank="lv_ef_percent", training={**FEW["training"], "preview_samples": 1, "preview_steps": 3})
    pipe = CardioDiTPipeline.from_pretrained(run / "pipeline")
    assert list(pipe.conditions) == sorted(COLUMNS) and pipe.conditions["lv_ef_percent"].known == 6
    assert pipe.conditions["lv_edv_ml"].unit == "mL" and pipe.labels == []
    assert pipe.transformer.config.condition_dropout_prob == 0.1
    assert "known for 6 of 8 training samples" in capsys.readouterr().out
    assert "conditions" in json.loads((run / "run.json").read_text())["data"]
    pipe.set_progress_bar_config(disable=True)
    out = pipe(label="dilated", lv_edv_ml=pipe.conditions["lv_edv_ml"].low, num_inference_steps=1, seed=0)
    assert out.records[0]["conditions"]["label"] == "dilated"
    card = (run / "pipeline" / "README.md").read_text()
    assert "`lv_ef_percent`" in card and "%" in card


def test_conditions_do_not_change_the_noise(train: Callable) -> None:
    """With weights that never change, the first loss is that of a model without conditions."""
    still = {**FEW["training"], "learning_rate": 0.0}
    with_conditions, without = train("a", training=still), train("b", training=still, condition_columns=None)
    first, second = (list(lines_of(run).values()) for run in (with_conditions, without))
    assert first == pytest.approx(second, rel=1e-5)


def test_conditions_are_added_to_a_trained_model_and_start_without_effect(train: Callable, tmp_path: Path) -> None:
    base = train("base", condition_columns=None)
    tuned = train("tuned", "--init_from", str(base), training={**FEW["training"], "learning_rate": 0.0})
    models = [DiT4DTransformerModel.from_pretrained(run / "best" / "transformer") for run in (base, tuned)]
    noisy = torch.randn(2, 4, *models[0].config.sample_size)
    values = torch.tensor([[0.0, 150.0, 40.0], [torch.nan] * 3])
    with torch.no_grad():
        before = models[0](noisy, torch.tensor([5, 9])).sample
        assert torch.equal(before, models[1](noisy, torch.tensor([5, 9]), conditions=values).sample)
    assert models[1].config.unconditional_prob == 0.1


def test_a_tuned_model_keeps_the_ranges_of_its_cohort(train: Callable) -> None:
    base = train("base")
    tuned = train("tuned", "--init_from", str(base), condition_columns=["lv_ef_percent"], blank="lv_edv_ml")
    first, second = (DiT4DTransformerModel.from_pretrained(run / "best" / "transformer") for run in (base, tuned))
    assert dict(first.conditions) == dict(second.conditions)
    with pytest.raises(CardioDiTError, match="'lv_esv_ml' is not a condition of this model"):
        train("other", "--init_from", str(base), condition_columns=["lv_esv_ml"])
