"""The output of a pipeline: volumes and their records, how they are shown, and how they are saved."""

import base64
import hashlib
import html
import json
import re
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from cardiodit._util.atomic_io import append_line, atomic_file
from cardiodit._util.sample_records import SAMPLE_LIST
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Volume, write_gif, write_nifti
from cardiodit.imaging.figures import beating_rows
from cardiodit.imaging.intensity import Range, to_source

MASKS = "masks"  # folder of the samples' masks, in that of the samples
SHOWN = 4  # samples that a notebook shows by itself
WEIGHT_COMPONENTS = ("transformer", "unet", "vae", "adapter", "controlnet")  # their weights make up a revision
HASHED = "sha256:"  # beginning of a revision that is a hash of files
Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class VolumePipelineOutput(BaseOutput):
    """Generated volumes. In a notebook they show themselves, playing; `out[0]` is the output of the first sample.

    Args:
        volumes: `(B, H, W, D, T)` (or `(B, H, W, D)`) in [-1, 1] for output_type "volumes" and "np"; the tensor
            layout `(B, C, D, H, W, T)` for "pt"; latents for "latent".
        records: how each volume was made: seed, model, solver, steps, guidance, seconds.
        geometry: voxel size and frame time, if the model knows them.
        units: the values of -1 and 1 in the scanner's units, such as Hounsfield units; None if unknown.
        masks: labels (uint8) of the volumes' voxels, for a model that decodes them (`train_masks`); for hearts, right
            ventricle 1, myocardium 2 and left ventricle 3.
    """

    volumes: torch.Tensor | np.ndarray
    records: list[dict[str, Any]] = field(default_factory=list)
    geometry: Geometry = field(default_factory=Geometry)
    units: Range | None = None
    masks: np.ndarray | None = None

    def __getitem__(self, which: Any) -> Any:
        """Return the output of one sample (`out[0]`) or of several (`out[:4]`), or a field by its name."""
        if isinstance(which, str):
            return super().__getitem__(which)
        try:
            found = range(len(self.volumes))[which]
        except IndexError:
            raise IndexError(f"There is no sample {which}: this output has {len(self.volumes)}.") from None
        places = list(found) if isinstance(found, range) else [found]
        records = [self.records[place] for place in places] if self.records else []
        masks = None if self.masks is None else self.masks[places]
        return replace(self, volumes=self.volumes[places], records=records, masks=masks)

    def __repr__(self) -> str:
        """Describe the volumes in one line."""
        if not self._holds_volumes():
            return f"VolumePipelineOutput({type(self.volumes).__name__} of shape {tuple(self.volumes.shape)})"
        count, *size = self.volumes.shape
        words = [f"{count} {'cine' if len(size) == 4 else 'volume'}{'s' if count != 1 else ''}"]
        words[0] += f" of {' × '.join(map(str, size[:3]))} voxels"
        words += [f"{frames} frames" for frames in size[3:]]
        if self.geometry.spacing is not None:
            words.append(f"{' × '.join(f'{length:g}' for length in self.geometry.spacing)} mm")
        if self.geometry.frame_time is not None and len(size) == 4:
            words.append(f"{1000 * self.geometry.frame_time:.0f} ms per frame")
        seeds = dict.fromkeys(record["seed"] for record in self.records if record["seed"] is not None)
        words += [f"seed {', '.join(map(str, seeds))}"] if seeds else []
        names = self._names()
        return f"VolumePipelineOutput({', '.join(words)}: {', '.join(names[:SHOWN])}{' …' if names[SHOWN:] else ''})"

    def _repr_html_(self) -> str:
        """Show the first samples in a notebook: a playing picture, which also plays where scripts are not run."""
        text = html.escape(repr(self))
        if not self._holds_volumes() or not len(self.volumes):
            return f"<p>{text}</p>"
        picture = base64.b64encode(self[:SHOWN]._gif()).decode("ascii")
        more = f" Shown: the first {SHOWN}; <code>out[{SHOWN}:]</code> shows more." if len(self.volumes) > SHOWN else ""
        return f'<img src="data:image/gif;base64,{picture}" alt="{text}"><p>{text}{more}</p>'

    def show(self, path: str | Path | None = None) -> Path | None:
        """Play the volumes side by side, with slices and grey values to choose: the page of `cardiodit view`.

        In a notebook the page appears below the cell; otherwise it opens in the browser.

        Args:
            path: HTML file in which to keep the page; default: a temporary file, which is not needed in a notebook.

        Returns:
            The page's path if it is in a file.
        """
        self._check_volumes("show")
        try:
            viewer = import_module("cardiodit.viewer")  # not by `from`: its templates do not fit in an exported file
        except ImportError as error:
            raise CardioDiTError("show() needs the package cardiodit; to_gif() works without it.") from error
        volumes = [Volume(self.in_units(volume), self.geometry) for volume in self.volumes]
        shown = [viewer.Shown(name, v, window=self.units or (-1.0, 1.0)) for name, v in zip(self._names(), volumes)]
        return viewer.show(shown, None if path is None else Path(path))

    def to_gif(self, path: str | Path) -> Path:
        """Write one GIF of all samples below each other: cines beat, 3D volumes run through their slices."""
        self._check_volumes("to_gif")
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_bytes(self._gif())
        return path

    def _gif(self) -> bytes:
        rows = [(name, np.asarray(volume, np.float32)) for name, volume in zip(self._names(), self.volumes)]
        return beating_rows(rows, self.geometry.frame_time)

    def _names(self) -> list[str]:
        """Return a name for each sample: its class label, or its number."""
        labels = [record.get("class_label") for record in self.records]
        numbers = [record["index"] for record in self.records]
        return [f"sample {i}" if label is None else str(label) for label, i in zip(labels, numbers, strict=True)]

    def in_units(self, volume: Any) -> np.ndarray:
        """Return a volume in the scanner's units if the model knows them, otherwise in [-1, 1]."""
        voxels = np.asarray(volume, dtype=np.float32)
        return voxels if self.units is None else to_source(voxels, self.units, np.int16)

    def _holds_volumes(self) -> bool:
        return len(self.records) == len(self.volumes) and all(
            record["output_type"] in ("volumes", "np") for record in self.records
        )

    def _check_volumes(self, method: str) -> None:
        if not self._holds_volumes():
            raise CardioDiTError(f'{method}() needs volumes: call the pipeline with output_type="volumes" or "np".')

    def save(self, folder: str | Path, sample_list: str = SAMPLE_LIST) -> list[Path]:
        """Write each volume as NIfTI with its geometry and a GIF, and append its record to `samples.jsonl`.

        Voxels are integers in the scanner's units if the model knows them, otherwise float32 in [-1, 1].
        A folder can be filled over several calls; existing files are never replaced.

        Args:
            folder: folder of samples, created if missing; or for a single sample a file that ends in `.nii` or
                `.nii.gz`, which is all that is written then.
            sample_list: name of the list; several processes that share a folder have one each (`list_of_process`).
        """
        self._check_volumes("save")
        folder = Path(folder)
        if folder.name.endswith((".nii", ".nii.gz")):
            return [self._save_file(folder)]
        paths = [sample_path(folder, record["seed"], record["index"]) for record in self.records]
        check_folder(folder, paths)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLE_LIST).touch()  # first: other processes recognise a folder of samples by it
        for number, (path, record, volume) in enumerate(zip(paths, self.records, self.volumes, strict=True)):
            if self.masks is not None:  # before the volume: a sample that is there has its mask
                (folder / MASKS).mkdir(exist_ok=True)
                write_nifti(folder / MASKS / path.name, self.masks[number], self.geometry)
                record = {**record, "mask": f"{MASKS}/{path.name}"}
            write_nifti(path, self.in_units(volume), self.geometry)
            voxels = np.asarray(volume, dtype=np.float32)
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
        write_nifti(path, self.in_units(self.volumes[0]), self.geometry)
        return path


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
    if folder.is_dir() and not (folder / SAMPLE_LIST).exists() and any(folder.iterdir()):
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
    return revision_of_folders(folders)


def revision_of_folders(folders: list[str]) -> str | None:
    """Return the Hub commit that all folders of weights are from, or else a hash of their weight files."""
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
    return f"{HASHED}{digest.hexdigest()[:16]}"


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
