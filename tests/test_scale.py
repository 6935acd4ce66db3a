"""Work grows linearly with the cohort: counted are files opened, listed and inspected, and calls, never seconds."""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.imaging import Geometry
from cardiodit.imaging.cohorts import cohort, file_checks
from cardiodit.imaging.cohorts.cohort import CohortFile, find_niftis
from cardiodit.imaging.cohorts.file_checks import Preparation
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import LatentCohort, LatentHeader, file, write_latent
from cardiodit.latents.file import identity_of, identity_of_headers
from cardiodit.latents.folder import LatentFolder
from cardiodit.pipelines import sampling_job
from cardiodit.pipelines.sampling_job import SamplingJob, missing_samples, sample_many


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], Counter]:
    """Counts the calls of a function of a module or class."""
    calls: Counter = Counter()

    def count(owner: Any, name: str) -> Counter:
        function = getattr(owner, name)

        def counting(*arguments: Any, **settings: Any) -> Any:
            calls[name] += 1
            return function(*arguments, **settings)

        monkeypatch.setattr(owner, name, counting)
        return calls

    return count


def test_images_find_their_masks_without_looking_at_all_of_them(tmp_path: Path, counted: Callable) -> None:
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
        for name in (f"scan{number}.nii", f"scan{number}_seg.nii"):
            (tmp_path / f"{number}" / name).touch()
    calls = counted(cohort, "_bare")
    images, notes = find_niftis(tmp_path)
    assert len(images) == 30 and not notes
    assert all(mask is not None and mask.parent == image.parent for image, mask in images.items())
    assert calls["_bare"] == 60


def test_a_file_is_opened_twice_when_it_is_checked(tmp_path: Path, counted: Callable) -> None:
    """Once for its voxels, and once for what its header contradicts."""
    manifest = write_cohort(tmp_path / "one", num=1, size=(32, 32, 4, 8))
    image = next((manifest.parent / "images").iterdir())
    from cardiodit.imaging import nifti

    calls = counted(nifti, "_open")
    checked = file_checks.check_file(CohortFile(image, "one"), "cine", tmp_path, Preparation())
    assert not checked.problems and calls["_open"] == 2


HEADER = LatentHeader("a" * 64, "b" * 64, "", "float32", Geometry((1.4, 1.4, 10.0), 0.03), (2, 2, 2, 2, 2), 2)


def headers(count: int) -> list[LatentHeader]:
    """Headers of patients who lie where nobody else does."""
    return [
        replace(HEADER, source=f"{n:064d}"[::-1], geometry=replace(HEADER.geometry, origin=(n / 7, 0.0, 1.0)))
        for n in range(count)
    ]


def test_the_identity_of_a_cohort_is_what_it_was_and_cheaper(counted: Callable) -> None:
    cohort_headers = headers(20)
    values = [{k: v for k, v in header.to_dict().items() if k != "steps"} for header in cohort_headers]
    expected = identity_of(values)
    calls = counted(file, "_canonical")
    assert identity_of_headers(cohort_headers) == expected
    assert calls["_canonical"] <= 21  # a position each, and once what all have in common
    assert identity_of_headers([]) == identity_of([])


def test_a_cohort_in_shards_opens_each_once(tmp_path: Path, counted: Callable) -> None:
    """While it is opened, and while it is read in any order, whatever the number of latents."""
    folder = LatentFolder(tmp_path / "latents", 20, shard_size=8)
    folder.path.mkdir()
    rows = []
    for group in folder.groups(20):
        names = []
        for header in headers(20)[group.start : group.stop]:
            names.append(header.source[:20])
            write_latent(folder.file(names[-1]), torch.zeros(header.shape), header)
        rows += [{"latent": place} for place in folder.store(names)]
    write_manifest(folder.manifest, rows)
    calls = counted(file, "_entries")
    latents = LatentCohort.open(folder.manifest)
    assert calls["_entries"] == 3
    for _ in range(2):
        for index in torch.randperm(20, generator=torch.Generator().manual_seed(0)).tolist():
            latents[index]
    assert calls["_entries"] == 6
    assert len({id(header.vae) for header in latents.headers}) == 1  # held once


def test_existing_samples_are_compared_without_asking_the_model_each_time(
    make_pipe: Callable, tmp_path: Path, counted: Callable
) -> None:
    pipe, job = make_pipe(), SamplingJob(0, 0, 1, settings={"num_inference_steps": 1})
    (first,) = sample_many(pipe, tmp_path / "samples", job)
    folder, line = first.parent, json.loads((first.parent / SAMPLE_LIST).read_text())
    with (folder / SAMPLE_LIST).open("a") as samples:
        for index in range(1, 30):
            name = f"seed0-{index:05d}.nii.gz"
            os.link(first, folder / name)
            samples.write(json.dumps({**line, "file": name, "index": index}) + "\n")
    calls = counted(sampling_job, "describe_model")
    counted(Path, "stat"), counted(Path, "glob")
    assert missing_samples(pipe, folder, replace(job, count=32)) == [30, 31]
    assert calls["describe_model"] == 1 and calls["stat"] < 10
    records = read_sample_list(folder).values()
    assert len(records) == 30 and len({id(record["preprocessing"]) for record in records}) == 1


def test_the_folder_is_not_listed_for_each_sample(
    make_pipe: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = make_pipe()
    listed: list[str] = []
    for name in ("listdir", "scandir"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", function=function: listed.append(str(path)) or function(path))
    counts = []
    for count in (2, 5):
        folder = tmp_path / f"{count}"
        list(sample_many(pipe, folder, SamplingJob(0, 0, count, settings={"num_inference_steps": 1})))
        counts.append(listed.count(str(folder)))
    assert counts[0] == counts[1]
