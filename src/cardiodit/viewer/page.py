"""Write one HTML file that holds volumes and the viewer that plays them.

The viewer draws on 2D canvases, because NiiVue (package ipyniivue) requires WebGL2, which is not available everywhere.
"""

import base64
import gzip
import html
import math
import sys
import tempfile
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.html import render_page, write_page_file
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.orientation import CT_DIRECTION
from cardiodit.imaging.pictures import COLOURS, Window, window_of
from cardiodit.imaging.volume import Volume

TEMPLATE = Path(__file__).with_name("viewer.html.j2")
PAGE_LIMIT = 200_000_000  # bytes; browsers open larger pages slowly or not at all
PERCENTILES = (0.1, 99.9)  # shown as black and white by default, so that a few bright voxels do not cost all contrast
MAX_LABEL = 255
TITLES_NAMED = 3  # volumes in the page's title
MORE_COLOURS = ((250, 200, 60), (200, 120, 255), (70, 210, 210), (255, 150, 60), (240, 130, 190), (170, 170, 170))
HEART = {1: "RV", 2: "myocardium", 3: "LV"}
VENTRICLES = (3, 1)  # whose volumes are drawn; the first one's ED, ES and ejection fraction are marked
# Letters at the edges of a picture, by patient axis in the direction of NIfTI's and against it.
LETTERS = (("R", "L"), ("A", "P"), ("H", "F"))
OBLIQUE = 0.4  # share of the largest component above which a second one is named
CELL_HEIGHT = 620  # pixels of the page in a notebook


@dataclass(frozen=True)
class Shown:
    """A volume for the viewer.

    Args:
        title: caption of its picture.
        volume: voxels in file order; slices are cut across the third axis.
        masks: integer labels on the volume's grid, `(H, W, D, T)`, or `(H, W, D)` for all frames.
        window: values shown as black and white; values beyond are clipped. Default: percentiles 0.1 and 99.9.
        has_heart_labels: whether labels are known to be 1 right ventricle, 2 myocardium and 3 left ventricle; others
            are shown without names.
    """

    title: str
    volume: Volume
    masks: np.ndarray | None = None
    window: Window | None = None
    has_heart_labels: bool = True

    def __post_init__(self) -> None:
        shape = self.volume.voxels.shape
        if self.masks is not None and self.masks.shape not in (shape, shape[:3]):
            raise CardioDiTError(
                f"{self.title}: the mask has the shape {self.masks.shape}, its volume {shape}; they must be equal."
            )
        if self.window is not None and not self.window[0] < self.window[1]:
            raise CardioDiTError(f"{self.title}: the window from {self.window[0]:g} to {self.window[1]:g} is empty.")


def write_viewer(path: Path, volumes: Sequence[Shown], title: str | None = None, limit: int = PAGE_LIMIT) -> None:
    """Write a page that plays volumes side by side, in sync.

    Args:
        path: the HTML file.
        volumes: one or more volumes; each keeps its own grid, and the first known beat duration sets the pace.
        title: page title; by default the titles of the first volumes.
        limit: maximum size in bytes; a larger page is an error.
    """
    write_page_file(_page(volumes, title, limit), path)


def show(volumes: Sequence[Shown], path: Path | None = None) -> Path | None:
    """Show the page of `write_viewer` below the cell of a notebook, or else in the browser.

    Args:
        volumes: as in `write_viewer`.
        path: HTML file in which to keep the page; default: a temporary file, or none in a notebook.
    """
    page = _page(volumes, None, PAGE_LIMIT)
    if path is not None:
        write_page_file(page, path)
    if _is_notebook():
        from IPython.display import display

        names = ", ".join(shown.title for shown in volumes)
        display({"text/html": as_cell(page), "text/plain": f"A viewer of {names}"}, raw=True)
        return path
    if path is None:
        path = Path(tempfile.mkdtemp(prefix="cardiodit-")) / "view.html"
        write_page_file(page, path)
    if not webbrowser.open(path.resolve().as_uri()):
        print(f"Open this page in a browser: {path}")
    return path


def in_page(volumes: Sequence[Shown]) -> str:
    """Return the HTML that plays volumes inside another page."""
    return as_cell(_page(volumes, None, PAGE_LIMIT))


def as_cell(page: bytes) -> str:
    """Return the HTML that shows a page inside another one, without access to it."""
    return (
        f'<iframe sandbox="allow-scripts" style="width: 100%; height: {CELL_HEIGHT}px; border: 0" '
        f'srcdoc="{html.escape(page.decode())}"></iframe>'
    )


