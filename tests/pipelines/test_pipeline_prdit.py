"""PRDiT's pipeline keeps what all pipelines promise: seeds, batches, going on, geometry."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from cardiodit import CardioDiTError, NoiseAndImageScheduler, PRDiTPipeline, PRDiTTransformerModel, change_solver
from cardiodit.imaging import Intensity, Preprocessing, read_nifti
from cardiodit.pipelines.sampling_job import SamplingJob, sample_many

from ..conftest import randomise
from ..device_waits import waits_in_sampling

STEPS = 10
TURNED = Preprocessing(intensity=Intensity(-1000, 1000)).to_dict()
AS_STORED = Preprocessing(intensity=Intensity(-1000, 1000), orient=False).to_dict()


@pytest.fixture
def make_prdit() -> Callable[..., PRDiTPipeline]:
    def make(solver: str = "hot", **settings: Any) -> PRDiTPipeline:
        small = {"sample_size": (16, 8, 24), "patch_size": 8, "num_layers": 1}
        heads = {"num_attention_heads": 2, "attention_head_dim": 12}
        model = randomise(PRDiTTransformerModel(**{**small, **heads, **settings}), std=0.05)
        pipe = PRDiTPipeline(model, NoiseAndImageScheduler(solver=solver))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


def sampled(pipe: PRDiTPipeline, **settings: Any) -> torch.Tensor:
    return pipe(**{"num_inference_steps": STEPS, "output_type": "pt", **settings}).volumes


@pytest.mark.parametrize("solver", ["hot", "euler"])
def test_a_sample_is_the_same_in_any_batch(make_prdit: Callable, solver: str) -> None:
    pipe = make_prdit(solver)
    together = sampled(pipe, num_samples=3, seed=5)
    for index in range(3):
        assert torch.allclose(sampled(pipe, seed=5, first_sample=index), together[index : index + 1], atol=1e-4)
    assert (together[0] - together[1]).abs().mean() > 0.01
    assert not torch.allclose(sampled(pipe, seed=6), together[:1], atol=1e-2)


def test_hot_steps_draw_from_the_samples_own_generator(make_prdit: Callable) -> None:
    pipe, start = make_prdit(), torch.randn(1, 1, 16, 8, 24)
    one, again, other = (sampled(pipe, latents=start, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other, atol=1e-3)
    pipe.scheduler = change_solver(pipe.scheduler, "euler")
    one, other = (sampled(pipe, latents=start, seed=seed) for seed in (1, 2))
    assert torch.equal(one, other)


def test_a_folder_of_samples_goes_on_but_not_by_another_solver(make_prdit: Callable, tmp_path: Path) -> None:
    pipe, settings = make_prdit(), {"num_inference_steps": STEPS}
    assert len(list(sample_many(pipe, tmp_path / "s", SamplingJob(0, 0, 1, settings=settings)))) == 1
    (made,) = sample_many(pipe, tmp_path / "s", SamplingJob(0, 0, 2, settings=settings))
    assert made.name == "seed0-00001.nii.gz"
    pipe.scheduler = change_solver(pipe.scheduler, "euler")
    told = r"solver was NoiseAndImageScheduler \(hot\), now NoiseAndImageScheduler \(euler\)"
    with pytest.raises(CardioDiTError, match=told):
        list(sample_many(pipe, tmp_path / "s", SamplingJob(0, 0, 3, settings=settings)))


@pytest.mark.parametrize(
    ("preprocessing", "axes"), [(TURNED, ("L", "A", "S")), (AS_STORED, ("R", "A", "S")), (None, ("R", "A", "S"))]
)
def test_files_say_where_left_is(make_prdit: Callable, preprocessing: Any, axes: tuple, tmp_path: Path) -> None:
    """Training volumes were turned to the left, the front and the head, or were taken as they lay."""
    pipe = make_prdit(spacing=(1.0, 2.0, 3.0), preprocessing=preprocessing)
    out = pipe(num_inference_steps=STEPS, seed=0)
    out.save(tmp_path)
    (file,) = tmp_path.glob("*.nii.gz")
    image = nibabel.load(file)
    assert nibabel.aff2axcodes(image.affine) == axes
    assert np.allclose(nibabel.affines.voxel_sizes(image.affine), (1, 2, 3))
    again = read_nifti(file)
    if preprocessing is not None:  # and come back as they were made
        values = Preprocessing.from_dict(preprocessing)(again).volume.voxels
        assert np.abs(values - out.volumes[0].numpy()).max() <= 1 / 1000


def test_the_process_must_be_the_learned_one(make_prdit: Callable) -> None:
    pipe = make_prdit(noise_scale=1.0)
    with pytest.raises(CardioDiTError, match=r"scheduler's noise_scale is 0.5, .* was trained with 1.0"):
        pipe(num_inference_steps=STEPS)
    pipe.scheduler = NoiseAndImageScheduler(noise_scale=1.0)
    assert sampled(pipe, seed=0).shape == (1, 1, 16, 8, 24)


def test_half_precision_stays_near(make_prdit: Callable) -> None:
    pipe = make_prdit("euler")
    expected = sampled(pipe, seed=0)
    pipe.to(torch.bfloat16)
    found = sampled(pipe, seed=0)
    assert found.dtype == torch.float32
    assert (found - expected).norm() / expected.norm() < 0.05


def test_another_size_and_what_cannot_be(make_prdit: Callable) -> None:
    pipe = make_prdit()
    assert sampled(pipe, seed=0, depth=8, height=24).shape == (1, 1, 24, 8, 8)
    for settings, words in [
        ({"depth": 20}, "depth=20 cannot be generated"),
        ({"frames": 8}, "frames=8: volumes of this model have height, width, depth"),
        ({"guidance_scale": 2.0}, "guidance_scale=2.0 requires a model trained with labels"),
        ({"class_labels": "normal"}, "trained without labels"),
        ({"num_inference_steps": 1}, "num_inference_steps=1 must be from 2"),
    ]:
        with pytest.raises(CardioDiTError, match=words):
            pipe(**settings)


@pytest.mark.parametrize("solver", ["hot", "euler"])
def test_the_sampling_loop_waits_for_nothing(make_prdit: Callable, solver: str, monkeypatch) -> None:
    """Noise of "hot" is drawn on the CPU while the model runs, and copied without waiting."""
    pipe = make_prdit(solver).to("meta")
    assert waits_in_sampling(lambda: pipe(num_inference_steps=5, seed=0), monkeypatch) == []
