"""A cohort's latents as a data set, the masks stored with them, and the scaling factor measured on them."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import PICKLES, read_object, refuse_pickle
from cardiodit.errors import CardioDiTError, Problems, reading
from cardiodit.imaging.geometry import Triple, common_spacing
from cardiodit.imaging.manifest import Case, read_table
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents.file import (
    LatentHeader,
    file_of,
    identity_of_headers,
    name_in_file,
    read_headers,
    read_latent,
)

COLUMN = "latent"  # of a manifest of latents
OPENED_AT_ONCE = 8  # files


class LatentCohort(Dataset[torch.Tensor]):
    """The latents of a manifest written by `cardiodit encode`, in its order, not multiplied by the scaling factor.

    All headers are checked when the cohort is opened; latents are read when they are accessed.

    Args:
        cases: rows of the manifest; `image` is the latent file.
        headers: headers of the latent files.
    """

    def __init__(self, cases: Sequence[Case], headers: Sequence[LatentHeader]) -> None:
        self.cases = list(cases)
        self.headers = list(headers)

    @classmethod
    def open(cls, manifest: Path | str, vae_identity: str | None = None, any_size: bool = False) -> Self:
        """Read the manifest and every header, and report all problems in one error.

        Args:
            manifest: CSV with a column `latent`; relative paths are relative to the manifest.
            vae_identity: identity of the VQ model that must have made the latents (`identity_of_vae`).
            any_size: allow latents of different sizes; `size` is then the largest along each axis.
        """
        manifest = Path(manifest)
        problems = Problems(f"The latents of {manifest} cannot be used")
        cases = _read_cases(manifest, problems)
        headers = _read_all_headers([case.image for case in cases], problems)
        _check_consistency(headers, vae_identity, problems, any_size)
        problems.raise_if_any(
            f"`cardiodit encode --ids IMAGES.csv --vae MODEL --output_dir {manifest.parent}` keeps what is usable and "
            "encodes again what is missing, damaged or from another VQ model."
        )
        return cls(cases, headers)

    @property
    def channels(self) -> int:
        return self.headers[0].shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """Size of the latents: `(D, h, w, t)` for cine, `(h, w, d)` for volumes."""
        return tuple(max(lengths) for lengths in zip(*{header.shape[1:] for header in self.headers}, strict=True))

    @property
    def identity(self) -> str:
        """Hash of all latents and their order, independent of the names of files and folders."""
        return identity_of_headers(self.headers)

    @property
    def preprocessing(self) -> str:
        """Identity of the preprocessing that all latents share."""
        return self.headers[0].preprocessing

    @property
    def steps(self) -> Preprocessing | None:
        """The preprocessing; None if an older version, which did not store it, wrote the latents."""
        steps = self.headers[0].steps
        return None if steps is None else Preprocessing.from_dict(steps)

    @property
    def spacing(self) -> Triple | None:
        """Voxel size of the preprocessed volumes in mm; None if one is unknown or they differ."""
        return common_spacing([header.geometry for header in self.headers])

    def labels(self, column: str = "label") -> list[str]:
        """Return a column of the manifest, or raise if it is empty in any row."""
        labels = [case.row.get(column, "") for case in self.cases]
        if empty := [case.image.name for case, label in zip(self.cases, labels, strict=True) if not label]:
            columns = ", ".join(self.cases[0].row)
            raise CardioDiTError(
                f"The column {column!r} is missing or empty for {len(empty)} of {len(labels)} latents, first for "
                f"{empty[0]}. The manifest in {self.cases[0].folder} has the columns {columns}."
            )
        return labels

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> torch.Tensor:
        header, latents = read_latent(self.cases[index].image)
        if header != self.headers[index]:
            raise CardioDiTError(f"{self.cases[index].image} was encoded again while it was in use. Start again.")
        return latents


def _read_cases(manifest: Path, problems: Problems) -> list[Case]:
    cases: list[Case] = []
    lines: dict[str, int] = {}
    for line, row in read_table(manifest, (COLUMN,)):
        name = row[COLUMN]
        if not name:
            problems.add(f"line {line}: the column {COLUMN!r} is empty")
            continue
        if name in lines:
            problems.add(f"line {line}: {name} is already in line {lines[name]}")
        lines.setdefault(name, line)
        cases.append(Case(manifest.parent / name, row.get("subject") or name, row, manifest.parent))
    return cases


def _read_all_headers(places: Sequence[Path], problems: Problems) -> list[LatentHeader]:
    """Read the headers of latents, several files side by side, since opening one may take long."""

    def read(file: Path) -> dict[str, LatentHeader] | CardioDiTError:
        try:
            return read_headers(file)
        except CardioDiTError as error:
            return error

    files = list(dict.fromkeys(map(file_of, places)))
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        found = dict(zip(files, pool.map(read, files), strict=True))
    for result in found.values():
        if isinstance(result, CardioDiTError):
            problems.add(str(result))
    headers = []
    for place in places:
        result = found[file_of(place)]
        if isinstance(result, CardioDiTError):
            continue
        if (name := name_in_file(place)) in result:
            headers.append(result[name])
        else:
            problems.add(f"{file_of(place)} does not hold the latents {name}")
    return headers


def _check_consistency(
    headers: Sequence[LatentHeader], vae_identity: str | None, problems: Problems, any_size: bool = False
) -> None:
    """Check that all latents share one VQ model, the expected one, and one preprocessing, precision and shape."""
    if vae_identity and (unexpected := sum(header.vae != vae_identity for header in headers)):
        problems.add(f"{unexpected} of {len(headers)} were made by another VQ model than the one given")
    for name, plural in [
        ("vae", "VQ models"),
        ("preprocessing", "preprocessings"),
        ("precision", "precisions"),
        ("shape", "shapes"),
    ]:
        if name == "shape" and any_size:
            continue
        counts = Counter(getattr(header, name) for header in headers)
        if len(counts) > 1:
            values = [f"{n} with {v[:12] if isinstance(v, str) else v}" for v, n in counts.most_common()]
            problems.add(f"they have {len(counts)} different {plural}: {', '.join(values)}")


def read_mask(path: Path) -> np.ndarray:
    """Read a mask stored with latents, `(H, W, D, T)` or `(H, W, D)`, aligned with the model's volumes."""
    return read_labels(path).voxels


