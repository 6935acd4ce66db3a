"""The search for the nearest of many volumes, shared by the copies of an evaluation and by the audit."""

from collections.abc import Callable

import numpy as np

BLOCK = 256  # volumes


def nearest_distances(compare: Callable[[slice], np.ndarray], count: int, block: int = BLOCK) -> np.ndarray:
    """Return the smallest distance of each volume, block by block, so that memory does not grow with their number.

    Args:
        compare: returns the distances `(volumes, references)` of a range of volumes.
        count: number of volumes.
        block: volumes that are compared at once.
    """
    parts = [slice(start, min(count, start + block)) for start in range(0, count, block)]
    return np.concatenate([compare(part).min(axis=1) for part in parts])
