"""`cardiodit audit --model` attacks the weights of every system: real, small pipelines from folder to report."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from cardiodit import (
    CardioDiTPipeline,
    MedLoRDPipeline,
    MedLoRDUNetModel,
    NoiseAndImageScheduler,
    PRDiTPipeline,
    PRDiTTransformerModel,
    VolDiTPipeline,
    VQModel3D,
    make_scheduler,
)
from cardiodit._util.randomness import generator_for
from cardiodit.cli import main
from cardiodit.evaluation.volume_sets import load, open_real
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
from cardiodit.imaging.preprocessing import as_tensor
from cardiodit.latents.encoder import encode_volume
from cardiodit.privacy.attacks import DRAWS, NOISE_SEED, LossMeter
from cardiodit.privacy.report import read_audit
from cardiodit.training.objectives import Denoising, FlowMatching, NoiseAndImage

from ..conftest import randomise

UNITS = (0, 1000)
STEPS = Preprocessing(intensity=Intensity(*UNITS))
GEOMETRY = Geometry((2.0, 2.0, 4.0))
CINE, CT = (16, 16, 2, 8), (16, 16, 8)
LEVELS, ATTACKED = 2, 3
COUNTS = {"training": 4, "held_out": 19, "samples": 3}
SYSTEMS = ("cardiodit", "flow", "voldit", "medlord", "prdit")


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """For cines and for CTs, a folder with manifests of smooth random volumes, and a folder of samples."""
    folders = {}
    for size in (CINE, CT):
        folder = folders[size] = tmp_path_factory.mktemp(f"volumes{len(size)}")
        rng = np.random.default_rng(0)
        for name, count in COUNTS.items():
            (folder / name).mkdir()
            scale = 1 if name == "samples" else UNITS[1] / 2  # samples without records are in [-1, 1]
            for place in range(count):
                voxels = np.clip(rng.normal(0, 0.4, size).cumsum(axis=0), -1, 1) + (name != "samples")
                write_nifti(folder / name / f"{name}{place}.nii.gz", (scale * voxels).astype(np.float32), GEOMETRY)
            with (folder / f"{name}.csv").open("w", newline="") as file:
                rows = csv.writer(file)
                rows.writerow(["image", "subject", "slices", "ed_frame"])
                rows.writerows([f"{name}/{name}{i}.nii.gz", f"{name}{i}", "base to apex", 0] for i in range(count))
    return folders


@pytest.fixture(scope="module")
def make_system(make_dit: Callable, make_dit_3d: Callable, make_vae: Callable) -> Callable[[str], tuple[Any, Any]]:
    """Make a system's pipeline, and the objective by which it would be trained, with a squared error."""

    def make(name: str) -> tuple[Any, Any]:
        known = {"preprocessing": STEPS.to_dict(), "spacing": GEOMETRY.spacing}
        if name == "prdit":
            shape = {"sample_size": CT, "patch_size": 8, "num_layers": 1, "num_attention_heads": 2}
            model = randomise(PRDiTTransformerModel(**shape, attention_head_dim=12, **known))
            return PRDiTPipeline(model, NoiseAndImageScheduler()), NoiseAndImage()
        if name in ("cardiodit", "flow"):
            kind = "flow" if name == "flow" else "v_prediction"
            dit = make_dit(sample_size=(2, 4, 4, 2), prediction_type=kind)
            scheduler = FlowMatchEulerDiscreteScheduler() if name == "flow" else make_scheduler()
            objective = FlowMatching(loss="mse") if name == "flow" else Denoising(300, loss="mse")
            return CardioDiTPipeline(make_vae(**known), dit, scheduler), objective
        vae = make_vae(VQModel3D, **known)
        if name == "voldit":
            dit = make_dit_3d(sample_size=(4, 4, 2), prediction_type="epsilon")
            return VolDiTPipeline(vae, dit, make_scheduler(prediction_type="epsilon")), Denoising(300, "epsilon", "mse")
        shape = {"block_out_channels": (8, 16), "layers_per_block": 1, "attention_levels": (False, True)}
        unet = MedLoRDUNetModel(
            sample_size=(4, 4, 2),
            in_channels=vae.config.embedding_dim,
            attention_head_dim=8,
            norm_num_groups=4,
            **shape,
        )
        return MedLoRDPipeline(vae, randomise(unet), make_scheduler()), Denoising(300, loss="mse")

    return make


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_weights_of_every_system_are_attacked(
    name: str, make_system: Callable, cohorts: dict[tuple[int, ...], Path], tmp_path: Path
) -> None:
    pipe, objective = make_system(name)
    pipe.save_pretrained(tmp_path / "model")
    folder = cohorts[CINE if name in ("cardiodit", "flow") else CT]
    options = ["--training", str(folder / "training.csv"), "--held_out", str(folder / "held_out.csv")]
    options += ["--synthetic", str(folder / "samples"), "--model", str(tmp_path / "model"), "--device", "cpu"]
    options += ["--noise_levels", str(LEVELS), "--attack_volumes", str(ATTACKED), "--planted", "0"]
    options += ["--output_dir", str(tmp_path / "audit"), "--reference", str(tmp_path / "model")]
    assert main(["audit", *options]) == 0
    report = read_audit(tmp_path / "audit")
    with_weights = {a["title"]: a for a in report["attacks"] if a["needs"] == "weights"}
    assert len(with_weights) == LEVELS + 2 and report["left_out"] == []
    assert all(attack["members"] == attack["others"] == ATTACKED for attack in with_weights.values())
    assert with_weights["Denoising loss, less that of the reference model"]["auc"]["value"] == 0.5  # of itself
    assert report["generalisation_gap"]["value"] is not None
    assert report["model"]["weights"] and report["sets"]["held-out"]["patients"] == COUNTS["held_out"]

    item = open_real(folder / "training.csv").items[0]
    meter = LossMeter(pipe, LEVELS, "weights", tmp_path / "losses")
    (tmp_path / "losses").mkdir()
    found, expected = meter.losses(item, "content", STEPS), by_objective(pipe, objective, item, meter)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@torch.no_grad()
def by_objective(pipe: Any, objective: Any, item: Any, meter: LossMeter) -> list[float]:
    """The training loss of a volume at the meter's times and noises, as the training scripts compute it."""
    clean = as_tensor(load(item, STEPS).volume.voxels)
    if hasattr(pipe, "vae"):
        clean = encode_volume(pipe.vae, clean) * pipe.vae.config.scaling_factor
    means = []
    for place, time in enumerate(meter.times):
        losses = []
        for draw in range(DRAWS):
            noise = torch.randn(clean[None].shape, generator=generator_for(NOISE_SEED, place * DRAWS + draw))
            batch = {"noise": noise, "timestep": torch.tensor([time])}
            losses.append(objective.losses(pipe.denoiser, clean[None], batch))
        means.append(float(torch.stack(losses).mean()) / (2 if isinstance(objective, NoiseAndImage) else 1))
    return means
