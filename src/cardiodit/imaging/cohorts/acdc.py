"""ACDC: `{training,testing}/patientNNN/` with a 4D image, labels of two frames, and `Info.cfg`."""

from pathlib import Path

from cardiodit._util.foreign_files import read_text
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.cohort import (
    CohortFile,
    Search,
    find_image,
    find_one,
    parse_frame,
    register_cohort,
    subfolders,
)
from cardiodit.imaging.label_order import ACDC_ORDER

PARTITIONS = ("training", "testing")


@register_cohort("acdc", "cine", title="ACDC as published: {training,testing}/patientNNN/")
def find_acdc(source: Path, table: Path | None = None) -> Search:
    """List the patients of ACDC's folder, or of one of its two partitions."""
    if table is not None:
        raise CardioDiTError("ACDC has no table: groups and frames come from each patient's Info.cfg.")
    search = Search()
    partitions = [source / name for name in PARTITIONS if (source / name).is_dir()] or [source]
    for partition in partitions:
        for folder in subfolders(partition):
            if folder.name.startswith("patient"):
                _add_patient(folder, partition.name if partition.name in PARTITIONS else "", search)
    if not search.files and not search.problems:
        raise CardioDiTError(
            f"No folder patientNNN was found in {source} or in its {' or '.join(PARTITIONS)}. "
            "Is it the folder that ACDC was unpacked into?"
        )
    return search


def _add_patient(folder: Path, partition: str, search: Search) -> None:
    name, config = folder.name, folder / "Info.cfg"
    image = find_image(folder, f"{name}_4d", search)
    if image is None:
        return
    problems: list[str] = []
    info: dict[str, str] = {}
    if config.is_file():
        pairs = (line.split(":", 1) for line in read_text(config).splitlines() if ":" in line)
        info = {key.strip(): value.strip() for key, value in pairs}
    else:
        problems.append(f"{config} is missing: it holds the group and the frames of ED and ES")
    frames = {key: parse_frame(info.get(key, ""), 1, f"{config}: {key}", problems) for key in ("ED", "ES")}
    masks = {}
    for key, number in frames.items():
        masks[key] = None if number is None else find_one(folder, f"{name}_frame{number + 1:02d}_gt")
        if number is not None and masks[key] is None:
            search.notes.append(f"{folder}: no labels for frame {number + 1} ({key})")
    search.files.append(
        CohortFile(
            image,
            name,
            label=info.get("Group", ""),
            partition=partition,
            other={key.lower(): info[key] for key in ("Height", "Weight") if key in info},
            problems=problems,
            ed_mask=masks["ED"],
            es_mask=masks["ES"],
            ed_frame=frames["ED"],
            es_frame=frames["ES"],
            mask_order=ACDC_ORDER,
        )
    )
