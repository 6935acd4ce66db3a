"""Volumes and ejection fractions, counted in label maps."""

from pathlib import Path

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.function import LV, MYO, RV, ejection_fraction, left_ventricle, volumes_ml
from cardiodit.imaging import Geometry
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.phantom import write_cohort


def test_voxels_are_counted_in_ml() -> None:
    labels = np.zeros((10, 10, 2, 2), np.uint8)
    labels[:5, :4, :, 0], labels[:5, :1, :, 1], labels[6:, 6:] = LV, LV, RV
    geometry = Geometry((2.0, 2.0, 10.0))  # 0.04 mL a voxel
    assert volumes_ml(labels, geometry) == pytest.approx((1.6, 0.4))
    assert volumes_ml(labels, geometry, RV) == pytest.approx((1.28, 1.28))
    assert volumes_ml(labels, geometry, MYO) == (0, 0)
    heart = left_ventricle(labels, geometry)
    assert (heart.edv, heart.esv, heart.ef) == pytest.approx((1.6, 0.4, 75))


def test_an_empty_ventricle_ejects_nothing() -> None:
    assert ejection_fraction((0.0, 0.0)) == 0


def test_ml_need_a_voxel_size() -> None:
    with pytest.raises(CardioDiTError, match="voxel size"):
        volumes_ml(np.zeros((4, 4, 1, 1)), Geometry())


def test_a_phantoms_exact_volumes_are_found_in_its_labels(tmp_path: Path) -> None:
    for case in read_manifest(write_cohort(tmp_path / "hearts", num=2, size=(64, 64, 8, 6))):
        labels = read_labels(case.path("mask"))
        heart = left_ventricle(labels.voxels, labels.geometry)
        assert heart.edv == pytest.approx(float(case.row["lv_edv_ml"]), rel=0.06)
        assert heart.ef == pytest.approx(float(case.row["lv_ef_percent"]), abs=3)
