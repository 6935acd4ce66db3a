"""Per-latent frame data: padding to whole patches, and the phase of the heartbeat."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from cardiodit._util.foreign_files import PICKLES, refuse_pickle
from cardiodit.errors import CardioDiTError, Problems, reading
from cardiodit.imaging.manifest import Case
from cardiodit.training.objectives import Batch

PHASE_FILES = (".npz", ".npy", ".json", ".csv")
SEPARATORS = re.compile(r"[\s,;\[\]]+")
MOST_PHASES = 10_000
Pool = Literal["linear", "mean", "none"]


@dataclass(frozen=True)
class CineFrames:
    """Pads latents in time and adds phases, by the index of a sample.

    Args:
        multiple: latents are repeated cyclically to a multiple of this number of frames.
        valid: for each sample, its latent frames that were not padded; None if all are.
        phases: for each sample, a phase for each of its latent frames before padding.
        masks_attention: keep tokens that only hold padded frames out of attention; there are none if `multiple` is the
            patch size.
    """

    multiple: int = 1
    valid: Sequence[int] | None = None
    phases: Sequence[torch.Tensor] | None = None
    masks_attention: bool = False

    def __call__(self, item: Batch, index: int) -> Batch:
        """Return a sample `(C, …, T)` with whole patches, the mask of its loss `(T)` and its phases."""
        sample = item["sample"]
        frames = sample.shape[-1]
        padded = padded_length(frames, self.multiple)
        around = torch.arange(padded) % frames
        item = {**item, "sample": sample if padded == frames else sample.index_select(-1, around)}
        if self.multiple > 1 or self.valid is not None:
            valid = frames if self.valid is None else min(frames, self.valid[index])
            item["loss_mask"] = (torch.arange(padded) < valid).float()
            if self.masks_attention:
                item["frame_mask"] = torch.arange(padded) < valid
        if self.phases is not None:
            phase = self.phases[index]
            item["phase"] = phase if padded == frames else phase[torch.arange(padded) % len(phase)]
        return item


def padded_length(frames: int, multiple: int) -> int:
    return -(-frames // multiple) * multiple


# --- Phases ---


def read_phases(
    cases: Sequence[Case], frames: Sequence[int], column: str | None, folder: Path | None, pool: Pool
) -> list[torch.Tensor]:
    """Read a phase for each latent frame of every case.

    Args:
        cases: rows of a manifest of latents.
        frames: number of latent frames of each.
        column: manifest column with numbers, or with the path of a file that holds them.
        folder: folder with a file for each latent, of the same name but for its ending.
        pool: how phases of image frames become those of latent frames, see `pool_phase`.
    """
    problems, found = Problems("The phases cannot be used"), []
    for case, length in zip(cases, frames, strict=True):
        try:
            phase = _numbers_of(case, column) if column else _read_file(_file_of(case, folder))
            found.append(pool_phase(phase, length, pool))
        except CardioDiTError as error:
            problems.add(f"{case.subject}: {error}")
    problems.raise_if_any()
    return found


def pool_phase(phase: torch.Tensor, frames: int, pool: Pool) -> torch.Tensor:
    """Return phases of latent frames from those of image frames `(L)`.

    Args:
        phase: phases of the image frames.
        frames: number of latent frames.
        pool: linear: interpolated, with both ends kept; mean: the mean over the image frames of each latent frame;
            none: as they are.
    """
    length = len(phase)
    if pool == "none" or length == frames:
        return phase
    if pool == "linear":
        return F.interpolate(phase[None, None], frames, mode="linear", align_corners=True)[0, 0]
    edges = torch.linspace(0, length, frames + 1).tolist()
    parts = [(int(a), -int(-b // 1)) for a, b in pairwise(edges)]
    return torch.stack([phase[start:end].mean() for start, end in parts])


def even_phase(frames: int, endpoint: bool = True) -> torch.Tensor:
    """Return evenly spaced phases from 0; with `endpoint`, the last is 1, as in the published code."""
    return torch.linspace(0, 1, frames) if endpoint else torch.arange(frames) / frames


def _numbers_of(case: Case, column: str | None) -> torch.Tensor:
    text = case.row.get(column or "", "")
    if not text:
        raise CardioDiTError(f"the column {column!r} is empty or missing")
    if Path(text).suffix in PICKLES:
        refuse_pickle(case.folder / text)
    if Path(text).suffix in PHASE_FILES:
        return _read_file(case.folder / text)
    return _checked([word for word in SEPARATORS.split(text) if word], f"the column {column!r}")


def _file_of(case: Case, folder: Path | None) -> Path:
    assert folder is not None
    files = [folder / f"{case.image.stem}{ending}" for ending in PHASE_FILES]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        for pickled in (folder / f"{case.image.stem}{ending}" for ending in PICKLES):
            if pickled.is_file():
                refuse_pickle(pickled)
        raise CardioDiTError(f"{folder} holds no {case.image.stem} with the ending {', '.join(PHASE_FILES)}")
    return file


def _read_file(file: Path) -> torch.Tensor:
    """Read numbers from a file."""
    with reading(file, "phases", "Expected one number for each frame."):
        if file.suffix == ".json":
            values = json.loads(file.read_text())
        elif file.suffix == ".csv":
            values = [word for word in SEPARATORS.split(file.read_text()) if word]
        else:
            values = np.load(file, allow_pickle=False)
            values = values[values.files[0]] if file.suffix == ".npz" else values
    if isinstance(values, dict):
        values = next((values[name] for name in ("phase", "alpha_t", "alpha") if name in values), [])
    return _checked(values, str(file))


def _checked(values: object, where: str) -> torch.Tensor:
    try:
        numbers = torch.as_tensor(np.asarray(values, dtype=np.float32).ravel())
    except (TypeError, ValueError) as error:
        raise CardioDiTError(f"{where} holds something else than numbers") from error
    if not 1 <= len(numbers) <= MOST_PHASES or not torch.isfinite(numbers).all():
        raise CardioDiTError(f"{where} holds {len(numbers)} phases; 1 to {MOST_PHASES} finite numbers were expected")
    return numbers
