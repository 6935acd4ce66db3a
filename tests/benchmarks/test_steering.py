"""Tests that masks control samples: `benchmarks/steering.py` in minutes, with fewer phantoms and steps."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cardiodit.imaging.phantom import chest_scene, write_chests, write_cohort

SIZE = (32, 32, 24)


def options(**changes: object) -> list[str]:
    common = {"mixed_precision": "no", "report_to": "none", "checkpointing_steps": 1000, "validation_steps": 1000}
    settings = {key.replace("__", "."): str(value) for key, value in (common | changes).items()}
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def adapter(**changes: object) -> list[str]:
    return options(train_batch_size=4, lr_warmup_steps=5, ema_decay=0.95, noise_power=6, **changes)


HEART = {"tgca": adapter(max_train_steps=50, learning_rate=1e-3, adapter__channels=[4, 8, 16, 32, 64])}
CHEST = {
    "vqgan": options(max_train_steps=300, data__preprocessing__size=list(SIZE), data__crop=[16, 16, 16]),
    "dit": options(max_train_steps=300, model__num_layers=3),
    "tgca": adapter(max_train_steps=500, learning_rate=2e-3, adapter__channels=[8, 16, 32, 64]),
}


@pytest.fixture(scope="module")
def steering(load_script: Callable[[str], ModuleType]) -> Any:
    return load_script("steering")


def check(steering: Any, subject: Any, changes: dict[str, list[str]], folder: Path, steps: int) -> None:
    model = steering.train(subject, folder, changes)
    unseen = steering.cohort(subject, folder, "fresh", 4, seed=2000)
    scores, _ = steering.judge(subject, model, unseen, steps=steps, guidance=1.0)
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    assert (means["steered"] - means["free"] >= steering.ABOVE_FREE).all(), means
    assert (means["ceiling"] > 0.9).all(), means


@pytest.mark.timeout(900)
def test_hearts_follow_held_out_masks(steering: Any, tmp_path: Path) -> None:
    subject = replace(steering.SUBJECTS["heart"], write=partial(write_cohort, workers=1), cohort=12)
    check(steering, subject, HEART, tmp_path, steps=10)


@pytest.mark.timeout(900)
def test_lungs_follow_held_out_masks(steering: Any, tmp_path: Path) -> None:
    spacing = chest_scene.default_spacing(SIZE)
    subject = replace(steering.SUBJECTS["chest"], write=write_chests, size=SIZE, spacing=spacing, moves=4, cohort=24)
    check(steering, subject, CHEST, tmp_path, steps=10)
