"""The output of a pipeline: volumes and their records, and how they are saved."""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from cardiodit._util.atomic_io import append_line
from cardiodit._util.sample_records import SAMPLE_LIST
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, write_gif, write_nifti
from cardiodit.imaging.intensity import Range, to_source

WEIGHT_COMPONENTS = ("transformer", "unet", "vae", "adapter", "controlnet")  # their weights make up a revision
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class VolumePipelineOutput(BaseOutput):
    """Generated volumes.

    Args:
        volumes: `(B, H, W, D, T)` (or `(B, H, W, D)`) in [-1, 1] for output_type "volumes" and "np"; the tensor
            layout `(B, C, D, H, W, T)` for "pt"; latents for "latent".
        records: how each volume was made: seed, model, solver, steps, guidance, seconds.
        geometry: voxel size and frame time, if the model knows them.
        units: the values of -1 and 1 in the scanner's units, such as Hounsfield units; None if unknown.
    """

    volumes: torch.Tensor | np.ndarray
    records: list[dict[str, Any]] = field(default_factory=list)
    geometry: Geometry = field(default_factory=Geometry)
    units: Range | None = None

    def save(self, folder: str | Path, sample_list: str = SAMPLE_LIST) -> list[Path]:
        """Write each volume as NIfTI with its geometry and a GIF, and append its record to `samples.jsonl`.

        Voxels are integers in the scanner's units if the model knows them, otherwise float32 in [-1, 1].
        A folder can be filled over several calls; existing files are never replaced.

        Args:
            folder: folder of samples, created if missing; or for a single sample a file that ends in `.nii` or
                `.nii.gz`, which is all that is written then.
            sample_list: name of the list; several processes that share a folder have one each (`list_of_process`).
        """
        if len(self.records) != len(self.volumes) or any(
            r["output_type"] not in ("volumes", "np") for r in self.records
        ):
            raise CardioDiTError('save() needs volumes: call the pipeline with output_type="volumes" or "np".')
        folder = Path(folder)
        if folder.name.endswith((".nii", ".nii.gz")):
            return [self._save_file(folder)]
        paths = [sample_path(folder, record["seed"], record["index"]) for record in self.records]
        check_folder(folder, paths)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLE_LIST).touch()  # first: other processes recognise a folder of samples by it
        for path, record, volume in zip(paths, self.records, self.volumes, strict=True):
            voxels = np.asarray(volume, dtype=np.float32)
            write_nifti(path, self._in_units(voxels), self.geometry)
            if voxels.ndim == 4:
                write_gif(path.with_name(path.name.replace(".nii.gz", ".gif")), voxels, self.geometry)
            append_line(folder / sample_list, json.dumps({"file": path.name, "units": self.units, **record}))
        return paths

    def _save_file(self, path: Path) -> Path:
        """Write the only sample to a file; an existing one is never replaced."""
        if len(self.volumes) != 1:
            raise CardioDiTError(
                f"{path.name} is one file, and there are {len(self.volumes)} samples: give save() a folder for them."
            )
        if path.exists():
            raise CardioDiTError(f"{path} already exists and is not replaced. Choose another name.")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nifti(path, self._in_units(np.asarray(self.volumes[0], dtype=np.float32)), self.geometry)
        return path

    def _in_units(self, voxels: np.ndarray) -> np.ndarray:
        return voxels if self.units is None else to_source(voxels, self.units, np.int16)


def sample_path(folder: Path, seed: int | None, index: int) -> Path:
    """Return the path of a sample's NIfTI file."""
    return folder / (f"sample-{index:05d}.nii.gz" if seed is None else f"seed{seed}-{index:05d}.nii.gz")


def check_folder(folder: Path, paths: list[Path]) -> None:
    """Check that a folder is new, empty or holds other samples; also called before sampling starts."""
    if folder.is_file():
        raise CardioDiTError(f"{folder} is a file; save() needs a folder.")
    for path in paths:
        if path.exists():
            raise CardioDiTError(
                f"{path} already exists and is not replaced. Save into another folder, or sample with another seed or "
                "first_sample."
            )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / SAMPLE_LIST).exists():
        raise CardioDiTError(
            f"{folder} contains other files (but no {SAMPLE_LIST}). Save into a new or empty folder, or into a folder "
            "of samples."
        )


def revision_of(pipe: DiffusionPipeline) -> str | None:
    """Return the Hub commit of a pipeline, or a hash of a local folder's weight files; None for one made in memory."""
    components = [pipe.components[name] for name in WEIGHT_COMPONENTS if name in pipe.components]
    folders = [str(getattr(component.config, "_name_or_path", "")) for component in components]
    if not all(folders):
        return None
    commits = [re.search(r"snapshots/([0-9a-f]{40})", Path(folder).as_posix()) for folder in folders]
    if all(commits) and len(found := {commit[1] for commit in commits if commit}) == 1:
        return found.pop()
    files = sorted(file for folder in folders for file in Path(folder).glob("*.safetensors"))
    return _hash_of(tuple((file, file.stat().st_mtime_ns) for file in files)) if files else None


@lru_cache(maxsize=8)
def _hash_of(files: tuple[tuple[Path, int], ...]) -> str:
    """Hash the contents; the modification times only invalidate the cache of a rewritten file."""
    digest = hashlib.sha256()
    for path, _ in files:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def describe_model(pipe: Any) -> dict[str, Any]:
    """Return a model's name, revision, solver, precision and preprocessing, for the record of a sample.

    A local model is named by its folder's last component only: paths can reveal patients.
    """
    name = str(pipe.config.get("_name_or_path") or "in memory")
    return {
        "model": Path(name).resolve().name if Path(name).is_dir() else name,
        "revision": revision_of(pipe),
        "solver": solver_of(pipe.scheduler),
        "dtype": str(pipe.denoiser.dtype).removeprefix("torch."),
        "device": pipe._execution_device.type,
        "cardiodit": _package_version(),
        "preprocessing": pipe.facts.get("preprocessing"),
    }


def solver_of(scheduler: Any) -> str:
    """Return the scheduler's class, with the solver where the class has several."""
    name, solver = type(scheduler).__name__, scheduler.config.get("solver")
    return f"{name} ({solver})" if solver else name


def _package_version() -> str | None:
    try:
        return version("cardiodit")
    except PackageNotFoundError:
        return None


def make_records(
    run: dict[str, Any],
    seed: int | None,
    first_sample: int,
    generator: Generators,
    labels: list[int | str | None],
) -> list[dict[str, Any]]:
    """Return one JSON record per sample: its seed and index, or its generator's seed, and what the run shares."""
    records = []
    for i, label in enumerate(labels):
        own = generator[i] if isinstance(generator, list) else generator
        generator_seed = None if own is None else own.initial_seed()
        origin = {"seed": seed, "index": first_sample + i, "generator_seed": generator_seed, "class_label": label}
        records.append({**origin, **run})
    return records
