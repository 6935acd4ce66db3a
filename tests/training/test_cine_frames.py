"""Frames of latents: padding that does not count, phases of the heart beat, and what was published of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cardiodit import CardioDiTError, CardioDiTPipeline, Geometry, Preprocessing, Volume, VQModel4D
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.resampling import repeat_beat
from cardiodit.latents import LatentCohort, channel_statistics, encode_cohort
from cardiodit.latents.dataset import use_statistics
from cardiodit.models.positions import circular_pool
from cardiodit.training import train_dit
from cardiodit.training.cine_frames import CineFrames, even_phase, pool_phase, read_phases
from cardiodit.training.objectives import Denoising

from ..conftest import randomise
from .conftest import DIT, STEPS, Cohorts, arguments_of, lines_of, merged

GOLDEN = Path(__file__).parents[1] / "fixtures/golden/temporal_align"
CASES = json.loads((GOLDEN / "cases.json").read_text())
EXPECTED = load_file(GOLDEN / "expected.safetensors")


# --- As published ---


def ours(name: str) -> torch.Tensor:
    case = CASES[name]
    options, frames = case.get("options", {}), case.get("frames")
    given = EXPECTED[case["input"]] if "input" in case else torch.zeros(0)
    if case["method"] == "cyclic":
        return torch.from_numpy(repeat_beat(given.numpy(), frames).copy())
    if case["method"] == "native":
        static = np.moveaxis(given.reshape(-1, 1, 1, given.shape[-1]).numpy(), 0, 0)
        repeated = Preprocessing(frame_multiple=options["t_multiple"]).change_frames(static)
        return torch.from_numpy(repeated.reshape(*given.shape[:-1], -1).copy())
    if case["method"] == "pool":
        return pool_phase(given, frames, options["pool"])
    if case["method"] == "circular_pool":
        return circular_pool(given, frames)
    return even_phase(frames, options["endpoint"])


OTHERS = ("cyclic", "native", "pool", "circular_pool", "linear_phase")


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case["method"] in OTHERS])
def test_the_recorded_cases(name: str) -> None:
    reference, found = EXPECTED[name], ours(name)
    assert found.shape == reference.shape
    assert (found - reference).abs().max() <= 1e-5 * reference.abs().max()


# --- Padding ---


def test_latents_are_repeated_to_whole_patches_and_what_is_repeated_does_not_count() -> None:
    frames = CineFrames(4, valid=[6, 5, 8], phases=[torch.arange(6.0), torch.arange(6.0), torch.arange(8.0)])
    sample = torch.randn(2, 1, 1, 1, 6)
    item = frames({"sample": sample}, 0)
    assert torch.equal(item["sample"], sample[..., [0, 1, 2, 3, 4, 5, 0, 1]])
    assert item["loss_mask"].tolist() == [1] * 6 + [0] * 2 and "frame_mask" not in item
    assert item["phase"].tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert frames({"sample": sample}, 1)["loss_mask"].tolist() == [1] * 5 + [0] * 3  # a latent of repeated frames
    whole = replace(frames, masks_attention=True)({"sample": torch.randn(2, 1, 1, 1, 8)}, 2)
    assert whole["loss_mask"].sum() == 8 and whole["frame_mask"].all()


def test_the_loss_is_the_mean_over_frames_that_count() -> None:
    objective, generator = Denoising(loss="mse"), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 2, 2, 2, 6, generator=generator) for _ in range(2))
    predicted = torch.randn(clean.shape, generator=generator)
    batch = {"noise": noise, "timestep": torch.tensor([3, 200])}
    batch["loss_mask"] = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    found = objective.losses(lambda *_, **__: (predicted,), clean, batch)
    errors = (predicted - objective.target(clean, noise, batch["timestep"])).square()
    assert torch.allclose(found, torch.stack([errors[0, ..., :4].mean(), errors[1].mean()]))


@torch.no_grad()
@pytest.mark.parametrize("mode", ["absolute", "axial_rope"])
def test_masked_tokens_change_nothing(mode: str, make_dit: Callable) -> None:
    """A model that is shown padded latents with their mask computes what it computes without the padding."""
    model = randomise(make_dit(position_mode=mode, patch_size=(1, 2, 2, 2), sample_size=(2, 4, 4, 8)))
    short = torch.randn(2, 8, 2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    padded = torch.cat([short, 9 * torch.ones_like(short)], dim=-1)
    mask = (torch.arange(8) < 4).expand(2, 8)
    times = torch.tensor([20, 200])
    alone = model(short, times).sample
    assert torch.allclose(model(padded, times, frame_mask=mask).sample[..., :4], alone, atol=1e-5)
    assert not torch.allclose(model(padded, times).sample[..., :4], alone, atol=1e-3)


def test_beats_that_keep_their_frames() -> None:
    steps = Preprocessing(frame_multiple=8, orient=False)
    cine = Volume(np.random.default_rng(0).integers(0, 99, (4, 4, 2, 11), np.int16), Geometry((1.0, 1.0, 8.0), 0.05))
    prepared = steps(cine)
    assert prepared.volume.voxels.shape == (4, 4, 2, 16) and prepared.volume.geometry.frame_time == 0.05
    assert np.array_equal(prepared.volume.voxels[..., 11:], prepared.volume.voxels[..., :5])
    assert np.array_equal(prepared.inverse().voxels, cine.voxels)
    assert Preprocessing.from_dict(steps.to_dict()) == steps and "frame_multiple" not in Preprocessing().to_dict()
    with pytest.raises(CardioDiTError, match="frame_multiple=8 of the preprocessing .* frames=16"):
        Preprocessing(frames=16, frame_multiple=8)


def test_repeated_frames_are_known_to_the_latents(cohorts: Cohorts, tmp_path: Path) -> None:
    vae = VQModel4D.from_pretrained(cohorts.vae).eval()
    steps = replace(STEPS, frames=None, frame_multiple=12)  # of 8 frames
    encode_cohort(cohorts.images[1], vae, tmp_path / "latents", steps=steps, report=lambda _: None)
    latents = LatentCohort.open(tmp_path / "latents" / "manifest.csv")
    assert [(h.frames, h.valid_frames, h.shape[-1], h.valid_latents) for h in latents.headers] == [(12, 8, 3, 2)] * 4
    stored = LatentCohort.open(cohorts.latents[1]).headers[0]
    assert stored.valid_frames is None and "valid_frames" not in stored.to_dict()


# --- Phases ---


def case(folder: Path, row: dict[str, str]) -> Case:
    return Case(folder / "shards" / "heart.safetensors", "a", row, folder)


def test_phases_come_from_columns_and_files(tmp_path: Path) -> None:
    expected, files = [0.0, 0.25, 0.5], tmp_path / "phases"
    files.mkdir()
    np.save(tmp_path / "own.npy", expected)
    for text in ("0 0.25 0.5", "[0.0, 0.25, 0.5]", "0;0.25;0.5", "own.npy"):
        assert read_phases([case(tmp_path, {"phase": text})], [3], "phase", None, "linear")[0].tolist() == expected
    for ending in ("json", "csv", "npy", "npz"):
        file = files / f"heart.{ending}"
        if ending == "json":
            file.write_text(json.dumps({"phase": expected}))
        elif ending == "csv":
            file.write_text("0\n0.25\n0.5\n")
        else:
            np.save(file, expected) if ending == "npy" else np.savez(file, phase=expected)
        assert read_phases([case(tmp_path, {})], [3], None, files, "none")[0].tolist() == expected
        file.unlink()
    np.save(files / "heart.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(CardioDiTError, match=r"heart.npy"):
        read_phases([case(tmp_path, {})], [3], None, files, "none")
    (files / "heart.npy").unlink()
    (files / "heart.pt").write_bytes(b"never opened")
    with pytest.raises(CardioDiTError, match=r"heart.pt is a pickle, which may run code"):
        read_phases([case(tmp_path, {})], [3], None, files, "none")
    for row, words in (
        ({}, "the column 'phase' is empty or missing"),
        ({"phase": "0 x"}, "something else than numbers"),
    ):
        with pytest.raises(CardioDiTError, match=words):
            read_phases([case(tmp_path, row)], [3], "phase", None, "linear")
    with pytest.raises(CardioDiTError, match="holds no heart with the ending"):
        read_phases([case(tmp_path, {})], [3], None, tmp_path, "linear")


def train(manifests: tuple[Path, Path], cohorts: Cohorts, folder: Path, name: str, **changes: Any) -> Path:
    AcceleratorState._reset_state(reset_partial_state=True)
    brief = {"max_train_steps": 4, "validation_steps": 4}
    config = merged(merged(DIT, {"training": brief}), changes)
    train_dit.main(arguments_of(folder, name, config, manifests, "--vae", str(cohorts.vae), "--cpu"))
    return folder / name


def test_a_run_with_padded_frames_phases_and_statistics(
    mixed: tuple[Path, Path], cohorts: Cohorts, tmp_path: Path
) -> None:
    """Latents of 2 and 4 frames become one bucket; of the tokens that only hold padding, nothing depends."""
    statistics = tmp_path / "statistics.json"
    mean, deviation = channel_statistics(iter(LatentCohort.open(mixed[0], any_size=True)))
    statistics.write_text(json.dumps({"mean": mean, "std": deviation}))
    changes: dict[str, Any] = {"frame_multiple": 4, "phase_column": "phase", "latent_statistics": str(statistics)}
    changes |= {"model": {"position_mode": "axial_rope", "phase_schema": "cycle"}}
    bucket = {"training": {"batch_strategy": "bucket"}}
    run = train(mixed, cohorts, tmp_path, "run", **changes, **bucket)
    assert np.isfinite(list(lines_of(run).values())).all()
    pipe = CardioDiTPipeline.from_pretrained(run / "pipeline")
    assert tuple(pipe.transformer.config.sample_size) == (4, 8, 8, 4)
    assert pipe.vae.config.latents_mean == mean and pipe.vae.config.scaling_factor == 1
    call: dict[str, Any] = {"num_inference_steps": 2, "seed": 0, "output_type": "latent"}
    even = pipe(**call, phase=[0.0, 0.25, 0.5, 0.75]).volumes
    assert torch.equal(even, pipe(**call, phase=[[0.0, 0.25, 0.5, 0.75]]).volumes)
    late = pipe(**call, phase=[0.0, 0.1, 0.2, 0.3])
    assert not torch.allclose(even, late.volumes) and late.records[0]["phase"] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    with pytest.raises(CardioDiTError, match=r"phase has the shape \(2, 4\)"):
        pipe(**call, phase=torch.zeros(2, 4))
    with pytest.raises(CardioDiTError, match="need a model whose positions depend on the phase"):
        train(mixed, cohorts, tmp_path, "absolute", phase_column="phase", **bucket)
    with pytest.raises(CardioDiTError, match="are for stored latents"):
        train(cohorts.images, cohorts, tmp_path, "online", frame_multiple=4)


def test_phases_are_for_positions_that_use_them(make_pipe: Callable) -> None:
    with pytest.raises(CardioDiTError, match="the positions of this model do not depend on it"):
        make_pipe()(phase=[0.0, 0.5], num_inference_steps=1)


def test_statistics_must_be_those_of_the_channels(cohorts: Cohorts, tmp_path: Path) -> None:
    vae = VQModel4D.from_pretrained(cohorts.vae)
    np.savez(tmp_path / "two.npz", mean=np.zeros(2), std=np.ones(2))
    with pytest.raises(CardioDiTError, match="2 means and 2 standard deviations. The latents have 4 channels"):
        use_statistics(vae, tmp_path / "two.npz")
    (tmp_path / "four.pt").write_bytes(b"never opened")
    with pytest.raises(CardioDiTError, match=r"four.pt is a pickle, which may run code.*four.npz"):
        use_statistics(vae, tmp_path / "four.pt")
    np.savez(tmp_path / "four.npz", mean=np.zeros((1, 4, 1, 1)), std=np.full((1, 4, 1, 1), 2.0))
    use_statistics(vae, tmp_path / "four.npz")
    assert vae.config.latents_std == [2.0] * 4
