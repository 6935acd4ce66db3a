"""All caches give the same values, and the cache on disk notices changes and damage."""

import csv
import json
import multiprocessing
import os
import pickle
import shutil
import warnings
from pathlib import Path
from shutil import disk_usage

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Intensity, Preprocessing, prepare_case, read_manifest, write_nifti
from cardiodit.imaging import cache as cache_module
from cardiodit.imaging.cache import PreparedVolumes, shared_memory_folder
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.phantom import write_cohort

STEPS = Preprocessing(size=(24, 24, None), frames=6, intensity=Intensity("p0.5", "p99.5"))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("hearts") / "cohort", num=3, size=(24, 20, 3, 8)).parent


@pytest.fixture
def cases(cohort: Path, tmp_path: Path) -> list[Case]:
    return read_manifest(Path(shutil.copytree(cohort, tmp_path / "cohort")) / "manifest.csv")


def on_disk(cases: list[Case], folder: Path, steps: Preprocessing = STEPS) -> PreparedVolumes:
    return PreparedVolumes(cases, steps, "disk", folder)


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_all_caches_give_the_same_bits_and_so_do_their_slices(cases: list[Case], tmp_path: Path) -> None:
    made = [PreparedVolumes(cases, STEPS), on_disk(cases, tmp_path / "c"), PreparedVolumes(cases, STEPS, "none")]
    for i, case in enumerate(cases):
        expected = prepare_case(case, STEPS).tensor()
        assert expected.shape == (1, 3, 24, 24, 6)
        for volumes in made:
            assert torch.equal(volumes[i], expected)
            assert torch.equal(volumes.slice_of(i, 2), expected[:, 2])
            assert volumes.shapes[i] == expected.shape
    assert len({volumes.identity for volumes in made}) == 1 and {len(volumes) for volumes in made} == {3}


def test_several_processes_read_the_same(cases: list[Case], tmp_path: Path) -> None:
    one, two = PreparedVolumes(cases, STEPS), PreparedVolumes(cases, STEPS, workers=2)
    assert all(torch.equal(one[i], two[i]) for i in range(3))
    assert (one.limits, one.geometries, one.identity) == (two.limits, two.geometries, two.identity)


@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_modifying_an_item_does_not_modify_the_cache(cases: list[Case], tmp_path: Path, cache: str) -> None:
    volumes = PreparedVolumes(cases, STEPS, cache, tmp_path / "c" if cache == "disk" else None)
    before = volumes[0].clone()
    volumes[0].zero_()
    volumes.slice_of(0, 1).zero_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch warns of tensors over read-only memory
        assert torch.equal(volumes[0], before) and torch.equal(volumes.slice_of(0, 1), before[:, 1])


class Slices(Dataset):
    def __init__(self, volumes: PreparedVolumes) -> None:
        self.volumes = volumes

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.volumes.slice_of(index, 1)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_data_loader_workers_see_the_same(cases: list[Case], tmp_path: Path, cache: str) -> None:
    volumes = PreparedVolumes(cases, STEPS, cache, tmp_path / "c" if cache == "disk" else None)
    expected = torch.stack([volumes.slice_of(i, 1) for i in range(3)])
    assert "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(Slices(volumes), batch_size=3, num_workers=1, multiprocessing_context="fork")
    assert torch.equal(next(iter(loader)), expected)
    copied = pickle.loads(pickle.dumps(volumes))  # as spawned workers get it
    assert torch.equal(torch.stack([copied.slice_of(i, 1) for i in range(3)]), expected)


