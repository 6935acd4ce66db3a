"""From phantoms to sampled hearts with the commands of the README: both stages learn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cardiodit import CardioDiTPipeline
from cardiodit.cli import main
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import LatentCohort
from cardiodit.training import train_dit, train_vqgan

from .conftest import train

VQGAN = {
    "model": {"channels": [16, 32], "num_res_channels": [16, 32], "num_res_layers": 1, "embedding_dim": 4},
    "losses": {"perceptual_network": "none", "adversarial_start_epoch": 10, "adversarial_ramp_epochs": 4},
    "discriminator": {"num_channels": 8, "num_layers_d": 2},
    "data": {"preprocessing": {"size": [32, 32, 4], "frames": 8, "intensity": {"low": "p0.5", "high": "p99.5"}}},
    "training": {
        "train_batch_size": 4,
        "max_train_steps": 100,
        "learning_rate": 2e-3,
        "lr_scheduler": "cosine",
        "validation_steps": 10,
        "checkpointing_steps": 50,
    },
}
DIT = {
    "label_column": "label",
    "model": {"patch_size": [1, 2, 2, 2], "num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 24},
    "training": {
        "train_batch_size": 8,
        "max_train_steps": 130,
        "learning_rate": 2e-3,
        "lr_warmup_steps": 20,
        "ema_decay": 0.99,
        "validation_steps": 20,
        "preview_samples": 0,
        "dataloader_num_workers": 0,
        "checkpointing_steps": 65,
    },
}


def course_of(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def distance(volume: np.ndarray, others: np.ndarray) -> float:
    """Root of the mean square difference to the nearest of the others."""
    return float(np.sqrt(np.square(others - volume).mean(axis=(1, 2, 3, 4)).min()))


@pytest.mark.timeout(600)
def test_from_phantoms_to_sampled_hearts(tmp_path: Path) -> None:
    images = [
        write_cohort(tmp_path / "training", num=24, seed=0, size=(32, 32, 4, 8), workers=1),
        write_cohort(tmp_path / "validation", num=8, seed=1, size=(32, 32, 4, 8)),
    ]
    coder = train(train_vqgan, tmp_path, "vqgan", VQGAN, images)
    errors = course_of(coder, "validation_l1")

    assert min(errors) < 0.5 * errors[0]
    assert course_of(coder, "validation_codes_used")[-1] > 0.005

    reports = tmp_path / "reconstructions"
    assert main(["reconstruct", "--ids", str(images[1]), "--vae", str(coder), "--output_dir", str(reports)]) == 0

    latents = [tmp_path / "latents" / name for name in ("training", "validation")]
    for manifest, folder in zip(images, latents):
        assert main(["encode", "--ids", str(manifest), "--vae", str(coder), "--output_dir", str(folder)]) == 0
    manifests = [folder / "manifest.csv" for folder in latents]
    assert main(["scale-factor", "--latents", str(manifests[0]), "--vae", str(coder)]) == 0
    scaled = torch.stack(list(LatentCohort.open(manifests[0]))) * scaling_factor_of(coder)
    assert scaled.std().item() == pytest.approx(1, abs=1e-3)

    hearts = train(train_dit, tmp_path, "dit", DIT, manifests, "--vae", str(coder))
    losses = course_of(hearts, "validation_loss")

    assert min(losses) < 0.7 * losses[0]

    pipe = CardioDiTPipeline.from_pretrained(hearts / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    output = pipe(class_labels=["normal", "dilated"] * 2, seed=3, num_inference_steps=10, output_type="np")
    real = np.stack([prepared(case, pipe) for case in read_manifest(images[1])])
    noise_latents = torch.randn(4, 4, 4, 8, 8, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        decoded = pipe.vae.decode(noise_latents / pipe.vae.config.scaling_factor).sample.clamp(-1, 1)
    noise = decoded[:, 0].movedim(1, 3).numpy()  # what comes out where nothing was denoised
    sampled_apart = np.mean([distance(volume, real) for volume in output.volumes])
    noise_apart = np.mean([distance(volume, real) for volume in noise])
    real_apart = np.mean([distance(volume, np.delete(real, i, axis=0)) for i, volume in enumerate(real)])

    assert sampled_apart < 0.9 * noise_apart, (sampled_apart, noise_apart, real_apart)
    output.save(tmp_path / "samples")
    assert len(list((tmp_path / "samples").glob("*.nii.gz"))) == 4


def scaling_factor_of(run: Path) -> float:
    return json.loads((run / "best" / "vae" / "config.json").read_text())["scaling_factor"]


def prepared(case, pipe: CardioDiTPipeline) -> np.ndarray:
    from cardiodit.imaging import Preprocessing, prepare_case

    return prepare_case(case, Preprocessing.from_dict(pipe.vae.config.preprocessing)).volume.voxels
