"""One HTML file that holds volumes and the viewer that plays them."""

# NiiVue, as the package ipyniivue brings it, draws with WebGL2 only; a 2D canvas also plays where that is missing.

import base64
import gzip
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.pictures import COLOURS, Window, window_of
from cardiodit.imaging.volume import Volume

PAGE_LIMIT = 200_000_000  # bytes; browsers open larger pages slowly or not at all
PERCENTILES = (0.1, 99.9)  # what the levels 0 and 255 are, so that a few bright voxels do not cost all contrast
MOST_LABEL = 255
NAMED = 3  # volumes in the page's title
MORE_COLOURS = ((250, 200, 60), (200, 120, 255), (70, 210, 210), (255, 150, 60), (240, 130, 190), (170, 170, 170))
HEART = {1: "RV", 2: "myocardium", 3: "LV"}


@dataclass(frozen=True)
class Shown:
    """A volume as the viewer shows it.

    Args:
        title: above its picture.
        volume: voxels as they lie; slices are cut across the third axis.
        masks: integer labels in the volume's grid, `(H, W, D, T)`, or `(H, W, D)`, which then are in every frame.
        window: the values that are black and white; beyond, they are cut. Default: all but a thousandth at each end.
    """

    title: str
    volume: Volume
    masks: np.ndarray | None = None
    window: Window | None = None

    def __post_init__(self) -> None:
        shape = self.volume.voxels.shape
        if self.masks is not None and self.masks.shape not in (shape, shape[:3]):
            raise CardioDiTError(
                f"{self.title}: the mask has the shape {self.masks.shape}, its volume {shape}. Both must be one grid."
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise CardioDiTError(f"{self.title}: the window from {self.window[0]:g} to {self.window[1]:g} is empty.")


def write_viewer(path: Path, volumes: Sequence[Shown], title: str | None = None, limit: int = PAGE_LIMIT) -> None:
    """Writes a page that plays volumes side by side, in step.

    Args:
        path: the HTML file.
        volumes: one or more; each keeps its own grid, and the first one's beat sets the pace.
        title: of the page. Default: the first volumes' titles.
        limit: bytes; a larger page is refused.
    """
    if not volumes:
        raise CardioDiTError("There is no volume to show. Give at least one.")
    page = _page(title or _title(volumes), _contents(volumes, limit)).encode()
    _check_size(len(page), limit)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(page)


def _title(volumes: Sequence[Shown]) -> str:
    more = len(volumes) - NAMED
    return ", ".join(shown.title for shown in volumes[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _page(title: str, contents: dict[str, Any]) -> str:
    parts = {
        "title": html.escape(title),
        "style": _part("viewer.css"),
        "script": _part("viewer.js"),
        "contents": json.dumps(contents).replace("<", "\\u003c"),  # nothing in a title ends the script element
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("viewer.html"))


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _contents(volumes: Sequence[Shown], limit: int) -> dict[str, Any]:
    """What the script reads: everything but the code."""
    entries: list[dict[str, Any]] = []
    size = 0
    for shown in volumes:
        entry = _entry(shown)
        entries.append(entry)
        size += sum(len(entry[name] or "") for name in ("levels", "labels"))
        _check_size(size, limit)
    beats = [beat for shown in volumes if (beat := shown.volume.beat_time) is not None]
    labels = [label for shown in volumes for label in _labels_in(shown)]
    is_heart = any(shown.volume.is_cine for shown in volumes) and set(labels) <= set(HEART)
    return {
        "volumes": entries,
        "beat": beats[0] if beats else None,
        "colours": [_colour(label) for label in range(max(labels, default=0) + 1)],
        "legend": {label: HEART[label] for label in sorted(set(labels))} if is_heart else {},
    }


def _entry(shown: Shown) -> dict[str, Any]:
    low, high = shown.window or _levels_window(shown)
    voxels = np.nan_to_num(shown.volume.voxels.astype(np.float32), nan=low, posinf=high, neginf=low)
    levels = np.clip((voxels - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    first, second, slices, frames = (*levels.shape, 1)[:4]
    spacing = shown.volume.geometry.spacing or (1.0, 1.0, 1.0)
    masks = shown.masks
    return {
        "title": shown.title,
        "columns": first,
        "rows": second,
        "slices": slices,
        "frames": frames,
        "width": first * spacing[0],  # mm where they are known; only the ratio counts
        "height": second * spacing[1],
        "low": low,
        "high": high,
        "decimals": max(0, math.ceil(2 - math.log10(high - low))),  # a hundredth of the range is readable
        "levels": _packed(levels),
        "labels": None if masks is None else _packed(masks.astype(np.uint8)),
        "maskFrames": 1 if masks is None or masks.ndim == 3 else frames,
    }


def _levels_window(shown: Shown) -> Window:
    voxels = shown.volume.voxels
    finite = voxels[np.isfinite(voxels)]
    if not finite.size:
        raise CardioDiTError(f"{shown.title} holds no finite number, so there is nothing to show.")
    return window_of(finite, PERCENTILES)


def _labels_in(shown: Shown) -> list[int]:
    if shown.masks is None:
        return []
    labels = np.unique(shown.masks)
    if not (
        np.isfinite(labels).all() and (labels == labels.round()).all() and 0 <= labels[0] <= labels[-1] <= MOST_LABEL
    ):
        raise CardioDiTError(
            f"The mask of {shown.title} holds {labels[0]:g} to {labels[-1]:g}; whole numbers from 0 to {MOST_LABEL} "
            "were expected. Is it a label map?"
        )
    return [int(label) for label in labels if label]


def _colour(label: int) -> tuple[int, int, int]:
    return COLOURS.get(label) or MORE_COLOURS[label % len(MORE_COLOURS)]


def _packed(voxels: np.ndarray) -> str:
    """Frame by frame, slice by slice, row by row from the top of the picture; gzip in base64."""
    turned = np.flip(voxels, 1).T  # the first axis runs to the right, the second upwards: (T, D, W, H) or (D, W, H)
    return base64.b64encode(gzip.compress(turned.tobytes(), compresslevel=6, mtime=0)).decode("ascii")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise CardioDiTError(
            f"The page would have {size / 1e6:.1f} MB or more; {limit / 1e6:.1f} MB is the limit, because browsers "
            "open larger ones slowly or not at all. Show fewer volumes at once, or crop them."
        )
