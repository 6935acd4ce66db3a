"""The shipped configs of PRDiT are the published ones."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cardiodit import CardioDiTError, PRDiTTransformerModel
from cardiodit._util.typed_yaml import Reader, read_yaml
from cardiodit.training.harness.command_line import SHIPPED
from cardiodit.training.objectives import VOXEL_OBJECTIVES
from cardiodit.training.prdit_config import translate_prdit
from cardiodit.training.settings import PRDiTSettings, build_preprocessing

MILLIONS = {("b", "0"): 39.16, ("b", "4"): 93.23, ("b", "8"): 135.74, ("b", "12"): 178.26, ("xl", "4"): 155.97}
SIZES = {"b": (768, 12), "xl": (1152, 16)}  # width and heads
COHORTS = {"lidc": ("b", "p99.9", (1.0,) * 3), "radchest": ("xl", "p99.5 at most 1000", (0.8,) * 3)}
STAGES = {1: (1e-4, 104_000), 2: (8e-5, 130_000)}  # rate and steps
CONFIGS = sorted(file for file in (SHIPPED / "prdit").glob("*.yaml") if file.stem.startswith(tuple(COHORTS)))
# The newest: name, millions of weights, learning rate, steps, volumes of a step, voxels along a side.
NEWEST = {
    "flow_lidc128_b_12_0": ("PRDiT-B/12/0", 38.27, 1e-4, 104_000, 64, 128),
    "flow_lidc128_b_12_4": ("PRDiT-B/12/4", 91.95, 8e-5, 130_000, 64, 128),
    "flow_lidc256_b_16_0_s16": ("PRDiT-B/16/0-s16", 221.52, 1e-4, 104_000, 32, 256),
    "flow_lidc256_b_16_12_s16": ("PRDiT-B/16/12-s16", 372.08, 8e-5, 130_000, 32, 256),
}
CASES = Path(__file__).parents[1] / "fixtures/golden/prdit_flow"


def settings_of(config: dict) -> PRDiTSettings:
    return Reader("a").section(PRDiTSettings, config, "")


def model_of(settings: PRDiTSettings, side: int) -> PRDiTTransformerModel:
    objective = VOXEL_OBJECTIVES[settings.process.objective]()
    with torch.device("meta"):
        return PRDiTTransformerModel(sample_size=(side,) * 3, **asdict(settings.model), **objective.model_config)


@pytest.mark.parametrize("name", NEWEST)
def test_a_config_of_flow_matching_is_as_published(name: str) -> None:
    of_authors, millions, rate, steps, volumes, side = NEWEST[name]
    settings = settings_of(read_yaml(SHIPPED / "prdit" / f"{name}.yaml"))
    assert sum(p.numel() for p in model_of(settings, side).parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    training, prepared = settings.training, build_preprocessing(settings.data.preprocessing)
    assert (training.learning_rate, training.max_train_steps, training.max_grad_norm) == (rate, steps, 1.0)
    assert training.train_batch_size * training.gradient_accumulation_steps == volumes
    assert prepared.size[0] == side * prepared.pool
    theirs = {"data": {"image_size": side, "task": "lidc"}, "model": {"name": of_authors, "out_channels": 1}}
    translated = settings_of(translate_prdit(Path("their.yaml"), theirs) or {})
    assert translated.model == settings.model and translated.process.objective == settings.process.objective
    assert translated.data.preprocessing == settings.data.preprocessing


@pytest.mark.parametrize("case", ["overlap", "local", "s4", "s16"])
def test_the_authors_yaml_describes_the_recorded_model(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    recorded = json.loads((CASES / f"case_{case}.json").read_text())
    settings = settings_of(translate_prdit(Path("their.yaml"), recorded["config"]) or {})
    model = model_of(settings, recorded["input_size"])
    assert sum(p.numel() for p in model.parameters()) == sum(math.prod(shape) for shape in recorded["keys"].values())
    training = settings.training
    assert (training.learning_rate, training.max_train_steps, training.seed) == (8e-5, 130_000, 42)
    assert (training.train_batch_size, training.gradient_accumulation_steps, training.mixed_precision) == (8, 4, "bf16")
    assert training.gradient_checkpointing and training.max_grad_norm == 1.0 and not training.ema_warmup
    said = capsys.readouterr().err
    assert "no preset makes volumes of" in said and ("--stage1" in said) == (case != "local")


def test_the_authors_yaml_of_super_resolution(capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((CASES / "case_sr.json").read_text())["config"]
    settings = settings_of(translate_prdit(Path("their.yaml"), config) or {})
    assert (settings.model.super_resolution, settings.model.patch_size, settings.model.attention_head_dim) == (
        2,
        10,
        48,
    )
    assert (settings.process.objective, settings.training.train_base) == ("noise_and_image", False)
    assert settings.training.learning_rate == 9e-5 and "given as --base" in capsys.readouterr().err
    config["base_model"]["finetune"] = True
    tuned = settings_of(translate_prdit(Path("their.yaml"), config) or {}).training
    assert (tuned.train_base, tuned.learning_rate) == (True, 6e-6)
    for name, rate, clip in (("sr_lidc256", 9e-5, 1.0), ("sr_lidc256_all", 1e-7, 0.2)):
        shipped = settings_of(read_yaml(SHIPPED / "prdit" / f"{name}.yaml"))
        assert (shipped.training.learning_rate, shipped.training.max_grad_norm) == (rate, clip)
        assert shipped.model.super_resolution == 2 and shipped.training.train_base == name.endswith("all")


def test_what_of_the_authors_yaml_is_refused() -> None:
    theirs: dict = {"data": {"image_size": 128, "task": "lidc"}, "model": {"name": "PRDiT-B/12/4"}}
    for change, words in (
        ({"data": {"augment": True}}, "data.augment would change training"),
        ({"model": {"name": "PRDiT-Z/12/4"}}, "model.name is 'PRDiT-Z/12/4'; expected PRDiT-"),
        ({"sr_model": {"stride": 4}, "data": {"base_image_size": 64}}, "sr_model has the stride 4"),
        ({"sr_model": {}, "data": {"base_image_size": 100}}, "must be a multiple of data.base_image_size 100"),
    ):
        changed = {key: {**theirs.get(key, {}), **change.get(key, {})} for key in {*theirs, *change}}
        with pytest.raises(CardioDiTError, match=words):
            translate_prdit(Path("their.yaml"), changed)
    assert translate_prdit(Path("ours.yaml"), {"model": {"patch_size": 12}}) is None


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
