"""Completing images with a frozen prior: what was measured stays, and informs what is added."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from cardiodit import (
    CardioDiTError,
    CardioDiTPipeline,
    Gaps,
    Geometry,
    Intensity,
    Preprocessing,
    VolDiTPipeline,
    Volume,
    VQModel3D,
    complete,
    make_scheduler,
)
from cardiodit.cli import main
from cardiodit.imaging import read_nifti, write_nifti
from cardiodit.imaging.gaps import find_gaps, view_for_model
from cardiodit.pipelines.completion import Consistency

STEPS = Preprocessing(size=(16, 16, None), frames=8, intensity=Intensity(0, 1000), orient=False)
QUICK: dict[str, Any] = {"num_samples": 1, "num_inference_steps": 2}


def cine(shape: tuple[int, ...] = (16, 16, 4, 8)) -> Volume:
    voxels = np.random.default_rng(0).integers(0, 1000, shape, dtype=np.int16)
    return Volume(voxels, Geometry((1.5, 1.5, 8.0), 0.05 if len(shape) == 4 else None))


@pytest.fixture(scope="module")
def pipe(make_pipe: Callable) -> CardioDiTPipeline:
    pipe = make_pipe(sample_size=(4, 4, 4, 2), patch_size=(1, 2, 2, 1), num_classes=2, class_dropout_prob=0.1)
    pipe.vae.register_to_config(preprocessing=STEPS.to_dict(), scaling_factor=1.7)
    return pipe


@pytest.mark.parametrize(
    "gaps", [Gaps((1, 2)), Gaps(missing_frames=(3, 4)), Gaps((0,), (1,)), Gaps(insert_slices=1), Gaps(insert_frames=1)]
)
def test_measured_voxels_are_returned_as_they_were(gaps: Gaps, pipe: CardioDiTPipeline) -> None:
    image = cine()
    done = complete(pipe, image, gaps, **QUICK)
    known, places = find_gaps(image, gaps), np.indices(done.volume.voxels.shape)
    slices, frames = (np.flatnonzero(matrix.any(axis=0)) for matrix in (known.slices, known.frames))
    is_known = np.isin(places[2], slices) & np.isin(places[3], frames)
    assert np.array_equal(done.volume.voxels[is_known].reshape(known.measured.shape), known.measured)
    assert done.volume.voxels.dtype == np.int16
    added = done.volume.voxels[~is_known]
    assert added.std() > 0 and not np.array_equal(added, done.interpolated.voxels[~is_known])


def test_thin_slices_have_the_measured_mean(pipe: CardioDiTPipeline) -> None:
    image = cine((16, 16, 2, 8))
    done = complete(pipe, image, Gaps(split_slices=2), **QUICK).volume
    assert np.allclose(done.voxels.reshape(16, 16, 2, 2, 8).mean(axis=3), image.voxels, atol=1e-3)
    assert done.geometry.spacing == (1.5, 1.5, 4.0)


def inputs_of_model(pipe: CardioDiTPipeline, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, torch.Tensor]]:
    """Return a list to which every call of the transformer adds its time and its latents."""
    seen: list[tuple[float, torch.Tensor]] = []
    forward = pipe.transformer.forward

    def note(hidden_states: torch.Tensor, timestep: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((float(timestep[0]), hidden_states.clone()))
        return forward(hidden_states, timestep, *args, **kwargs)

    monkeypatch.setattr(pipe.transformer, "forward", note)
    return seen


@torch.no_grad()
def test_the_model_sees_what_was_measured_at_the_noise_of_each_level(
    pipe: CardioDiTPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = inputs_of_model(pipe, monkeypatch)
    image, gaps = cine(), Gaps((1, 2))
    complete(pipe, image, gaps, num_samples=2, num_inference_steps=5, visits=2, strength=1)
    assert [time for time, _ in seen] == [299, 299, 239, 239, 179, 179, 119, 119, 59, 59]
    model = STEPS(image).tensor()
    latents = pipe.vae.scale_latents(pipe.vae.quantize(pipe.vae.encode(model[None]).latents).latents)
    alphas = make_scheduler("ddpm").alphas_cumprod
    for visit, (time, inputs) in enumerate(seen[1:], 1):
        signal, sigma = alphas[int(time)].sqrt(), (1 - alphas[int(time)]).sqrt()
        noise = (inputs - signal * latents) / sigma
        measured, missing = noise[:, :, [0, 3]], noise[:, :, [1, 2]]
        assert measured.std() == pytest.approx(1, abs=0.1) and measured.mean() == pytest.approx(0, abs=0.1)
        if visit == len(seen) - 1:
            assert (missing - measured).abs().mean() > 1.5  # what is missing was not given away


@torch.no_grad()
def test_sampling_may_start_from_the_noisy_interpolated_image(
    pipe: CardioDiTPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = inputs_of_model(pipe, monkeypatch)
    done = complete(pipe, cine(), Gaps((1, 2)), num_samples=1, num_inference_steps=5, strength=0.4)
    assert [time for time, _ in seen] == [119, 59] and done.record["strength"] == 0.4
    model = STEPS(done.interpolated).tensor()
    latents = pipe.vae.scale_latents(pipe.vae.quantize(pipe.vae.encode(model[None]).latents).latents)
    alpha = make_scheduler("ddpm").alphas_cumprod[119]
    noise = (seen[0][1] - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    assert noise.std() == pytest.approx(1, abs=0.1) and noise.mean() == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("gaps", [Gaps((1,)), Gaps(missing_frames=(2,)), Gaps(noise=50.0)])
def test_samples_depend_on_the_seed_but_not_on_the_batch(gaps: Gaps, pipe: CardioDiTPipeline) -> None:
    call = {"num_samples": 3, "num_inference_steps": 2, "class_label": 1}
    one, all_at_once = (complete(pipe, cine(), gaps, batch_size=size, **call) for size in (1, 3))
    for a, b in zip(one.samples, all_at_once.samples, strict=True):
        assert np.abs(a.voxels.astype(float) - b.voxels).max() <= 1
    mean = np.mean([sample.voxels for sample in one.samples], axis=0)
    assert np.abs(one.volume.voxels - mean).max() <= 1
    if gaps.missing_slices:  # elsewhere these random weights leave no room for the noise
        other = complete(pipe, cine(), gaps, seed=1, **call)
        assert np.abs(other.samples[0].voxels.astype(float) - one.samples[0].voxels).max() > 1
        assert one.deviation.voxels.max() > 0
        assert (one.deviation.voxels == 0).sum() >= find_gaps(cine(), gaps).measured.size


@torch.no_grad()
def test_noise_limits_the_correction(pipe: CardioDiTPipeline) -> None:
    """An estimate that differs from the image by noise alone is kept; one that differs by more is corrected."""
    noise = np.random.default_rng(1).normal(0, 100, (16, 16, 4, 8))
    clean = np.full((16, 16, 4, 8), 500.0)
    view = view_for_model(find_gaps(Volume(clean + noise, Geometry()), Gaps(noise=100.0)), STEPS)
    assert view.noise == pytest.approx(0.2)
    consistency = Consistency(pipe, view)
    estimate = torch.zeros(1, 4, 16, 16, 8)  # the clean volume in the model's intensities
    assert consistency.correct(estimate).abs().mean() < 0.02
    far = consistency.correct(estimate + 0.8)
    assert far.mean() == pytest.approx(0.8 * 0.04 / (0.64 + 0.04), abs=0.01)


def test_other_processes_and_axes(make_pipe: Callable, make_dit_3d: Callable, make_vae: Callable) -> None:
    settings = {"sample_size": (4, 4, 4, 2), "patch_size": (1, 2, 2, 1)}
    flow = make_pipe(**settings, prediction_type="flow", self_conditioning=True)
    flow = CardioDiTPipeline(flow.vae, flow.transformer, FlowMatchEulerDiscreteScheduler(1000))
    chest = make_dit_3d(sample_size=(4, 4, 2))
    volumes = VolDiTPipeline(make_vae(VQModel3D), chest, make_scheduler())
    for pipe, shape, steps in ((flow, (16, 16, 4, 8), STEPS), (volumes, (16, 16, 8), Preprocessing(orient=False))):
        pipe.set_progress_bar_config(disable=True)
        image = cine(shape)
        done = complete(pipe, image, Gaps((1,)), preprocessing=steps, **QUICK).volume.voxels
        assert np.array_equal(np.delete(done, 1, 2), np.delete(image.voxels, 1, 2))
        assert done[:, :, 1].std() > 0


def test_what_cannot_be_completed(make_pipe: Callable, pipe: CardioDiTPipeline) -> None:
    bare = make_pipe(sample_size=(4, 4, 4, 2), patch_size=(1, 2, 2, 1))
    with pytest.raises(CardioDiTError, match="does not say how its training volumes were prepared"):
        complete(bare, cine(), Gaps((1,)))
    with pytest.raises(CardioDiTError, match="guidance_scale=2 needs a class label"):
        complete(pipe, cine(), Gaps((1,)), guidance_scale=2)
    with pytest.raises(CardioDiTError, match="renewal=1.5 must be a number from 0 to 1"):
        complete(pipe, cine(), Gaps((1,)), renewal=1.5)
    with pytest.raises(CardioDiTError, match="strength=0 must be a number above 0"):
        complete(pipe, cine(), Gaps((1,)), strength=0)
    with pytest.raises(CardioDiTError, match="visits=0 must be a whole number of at least 1"):
        complete(pipe, cine(), Gaps((1,)), visits=0)


def test_the_command(pipe: CardioDiTPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe.save_pretrained(tmp_path / "model")
    image = cine()
    write_nifti(tmp_path / "heart.nii.gz", image.voxels, image.geometry)
    command = ["complete", str(tmp_path / "heart.nii.gz"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    command += ["--num_samples", "2", "--num_inference_steps", "2", "--class_label", "1"]
    folder = tmp_path / "out"
    assert main([*command, "--missing_slices", "1", "2", "--output_dir", str(folder)]) == 0
    assert "4096 of 8192 voxels were measured, and are unchanged" in capsys.readouterr().out
    done = read_nifti(folder / "heart-completed.nii.gz")
    assert np.array_equal(done.voxels[:, :, [0, 3]], image.voxels[:, :, [0, 3]])
    assert done.geometry.spacing == (1.5, 1.5, 8.0)
    record = json.loads((folder / "completion.json").read_text())
    assert (record["num_samples"], record["class_label"], record["gaps"]["missing_slices"]) == (2, 1, [1, 2])
    assert read_nifti(folder / "heart-deviation.nii.gz").voxels[:, :, [0, 3]].max() == 0
    assert (folder / "heart-completed.gif").stat().st_size > 0
    assert main([*command, "--missing_slices", "1", "--output_dir", str(folder)]) == 1
    assert "already exists and is not replaced" in capsys.readouterr().err
    assert main([*command, "--output_dir", str(tmp_path / "other")]) == 1
    assert "There is nothing to complete" in capsys.readouterr().err
    assert main([*command, "--denoise", "none", "--output_dir", str(tmp_path / "other")]) == 1
    assert "a standard deviation is a positive number" in capsys.readouterr().err
