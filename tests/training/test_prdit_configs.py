"""The shipped configs of PRDiT are the published ones."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cardiodit import PRDiTTransformerModel
from cardiodit.training.harness.command_line import SHIPPED
from cardiodit.training.settings import PRDiTSettings
from cardiodit.typed_yaml import Reader, read_yaml

MILLIONS = {("b", "0"): 39.16, ("b", "4"): 93.23, ("b", "12"): 178.26, ("xl", "4"): 155.97}
STAGES = {1: (1e-4, 104_000), 2: (8e-5, 130_000)}  # rate and steps
CONFIGS = sorted((SHIPPED / "prdit").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_is_as_published(file: Path) -> None:
    cohort, size, patch, depth = file.stem.split("_")
    settings = Reader(file.name).section(PRDiTSettings, read_yaml(file), "")
    training, side = settings.training, int(cohort[-3:])
    assert (training.learning_rate, training.max_train_steps) == STAGES[1 if depth == "0" else 2]
    assert training.train_batch_size * training.gradient_accumulation_steps == 64
    assert (training.weight_decay, training.lr_scheduler, training.max_grad_norm) == (0, "constant", 1.0)
    assert (training.ema_decay, training.ema_warmup) == (0.9999, False)
    steps = settings.data.preprocessing.build()
    assert steps.intensity.high == ("p99.9" if cohort.startswith("lidc") else "p99.5")
    assert tuple(n // steps.pool for n in steps.size if n) == (side,) * 3
    with torch.device("meta"):
        model = PRDiTTransformerModel(sample_size=(side,) * 3, **asdict(settings.model))
    assert (model.config.patch_size, model.config.num_layers) == (int(patch), int(depth))
    if millions := MILLIONS.get((size, depth)):
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_there_are_configs_for_both_cohorts_and_stages() -> None:
    found = {(file.stem.split("_")[0][:-3], file.stem.split("_")[-1] == "0") for file in CONFIGS}
    assert found == {(cohort, is_local) for cohort in ("lidc", "radchest") for is_local in (True, False)}
