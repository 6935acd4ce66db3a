"""The nearest volumes do not depend on blocks, and no more than a block is compared at once."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from cardiodit._util.nearest import nearest_distances


@pytest.mark.parametrize("block", [1, 4, 10, 100])
def test_nearest_distances_do_not_depend_on_blocks(block: int) -> None:
    rng = np.random.default_rng(0)
    rows, references = rng.standard_normal((10, 3)), rng.standard_normal((7, 3))
    largest: list[int] = []

    def compare(part: slice) -> np.ndarray:
        largest.append(part.stop - part.start)
        return cdist(rows[part], references)

    assert np.array_equal(nearest_distances(compare, 10, block), cdist(rows, references).min(axis=1))
    assert max(largest) <= block and sum(largest) == 10
