"""How alike samples are to each other, beside how alike real volumes are."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.diversity import diversity
from cardiodit.evaluation.estimate import Estimate
from cardiodit.evaluation.loading import load
from cardiodit.evaluation.metric import DIVERSITY, NEAR_REAL, Floor, Metric
from cardiodit.evaluation.sets import Item
from cardiodit.evaluation.workers import Workers
from cardiodit.imaging.preprocessing import Preprocessing

FORMAT = 1


@dataclass(frozen=True)
class SimilarityInput:
    """What one set's diversity is computed from; `contents` name the volumes, in the order of the items."""

    items: tuple[Item, ...]
    contents: tuple[str, ...]
    steps: Preprocessing
    seed: int
    folder: Path


def diversity_scores(
    real: SimilarityInput, synthetic: SimilarityInput, workers: Workers
) -> tuple[list[Metric], list[str]]:
    """MS-SSIM among pairs of samples, its floor that among pairs of real volumes."""
    try:
        among_real, among_synthetic = workers.map(mean_similarity, [real, synthetic])
    except CardioDiTError as error:
        return [], [f"MS-SSIM: {error}"]
    # A mean over pairs does not move with their number, so that no set is cut.
    floor = Floor(among_real.value, among_real.low, among_real.high, among_synthetic.value, None)
    title = "MS-SSIM among pairs of samples"
    return [Metric("ms_ssim", title, DIVERSITY, NEAR_REAL, among_synthetic, floor)], []


def mean_similarity(alike: SimilarityInput) -> Estimate:
    """Of one set; kept beside what was measured, since it reads many volumes twice."""
    told = json.dumps([FORMAT, "ms_ssim", alike.seed, alike.contents])
    file = alike.folder / f"{hashlib.sha256(told.encode()).hexdigest()}.json"
    try:
        held = json.loads(file.read_text())
        return Estimate(**{**held, "notes": tuple(held["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        pass  # it is not there, or not whole: it is computed
    found = diversity(lambda i: load(alike.items[i], alike.steps).volume.voxels, len(alike.items), seed=alike.seed)
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(asdict(found.ms_ssim)))
    return found.ms_ssim


def in_order_of_content(items: Sequence[Item], contents: Sequence[str]) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """So that nothing depends on the order in which volumes came."""
    order = sorted(range(len(items)), key=lambda i: contents[i])
    return tuple(items[i] for i in order), tuple(contents[i] for i in order)
