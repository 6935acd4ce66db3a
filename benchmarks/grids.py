"""Compare rotary with absolute positions at grids that the model was not trained at.

    OMP_NUM_THREADS=1 python benchmarks/grids.py --output grids        # six trainings, about 15 minutes on one core

Two transformers that differ in `position_mode` alone are trained on the latents of phantoms with 8 slices and 16
frames, encoded by the bundled VQ model, for the same number of steps, with three seeds. Then the loss of held-out
phantoms is measured at other grids with the same times: 10 slices (through the same heart, or of the trained thickness
and reaching beyond it), 20 frames of the same beat, and both. Run again to resume. Writes `grids.json` and `table.md`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dimensions import mean_and_range
from measuring import machine

from cardiodit import DiT4DTransformerModel
from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.randomness import generator_for
from cardiodit.cli import main as cardiodit
from cardiodit.hub.load import open_vae
from cardiodit.imaging.phantom import cohort, write_cohort
from cardiodit.latents import LatentCohort
from cardiodit.training import train_dit
from cardiodit.training.objectives import Denoising

MODES = {"absolute": "absolute", "axial_rope": "rotary"}
SPACING, THIN = (2.25, 2.25, 12.5), (2.25, 2.25, 10.0)  # mm
# Title, number of hearts, seed, voxels and their size.
COHORTS: dict[str, tuple[str, int, int, tuple[int, int, int, int], tuple[float, float, float]]] = {
    "training": ("", 240, 0, (32, 32, 8, 16), SPACING),
    "validation": ("8 slices, 16 frames (as trained)", 24, 1, (32, 32, 8, 16), SPACING),
    "thin": ("10 slices through the same heart", 24, 1, (32, 32, 10, 16), THIN),
    "long": ("10 slices of the trained thickness", 24, 1, (32, 32, 10, 16), SPACING),
    "frames": ("20 frames of the same beat", 24, 1, (32, 32, 8, 20), SPACING),
    "both": ("10 slices (same heart), 20 frames", 24, 1, (32, 32, 10, 20), THIN),
}
CONFIG = """
model:
  patch_size: [1, 4, 4, 2]
  num_layers: 4
  num_attention_heads: 4
  attention_head_dim: 32
training:
  learning_rate: 1.0e-3
  lr_scheduler: cosine
  lr_warmup_steps: 50
  train_batch_size: 8
  ema_decay: 0.99
  mixed_precision: bf16
  validation_steps: 500
  checkpointing_steps: 500
  preview_samples: 0
  dataloader_num_workers: 0
"""
LEVELS = 8  # times at which each heart's loss is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default %(default)s)")
    arguments = parser.parse_args()
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    latents = prepare(folder)
    losses: dict[str, dict[str, list[float]]] = {mode: {grid: [] for grid in list(COHORTS)[1:]} for mode in MODES}
    for seed in range(arguments.seeds):
        for mode in MODES:
            run = f"{mode}-{seed}"
            if not (folder / run / "pipeline").is_dir():
                ids = [str(latents / split / "manifest.csv") for split in ("training", "validation")]
                paths = ["--training_ids", ids[0], "--validation_ids", ids[1], "--output_dir", str(folder)]
                options = ["--config", str(folder / "config.yaml"), "--vae", str(folder / "vae"), "--run_name", run]
                changed = ["--model.position_mode", mode, "--max_train_steps", str(arguments.steps)]
                train_dit.main([*options, *paths, *changed, "--seed", str(seed), "--report_to", "none", "--cpu"])
            model = DiT4DTransformerModel.from_pretrained(folder / run / "pipeline" / "transformer")
            for grid, found in losses[mode].items():
                found.append(loss_of(model, folder, latents / grid / "manifest.csv"))
    record = {"machine": machine(), "steps": arguments.steps, "losses": losses}
    with atomic_file(folder / "grids.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
    (folder / "table.md").write_text(table(losses))
    print(table(losses))


def prepare(folder: Path) -> Path:
    """Write phantoms and their latents at every grid, and a copy of the VQ model scaled for them."""
    cohort.PICTURED = 0
    (folder / "config.yaml").write_text(CONFIG)
    for name, (_, number, seed, size, spacing) in COHORTS.items():
        if not (folder / name).is_dir():
            write_cohort(folder / name, number, seed, size, spacing)
    latents = folder / "latents"
    if not (folder / "vae").is_dir():
        vae = open_vae("cardiodit-phantom")
        steps: dict[str, Any] = dict(vae.config.preprocessing)
        vae.register_to_config(preprocessing={**steps, "size": [32, 32, None], "frames": None}, spacing=None)
        vae.save_pretrained(folder / "vae")
    for name in COHORTS:
        if not (latents / name / "manifest.csv").is_file():
            ids = ["--ids", str(folder / name / "manifest.csv"), "--output_dir", str(latents / name)]
            if cardiodit(["encode", *ids, "--vae", str(folder / "vae"), "--batch_size", "8", "--device", "cpu"]):
                raise SystemExit(1)
    manifest = str(latents / "training" / "manifest.csv")
    if cardiodit(["scale-factor", "--latents", manifest, "--vae", str(folder / "vae")]):
        raise SystemExit(1)
    return latents


@torch.no_grad()
def loss_of(model: DiT4DTransformerModel, folder: Path, manifest: Path) -> float:
    """Return the mean loss of a cohort over evenly spaced times."""
    vae, objective, total = open_vae(folder / "vae"), Denoising(), 0.0
    hearts = LatentCohort.open(manifest)
    times = objective.time_at((torch.arange(LEVELS) + 0.5) / LEVELS)
    for index in range(len(hearts)):
        clean = vae.scale_latents(hearts[index][None]).expand(LEVELS, *(-1,) * 5)
        noise = torch.randn(clean.shape, generator=generator_for(0, index))
        total += objective.losses(model, clean, {"noise": noise, "timestep": times}).mean().item()
    return total / len(hearts)


def table(losses: dict[str, dict[str, list[float]]]) -> str:
    """Return the losses, and how much they rise from that at the trained grid."""
    titles = " | ".join(f"{title}: loss | rise" for title in MODES.values())
    lines = [f"| grid | {titles} |", "|---" * (2 * len(MODES) + 1) + "|"]
    for grid in list(COHORTS)[1:]:
        cells = []
        for mode in MODES:
            values, trained = np.array(losses[mode][grid]), np.array(losses[mode]["validation"])
            rises = 100 * (values / trained - 1)
            cells += [mean_and_range(values.tolist()), f"{mean_and_range(rises.tolist())} %"]
        lines.append(f"| {COHORTS[grid][0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
