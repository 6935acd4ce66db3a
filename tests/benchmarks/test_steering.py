"""`benchmarks/steering.py` runs from phantoms to its scores; its results stand in `benchmarks/README.md`."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cardiodit.imaging.phantom import chest_scene, write_chests

SIZE = (32, 32, 24)


def options(**changes: object) -> list[str]:
    common = {"mixed_precision": "no", "report_to": "none", "checkpointing_steps": 1000, "validation_steps": 1000}
    settings = {key.replace("__", "."): str(value) for key, value in (common | changes).items()}
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def adapter(**changes: object) -> list[str]:
    return options(train_batch_size=4, lr_warmup_steps=5, ema_decay=0.95, noise_power=6, **changes)


CHEST = {
    "vqgan": options(max_train_steps=10, data__preprocessing__size=list(SIZE), data__crop=[16, 16, 16]),
    "dit": options(max_train_steps=5, model__num_layers=2),
    "tgca": adapter(max_train_steps=2, adapter__channels=[4, 4, 4, 4]),
}


@pytest.fixture(scope="module")
def steering(load_script: Callable[[str], ModuleType]) -> Any:
    return load_script("steering")


def check(steering: Any, subject: Any, changes: dict[str, list[str]], folder: Path) -> None:
    """Phantoms are segmented well and match themselves; samples of an adapter that learned nothing match no mask."""
    model = steering.train(subject, folder, changes)
    unseen = steering.cohort(subject, folder, "fresh", 2, seed=2000)
    scores, _ = steering.judge(subject, model, unseen, steps=2, guidance=1.0)
    means = {name: np.mean(values, axis=0) for name, values in scores.items()}
    assert (means["ceiling"] > 0.9).all(), means
    assert (means["steered"] - means["free"] < steering.ABOVE_FREE).all(), means


def test_lungs_are_trained_and_judged(steering: Any, tmp_path: Path) -> None:
    spacing = chest_scene.default_spacing(SIZE)
    subject = replace(steering.SUBJECTS["chest"], write=write_chests, size=SIZE, spacing=spacing, moves=4, cohort=6)
    check(steering, subject, CHEST, tmp_path)
