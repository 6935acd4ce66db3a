"""The rows of a cohort: one a volume, one volume in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.cache import FeatureCache, key_of
from cardiodit.evaluation.features.network import FeatureNetwork
from cardiodit.imaging.cases import prepare_case
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import Volume

Progress = Callable[[int, str], None]


@dataclass(frozen=True)
class Source:
    """A volume by name, read when its turn comes: `(H, W, D)` or `(H, W, D, T)` in [-1, 1]."""

    name: str
    load: Callable[[], Volume]


def sources_of_cases(cases: Sequence[Case], steps: Preprocessing) -> Iterator[Source]:
    """Images of a manifest, prepared as the model saw them in training."""
    for case in cases:
        yield Source(str(case.image), lambda case=case: prepare_case(case, steps).volume)  # type: ignore[misc]


def extract(
    sources: Iterable[Source],
    network: FeatureNetwork,
    cache: FeatureCache | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """`(n, f)` float64, a row for each volume in their order; `progress` hears how many are done, and whose it was."""
    rows = []
    for name, row in iterate(sources, network, cache):
        rows.append(row)
        if progress is not None:
            progress(len(rows), name)
    if not rows:
        raise CardioDiTError("There are no volumes to take features of.")
    return np.stack(rows)


def iterate(
    sources: Iterable[Source], network: FeatureNetwork, cache: FeatureCache | None = None
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and rows, one after another."""
    for source in sources:
        yield source.name, _row(source, network, cache)


def _row(source: Source, network: FeatureNetwork, cache: FeatureCache | None) -> np.ndarray:
    volume = source.load()
    voxels, spacing = volume.voxels.astype(np.float32, copy=False), volume.geometry.spacing
    key = None if cache is None else key_of(voxels, spacing, network.identity)
    row = None if cache is None or key is None else cache.read(key)
    if row is not None:
        return row
    try:
        row = np.asarray(network.features(voxels, spacing), dtype=np.float64)
    except CardioDiTError as error:
        raise CardioDiTError(f"{source.name}: {error}") from error
    if not np.isfinite(row).all():
        raise CardioDiTError(
            f"{source.name}: {int((~np.isfinite(row)).sum())} of {len(row)} features of {network.name} are not "
            "numbers (NaN or infinite). Look at the volume; if it is in order, the network does not fit it."
        )
    if cache is not None and key is not None:
        cache.write(key, row)
    return row