def _is_notebook() -> bool:
    """Return whether IPython runs in a kernel, whose front end can show HTML, rather than in a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _page(volumes: Sequence[Shown], title: str | None, limit: int) -> bytes:
    if not volumes:
        raise CardioDiTError("There is no volume to show. Pass at least one.")
    if title is None:
        more = len(volumes) - TITLES_NAMED
        title = ", ".join(shown.title for shown in volumes[:TITLES_NAMED]) + (f" and {more} more" if more > 0 else "")
    contents = _contents(volumes, limit)
    page = render_page(TEMPLATE, title=title, styles=("viewer.css",), scripts=("viewer.js",), contents=contents)
    _check_size(len(page), limit)
    return page


def _contents(volumes: Sequence[Shown], limit: int) -> dict[str, Any]:
    """Return the data that the page's script reads."""
    labels = [label for shown in volumes for label in _labels_in(shown)]
    has_names = all(shown.has_heart_labels for shown in volumes if shown.masks is not None)
    is_heart = has_names and any(shown.volume.is_cine for shown in volumes) and set(labels) <= set(HEART)
    entries: list[dict[str, Any]] = []
    size = 0
    for shown in volumes:
        entry = {**_entry(shown), "function": _function(shown) if is_heart else None}
        entries.append(entry)
        size += sum(len(entry[name] or "") for name in ("levels", "labels"))
        _check_size(size, limit)
    beats = [beat for shown in volumes if (beat := shown.volume.beat_time) is not None]
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
        "width": first * spacing[0],  # in mm if known
        "height": second * spacing[1],
        "isInMm": shown.volume.geometry.spacing is not None,
        "edges": edges_of(shown.volume),
        "low": low,
        "high": high,
        "decimals": max(0, math.ceil(2 - math.log10(high - low))),  # a hundredth of the range is readable
        "levels": _compress(levels),
        "labels": None if masks is None else _compress(masks.astype(np.uint8)),
        "maskFrames": 1 if masks is None or masks.ndim == 3 else frames,
    }


def edges_of(volume: Volume) -> dict[str, str] | None:
    """Return the letters of the patient's directions at the picture's edges, such as L or AH; None if unknown.

    R right, L left, A anterior, P posterior, H head, F foot, as in DICOM. An oblique direction has two letters.
    """
    geometry = volume.geometry
    is_oriented_ct = not volume.is_cine and geometry.direction == CT_DIRECTION  # a sample, which lies in no scanner
    if geometry.spacing is None or not (geometry.in_scanner or is_oriented_ct):
        return None
    right, up = (np.array(geometry.direction)[:, axis] for axis in (0, 1))
    return {"right": _letters(right), "left": _letters(-right), "top": _letters(up), "bottom": _letters(-up)}


def _letters(direction: np.ndarray) -> str:
    sizes = np.abs(direction)
    named = [axis for axis in np.argsort(-sizes)[:2] if sizes[axis] >= OBLIQUE * sizes.max()]
    return "".join(LETTERS[axis][0 if direction[axis] > 0 else 1] for axis in named)


def _function(shown: Shown) -> dict[str, Any] | None:
    """Return the ventricles' volumes over the beat in mL, and end-diastole, end-systole and EF of the left one.

    Frames without any label are unknown. None if fewer than two frames are labelled or the voxel size is unknown.
    """
    masks, geometry = shown.masks, shown.volume.geometry
    if masks is None or masks.ndim != 4 or geometry.spacing is None:
        return None
    labelled = np.flatnonzero((masks > 0).any(axis=(0, 1, 2)))
    counts = {label: (masks == label).sum(axis=(0, 1, 2)) * geometry.voxel_ml for label in VENTRICLES}
    left = counts[VENTRICLES[0]]
    if len(labelled) < 2 or not left.any():
        return None
    curves = [
        {"colour": _colour(label), "ml": [round(float(ml[t]), 2) if t in labelled else None for t in range(len(ml))]}
        for label, ml in counts.items()
        if ml.any()
    ]
    diastole, systole = (int(labelled[pick(left[labelled])]) for pick in (np.argmax, np.argmin))
    edv, esv = left[diastole], left[systole]
    return {
        "curves": curves,
        "ED": diastole,
        "ES": systole,
        "text": f"EF {100 * (1 - esv / edv):.0f} % · EDV {edv:.0f} mL · ESV {esv:.0f} mL",
    }


def _levels_window(shown: Shown) -> Window:
    voxels = shown.volume.voxels
    finite = voxels[np.isfinite(voxels)]
    if not finite.size:
        raise CardioDiTError(f"{shown.title} has no finite values, so there is nothing to show.")
    return window_of(finite, PERCENTILES)


def _labels_in(shown: Shown) -> list[int]:
    if shown.masks is None:
        return []
    labels = np.unique(shown.masks)
    if not (
        np.isfinite(labels).all() and (labels == labels.round()).all() and 0 <= labels[0] <= labels[-1] <= MAX_LABEL
    ):
        raise CardioDiTError(
            f"The mask of {shown.title} has values from {labels[0]:g} to {labels[-1]:g}, expected whole numbers from 0 "
            f"to {MAX_LABEL}. Is it a label map?"
        )
    return [int(label) for label in labels if label]


def _colour(label: int) -> tuple[int, int, int]:
    return COLOURS.get(label) or MORE_COLOURS[label % len(MORE_COLOURS)]


def _compress(voxels: np.ndarray) -> str:
    """Return voxels by frame, slice and row from the top of the picture, as gzip in base64."""
    turned = np.flip(voxels, 1).T  # the first axis runs to the right, the second upwards: (T, D, W, H) or (D, W, H)
    return base64.b64encode(gzip.compress(turned.tobytes(), compresslevel=6, mtime=0)).decode("ascii")


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise CardioDiTError(
            f"The page would have at least {size / 1e6:.1f} MB; the limit is {limit / 1e6:.1f} MB, because browsers "
            "open larger pages slowly or not at all. Show fewer volumes at once, or crop them."
        )
