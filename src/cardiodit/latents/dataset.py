"""A cohort's latents as a data set: all files checked when it is opened, each read when it is asked for."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch.utils.data import Dataset

from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging.geometry import Triple, common_spacing
from cardiodit.imaging.manifest import Case, read_table
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents.encoder import COLUMN
from cardiodit.latents.file import LatentHeader, read_header, read_latent
from cardiodit.latents.identity import identity_of


class LatentCohort(Dataset[torch.Tensor]):
    """The latents that a manifest of `cardiodit encode` names, in its order, not multiplied by the scaling factor.

    Args:
        cases: a row each; `image` is the latent file.
        headers: what each file says of itself.
    """

    def __init__(self, cases: Sequence[Case], headers: Sequence[LatentHeader]) -> None:
        self.cases = list(cases)
        self.headers = list(headers)

    @classmethod
    def open(cls, manifest: Path | str, vae_identity: str | None = None) -> Self:
        """Reads the manifest and every header; all problems come in one error.

        Args:
            manifest: with a column `latent`; relative paths are relative to it.
            vae_identity: that of the VQ model which must have made the latents (`identity_of_vae`).
        """
        manifest = Path(manifest)
        problems = Problems(f"The latents of {manifest} cannot be used")
        cases = _read_cases(manifest, problems)
        headers: list[LatentHeader] = []
        for case in cases:
            try:
                headers.append(read_header(case.image))
            except FileNotFoundError:
                problems.add(f"{case.image} does not exist")
            except (CardioDiTError, OSError) as error:
                problems.add(str(error))
        _check_alike(headers, vae_identity, problems)
        problems.raise_if_any(
            "`cardiodit encode --ids IMAGES.csv --vae MODEL --output_dir "
            f"{manifest.parent}` encodes what is missing, damaged or of another VQ model anew, and keeps the rest."
        )
        return cls(cases, headers)

    @property
    def channels(self) -> int:
        return self.headers[0].shape[0]

    @property
    def size(self) -> tuple[int, ...]:
        """`(D, h, w, t)` of a cine's latents, `(h, w, d)` of a volume's."""
        return self.headers[0].shape[1:]

    @property
    def identity(self) -> str:
        """Of all latents and their order: the same data, whatever the files and folders are called."""
        told = [header.to_dict() for header in self.headers]
        return identity_of([{key: value for key, value in one.items() if key != "steps"} for one in told])

    @property
    def preprocessing(self) -> str:
        """Its identity, which all have."""
        return self.headers[0].preprocessing

    @property
    def steps(self) -> Preprocessing | None:
        """The preprocessing itself; None where an older version, which did not keep it, wrote the latents."""
        told = self.headers[0].steps
        return None if told is None else Preprocessing.from_dict(told)

    @property
    def spacing(self) -> Triple | None:
        """Voxel size in mm of the prepared volumes; None where one is unknown or they are not all the same."""
        return common_spacing([header.geometry for header in self.headers])

    def labels(self, column: str = "label") -> list[str]:
        """A column of the manifest as written; an error where a row has none."""
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
            raise CardioDiTError(f"{self.cases[index].image} was encoded anew while it was in use. Start again.")
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
            problems.add(f"line {line}: {name} is that of line {lines[name]}")
        lines.setdefault(name, line)
        cases.append(Case(manifest.parent / name, row.get("subject") or name, row, manifest.parent))
    return cases


def _check_alike(headers: Sequence[LatentHeader], vae_identity: str | None, problems: Problems) -> None:
    """One VQ model, the expected one; one preprocessing, one precision, one shape."""
    strangers = sum(header.vae != vae_identity for header in headers) if vae_identity else 0
    if strangers:
        problems.add(f"{strangers} of {len(headers)} were made by another VQ model than the one given")
    for name, text in [
        ("vae", "VQ models"),
        ("preprocessing", "preprocessings"),
        ("precision", "precisions"),
        ("shape", "shapes"),
    ]:
        counts = Counter(getattr(header, name) for header in headers)
        if len(counts) > 1:
            kinds = ", ".join(f"{number} of {_short(value)}" for value, number in counts.most_common())
            problems.add(f"they are of {len(counts)} {text}: {kinds}")


def _short(value: str | tuple[int, ...]) -> str:
    return value[:12] if isinstance(value, str) else str(value)
