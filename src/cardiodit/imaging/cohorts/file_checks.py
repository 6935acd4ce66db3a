"""Reading and checking of one file of a cohort, and the differences between cines and CT."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.checks import Findings, check_cine, check_ct, check_mask, content_of
from cardiodit.imaging.cohorts.cohort import CohortFile
from cardiodit.imaging.dicom import DicomVolume, read_dicom, read_dicom_ct
from cardiodit.imaging.geometry import Triple
from cardiodit.imaging.intensity import Limit, parse_percentile
from cardiodit.imaging.label_order import ACDC_ORDER, OURS, parse_order
from cardiodit.imaging.nifti import notes_on_header, read_labels, read_nifti, write_nifti
from cardiodit.imaging.npz import read_npz
from cardiodit.imaging.orientation import (
    APEX_TO_BASE,
    ASSUMED,
    BASE_TO_APEX,
    StorageOrder,
    largest_pool,
    order_of_cine,
    order_of_ct,
)
from cardiodit.imaging.pictures import Tile, tile_of
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing
from cardiodit.imaging.resampling import plan_axis
from cardiodit.imaging.volume import Volume

AXES = ("H", "W", "D")
# Presets that crop or pad a 3D volume to a fixed size.
FIELDS_OF_VIEW = [n for n, p in PRESETS.items() if p.fit == "crop" and p.frames is None and None not in p.size]
PICTURE_HU = (-1000, 1000)


@dataclass(frozen=True)
class Preparation:
    """Settings of the preparation of a cohort.

    Args:
        fractions: shares of the patients for training, validation and test.
        seed: random seed of the split.
        own_split: use the cohort's own split instead.
        exclude: leave out files with problems instead of stopping; the report lists them.
        pattern: use only files whose path below the source, or whose name, matches this glob.
        min_slices: leave out cines of fewer slices: long-axis views and the like are not short-axis stacks.
        all_cines: keep all cines of a subject; otherwise only the one with the most slices, the first of several.
        time_unit: "sec" or "msec", if the headers name the wrong one.
        frame_time: seconds between frames, if the headers do not store it.
        workers: processes; does not change the result.
        spacing: mm between the voxels of npz files, which do not store it; default: the cohort's.
        preset: CT only: preset whose field of view the report compares with; default: the cohort's.
    """

    fractions: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    own_split: bool = False
    exclude: bool = False
    pattern: str | None = None
    min_slices: int = 4
    all_cines: bool = False
    time_unit: str | None = None
    frame_time: float | None = None
    workers: int = 1
    spacing: Triple | None = None
    preset: str | None = None


@dataclass
class CheckedFile:
    """A file, what its voxels showed, and what is wrong with it.

    Args:
        content: hash of the voxels.
        not_used: why it is left out although it is no problem: no short-axis stack, or one of several of a subject.
        converted: NIfTI file that was written, relative to the output folder.
        tile: its picture in the overview.
        frame_time, slices, order: cine only.
        beat_share: cine from DICOM only: the frames' time over that of a beat.
        hounsfield: CT only: lowest and highest value.
        view: CT only: its size against the preset's.
    """

    file: CohortFile
    findings: Findings = field(default_factory=Findings)
    shape: tuple[int, ...] = ()
    spacing: Triple | None = None
    content: str = ""
    not_used: str = ""
    converted: Path | None = None
    tile: Tile | None = None
    frame_time: float | None = None
    beat_share: float | None = None
    slices: str = ""
    order: StorageOrder = field(default_factory=StorageOrder)
    hounsfield: tuple[float, float] = (0.0, 0.0)
    view: "FieldOfView | None" = None

    @property
    def is_used(self) -> bool:
        return not self.problems and not self.not_used

    @property
    def problems(self) -> list[str]:
        """Full sentences; empty if the file can be used."""
        return [*self.file.problems, *(f"{self.file.image} {problem}" for problem in self.findings.problems)]

    @property
    def notes(self) -> list[str]:
        return [f"{self.file.image} {note}" for note in self.findings.notes]


@dataclass(frozen=True)
class Kind:
    """Differences between cines and CT.

    Args:
        plural: what its files are called in messages.
        upright: how a correctly oriented picture looks.
        check: problems of a volume on its own.
        read_dicom: how a folder of DICOM files is read.
        examine: fills a `CheckedFile` from a volume without problems.
        columns: further columns of the manifest.
    """

    plural: str
    upright: str
    check: Callable[[Volume], Findings]
    read_dicom: Callable[[Path], DicomVolume]
    examine: Callable[[Volume, CheckedFile, Preparation], None]
    columns: Callable[[CheckedFile], dict[str, str]]


def check_file(file: CohortFile, kind: str, folder: Path, how: Preparation) -> CheckedFile:
    """Read and check one file with its masks; write it to `folder` if it is not NIfTI. Errors become problems."""
    entry, of_kind = CheckedFile(file), KINDS[kind]
    try:
        if not _is_utf8(file.image):
            raise CardioDiTError(f"{file.image} has a name that is not UTF-8 text, so no table can hold it. Rename it.")
        volume = _read(file, of_kind, how, entry)
        if volume.is_cine and (slices := volume.voxels.shape[2]) < how.min_slices:
            number = f"{slices} slice{'' if slices == 1 else 's'}"
            entry.not_used = f"has {number}, so it is not a short-axis stack (kept with --min_slices {slices})"
            return entry
        entry.findings += of_kind.check(volume)
        if entry.findings.problems:
            return entry
        entry.shape, entry.spacing = volume.voxels.shape, volume.geometry.spacing
        entry.content = content_of(volume.voxels)
        of_kind.examine(volume, entry, how)
        if not entry.problems and not _is_nifti(file.image):
            entry.converted = Path("images") / f"{file.image.name.removesuffix('.npz')}.nii.gz"
            write_nifti(folder / entry.converted, volume.voxels, volume.geometry)
    except CardioDiTError as error:
        message, name = str(error), f"{file.image} "
        is_about_file = message.startswith(name)
        entry.findings.problems.append(message.removeprefix(name) if is_about_file else f"cannot be read. {message}")
    return entry


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_nifti(path: Path) -> bool:
    return path.name.endswith((".nii", ".nii.gz"))


def _read(file: CohortFile, kind: Kind, how: Preparation, entry: CheckedFile) -> Volume:
    if _is_nifti(file.image):
        volume = read_nifti(file.image, how.time_unit)
        entry.findings.notes += notes_on_header(file.image)
        return volume
    if file.image.suffix == ".npz":
        if how.spacing is None:
            raise CardioDiTError(f"{file.image} does not store its voxel size. Give it with --spacing.")
        volume, notes = read_npz(file.image, how.spacing)
    else:
        result = kind.read_dicom(file.image)
        volume, notes = result.volume, result.notes
        entry.beat_share = result.beat_share
    entry.findings.notes += notes
    return volume


def _read_mask(path: Path | None, volume: Volume, entry: CheckedFile) -> np.ndarray | None:
    """Return a mask's voxels; problems with it are those of its image."""
    if path is None:
        return None
    try:
        mask = read_labels(path)
        problems = check_mask(mask, volume).problems
    except CardioDiTError as error:
        problems = [f"cannot be read. {error}"]
    entry.findings.problems += [f"its mask {path.name} {problem}" for problem in problems]
    return None if problems else mask.voxels