def measure_scale(tensors: Iterable[torch.Tensor]) -> float:
    """Return 1 / standard deviation of all values, in one pass with one tensor in memory at a time.

    Means and sums of squared deviations are merged as in Chan, Golub and LeVeque 1983: sums of squares would lose all
    precision if the mean is large.
    """
    count, mean, squares = 0, 0.0, 0.0
    for tensor in tensors:
        values = tensor.double()
        new_count, new_mean = values.numel(), values.mean().item()
        new_squares = (values - new_mean).square().sum().item()
        total, difference = count + new_count, new_mean - mean
        squares += new_squares + difference**2 * count * new_count / total
        mean += difference * new_count / total
        count = total
    deviation = math.sqrt(squares / (count - 1)) if count > 1 else 0.0
    if not math.isfinite(deviation) or deviation == 0:
        raise CardioDiTError(
            f"The standard deviation of {count} latent values is {deviation:g}, so there is no scaling factor. "
            "A VQ model whose latents are constant or not finite is broken."
        )
    return 1 / deviation


def write_scale(vae_folder: Path, value: float, statistics: tuple[list[float], list[float]] | None = None) -> None:
    """Write the scaling factor, and mean and deviation of each channel, into the config of a VQ model's folder."""
    path = Path(vae_folder) / "config.json"
    config = read_object(path)
    config["scaling_factor"] = value
    config["latents_mean"], config["latents_std"] = statistics or (None, None)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def use_statistics(vae: Any, path: Path) -> None:
    """Let a VQ model normalise latents by a file (JSON or NPZ) with `mean` and `std` of each channel."""
    if path.suffix in PICKLES:
        refuse_pickle(path)
    with reading(path, "statistics of latents", "Expected `mean` and `std` of each channel."):
        held = np.load(path, allow_pickle=False) if path.suffix == ".npz" else read_object(path)
        mean, deviation = (np.asarray(held[name], np.float64).ravel().tolist() for name in ("mean", "std"))
    channels = vae.config.embedding_dim
    if not len(mean) == len(deviation) == channels or not all(0 < value < math.inf for value in deviation):
        raise CardioDiTError(
            f"{path} holds {len(mean)} means and {len(deviation)} standard deviations. The latents have {channels} "
            "channels, so as many means and positive deviations were expected."
        )
    vae.register_to_config(latents_mean=mean, latents_std=deviation, scaling_factor=1.0)


def channel_statistics(tensors: Iterable[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Return mean and population standard deviation of each channel of latents `(C, ...)`, as `measure_scale` does."""
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for tensor in tensors:
        values = tensor.double().flatten(1)
        new_count, new_mean = values.shape[1], values.mean(dim=1)
        difference, total = new_mean - mean, count + new_count
        squares = squares + (values - new_mean[:, None]).square().sum(dim=1)
        squares = squares + difference.square() * count * new_count / total
        mean, count = mean + difference * new_count / total, total
    deviation = (squares / max(count, 1)).sqrt()
    if not deviation.ndim or not bool((torch.isfinite(deviation) & (deviation > 0)).all()):
        raise CardioDiTError(
            f"The standard deviations of the channels of {count} latent positions are {deviation.tolist()}: a VQ model "
            "whose latents are constant in a channel or not finite is broken."
        )
    return mean.tolist(), deviation.tolist()
