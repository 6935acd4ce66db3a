"""The segmenter's training: it learns, goes on to the bit, and refuses what it cannot learn from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import read_manifest
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.models.segmenter import HeartSegmenter
from cardiodit.training import train_segmenter
from cardiodit.training.train_segmenter import FrameDataset, SegmentedCines

from .conftest import STEPS, Cohorts, arguments_of, lines_of, merged

SEGMENTER: dict[str, Any] = {
    "model": {"channels": [4, 8, 8, 8]},
    "data": {"preprocessing": {"size": [32, 32, 4], "frames": 8, "intensity": {"low": "p0.5", "high": "p99.5"}}},
    "training": {
        "train_batch_size": 4,
        "max_train_steps": 6,
        "learning_rate": 1e-2,
        "lr_scheduler": "constant",
        "checkpointing_steps": 3,
        "validation_steps": 6,
        "report_to": "none",
    },
}


@pytest.fixture
def train_a_segmenter(cohorts: Cohorts, tmp_path: Path) -> Callable[..., Path]:
    def train(name: str = "run", *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        train_segmenter.main(arguments_of(tmp_path, name, merged(SEGMENTER, changes), cohorts.images, *more))
        return tmp_path / name

    return train


def test_it_learns_and_its_model_knows_what_it_was_shown(train_a_segmenter: Callable[..., Path]) -> None:
    run = train_a_segmenter(training={"max_train_steps": 40, "validation_steps": 40, "checkpointing_steps": 40})
    losses = lines_of(run)
    assert min(losses[step] for step in range(31, 41)) < 0.6 * losses[1]
    model = HeartSegmenter.from_pretrained(run / "best" / "segmenter")
    assert model.config.preprocessing["frames"] == 8
    assert model.config.spacing == pytest.approx((4.5, 4.5, 25.0), rel=0.1)
    validation = next(line for line in map(json.loads, (run / "metrics.jsonl").open()) if "validation_dice_lv" in line)
    assert 0.3 < validation["validation_dice_lv"] <= 1
    assert validation["validation_dice_error"] == pytest.approx(
        1 - sum(validation[f"validation_dice_{name}"] for name in ("rv", "myo", "lv")) / 3
    )
    session = json.loads((run / "run.json").read_text())["sessions"][0]
    assert 0 < session["energy_kwh"] < 1e-3 and "W a core" in session["energy_method"]


def test_a_run_goes_on_to_the_bit(train_a_segmenter: Callable[..., Path]) -> None:
    whole = train_a_segmenter("whole")
    train_a_segmenter("parts", "--max_train_steps", "3")
    parts = train_a_segmenter("parts")
    name = "segmenter/diffusion_pytorch_model.safetensors"
    first, second = (load_file(run / "checkpoint-6" / name) for run in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_what_cannot_be_learned_from_is_listed(
    cohorts: Cohorts, tmp_path: Path, train_a_segmenter: Callable[..., Path]
) -> None:
    rows = cohorts.images[0].read_text().splitlines()
    masks = [row.split(",")[rows[0].split(",").index("mask")] for row in rows[1:]]
    bare = cohorts.images[0].with_name("bare.csv")
    bare.write_text("\n".join([rows[0], *(row.replace(mask, "") for row, mask in zip(rows[1:3], masks)), *rows[3:]]))
    with pytest.raises(CardioDiTError, match=r"phantom-0000 has no mask(.|\n)*phantom-0001 has no mask"):
        SegmentedCines(read_manifest(bare), STEPS, 3)
    with pytest.raises(CardioDiTError, match="labels up to 3, not 1 to 2"):
        SegmentedCines(read_manifest(cohorts.images[1]), STEPS, 2)
    with pytest.raises(CardioDiTError, match="init_from"):
        train_a_segmenter("tuned", "--init_from", str(tmp_path))


def test_a_visit_is_a_function_of_its_number(cohorts: Cohorts) -> None:
    cines = SegmentedCines(read_manifest(cohorts.images[1]), STEPS, 3)
    assert len(cines.frames) == 4 * 8
    visits = FrameDataset(cines, Augmentation(flip_probability=0), blur=1.0, noise=0.1, seed=5)
    again = FrameDataset(cines, Augmentation(flip_probability=0), blur=1.0, noise=0.1, seed=5)
    assert torch.equal(visits[70]["image"], again[70]["image"])
    plain = FrameDataset(cines, Augmentation(0, 0, 0), blur=0.0, noise=0.0, seed=5)[3]
    assert plain["image"].shape == (1, 32, 32, 4) and plain["labels"].shape == (1, 32, 32, 4)
    index, time = cines.frames[visits.order[3]]
    assert torch.equal(plain["image"][0], torch.from_numpy(cines.images[index][..., time]))
    assert torch.equal(plain["labels"][0], torch.from_numpy(cines.labels[index][..., time]).long())
