"""ACDC: `{training,testing}/patientNNN/` with a 4D image, labels of two frames, and `Info.cfg`."""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.cohorts.found import ACDC_ORDER, CineFile, Search, find_image, find_one, frame_number, subfolders

PARTITIONS = ("training", "testing")


def find_acdc(source: Path, table: Path | None = None) -> Search:
    """The cohort's folder, or one of its two partitions."""
    if table is not None:
        raise CardioDiTError("ACDC has no table: groups and frames come from each patient's Info.cfg.")
    search: Search[CineFile] = Search()
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
    name = folder.name
    image = find_image(folder, f"{name}_4d", search)
    if image is None:
        return
    info = _read_info(folder / "Info.cfg", search)
    frames = {
        key: frame_number(info.get(key, ""), str(folder / "Info.cfg"), key, search, first=1) for key in ("ED", "ES")
    }
    masks = {
        key: None if number is None else find_one(folder, f"{name}_frame{number + 1:02d}_gt")
        for key, number in frames.items()
    }
    for key, number in frames.items():
        if number is not None and masks[key] is None:
            search.notes.append(f"{folder}: no labels for frame {number + 1} ({key})")
    search.files.append(
        CineFile(
            image,
            name,
            label=info.get("Group", ""),
            ed_mask=masks["ED"],
            es_mask=masks["ES"],
            ed_frame=frames["ED"],
            es_frame=frames["ES"],
            mask_order=ACDC_ORDER,
            partition=partition,
            other={key.lower(): info[key] for key in ("Height", "Weight") if key in info},
        )
    )


def _read_info(path: Path, search: Search) -> dict[str, str]:
    """`Key: value` on each line."""
    if not path.is_file():
        search.problems.append(f"{path} is missing: it holds the group and the frames of ED and ES")
        return {}
    pairs = (line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
