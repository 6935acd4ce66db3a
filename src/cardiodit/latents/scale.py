"""The scaling factor of a VQ model: what makes its latents have the standard deviation 1."""

import json
import math
from collections.abc import Iterable
from pathlib import Path

import torch

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError


def measure_scale(tensors: Iterable[torch.Tensor]) -> float:
    """1 / standard deviation of all values, in one pass that holds one tensor at a time.

    Means and sums of squared deviations are merged as in Chan, Golub and LeVeque 1983: sums of
    squares would lose every digit where the mean is large.
    """
    count, mean, squares = 0, 0.0, 0.0
    for tensor in tensors:
        values = tensor.double()
        added, own_mean = values.numel(), values.mean().item()
        own_squares = (values - own_mean).square().sum().item()
        total, apart = count + added, own_mean - mean
        squares += own_squares + apart**2 * count * added / total
        mean += apart * added / total
        count = total
    deviation = math.sqrt(squares / (count - 1)) if count > 1 else 0.0
    if not math.isfinite(deviation) or deviation == 0:
        raise CardioDiTError(
            f"The standard deviation of {count} latent values is {deviation:g}, so there is no scaling factor. "
            "A VQ model that makes the same of everything, or no numbers at all, is broken."
        )
    return 1 / deviation


def write_scale(vae_folder: Path, value: float) -> None:
    """Writes the scaling factor into the config of a VQ model's folder and changes nothing else."""
    path = Path(vae_folder) / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["scaling_factor"] = value
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
