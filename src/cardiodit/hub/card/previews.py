"""Previews in a model card: GIFs of a few of the model's samples, which beat or run through their slices."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import replace_folder
from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.nifti import read_nifti
from cardiodit.imaging.pictures import MODEL_WINDOW, write_gif

FOLDER = "previews"
MAX_PREVIEWS = 4
# Fields of a sample's record that are published: none that names a folder, a machine or a person.
PUBLISHED_FIELDS = (
    *("seed", "index", "class_label", "solver", "num_inference_steps", "guidance_scale", "dtype", "device"),
    *("seconds", "energy_kwh"),
)


@dataclass(frozen=True)
class Previews:
    """Pictures of generated volumes.

    Args:
        pictures: paths of GIFs, relative to the pipeline folder.
        records: how each was generated.
    """

    pictures: list[str]
    records: list[dict[str, Any]]

    def mean(self, key: str) -> float | None:
        """Return the mean of a recorded number; None unless every record has it."""
        values = [record.get(key) for record in self.records]
        known = [float(value) for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def in_words(self, is_cine: bool = True) -> str:
        """Describe how the samples were generated and are shown."""
        first = self.records[0]
        labels = [str(record["class_label"]) for record in self.records if record.get("class_label") is not None]
        shown = f", classes {', '.join(labels)}" if labels else ""
        numbers = ", ".join(str(record.get("index")) for record in self.records)
        how = f"{first.get('solver')}, {first.get('num_inference_steps')} steps, guidance {first.get('guidance_scale')}"
        return (
            f"The previews are samples {numbers} of seed {first.get('seed')}, the first of a folder ({how}{shown}), "
            f"{'slices side by side' if is_cine else 'running through their slices'}."
        )


def copy_previews(samples: Path, folder: Path) -> None:
    """Copy the first GIFs of a folder written by `cardiodit sample`, replacing earlier previews.

    A sample without a GIF, such as a 3D volume written by an earlier version, is drawn from its volume.
    """
    existing = [record for record in _records(samples) if any(path.is_file() for path in _files(samples, record))]
    records = existing[:MAX_PREVIEWS]
    if not records:
        raise CardioDiTError(
            f"{samples} contains no GIF and no volume of a sample in its {SAMPLE_LIST}. Generate samples with "
            "`cardiodit sample`."
        )
    with replace_folder(folder / FOLDER) as temporary:
        lines = []
        for record in records:
            picture, volume = _files(samples, record)
            if picture.is_file():
                shutil.copyfile(picture, temporary / picture.name)
            else:
                source = read_nifti(volume)
                voxels = to_model(source.voxels, record.get("units") or MODEL_WINDOW)
                write_gif(temporary / picture.name, voxels, source.geometry)
            kept = {key: record[key] for key in PUBLISHED_FIELDS if key in record}
            lines.append(json.dumps({"file": picture.name, **kept}) + "\n")
        (temporary / SAMPLE_LIST).write_text("".join(lines), encoding="utf-8")


def read_previews(folder: Path) -> Previews | None:
    """Return the previews of a pipeline folder, if it has any."""
    if not (folder / FOLDER / SAMPLE_LIST).is_file():
        return None
    records = _records(folder / FOLDER)
    return Previews([f"{FOLDER}/{record['file']}" for record in records], records)


def _files(samples: Path, record: dict[str, Any]) -> tuple[Path, Path]:
    """Return the paths of a sample's GIF and of its volume."""
    name = Path(str(record["file"])).name
    return samples / name.replace(".nii.gz", ".gif"), samples / name


def _records(folder: Path) -> list[dict[str, Any]]:
    if not (folder / SAMPLE_LIST).is_file():
        raise CardioDiTError(f"{folder} contains no {SAMPLE_LIST}, so it is not a folder of samples.")
    return list(read_sample_list(folder).values())
