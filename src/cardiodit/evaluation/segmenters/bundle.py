"""MONAI bundles of 2D networks, such as `ventricular_short_axis_3label`."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters.segmenter import BATCH, Grid, Segmenter, from_0_to_1, identity_of
from cardiodit.imaging.masks import OURS

METADATA, CONFIG = Path("configs", "metadata.json"), Path("configs", "inference.json")
WEIGHTS, PICKLE = Path("models", "model.safetensors"), Path("models", "model.pt")
PLANE = 256  # voxels along H and W, at least
STEP = 16  # its U-Net halves them four times


def open_bundle(name: str, folder: Path, device: str) -> Segmenter:
    """A MONAI bundle of a 2D U-Net."""
    channels = read_json(folder / METADATA)["network_data_format"]["outputs"]["pred"]["channel_def"]
    model = _bundle_network(folder).to(device).eval()
    return Segmenter(
        name=name,
        identity=identity_of(model),
        labels=_order_of_channels(channels, folder),
        grid=Grid(),
        network=lambda cine, _: ask_planes(model, cine, device),
        note="It sees planes one by one at the cine's own voxel size.",
    )


def _bundle_network(folder: Path) -> torch.nn.Module:
    """Only the numbers of the U-Net's definition are taken from the bundle: its configs may hold code."""
    from monai.networks.nets.unet import UNet
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise CardioDiTError(
            f"The bundle {folder} has no {WEIGHTS}. Make it of the bundle's own weights: cardiodit convert "
            f"weights {folder / PICKLE} --output {folder / WEIGHTS}"
        )
    settings = {k: v for k, v in read_json(folder / CONFIG).get("network_def", {}).items() if k != "_target_"}
    try:
        model = UNet(**settings)
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except Exception as error:  # damaged files, settings and names each have their own
        raise CardioDiTError(f"{folder / WEIGHTS} cannot be opened as the U-Net of {CONFIG}: {error}") from error
    return model


def _order_of_channels(channels: dict[str, str], folder: Path) -> str:
    """ "LV=1 MYO=2 RV=3" of {"0": "background", "1": "lv_pool", "2": "myocardium", "3": "rv_pool"}."""
    pairs = [(part, number) for number, text in channels.items() for part in OURS if text.upper().startswith(part)]
    if sorted(part for part, _ in pairs) != sorted(OURS):
        raise CardioDiTError(
            f"The bundle {folder} names {', '.join(channels.values())}; a left ventricle (lv…), a right one (rv…) and "
            "a myocardium (myo…) are needed."
        )
    return " ".join(f"{part}={number}" for part, number in pairs)


@torch.no_grad()
def ask_planes(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Plane by plane, the whole cine from 0 to 1, with a black margin where planes are small."""
    height, width, depth, frames = cine.shape
    planes = from_0_to_1(cine).permute(2, 3, 0, 1).reshape(depth * frames, 1, height, width)
    margins = [max(PLANE, -(-n // STEP) * STEP) - n for n in (width, height)]
    left, top = (margin // 2 for margin in margins)
    padded = F.pad(planes, (left, margins[0] - left, top, margins[1] - top))
    found = [model(part.to(device)).argmax(dim=1).cpu() for part in padded.split(BATCH)]
    labels = torch.cat(found)[:, top : top + height, left : left + width]  # (D·T, H, W)
    return labels.reshape(depth, frames, height, width).permute(2, 3, 0, 1).numpy()


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardioDiTError(f"{path} cannot be read as JSON: {error}.") from error
