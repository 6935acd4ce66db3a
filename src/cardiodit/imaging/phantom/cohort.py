"""Write cohorts of phantoms: images, label maps, exact volumes, pictures and a manifest."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit._util.atomic_io import new_folder
from cardiodit._util.interrupts import ignore_interrupts
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.figures import write_curve
from cardiodit.imaging.label_order import ACDC_ORDER
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.orientation import BASE_TO_APEX
from cardiodit.imaging.phantom.chest import draw_chest
from cardiodit.imaging.phantom.chest_scene import LABELS, render_chest
from cardiodit.imaging.phantom.heart import GROUPS, draw_heart
from cardiodit.imaging.phantom.scene import render
from cardiodit.imaging.phantom.style import Style
from cardiodit.imaging.pictures import window_of, write_gif, write_sheet, write_slices

PICTURED = 8  # number of phantoms with pictures, the first of a cohort
FOLDERS = ("images", "labels", "volumes", "pictures")
LUNG_WINDOW = (-1350.0, 150.0)

Spacing = tuple[float, float, float]
WriteOne = Callable[[Path, int], dict[str, Any]]


def write_cohort(
    output_dir: Path,
    num: int = 40,
    seed: int = 0,
    size: tuple[int, int, int, int] = (64, 64, 8, 16),
    spacing: Spacing | None = None,
    groups: Sequence[str] = tuple(GROUPS),
    workers: int = 1,
    style: Style | None = None,
) -> Path:
    """Write `num` hearts, cycling through the groups, and return the manifest's path.

    Each image comes with its label map (RV 1, myocardium 2, LV 3) and its exact volumes in mL for every frame; the
    first hearts also with pictures. Heart i of a seed does not depend on `num` and `workers`.

    Args:
        output_dir: new or empty folder.
        num: number of hearts.
        seed: random seed.
        size: voxels (H, W, D, T).
        spacing: voxel size in mm (H, W, D); default: shows the whole heart.
        groups: names from `GROUPS`.
        workers: processes; does not change the result.
        style: what the hearts show beyond the plain ones; columns of the manifest state it.
    """
    _check(num, seed, size, spacing, workers, axes="rows and columns (at least 16), slices and frames")
    for group in groups:
        if group not in GROUPS:
            raise CardioDiTError(f"There is no group {group!r}; choose from {', '.join(GROUPS)}.")
    write = partial(_write_heart, seed=seed, size=size, spacing=spacing, groups=groups, style=style or Style())
    return _write_all(output_dir, num, write, workers)


def write_chests(
    output_dir: Path,
    num: int = 40,
    seed: int = 0,
    size: tuple[int, int, int] = (128, 128, 96),
    spacing: Spacing | None = None,
    workers: int = 1,
) -> Path:
    """Write `num` chest CTs in Hounsfield units, as `write_cohort` does hearts; labels as in `chest_scene.LABELS`."""
    _check(num, seed, size, spacing, workers, axes="voxels to the left, to the front and to the head (at least 16)")
    return _write_all(output_dir, num, partial(_write_chest, seed=seed, size=size, spacing=spacing), workers)


def _write_all(output_dir: Path, num: int, write: WriteOne, workers: int) -> Path:
    with new_folder(Path(output_dir)) as folder:
        for name in FOLDERS:
            (folder / name).mkdir()
        rows = list(_run(partial(write, folder), num, workers))
        write_manifest(folder / "manifest.csv", rows)
    return Path(output_dir) / "manifest.csv"


def _run(write: Callable[[int], dict[str, Any]], num: int, workers: int) -> Iterator[dict[str, Any]]:
    bar = partial(progress, total=num, description="Drawing phantoms")
    if workers == 1:
        yield from bar(map(write, range(num)))
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), ignore_interrupts) as pool:
        yield from bar(pool.map(write, range(num)))


def _write_heart(
    folder: Path,
    index: int,
    seed: int,
    size: tuple[int, int, int, int],
    spacing: Spacing | None,
    groups: Sequence[str],
    style: Style,
) -> dict[str, Any]:
    random, group, name = np.random.default_rng([seed, index]), groups[index % len(groups)], f"phantom-{index:04d}"
    phantom = render(draw_heart(group, random), size, random, spacing, style)
    write_nifti(folder / "images" / f"{name}.nii.gz", phantom.image, phantom.geometry)
    write_nifti(folder / "labels" / f"{name}.nii.gz", phantom.labels, phantom.geometry)
    (folder / "volumes" / f"{name}.json").write_text(json.dumps(phantom.volumes))
    if index < PICTURED:
        window = window_of(phantom.image)
        write_gif(folder / "pictures" / f"{name}.gif", phantom.image, phantom.geometry, window=window)
        write_sheet(folder / "pictures" / f"{name}.png", phantom.image, phantom.labels, window)
        write_curve(folder / "pictures" / f"{name}-curve.png", phantom.volumes["lv"], phantom.geometry.frame_time)
    left = phantom.volumes["lv"]
    return {
        **_common(name, seed),
        "label": group,
        "mask_order": ACDC_ORDER,
        "slices": BASE_TO_APEX,
        "ed_frame": 0,
        "es_frame": int(np.argmin(left)),
        "lv_edv_ml": round(left[0], 2),
        "lv_esv_ml": round(min(left), 2),
        "lv_ef_percent": round(100 * (1 - min(left) / left[0]), 2),
        **style.describe(),
    }


def _write_chest(
    folder: Path, index: int, seed: int, size: tuple[int, int, int], spacing: Spacing | None
) -> dict[str, Any]:
    random, name = np.random.default_rng([seed, index]), f"chest-{index:04d}"
    phantom = render_chest(draw_chest(random), size, random, spacing)
    write_nifti(folder / "images" / f"{name}.nii.gz", phantom.image, phantom.geometry)
    write_nifti(folder / "labels" / f"{name}.nii.gz", phantom.labels, phantom.geometry)
    exact = {"volumes_ml": phantom.volumes_ml, "nodules": phantom.nodules}
    (folder / "volumes" / f"{name}.json").write_text(json.dumps(exact))
    if index < PICTURED:
        write_slices(folder / "pictures" / f"{name}.png", phantom.image, window=LUNG_WINDOW)
        write_slices(folder / "pictures" / f"{name}-labels.png", phantom.labels, window=(0, len(LABELS)))
    return {**_common(name, seed), "nodules": len(phantom.nodules), "lungs_ml": round(phantom.volumes_ml["lungs"], 1)}


def _common(name: str, seed: int) -> dict[str, Any]:
    return {
        "image": f"images/{name}.nii.gz",
        "subject": f"seed{seed}-{name}",
        "mask": f"labels/{name}.nii.gz",
        "volumes": f"volumes/{name}.json",
    }


def _check(num: int, seed: int, size: tuple[int, ...], spacing: Spacing | None, workers: int, axes: str) -> None:
    for name, value, least in [("num", num, 1), ("seed", seed, 0), ("workers", workers, 1)]:
        if value < least:
            raise CardioDiTError(f"{name}={value} must be at least {least}.")
    expected = 4 if "frames" in axes else 3
    if len(size) != expected or min(size[:2]) < 16 or min(size[2:]) < (1 if expected == 4 else 16):
        raise CardioDiTError(f"size={tuple(size)} must be {expected} numbers: {axes}.")
    if spacing is not None and (len(spacing) != 3 or not all(s > 0 for s in spacing)):
        raise CardioDiTError(f"spacing={tuple(spacing)} must be three positive numbers in mm (H, W, D).")
