"""The whole chain once, on a model small enough to be made on the spot."""

from pathlib import Path

import torch

from cardiodit.errors import CardioDiTError
from cardiodit.models import DiT4DTransformerModel, VQModel4D
from cardiodit.pipelines import CardioDiTPipeline
from cardiodit.schedulers import make_scheduler


def small_random_pipeline() -> CardioDiTPipeline:
    """An untrained CardioDiT for 64×64×6 voxels and 16 frames, always the same one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = VQModel4D(channels=(16, 32), num_res_channels=(16, 32), num_embeddings=256, spacing=(1.5, 1.5, 10.0))
        transformer = DiT4DTransformerModel(sample_size=(6, 16, 16, 4), num_layers=2, num_attention_heads=4)
    return CardioDiTPipeline(vae, transformer, make_scheduler())


def run_demo(output_dir: Path, num_samples: int = 2, seed: int = 0) -> None:
    """Makes a model, saves it, loads it again, samples and writes what a user gets."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise CardioDiTError(f"{output_dir} is not an empty folder; give another --output_dir or remove it.")
    small_random_pipeline().save_pretrained(output_dir / "model")
    pipe = CardioDiTPipeline.from_pretrained(output_dir / "model")
    paths = pipe(num_samples=num_samples, seed=seed).save(output_dir / "samples")
    print(
        f"Wrote {len(paths)} volumes as NIfTI and GIF to {output_dir / 'samples'}. "
        "This model is untrained, so they show noise, not hearts: the demo shows that everything runs."
    )
