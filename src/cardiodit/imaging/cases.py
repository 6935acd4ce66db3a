"""From a row of a manifest to a volume: what the manifest knows of a file goes before what the file says."""

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.imaging.preprocessing import Prepared, Preprocessing
from cardiodit.imaging.volume import Volume


def read_case(case: Case) -> Volume:
    """The image as stored, with the manifest's `frame_time` where it has one."""
    return read_nifti(case.image, frame_time=case.number("frame_time"))


def order_of_case(case: Case, volume: Volume, steps: Preprocessing) -> StorageOrder:
    """How the axes of a case's volume become ours, with the manifest's `ed_frame` and `slices`."""
    frame = case.number("ed_frame")
    return steps.order_of(volume, None, None if frame is None else int(frame), case.row.get("slices") or None)


def prepare_case(case: Case, steps: Preprocessing) -> Prepared:
    """The image as a model sees it, beginning at the manifest's `ed_frame`, `slices` from base to apex."""
    volume = read_case(case)
    try:
        return steps(volume, order_of_case(case, volume, steps))
    except CardioDiTError as error:
        raise CardioDiTError(f"{case.image} cannot be prepared. {error}") from error


def prepare_mask(case: Case, prepared: Prepared, column: str = "mask") -> Volume | None:
    """The labels of a column on the way of their image; None where the row has none."""
    path = case.path(column)
    if path is None:
        return None
    try:
        voxels = prepared.follow(read_labels(path))
    except CardioDiTError as error:
        raise CardioDiTError(f"{path} cannot be prepared. {error}") from error
    return Volume(voxels, prepared.volume.geometry)
