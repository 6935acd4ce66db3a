"""Fill a cohort's manifests with EF, EDV, ESV and LV mass, measured from masks or by a segmenter.

The columns `ef` (%), `edv`, `esv` (mL) and `mass` (g) can then condition a model (`train_dit --condition_columns`).
"""

from pathlib import Path

import numpy as np

from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.evaluation.metrics.function import heart_function
from cardiodit.evaluation.segmenters import Segmenter, open_segmenter
from cardiodit.evaluation.volume_sets import REAL, Item, is_whole_beat, load, load_labels, mask_paths
from cardiodit.imaging.intensity import Intensity
from cardiodit.imaging.manifest import Case, read_manifest, write_manifest
from cardiodit.imaging.preprocessing import Preprocessing

MASKS = "masks"
COLUMNS = {"ef": "lv_ef_percent", "edv": "lv_edv_ml", "esv": "lv_esv_ml", "mass": "lv_mass_g"}
SOURCE = "measured_from"  # column: masks, or the segmenter's name
STEPS = Preprocessing(intensity=Intensity("p0.5", "p99.5"))  # the whole image on its own grid
DECIMALS = 1


def measure_cohort(folder: Path, how: str, device: str = "cpu") -> list[str]:
    """Measure the cines of a prepared cohort and write the numbers into all of its manifests.

    A row's own masks are used where it has them, of the beat or of end-diastole and end-systole; other rows need a
    segmenter. Cells that are filled already stay as they are.

    Args:
        folder: folder with `manifest.csv` and the manifests of its splits, as `prepare_cohort` writes it.
        how: "masks", or a segmenter (`open_segmenter`).
        device: device of the segmenter.

    Returns:
        Lines for the user: how many rows were measured, and why others were not.
    """
    segmenter = None if how == MASKS else open_segmenter(how, device)
    cases = read_manifest(folder / "manifest.csv")
    found: dict[str, dict[str, str]] = {}
    problems: list[str] = []
    for case in progress(cases, "Measuring", "cine"):
        try:
            found[case.row["image"]] = measure_case(case, segmenter)
        except CardioDiTError as error:
            problems.append(f"{case.subject} was not measured: {reason_of(error)}.")
    if not found:
        raise CardioDiTError("\n".join(["No cine could be measured:", *problems]))
    for manifest in sorted(folder.glob("*.csv")):
        rows = [case.row for case in read_manifest(manifest)]
        write_manifest(manifest, [with_numbers(row, found.get(row["image"], {})) for row in rows])
    sources = [numbers[SOURCE] for numbers in found.values()]
    counts = ", ".join(f"{sources.count(source)} from {source}" for source in dict.fromkeys(sources))
    return [f"Measured {len(found)} of {len(cases)} cines ({counts}): {', '.join(COLUMNS)}.", *problems]


def measure_case(case: Case, segmenter: Segmenter | None) -> dict[str, str]:
    """Return the cells of one row; raise an error if it has neither masks nor a segmenter."""
    item = Item(case.subject, REAL, case.image, case)
    loaded = load(item, STEPS)
    if loaded.volume.geometry.spacing is None:
        raise CardioDiTError(f"{case.image} has no voxel size, which volumes in mL need")
    if mask_paths(case) is not None:
        labels, source = load_labels(item, loaded).maps, MASKS
    elif segmenter is not None:
        labels, source = segmenter.segment(loaded.volume.voxels, loaded.volume.geometry), segmenter.name
    else:
        raise CardioDiTError(f"{case.image} has no mask, and no segmenter was named")
    heart = heart_function(labels, loaded.volume.geometry, closes=is_whole_beat(STEPS, case))
    numbers = heart.numbers()
    if not numbers["lv_edv_ml"]:
        raise CardioDiTError(f"no left ventricle was found in {case.image}")
    cells = {column: format(np.float64(numbers[name]), f".{DECIMALS}f") for column, name in COLUMNS.items()}
    return {**cells, SOURCE: source}


def with_numbers(row: dict[str, str], numbers: dict[str, str]) -> dict[str, str]:
    """Return a row with measured cells; what it states already is kept."""
    return {**row, **{name: row.get(name) or numbers.get(name, "") for name in (*COLUMNS, SOURCE)}}
