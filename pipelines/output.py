"""What a pipeline returns: volumes, where they came from, and how to put them on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from cardiodit._util.atomic_io import append_line
from cardiodit._util.sample_records import SAMPLE_LIST
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, write_gif, write_nifti
from cardiodit.imaging.intensity import Range, to_source


@dataclass
class VolumePipelineOutput(BaseOutput):
    """Generated volumes.

    Args:
        volumes: `(B, H, W, D, T)` (or `(B, H, W, D)`) in [-1, 1] for output_type "volumes" and "np"; the tensor
            layout `(B, C, D, H, W, T)` for "pt"; latents for "latent".
        records: how each volume was made: seed, model, solver, steps, guidance, seconds.
        geometry: voxel size and frame time, as far as the model knows them.
        units: what -1 and 1 stand for in the scanner's units, such as Hounsfield units; None when unknown.
    """

    volumes: torch.Tensor | np.ndarray
    records: list[dict[str, Any]] = field(default_factory=list)
    geometry: Geometry = field(default_factory=Geometry)
    units: Range | None = None

    def save(self, folder: str | Path) -> list[Path]:
        """Writes each volume as NIfTI with its geometry and a GIF, and adds a line for it to `samples.jsonl`.

        Voxels are whole numbers in the scanner's units where the model knows them, else float32 in [-1, 1].
        A folder can be filled over many calls; a file that is already there is never replaced.
        """
        if len(self.records) != len(self.volumes) or any(
            r["output_type"] not in ("volumes", "np") for r in self.records
        ):
            raise CardioDiTError('save() needs volumes: call the pipeline with output_type="volumes" or "np".')
        folder = Path(folder)
        paths = [sample_path(folder, record["seed"], record["index"]) for record in self.records]
        check_folder(folder, paths)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLE_LIST).touch()  # first of all: by it other processes know a folder of samples
        for path, record, volume in zip(paths, self.records, self.volumes, strict=True):
            voxels = np.asarray(volume, dtype=np.float32)
            in_units = voxels if self.units is None else to_source(voxels, self.units, np.int16)
            write_nifti(path, in_units, self.geometry)
            if voxels.ndim == 4:
                write_gif(path.with_name(path.name.replace(".nii.gz", ".gif")), voxels, self.geometry)
            append_line(folder / SAMPLE_LIST, json.dumps({"file": path.name, "units": self.units, **record}))
        return paths


def sample_path(folder: Path, seed: int | None, index: int) -> Path:
    """Where a sample is written."""
    return folder / (f"sample-{index:05d}.nii.gz" if seed is None else f"seed{seed}-{index:05d}.nii.gz")


def check_folder(folder: Path, paths: list[Path]) -> None:
    """The folder is new, empty or holds other samples; checked before anything long is begun, too."""
    if folder.is_file():
        raise CardioDiTError(f"{folder} is a file; save() needs a folder.")
    for path in paths:
        if path.exists():
            raise CardioDiTError(
                f"{path} exists already and is not replaced. Save into another folder, or sample with another seed "
                "or first_sample."
            )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SAMPLE_LIST).exists():
        raise CardioDiTError(
            f"{folder} holds something else (there is no {SAMPLE_LIST} in it). Save into a new or empty folder, or "
            "into one that holds samples."
        )
