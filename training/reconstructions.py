"""What the autoencoder makes of a few validation images, as a picture."""

import numpy as np
import torch
from torch.utils.data import DataLoader

from cardiodit.imaging.pictures import write_gif, write_slices
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.training.harness.run import Run

SHOWN = 4


@torch.no_grad()
def show_reconstructions(run: Run, model: VQModel, loader: DataLoader) -> None:
    """Images above, their reconstructions below: a GIF of slices over time, a PNG of a volume's slices."""
    if not run.is_main:
        return
    model.eval()
    images = torch.stack([loader.dataset[i]["image"] for i in range(min(SHOWN, len(loader.dataset)))])  # type: ignore
    seen = model(images.to(run.accelerator.device)).sample.float().clamp(-1, 1).cpu()
    model.train()
    # (B, 1, H, W, N) → (H, 2W, B, N): the second axis runs upwards in pictures, so the images come last
    both = torch.cat([seen, images], dim=3)[:, 0].permute(1, 2, 0, 3).numpy()
    folder = run.folder / "reconstructions"
    folder.mkdir(exist_ok=True)
    is_cine = len(model.accepted_inputs) > 1
    path = folder / f"step-{run.step + 1}.{'gif' if is_cine else 'png'}"
    if is_cine:
        write_gif(path, both, rows=2)
    else:
        write_slices(path, np.ascontiguousarray(both[:, :, 0]))
    run.metrics.picture("reconstruction", path, run.step + 1)
