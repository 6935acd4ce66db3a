"""A cohort of phantoms on disk: images, label maps, exact volumes and the manifest that ties them together."""

import csv
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.found import ACDC_ORDER
from cardiodit.imaging.curve import write_curve
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.orientation import BASE_TO_APEX
from cardiodit.imaging.phantom.heart import GROUPS, draw_heart
from cardiodit.imaging.phantom.scene import render
from cardiodit.imaging.pictures import window_of, write_gif, write_sheet
from cardiodit.writing import new_folder

PICTURED = 8  # the first hearts, for a look

Size = tuple[int, int, int, int]
Spacing = tuple[float, float, float]


def write_cohort(
    output_dir: Path,
    num: int = 40,
    seed: int = 0,
    size: Size = (64, 64, 8, 16),
    spacing: Spacing | None = None,
    groups: Sequence[str] = tuple(GROUPS),
    workers: int = 1,
) -> Path:
    """Writes `num` hearts, the groups in turn, and returns the manifest's path.

    Heart i of a seed is the same one whatever `num` and `workers` are. Next to each image lie its label map (RV 1,
    myocardium 2, LV 3) and its exact volumes in mL for every frame; the manifest has a row for each heart, and the
    first hearts are pictured.
    """
    _check(num, seed, size, spacing, groups, workers)
    jobs = [(i, seed, size, spacing, groups[i % len(groups)]) for i in range(num)]
    with new_folder(Path(output_dir)) as folder:
        for name in ("images", "labels", "volumes", "pictures"):
            (folder / name).mkdir()
        rows = list(_run(folder, jobs, workers))
        with (folder / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return Path(output_dir) / "manifest.csv"


def _run(folder: Path, jobs: list[tuple], workers: int) -> Iterator[dict[str, Any]]:
    if workers == 1:
        yield from (_write_one(folder, *job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(_write_one, [folder] * len(jobs), *zip(*jobs, strict=True))


def _write_one(folder: Path, index: int, seed: int, size: Size, spacing: Spacing | None, group: str) -> dict[str, Any]:
    random = np.random.default_rng([seed, index])
    heart = draw_heart(group, random)
    phantom = render(heart, size, random, spacing)
    name = f"phantom-{index:04d}"
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
        "image": f"images/{name}.nii.gz",
        "subject": name,
        "label": group,
        "mask": f"labels/{name}.nii.gz",
        "mask_order": ACDC_ORDER,
        "volumes": f"volumes/{name}.json",
        "slices": BASE_TO_APEX,
        "ed_frame": 0,
        "es_frame": int(np.argmin(left)),
        "lv_edv_ml": round(left[0], 2),
        "lv_esv_ml": round(min(left), 2),
        "lv_ef_percent": round(100 * (1 - min(left) / left[0]), 2),
    }


def _check(num: int, seed: int, size: Size, spacing: Spacing | None, groups: Sequence[str], workers: int) -> None:
    for name, value, least in [("num", num, 1), ("seed", seed, 0), ("workers", workers, 1)]:
        if value < least:
            raise CardioDiTError(f"{name}={value} must be at least {least}.")
    if len(size) != 4 or min(size[:2]) < 16 or min(size[2:]) < 1:
        raise CardioDiTError(f"size={tuple(size)} must be rows and columns (at least 16), slices and frames.")
    if spacing is not None and (len(spacing) != 3 or not all(s > 0 for s in spacing)):
        raise CardioDiTError(f"spacing={tuple(spacing)} must be three positive numbers in mm (H, W, D).")
    for group in groups:
        if group not in GROUPS:
            raise CardioDiTError(f"There is no group {group!r}; choose from {', '.join(GROUPS)}.")
