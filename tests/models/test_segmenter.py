"""The segmenter: shapes, files, and the bundled one on unseen phantoms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import ejection_fraction, volumes_ml
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, bundled_model
from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.segmenter import HeartSegmenter, dice


def small() -> HeartSegmenter:
    torch.manual_seed(0)
    return HeartSegmenter(channels=(4, 4, 4, 4))


@pytest.mark.parametrize("size", [(16, 16, 3), (17, 22, 1)])
def test_images_of_any_size_are_labelled(size: tuple[int, int, int]) -> None:
    logits = small()(torch.randn(2, 1, *size))
    assert logits.shape == (2, 4, *size)


def test_frames_are_segmented_one_by_one() -> None:
    model, cine = small().eval(), torch.randn(16, 16, 2, 5)
    labels = model.segment(cine, batch_size=2)
    assert labels.shape == (16, 16, 2, 5) and labels.dtype == np.uint8
    alone = model(cine[None, None, ..., 3]).argmax(dim=1)[0].numpy()
    assert (labels[..., 3] == alone).all()
    with pytest.raises(CardioDiTError, match="shape"):
        model.segment(cine[..., 0])


def test_a_saved_model_computes_the_same(tmp_path: Path) -> None:
    model, image = small().eval(), torch.randn(1, 1, 8, 8, 2)
    model.save_pretrained(tmp_path)
    assert torch.equal(HeartSegmenter.from_pretrained(tmp_path).eval()(image), model(image))


def test_dice_of_known_overlaps() -> None:
    a, b = np.zeros((4, 4), int), np.zeros((4, 4), int)
    a[:2], b[1:3] = 1, 1
    assert dice(a, b) == {1: 0.5, 2: 1.0, 3: 1.0}


def test_the_bundled_segmenter_segments_unseen_phantoms(tmp_path: Path) -> None:
    model = HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER))
    assert model.dtype == torch.float32  # whatever the file holds
    steps = Preprocessing.from_dict(model.config.preprocessing)
    overlaps, errors = [], []
    for case in read_manifest(write_cohort(tmp_path / "fresh", num=2, seed=4242)):
        prepared = prepare_case(case, steps)
        truth, found = prepare_mask(case, prepared), model.segment(prepared.volume.voxels)
        overlaps.append(list(dice(found, truth.voxels).values()))
        volumes = volumes_ml(found, prepared.volume.geometry)
        errors.append(ejection_fraction(volumes) - ejection_fraction(volumes_ml(truth.voxels, truth.geometry)))
    assert np.mean(overlaps, axis=0).min() > 0.9
    assert np.abs(errors).max() < 3