def test_a_second_start_does_not_read_the_sources(cases: list[Case], tmp_path: Path) -> None:
    first = on_disk(cases, tmp_path / "c")
    held = files(tmp_path / "c")
    for case in cases:  # same size, same time, other content: would be noticed if it were read
        stat = case.image.stat()
        case.image.write_bytes(b"\0" * stat.st_size)
        os.utime(case.image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = on_disk(cases, tmp_path / "c")
    assert all(torch.equal(first[i], second[i]) for i in range(3))
    assert (first.limits, first.geometries, first.identity) == (second.limits, second.geometries, second.identity)
    assert files(tmp_path / "c") == held


def test_a_changed_source_row_or_preprocessing_is_prepared_again(cases: list[Case], tmp_path: Path) -> None:
    first, folder = on_disk(cases, tmp_path / "c"), tmp_path / "c"
    assert len(files(folder)) == 6
    os.utime(cases[0].image, ns=(0, 0))
    touched = on_disk(cases, folder)
    assert len(files(folder)) == 8 and touched.identity == first.identity  # the content did not change
    rows = [Case(case.image, case.subject, {**case.row, "ed_frame": "2"}, case.folder) for case in cases]
    turned = on_disk(rows, folder)
    assert len(files(folder)) == 14 and turned.identity != first.identity
    assert not torch.equal(turned[0], first[0])
    smaller = on_disk(cases, folder, Preprocessing(size=(16, 16, None), frames=6))
    assert len(files(folder)) == 20 and smaller.identity != first.identity
    found = Preprocessing(STEPS.spacing, STEPS.size, 6, intensity=Intensity("p0.5", "p99.5", first.typical()))
    assert on_disk(cases, folder, found).identity == first.identity  # what training measured changes no volume
    assert len(files(folder)) == 20


@pytest.mark.parametrize(
    "damage",
    [
        lambda array, facts: array.write_bytes(array.read_bytes()[:-1]),
        lambda array, facts: array.write_bytes(array.read_bytes()[:500] + b"\x55" + array.read_bytes()[501:]),
        lambda array, facts: array.write_bytes(b""),
        lambda array, facts: array.unlink(),
        lambda array, facts: facts.unlink(),
        lambda array, facts: facts.write_text("{"),
        lambda array, facts: facts.write_text(json.dumps({**json.loads(facts.read_text()), "limits": [1]})),
    ],
)
def test_a_damaged_file_is_prepared_again_with_a_warning(cases: list[Case], tmp_path: Path, damage) -> None:
    first, folder = on_disk(cases, tmp_path / "c"), tmp_path / "c"
    array = sorted(folder.glob("*.npy"))[0]
    damage(array, array.with_suffix(".json"))
    with pytest.warns(UserWarning, match=rf"{array.name} is damaged .*prepared again"):
        second = on_disk(cases, folder)
    assert all(torch.equal(first[i], second[i]) for i in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_disk(cases, folder)


def test_a_cache_that_is_emptied_during_a_run_is_reported(cases: list[Case], tmp_path: Path) -> None:
    volumes = on_disk(cases, tmp_path / "c")
    for path in (tmp_path / "c").iterdir():
        path.unlink()
    with pytest.raises(CardioDiTError, match="can no longer be read.*start again"):
        volumes[0]


def test_the_cache_names_no_subject_and_no_path(cases: list[Case], tmp_path: Path) -> None:
    on_disk(cases, tmp_path / "c")
    for path in (tmp_path / "c").iterdir():
        assert len(path.stem) == 32 and not set(path.stem) - set("0123456789abcdef")
        content = path.read_bytes()
        assert b"phantom" not in content and str(tmp_path).encode() not in content


def test_all_unreadable_files_are_reported_in_one_error(cases: list[Case]) -> None:
    cases[0].image.write_bytes(cases[0].image.read_bytes()[:-50])
    cases[1].image.unlink()
    for cache in ("memory", "none"):
        with pytest.raises(CardioDiTError) as raised:
            PreparedVolumes(cases, STEPS, cache)
        assert f"{cases[0].image} is damaged" in str(raised.value)
        assert f"{cases[1].image} does not exist" in str(raised.value)
        assert str(cases[2].image) not in str(raised.value)


def cohort_of(folder: Path, shapes: list[tuple[int, ...]], geometries: list[Geometry]) -> list[Case]:
    """Write files of noise with the given shapes and list them in a manifest."""
    random = np.random.default_rng(0)
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image"])
        for i, (shape, geometry) in enumerate(zip(shapes, geometries)):
            write_nifti(folder / f"{i}.nii.gz", random.integers(0, 100, shape, dtype=np.int16), geometry)
            writer.writerow([f"{i}.nii.gz"])
    return read_manifest(folder / "manifest.csv")


def test_different_shapes_are_reported_but_depths_may_differ(tmp_path: Path) -> None:
    shapes = [(16, 16, 3, 8), (16, 16, 5, 8), (16, 12, 3, 8), (16, 16, 3, 9), (16, 16, 3)]
    cases = cohort_of(tmp_path, shapes, [Geometry()] * 5)
    steps = Preprocessing(orient=False)
    with pytest.raises(CardioDiTError) as raised:
        PreparedVolumes(cases, steps)
    lines = str(raised.value).splitlines()
    assert [str(tmp_path / f"{i}.nii.gz") in line for i, line in zip((2, 3, 4), lines[1:4])] == [True] * 3
    assert "16 × 12 voxels × 8 frames" in lines[1] and "most volumes are 16 × 16 voxels × 8 frames" in lines[1]
    assert not any(f"{i}.nii.gz" in str(raised.value) for i in (0, 1))
    assert [shape[1] for shape in PreparedVolumes(cases[:2], steps).shapes] == [3, 5]


def test_3d_volumes(tmp_path: Path) -> None:
    cases = cohort_of(tmp_path, [(16, 16, 20), (16, 16, 20), (16, 16, 21)], [Geometry()] * 3)
    steps = Preprocessing(orient=False)
    volumes = PreparedVolumes(cases[:2], steps, "disk", tmp_path / "c")
    assert volumes[0].shape == (1, 16, 16, 20)
    with pytest.raises(CardioDiTError, match="only a cine has 2D"):
        volumes.slice_of(0, 0)
    with pytest.raises(CardioDiTError, match=r"2.nii.gz is 16 × 16 × 21 voxels"):
        PreparedVolumes(cases, steps)


def test_typical_values_of_a_cohort(tmp_path: Path) -> None:
    def cohort(spacings: list, times: list) -> PreparedVolumes:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        geometries = [Geometry(spacing, time) for spacing, time in zip(spacings, times)]
        return PreparedVolumes(
            cohort_of(folder, [(16, 16, 3, 8)] * len(spacings), geometries), Preprocessing(orient=False)
        )

    same = cohort([(1.4, 1.4, 10.0), (1.405, 1.4, 10.0), (1.4, 1.4, 10.0)], [0.05, 0.04, 0.1])
    assert same.spacing() == pytest.approx((1.4, 1.4, 10.0)) and same.frame_time() == pytest.approx(0.05)
    assert same.typical() == tuple(np.median(same.limits, axis=0))
    assert cohort([(1.4, 1.4, 10.0), (1.5, 1.4, 10.0)], [0.05, None]).spacing() is None
    unknown = cohort([(1.4, 1.4, 10.0), None], [None, None])
    assert unknown.spacing() is None and unknown.frame_time() is None


def test_invalid_arguments(cases: list[Case], tmp_path: Path) -> None:
    for arguments, message in [
        (([], STEPS), "empty"),
        ((cases, STEPS, "ram"), "cache='ram' is unknown; choose from memory, disk, none"),
        ((cases, STEPS, "disk"), "needs a folder"),
        ((cases, STEPS, "none", tmp_path), "takes none"),
        ((cases, STEPS, "memory", None, 0), "workers=0"),
    ]:
        with pytest.raises(CardioDiTError, match=message):
            PreparedVolumes(*arguments)


def test_what_another_process_checked_is_not_read_again(cases: list[Case], tmp_path: Path) -> None:
    first = on_disk(cases, tmp_path / "c")
    arrays = sorted((tmp_path / "c").glob("*.npy"))
    with arrays[0].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")  # not noticed without reading
    again = PreparedVolumes(cases, STEPS, "disk", tmp_path / "c", verify=False)
    assert again.identity == first.identity and len(again) == 3
    with pytest.warns(UserWarning, match="its checksum differs"):
        on_disk(cases, tmp_path / "c")


def test_a_cache_that_memory_cannot_hold_is_refused_at_the_first_volume(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 3 * 24 * 24 * 6 * 4
    monkeypatch.setattr(cache_module, "available_memory", lambda: 5 * one)
    assert len(PreparedVolumes(cases, STEPS)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each process would hold its own copy
    with pytest.raises(CardioDiTError, match=r"take 0.0 GiB, 2 times for the processes.*Set data.cache to disk"):
        PreparedVolumes(cases, STEPS)
    monkeypatch.setattr(cache_module, "available_memory", lambda: 0)
    assert len(PreparedVolumes(cases, STEPS, "none")) == 3


def test_processes_map_the_same_memory_and_leave_nothing_behind(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = tmp_path / "shared", PreparedVolumes(cases, STEPS)
    first, second = (PreparedVolumes(cases, STEPS, "memory", folder) for _ in range(2))
    shutil.rmtree(folder)  # as the first process does when all have mapped it
    assert not [link for link in Path("/proc/self/fd").iterdir() if str(folder) in os.path.realpath(link)]
    for volumes in (first, second):
        assert volumes.identity == expected.identity
        assert all(torch.equal(volumes[i], expected[i]) for i in range(3))
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    assert len(mapped) == 6 and len({line.split()[4] for line in mapped}) == 3  # twice, and each once in memory
    one = expected[0].nbytes
    monkeypatch.setattr(cache_module, "available_memory", lambda: 2 * one)
    with pytest.raises(CardioDiTError, match="Set data.cache to disk"):
        PreparedVolumes(cases, STEPS, "memory", tmp_path / "again")


def test_little_shared_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "SHARED_MEMORY", tmp_path)
    free = disk_usage(tmp_path).free
    monkeypatch.setattr(cache_module, "available_memory", lambda: free)
    folder = shared_memory_folder("run")
    assert folder is not None and folder.parent == tmp_path and "run" not in folder.name
    monkeypatch.setattr(cache_module, "available_memory", lambda: 8 * free)
    assert shared_memory_folder("run") is None