def _check_labels(masks: Sequence[np.ndarray | None], entry: CheckedFile) -> tuple[int, int] | None:
    """Compare the labels of a heart's masks with their order, or note that the order is unknown.

    Return the labels of the right and the left ventricle, if they are known.
    """
    labels = sorted({int(label) for mask in masks if mask is not None for label in np.unique(mask)})
    shown = ", ".join(map(str, labels))
    if not entry.file.mask_order:
        if labels:
            entry.findings.notes.append(
                f"has masks with the labels {shown}, and no mask_order says which is which: give it in --table, "
                f"such as {ACDC_ORDER}"
            )
        return None
    try:
        order = parse_order(entry.file.mask_order)
    except CardioDiTError as error:
        entry.findings.problems.append(f"cannot be used. {error}")
        return None
    if order != OURS and (unknown := set(labels) - {0, *order.values()}):  # in our order, more may be labelled
        entry.findings.problems.append(
            f"has masks with the labels {shown}, and {', '.join(map(str, sorted(unknown)))} is not in the order "
            f"{entry.file.mask_order!r}"
        )
    return order["RV"], order["LV"]


# ---- Cines


def _examine_cine(volume: Volume, entry: CheckedFile, how: Preparation) -> None:
    """Find the frames of end-diastole and end-systole and the order of the slices, and draw the picture."""
    file = entry.file
    entry.frame_time = volume.geometry.frame_time or how.frame_time
    masks = [_read_mask(path, volume, entry) for path in (file.mask, file.ed_mask, file.es_mask)]
    ventricles = _check_labels(masks, entry)
    _find_frames(volume, masks[0], entry)
    labels = masks[0] if masks[0] is not None else masks[1]
    order = entry.order = order_of_cine(volume, labels, file.ed_frame, ventricles=ventricles)
    if order.turn:
        entry.findings.notes.append(
            f"shows the right ventricle on the right of the picture by its header and mask; it is turned by "
            f"{order.turn} degrees (column turn)"
        )
    if order.slices_from != ASSUMED:
        entry.slices = APEX_TO_BASE if 2 in order.flips else BASE_TO_APEX
    else:
        entry.findings.notes.append("does not show which end is the base; its slices are used as stored")
    if file.ed_frame is None and order.first_frame_from == "mask":
        file.ed_frame = order.first_frame
    shown = None
    if labels is not None:
        four = labels if labels.ndim == 4 else labels[..., None]
        shown = order.apply(Volume(four, volume.geometry)).voxels
    entry.tile = tile_of(file.subject, order.apply(volume), shown)


