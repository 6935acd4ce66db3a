"""Small beating hearts in [-1, 1] for all tests of features."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from cardiodit.imaging.phantom import GROUPS, draw_heart, render


@pytest.fixture(scope="session")
def make_heart() -> Callable[[int], np.ndarray]:
    """Return a function from i to heart number i, `(32, 32, 6, 8)` float32; each is drawn once."""
    drawn: dict[int, np.ndarray] = {}

    def make(index: int) -> np.ndarray:
        if index not in drawn:
            random = np.random.default_rng([7, index])
            image = render(draw_heart(list(GROUPS)[index % len(GROUPS)], random), (32, 32, 6, 8), random).image
            low, high = np.percentile(image, [0.5, 99.5])
            drawn[index] = np.clip((image - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32)
        return drawn[index].copy()

    return make


@pytest.fixture
def heart(make_heart: Callable[[int], np.ndarray]) -> np.ndarray:
    return make_heart(0)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: volumes are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
