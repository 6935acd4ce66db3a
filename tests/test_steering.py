"""Do masks steer? What `benchmarks/steering.py` proves in an hour, in minutes: fewer hearts, fewer steps, 25 points."""

import importlib.util
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from cardiodit.imaging.phantom import write_cohort

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "steering.py"
BRIEF = ["--max_train_steps", "60", "--train_batch_size", "4", "--learning_rate", "1e-3", "--lr_warmup_steps", "5"]
BRIEF += ["--adapter.channels", "[4, 8, 16, 32, 64]", "--mixed_precision", "no", "--ema_decay", "0.9"]
BRIEF += ["--checkpointing_steps", "60", "--validation_steps", "60", "--report_to", "none"]


@pytest.fixture(scope="module")
def steering() -> Any:
    spec = importlib.util.spec_from_file_location("steering", SCRIPT)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["steering"] = module
    spec.loader.exec_module(module)
    return module


def test_unseen_hearts_are_where_their_masks_say(steering: Any, tmp_path: Path) -> None:
    subject = replace(steering.SUBJECTS["heart"], write=partial(write_cohort, workers=1), cohort=20)
    model = steering.train(subject, tmp_path, *BRIEF)
    unseen = steering.cohort(subject, tmp_path, "fresh", 4, seed=2000)
    found, _ = steering.judge(subject, model, unseen, steps=10, guidance=1.0)
    means = {name: np.mean(values, axis=0) for name, values in found.items()}
    assert (means["steered"] - means["free"] >= steering.ABOVE_FREE).all(), means
    assert (means["ceiling"] > 0.95).all(), means