def _find_frames(volume: Volume, labels: np.ndarray | None, entry: CheckedFile) -> None:
    """Set end-diastole and end-systole from the cohort's table, files of single frames, or labelled frames."""
    file, frames = entry.file, volume.voxels.shape[3]
    for name in ("ed", "es"):
        image, number = getattr(file, f"{name}_image"), getattr(file, f"{name}_frame")
        if image is not None and number is None:
            frame = read_labels(image).voxels
            number = next((t for t in range(frames) if np.array_equal(frame, volume.voxels[..., t])), None)
            setattr(file, f"{name}_frame", number)
            if number is None:
                entry.findings.notes.append(f"{image.name} is not one of its frames")
        if number is not None and not 0 <= number < frames:
            entry.findings.problems.append(
                f"its {name.upper()} frame {number} (counted from 0) is not one of its {frames} frames"
            )
    labelled = [] if labels is None or labels.ndim != 4 else np.flatnonzero(labels.any(axis=(0, 1, 2))).tolist()
    if labels is None or len(labelled) != 2:
        return
    # Of two labelled frames, the fuller one is end-diastole, even if the table says otherwise.
    fuller = labelled[largest_pool(labels[..., labelled])]
    by_labels, by_table = (fuller, sum(labelled) - fuller), (file.ed_frame, file.es_frame)
    if None not in by_table and by_table != by_labels:
        entry.findings.notes.append(
            f"has labels in frames {by_labels[0]} (fuller) and {by_labels[1]}, but the table names {by_table[0]} and "
            f"{by_table[1]} as end-diastole and end-systole; the labels were used"
        )
    file.ed_frame, file.es_frame = by_labels


def _cine_columns(entry: CheckedFile) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    file = entry.file
    return {
        "mask_order": file.mask_order,
        "ed_frame": number(file.ed_frame),
        "es_frame": number(file.es_frame),
        "slices": entry.slices,
        "turn": str(entry.order.turn) if entry.order.turn else "",
        "frame_time": number(entry.frame_time),
        "beat_share": "" if entry.beat_share is None else f"{entry.beat_share:.2f}",
        "vendor": file.vendor,
        "centre": file.centre,
    }


