"""What the look at one file of a cohort brought."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.checks import Findings
from cardiodit.imaging.cohorts.found import CineFile, CTFile
from cardiodit.imaging.cohorts.view import View
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.imaging.pictures import Tile

File = TypeVar("File", bound=CineFile | CTFile)


@dataclass
class Checked(Generic[File]):
    """A file, what its voxels told, and what is wrong with it."""

    file: File
    findings: Findings = field(default_factory=Findings)
    shape: tuple[int, ...] = ()
    spacing: tuple[float, float, float] | None = None
    content: str = ""
    converted: Path | None = None
    tile: Tile | None = None

    def add_error(self, error: CardioDiTError) -> None:
        """What cannot be read is a problem of its file, not a crash."""
        said, name = str(error), str(self.file.image)
        is_of_file = said.startswith(f"{name} ")
        self.findings.problems.append(said.removeprefix(f"{name} ") if is_of_file else f"cannot be read. {said}")


@dataclass
class CheckedCine(Checked[CineFile]):
    frame_time: float | None = None
    slices: str = ""
    order: StorageOrder = field(default_factory=StorageOrder)


@dataclass
class CheckedCT(Checked[CTFile]):
    units: tuple[float, float] | None = None  # the lowest and the highest value, HU
    view: View | None = None
