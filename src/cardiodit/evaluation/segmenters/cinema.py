"""CineMA's segmenters (https://github.com/mathpluscode/CineMA), through their own package."""

import numpy as np
import torch
import torch.nn.functional as F

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters.segmenter import Grid, Segmenter, from_0_to_1, identity_of
from cardiodit.imaging.label_order import ACDC_ORDER

REPOSITORY = "mathpluscode/CineMA"
NAME = r"cinema(?::(?P<data>acdc|mnms|mnms2))?(?::(?P<seed>\d))?"
SLICES = 16


def open_cinema(name: str, data: str, seed: int, device: str) -> Segmenter:
    """CineMA's ConvUNetR, fine-tuned on a public cohort (192 × 192 × 16 voxels of 1 × 1 × 10 mm)."""
    try:
        from cinema import ConvUNetR
    except ImportError as error:
        raise CardioDiTError(
            "CineMA's segmenter needs its package: pip install git+https://github.com/mathpluscode/CineMA"
        ) from error
    folder = f"finetuned/segmentation/{data}_sax"
    model = ConvUNetR.from_finetuned(
        repo_id=REPOSITORY,
        model_filename=f"{folder}/{data}_sax_{seed}.safetensors",
        config_filename=f"{folder}/config.yaml",
    )
    model = model.to(device).eval()
    return Segmenter(
        name=name,
        identity=identity_of(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(1.0, 1.0, 10.0), size=(192, 192, None)),
        network=lambda cine, _: _ask_cinema(model, cine, device),
        note=f"It was trained on {data}; hearts of that cohort are no test of it.",
    )


@torch.no_grad()
def _ask_cinema(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Frame by frame, each from 0 to 1, with black slices added behind the last one."""
    depth = cine.shape[2]
    if depth > SLICES:
        raise CardioDiTError(f"CineMA sees at most {SLICES} slices of 10 mm, and this stack has {depth}.")
    labels = []
    for frame in np.moveaxis(cine, 3, 0):  # (H, W, D)
        image = F.pad(from_0_to_1(frame), (0, SLICES - depth))
        logits = model({"sax": image[None, None].to(device)})["sax"]  # (1, 4, H, W, 16)
        labels.append(logits.argmax(dim=1)[0, :, :, :depth].cpu())
    return torch.stack(labels, dim=-1).numpy()