# ---- CT


@dataclass(frozen=True)
class FieldOfView:
    """Voxels along H, W and D at a preset's spacing: those of the file, and those that training takes."""

    stored: tuple[int, ...]
    target: tuple[int, ...]

    @property
    def cropped(self) -> list[str]:
        return [axis for axis, n, m in zip(AXES, self.stored, self.target, strict=True) if n > m]

    @property
    def padded(self) -> list[str]:
        return [axis for axis, n, m in zip(AXES, self.stored, self.target, strict=True) if n < m]

    def __str__(self) -> str:
        changes = [
            f"{' and '.join(axes)} {change}"
            for axes, change in ((self.cropped, "cropped"), (self.padded, "padded with air"))
            if axes
        ]
        return f"{_times(self.stored)} voxels: {', '.join(changes) or 'unchanged'}"


def field_of_view(volume: Volume, steps: Preprocessing) -> FieldOfView:
    """Compare a volume's size, at the spacing and in the orientation of `steps`, with the size that they produce."""
    turned = steps.order_of(volume).apply(volume)
    spacing = turned.geometry.spacing or (None, None, None)
    stored = [
        plan_axis(n, s, target, None, resize=False).count
        for n, s, target in zip(turned.voxels.shape, spacing, steps.spacing, strict=True)
    ]
    return FieldOfView(tuple(stored), tuple(n for n in steps.size if n is not None))


def find_preset(name: str) -> Preprocessing:
    """Return a preset with a fixed field of view."""
    if name not in FIELDS_OF_VIEW:
        raise CardioDiTError(
            f"{name!r} is not a preset that crops or pads a CT; choose from {', '.join(FIELDS_OF_VIEW)}."
        )
    return PRESETS[name]


def describe_preset(name: str) -> str:
    """Describe a preset's field of view and intensities for the report."""
    steps = find_preset(name)
    spacing = [f"{value:g}" for value in steps.spacing if value is not None]
    of = f" of {' × '.join(spacing)} mm" if spacing else " of the size in the file"
    axes = "; H points to the left, W to the front, D to the head" if steps.orient else ""
    low, high = (_describe_limit(limit, steps) for limit in (steps.intensity.low, steps.intensity.high))
    pooled = "" if steps.pool == 1 else f", then averaged to {_times([n // steps.pool for n in steps.size if n])}"
    return f"{name}, {_times(steps.size)} voxels{of}{axes}; intensities are clipped at {low} and at {high}{pooled}"


def _describe_limit(limit: Limit, steps: Preprocessing) -> str:
    if not isinstance(limit, str):
        return f"{limit:g} HU"
    if not limit.startswith("p"):
        return f"each file's {limit}"
    percentile, most = parse_percentile(limit)
    cap = "" if most is None else f" but at most {most:g} HU"
    return f"percentile {percentile:g} of each {steps.limits_of}{cap}"


def _times(counts: Sequence[int | None]) -> str:
    return " × ".join(map(str, counts))


def _examine_ct(volume: Volume, entry: CheckedFile, how: Preparation) -> None:
    """Measure the field of view and the intensities, check the mask, and draw the middle slice."""
    entry.hounsfield = float(volume.voxels.min()), float(volume.voxels.max())
    entry.view = field_of_view(volume, PRESETS[how.preset or ""])
    turned = order_of_ct(volume).apply(volume)
    middle = turned.voxels.shape[2] // 2
    plane = np.clip(turned.voxels[:, :, middle : middle + 1], *PICTURE_HU)
    entry.tile = tile_of(entry.file.subject, Volume(plane, turned.geometry))
    _read_mask(entry.file.mask, volume, entry)


KINDS = {
    "cine": Kind(
        "cines",
        "hearts should be upright, with the right ventricle on the left",
        check_cine,
        read_dicom,
        _examine_cine,
        _cine_columns,
    ),
    "ct": Kind(
        "CT",
        "the front of the patient should be at the top and the patient's left on the right",
        check_ct,
        read_dicom_ct,
        _examine_ct,
        lambda entry: {},
    ),
}
