"""Pictures of a cine, turned for the viewer: the first image axis runs to the right, the second upwards."""

from pathlib import Path

import numpy as np
from PIL import Image

from cardiodit.imaging.geometry import Geometry
from cardiodit.writing import atomic_file

SMALLEST_SLICE = 128  # pixels; smaller slices are enlarged so that one can see something


def write_gif(path: Path, cine: np.ndarray, geometry: Geometry | None = None) -> None:
    """A beating `(H, W, D, T)` volume in [-1, 1]: slices side by side, one heart beat a cycle."""
    depth, frames = cine.shape[2:]
    levels = np.clip((cine + 1) * 127.5, 0, 255).astype(np.uint8)
    turned = np.rot90(levels)  # (W, H, D, T)
    strip = np.concatenate([turned[:, :, d] for d in range(depth)], axis=1)  # (W, H·D, T)
    zoom = max(1, round(SMALLEST_SLICE / turned.shape[0]))
    pictures = [
        Image.fromarray(strip[..., t]).resize((strip.shape[1] * zoom, strip.shape[0] * zoom)) for t in range(frames)
    ]
    seconds = geometry.frame_time if geometry is not None and geometry.frame_time else 1 / frames
    with atomic_file(path) as temporary:
        pictures[0].save(
            temporary,
            save_all=True,
            append_images=pictures[1:],
            duration=max(20, round(seconds * 1000)),
            loop=0,
        )
