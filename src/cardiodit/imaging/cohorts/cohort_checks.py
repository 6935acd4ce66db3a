"""What every cohort goes through once its files were looked at: problems, splits, manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.cohorts.checked import Checked
from cardiodit.imaging.cohorts.found import File, Search
from cardiodit.imaging.cohorts.split import SPLITS, split_subjects
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.manifest import write_manifest

OWN_SPLITS = {"testing": "test", "training labeled": "training", "training unlabeled": "training"}


@dataclass(frozen=True)
class Preparation:
    """How a cohort is prepared.

    Args:
        fractions: of the patients for training, validation and test.
        seed: of the split.
        own_split: take the cohort's own split instead.
        exclude: leave files with problems out instead of stopping; the report names them.
        time_unit: "sec" or "msec", where the headers say something wrong.
        frame_time: seconds between frames, where the headers say nothing.
        workers: processes; the result is the same.
        spacing: mm between voxels of npz files, which do not say it; RAD-ChestCT's where none is given.
        preset: of CT, the one whose field of view the report compares with; the cohort's own where none is given.
    """

    fractions: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    own_split: bool = False
    exclude: bool = False
    time_unit: str | None = None
    frame_time: float | None = None
    workers: int = 1
    spacing: Triple | None = None
    preset: str | None = None


def check_output(source: Path, output_dir: Path) -> tuple[Path, Path]:
    """Both resolved; an output must not hold the source, which is only read."""
    source, output_dir = Path(source).resolve(), Path(output_dir).resolve()
    if output_dir == source or output_dir in source.parents:
        raise CardioDiTError(f"The output folder {output_dir} holds the source {source}. Choose another one.")
    return source, output_dir


def find_duplicates(checked: Sequence[Checked[File]]) -> None:
    first: dict[str, Checked[File]] = {}
    for entry in checked:
        if not entry.content:
            continue
        twin = first.setdefault(entry.content, entry)
        if twin is not entry:
            entry.findings.problems.append(f"has the same content as {twin.file.image}")


def stop_at_problems(search: Search[File], checked: Sequence[Checked[File]], exclude: bool) -> None:
    problems = Problems("The cohort has problems")
    for sentence in search.problems:
        problems.add(sentence)
    for entry in checked:
        for sentence in entry.findings.problems:
            problems.add(f"{entry.file.image} {sentence}")
    if not exclude:
        problems.raise_if_any("Nothing was written. Mend them, or leave those files out with --exclude_problems.")
    if all(entry.findings.problems for entry in checked):
        problems.raise_if_any("No file is left.")


def splits_of(good: Sequence[Checked[File]], how: Preparation) -> dict[str, str]:
    """Subject → split."""
    if not how.own_split:
        return split_subjects({entry.file.subject: entry.file.label for entry in good}, how.fractions, how.seed)
    problems = Problems("The cohort's own split cannot be taken")
    splits: dict[str, str] = {}
    for entry in good:
        subject, partition = entry.file.subject, entry.file.partition
        if not partition:
            problems.add(f"{entry.file.image} belongs to none of its parts")
        elif splits.setdefault(subject, OWN_SPLITS.get(partition, partition)) != OWN_SPLITS.get(partition, partition):
            problems.add(f"{entry.file.image} is in its part {partition}, another image of {subject} is not")
    problems.raise_if_any("Split by a seed instead.")
    return splits


def write_manifests(folder: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """One of all rows, and one for each split that holds any."""
    write_manifest(folder / "manifest.csv", rows)
    for split in SPLITS:
        if held := [row for row in rows if row["split"] == split]:
            write_manifest(folder / f"{split}.csv", held)
