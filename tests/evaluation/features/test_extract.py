"""Cohorts to rows: streamed, kept by content, and by name where something is wrong."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import FeatureCache, Source, extract, iterate, load_network, sources_of_cases
from cardiodit.evaluation.features.cache import key_of
from cardiodit.imaging import Geometry, Preprocessing, Volume, read_manifest
from cardiodit.imaging.phantom import write_cohort

GRID = (2.0, 2.0, 8.0)


class Counting:
    """The random network, counting how often it works; any row can be replaced."""

    def __init__(self, row: np.ndarray | None = None) -> None:
        self.network, self.calls, self.row = load_network("random"), 0, row
        self.name, self.identity = self.network.name, self.network.identity

    def describe(self) -> dict[str, Any]:
        return self.network.describe()

    def features(self, voxels: np.ndarray, spacing: Any = None) -> np.ndarray:
        self.calls += 1
        return self.network.features(voxels, spacing) if self.row is None else self.row


@pytest.fixture
def sources(make_heart: Callable[[int], np.ndarray]) -> list[Source]:
    def source(index: int) -> Source:
        return Source(f"heart {index}", lambda: Volume(make_heart(index), Geometry(GRID)))

    return [source(i) for i in range(3)]


def test_a_row_for_each_volume_in_their_order(sources: list[Source]) -> None:
    network, heard = load_network("random"), []
    rows = extract(sources, network, progress=lambda done, name: heard.append((done, name)))
    assert rows.shape == (3, 512) and rows.dtype == np.float64
    assert heard == [(1, "heart 0"), (2, "heart 1"), (3, "heart 2")]
    for row, source in zip(rows, sources):
        assert np.array_equal(row, network.features(source.load().voxels, GRID))


def test_one_volume_is_read_at_a_time(sources: list[Source]) -> None:
    read: list[str] = []

    def watched() -> Iterator[Source]:
        for source in sources:
            read.append(source.name)
            yield source

    rows = iterate(watched(), load_network("random"))
    assert read == []
    assert next(rows)[0] == "heart 0" and read == ["heart 0"]


def test_images_of_a_manifest_are_prepared_as_in_training(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "cohort", num=2, size=(24, 24, 4, 4))
    steps = Preprocessing()
    rows = extract(sources_of_cases(read_manifest(manifest), steps), load_network("random"))
    assert rows.shape == (2, 512) and not np.allclose(rows[0], rows[1])


def test_what_was_computed_is_found_again(sources: list[Source], tmp_path: Path) -> None:
    network, cache = Counting(), FeatureCache(tmp_path / "cache")
    first = extract(sources[:2], network, cache)
    assert network.calls == 2
    everything = extract(reversed(sources), network, cache)  # an interrupted run, in another order
    assert network.calls == 3
    assert np.array_equal(everything[1:], first[::-1])
    assert sorted(p.suffix for p in (tmp_path / "cache").iterdir()) == [".npz"] * 3


@pytest.mark.parametrize("damage", ["cut", "flip", "other"])
def test_a_damaged_file_is_computed_anew(sources: list[Source], tmp_path: Path, damage: str) -> None:
    network, cache = Counting(), FeatureCache(tmp_path)
    first = extract(sources[:1], network, cache)
    (file,) = tmp_path.iterdir()
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:1000])
    elif damage == "flip":
        data[1500] ^= 1
        file.write_bytes(data)
    else:
        np.savez(file, row=np.zeros((2, 2)))
    with pytest.warns(UserWarning, match="damaged"):
        again = extract(sources[:1], network, cache)
    assert np.array_equal(again, first) and network.calls == 2
    assert np.array_equal(extract(sources[:1], network, cache), first) and network.calls == 2  # mended


def test_the_key_is_all_that_decides_a_row() -> None:
    voxels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    changed = voxels.copy()
    changed[1, 2, 3] += 1e-3
    keys = {
        key_of(voxels, GRID, "a"),
        key_of(voxels, GRID, "b"),
        key_of(voxels, None, "a"),
        key_of(voxels, (2.0, 2.0, 9.0), "a"),
        key_of(changed, GRID, "a"),
        key_of(voxels.reshape(3, 2, 4), GRID, "a"),
        key_of(voxels.astype(np.float64), GRID, "a"),
    }
    assert len(keys) == 7
    assert key_of(np.asfortranarray(voxels), GRID, "a") == key_of(voxels, GRID, "a")


def test_problems_name_the_volume(sources: list[Source], tmp_path: Path) -> None:
    broken = Source("patient 7", lambda: Volume(np.full((4, 4, 4), 300.0, np.float32), Geometry()))
    with pytest.raises(CardioDiTError, match="patient 7: The volume's values go from 300"):
        extract([sources[0], broken], load_network("random"))
    cache = FeatureCache(tmp_path)
    with pytest.raises(CardioDiTError, match="heart 0: 2 of 3 features of random are not numbers"):
        extract(sources, Counting(np.array([1.0, np.nan, np.inf])), cache)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CardioDiTError, match="no volumes"):
        extract([], load_network("random"))


def test_a_cache_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CardioDiTError, match="cannot be made"):
        FeatureCache(tmp_path / "file" / "cache")
