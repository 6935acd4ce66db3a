"""Tests of `benchmarks/dimensions.py` except training: hearts are split into slices, and slices joined to hearts."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import CardioDiTPipeline
from cardiodit.imaging import Geometry, read_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.latents.file import LatentHeader, read_latent, write_latent

DEPTH, SEED = 2, 3
GEOMETRY = Geometry((2.0, 2.0, 10.0), 0.05)


@pytest.fixture(scope="module")
def loaded(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("dimensions")


@pytest.fixture
def dimensions(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, set to hearts of two slices and two labels."""
    monkeypatch.setattr(loaded, "DEPTH", DEPTH)
    monkeypatch.setattr(loaded, "LABELS", ("normal", "infarct"))
    return loaded


def test_slices_of_a_cohort_are_labelled_and_join_to_the_same_hearts(dimensions: Any, tmp_path: Path) -> None:
    latents = {label: torch.randn(3, DEPTH, 4, 4, 5) for label in ("normal", "infarct")}
    for label, latent in latents.items():
        header = LatentHeader("v", "p", f"s-{label}", "float32", GEOMETRY, tuple(latent.shape), 5)
        write_latent(tmp_path / f"{label}.safetensors", latent, header)
    rows = [{"latent": f"{label}.safetensors", "label": label} for label in latents]
    write_manifest(tmp_path / "manifest.csv", [{**row, "subject": f"of-{row['label']}"} for row in rows])

    dimensions.split_slices(tmp_path)

    with (tmp_path / "slices.csv").open() as file:
        rows = [dict(zip(("latent", "subject", "label"), line.strip().split(","), strict=True)) for line in file][1:]
    assert [row["label"] for row in rows] == ["normal-0", "normal-1", "infarct-0", "infarct-1"]
    for label, latent in latents.items():
        slices = [row for row in rows if row["subject"] == f"of-{label}"]
        parts = [read_latent(tmp_path / row["latent"]) for row in slices]
        assert [header.shape for header, _ in parts] == [(3, 1, 4, 4, 5)] * DEPTH
        assert torch.equal(torch.cat([part for _, part in parts], dim=1), latent)


def test_slices_are_generated_by_label_and_joined_in_order(
    dimensions: Any, make_pipe: Callable[..., CardioDiTPipeline], tmp_path: Path
) -> None:
    names = [f"{label}-{place}" for label in dimensions.LABELS for place in range(DEPTH)]
    pipe = make_pipe(
        vae={"spacing": GEOMETRY.spacing, "frame_time": GEOMETRY.frame_time},
        sample_size=(1, 8, 8, 4),
        patch_size=(1, 2, 2, 4),
        num_classes=len(names),
        class_names=names,
    )
    pipe.save_pretrained(tmp_path / "model")

    dimensions.draw(tmp_path / "model", tmp_path / "samples", 3, SEED, slice_by_slice=True)

    cines = drawn(tmp_path / "samples", 3)
    assert cines[0].shape[2] == DEPTH
    for index, label in enumerate(("normal", "infarct", "normal")):
        for place in range(DEPTH):
            alone = one(pipe, f"{label}-{place}", first_sample=index * DEPTH + place)
            np.testing.assert_allclose(cines[index][:, :, place : place + 1], alone, atol=1e-4)
    assert np.abs(cines[0][:, :, 0] - cines[0][:, :, 1]).mean() > 1e-3


def test_whole_hearts_are_generated_at_once(
    dimensions: Any, make_pipe: Callable[..., CardioDiTPipeline], tmp_path: Path
) -> None:
    pipe = make_pipe(
        vae={"spacing": GEOMETRY.spacing, "frame_time": GEOMETRY.frame_time},
        num_classes=2,
        class_names=list(dimensions.LABELS),
    )
    pipe.save_pretrained(tmp_path / "model")

    dimensions.draw(tmp_path / "model", tmp_path / "samples", 2, SEED, slice_by_slice=False)

    for index, cine in enumerate(drawn(tmp_path / "samples", 2)):
        np.testing.assert_allclose(cine, one(pipe, dimensions.LABELS[index], first_sample=index), atol=1e-4)


def drawn(folder: Path, count: int) -> list[np.ndarray]:
    """Return the voxels of the files, after checking that their geometry is the model's."""
    volumes = [read_nifti(folder / f"sample{index:03d}.nii.gz") for index in range(count)]
    assert len(list(folder.iterdir())) == count
    for volume in volumes:
        assert volume.geometry.spacing == pytest.approx(GEOMETRY.spacing)
        assert volume.geometry.frame_time == pytest.approx(GEOMETRY.frame_time)
    return [volume.voxels for volume in volumes]


def one(pipe: CardioDiTPipeline, label: str, first_sample: int) -> np.ndarray:
    """Generate only the sample with this number, `(H, W, D, T)`."""
    given = {"num_samples": 1, "num_inference_steps": 25, "seed": SEED, "first_sample": first_sample}
    return pipe(class_labels=label, output_type="np", **given).volumes[0]
