"""The shipped configs of PRDiT are the published ones."""

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cardiodit import PRDiTTransformerModel
from cardiodit._util.typed_yaml import Reader, read_yaml
from cardiodit.training.harness.command_line import SHIPPED
from cardiodit.training.settings import PRDiTSettings, build_preprocessing

MILLIONS = {("b", "0"): 39.16, ("b", "4"): 93.23, ("b", "8"): 135.74, ("b", "12"): 178.26, ("xl", "4"): 155.97}
SIZES = {"b": (768, 12), "xl": (1152, 16)}  # width and heads
COHORTS = {"lidc": ("b", "p99.9", (1.0,) * 3), "radchest": ("xl", "p99.5 at most 1000", (0.8,) * 3)}
STAGES = {1: (1e-4, 104_000), 2: (8e-5, 130_000)}  # rate and steps
CONFIGS = sorted((SHIPPED / "prdit").glob("*.yaml"))


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_is_as_published(file: Path) -> None:
    cohort, side, size, patch, depth = parts(file)
    settings = Reader(file.name).section(PRDiTSettings, read_yaml(file), "")
    training = settings.training
    assert (training.learning_rate, training.max_train_steps) == STAGES[1 if depth == "0" else 2]
    assert training.train_batch_size * training.gradient_accumulation_steps == 64
    assert (training.weight_decay, training.lr_scheduler, training.max_grad_norm) == (0, "constant", 1.0)
    assert (training.ema_decay, training.ema_warmup) == (0.9999, False)
    steps = build_preprocessing(settings.data.preprocessing)
    assert steps.intensity.low == -1000 and steps.limits_of == "view" and steps.fit == "crop"
    assert (size, steps.intensity.high, steps.spacing) == COHORTS[cohort] and steps.size == (256,) * 3
    assert tuple(n // steps.pool for n in steps.size if n) == (side,) * 3
    with torch.device("meta"):
        model = PRDiTTransformerModel(sample_size=(side,) * 3, **asdict(settings.model))
    assert (model.config.patch_size, model.config.num_layers) == (int(patch), int(depth))
    heads = model.config.num_attention_heads
    assert (heads * model.config.attention_head_dim, heads) == SIZES[size]
    if millions := MILLIONS.get((size, depth)):
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_every_published_model_has_its_config() -> None:
    found = {(cohort, side, depth) for cohort, side, _, _, depth in map(parts, CONFIGS)}
    both = {(cohort, side, depth) for cohort in COHORTS for side in (128, 256) for depth in "04"}
    assert found == both | {("lidc", 64, "0"), ("lidc", 64, "4"), ("lidc", 128, "8"), ("lidc", 128, "12")}


def parts(file: Path) -> tuple[str, int, str, str, str]:
    """Cohort, voxels along a side, size, patch and depth."""
    cohort, size, patch, depth = file.stem.split("_")
    name = cohort.rstrip("0123456789")
    return name, int(cohort.removeprefix(name)), size, patch, depth
