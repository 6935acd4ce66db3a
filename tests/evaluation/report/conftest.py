"""A small report as an evaluation makes it: phantoms measured by the functions that measure every heart."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.metrics.consistency import consistency
from cardiodit.evaluation.metrics.estimate import floor_of
from cardiodit.evaluation.metrics.frechet import frechet_distance
from cardiodit.evaluation.metrics.function import heart_function
from cardiodit.evaluation.metrics.kernel import mmd_estimate, mmd_prdit
from cardiodit.evaluation.metrics.numbers import compare_tables
from cardiodit.evaluation.metrics.plausibility import plausibility
from cardiodit.imaging.phantom import GROUPS, draw_heart, render

COUNT, SIZE = 9, (32, 32, 6, 10)
TITLES = {
    "lv_edv_ml": ("LV end-diastolic volume", "mL", "function"),
    "lv_ef_percent": ("LV ejection fraction", "%", "function"),
    "lv_mass_g": ("LV mass", "g", "function"),
    "slice_synchrony": ("Slice synchrony, through-plane", "", "consistency"),
    "frame_change": ("Frame change, temporal", "", "consistency"),
}


@dataclass(frozen=True)
class Heart:
    """A phantom in [-1, 1], what is measured of it, and a row of features: means of its blocks."""

    voxels: np.ndarray
    curve: list[float]
    numbers: dict[str, float | None]
    plausible: dict[str, bool]
    row: np.ndarray


def drawn(kind: int, index: int) -> Heart:
    random = np.random.default_rng([kind, index])
    phantom = render(draw_heart(list(GROUPS)[index % len(GROUPS)], random), SIZE, random)
    labels, geometry = phantom.labels, phantom.geometry
    image = np.clip(phantom.image / 500 - 1, -1, 1).astype(np.float32)
    if kind and index == COUNT - 1:  # the worst sample stands still
        image, labels = np.repeat(image[..., :1], SIZE[3], axis=3), np.repeat(labels[..., :1], SIZE[3], axis=3)
    function = heart_function(labels, geometry)
    row = image.reshape(4, 8, 4, 8, *SIZE[2:]).mean(axis=(1, 3, 4, 5)).ravel()
    rules = {finding.name: finding.is_plausible for finding in plausibility(labels, geometry)}
    numbers = {**function.numbers(), **consistency(image, geometry, labels)}
    return Heart(image, list(function.lv.volumes_ml), numbers, rules, row.astype(np.float64))


@pytest.fixture(scope="session")
def hearts() -> dict[str, Heart]:
    kinds = enumerate(("real", "synthetic"))
    return {f"{kind}-{i:02}.nii.gz": drawn(number, i) for number, kind in kinds for i in range(COUNT)}


@pytest.fixture(scope="session")
def whole_report(hearts: dict[str, Heart]) -> dict[str, Any]:
    sets = {kind: [heart for name, heart in hearts.items() if name.startswith(kind)] for kind in ("real", "synthetic")}
    facts = {
        "count": COUNT,
        "size": list(SIZE),
        "spacing_mm": [4.5, 4.5, 16.67],
        "frame_time_s": 0.09,
        "intensity": [-1.0, 1.0],
        "identity": "0f" * 32,
    }
    return {
        "schema": "cardiodit-evaluation/1",
        "protocol": protocol(),
        "sets": {"real": facts, "synthetic": facts},
        "metrics": metrics(*(np.stack([heart.row for heart in hearts]) for hearts in sets.values())),
        "distributions": distributions(sets),
        "curves": [
            {
                "name": "lv_volume_ml",
                "title": "LV volume over the beat",
                "unit": "mL",
                "is_one_beat": True,
                **{kind: [heart.curve for heart in hearts] for kind, hearts in sets.items()},
            }
        ],
        "volumes": [volume(name, heart, i) for i, (name, heart) in enumerate(hearts.items())],
        "problems": [],
    }


@pytest.fixture
def report(whole_report: dict[str, Any]) -> dict[str, Any]:
    """To be changed as a test likes."""
    return copy.deepcopy(whole_report)


@pytest.fixture
def media(hearts: dict[str, Heart]) -> dict[str, Callable[[], np.ndarray]]:
    """Two real volumes and four samples, the farthest and the nearest among them."""
    shown = [f"real-{i:02}.nii.gz" for i in (0, 1)] + [f"synthetic-{i:02}.nii.gz" for i in (0, 1, 7, 8)]
    return {name: lambda name=name: hearts[name].voxels for name in shown}  # type: ignore[misc]


def protocol() -> dict[str, Any]:
    network = {"name": "random", "weights": {"source": "seed 0", "sha256": "ab" * 32}, "dimension": 16}
    return {
        "cardiodit": "0.1.0",
        "preprocessing": {"spacing": [4.5, 4.5, 16.67], "crop": None, "flip": False},
        "features": {"spatial": {**network, "rows": "spatial"}, "spatiotemporal": {**network, "rows": "both"}},
        "segmenter": {"name": "labels", "identity": "cd" * 32, "labels": {"RV": 1, "LV": 3}, "note": "exact"},
        "seed": 0,
        "counts": {"real": COUNT, "synthetic": COUNT},
        "left_out": ["Critic: it was not asked for."],
    }


def metrics(real: np.ndarray, synthetic: np.ndarray) -> list[dict[str, Any]]:
    kid = mmd_estimate(real, synthetic)
    prdit = floor_of(mmd_prdit, real, synthetic)
    frechet = floor_of(frechet_distance, real, synthetic)
    return [
        metric("kid", "Kernel distance, spatial", "lower", kid.value, kid.low, kid.high, kid.method, kid.notes),
        metric("mmd", "MMD of PRDiT, spatial", "lower", mmd_prdit(real, synthetic), floor=floor(prdit)),
        metric("frechet", "Fréchet distance, spatial", "lower", 4.2, 1.0, 7.4, floor=floor(frechet)),
        metric("recall", "Recall, spatial", "higher", 0.71, 0.41, 0.91, floor=flat(0.88, 0.75, 1.0, 0.7)),
        metric("ms_ssim", "MS-SSIM", "near real", 0.55, 0.5, 0.6, group="diversity", floor=flat(0.6, 0.5, 0.7, 0.55)),
        metric("ef", "EF: Wasserstein", "lower", 9.1, group="function", unit="%", floor=flat(4, None, 7.5, 9.1)),
        metric("all", "Hearts that keep every rule", "higher", 8 / 9, 0.52, 0.99, group="plausibility"),
        metric("psnr", "PSNR", "higher", None, group="reconstruction", unit="dB", notes=("No autoencoder.",)),
    ]


def metric(
    name: str,
    title: str,
    better: str,
    value: float | None,
    low: float | None = None,
    high: float | None = None,
    method: str = "counted",
    notes: tuple[str, ...] = (),
    group: str = "distribution",
    floor: dict[str, Any] | None = None,
    unit: str = "",
) -> dict[str, Any]:
    return {**locals(), "level": 0.95, "notes": list(notes)}


def floor(found: Any) -> dict[str, Any]:
    return flat(found.value, found.low, found.high, found.matched, found.volumes)


def flat(value: float, low: float | None, high: float | None, matched: float, volumes: int = 4) -> dict[str, Any]:
    return dict(locals())


def distributions(sets: dict[str, list[Heart]]) -> list[dict[str, Any]]:
    tables = [[{name: heart.numbers[name] for name in TITLES} for heart in hearts] for hearts in sets.values()]
    return [
        {
            "name": name,
            "title": TITLES[name][0],
            "unit": TITLES[name][1],
            "group": TITLES[name][2],
            "real": [row[name] for row in tables[0]],
            "synthetic": [row[name] for row in tables[1]],
            "comparison": asdict(comparison),
        }
        for name, comparison in compare_tables(*tables).items()
    ]


def volume(name: str, heart: Heart, index: int) -> dict[str, Any]:
    return {
        "id": name,
        "set": name.split("-")[0],
        "content": f"{index:064x}",
        "numbers": heart.numbers,
        "plausible": heart.plausible,
        "typicality": 1 + index / 10,
    }
