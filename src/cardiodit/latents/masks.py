"""Masks beside latents: prepared as the image was, as label maps that any viewer opens; no path, no subject."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.manifest import Case
from cardiodit.imaging.masks import order_of_row, read_label_map
from cardiodit.imaging.nifti import read_labels, write_nifti
from cardiodit.imaging.preprocessing import Prepared
from cardiodit.imaging.volume import Volume
from cardiodit.latents.identity import identity_of

FOLDER = "masks"


class MaskStore:
    """Writes the masks of a cohort's rows into a folder beside its latents.

    Args:
        output_dir: of the latents.
        keys: columns of the manifest of images that name the masks.
        preprocessing: its identity.
    """

    def __init__(self, output_dir: Path, keys: tuple[str, ...], preprocessing: str) -> None:
        self.output_dir, self.keys, self.preprocessing = output_dir, keys, preprocessing

    def store(self, case: Case, source: str, prepare: Callable[[], Prepared]) -> dict[str, str]:
        """A row's masks, by key the names of their files relative to the folder; those that are there are kept.

        Args:
            case: the row.
            source: identity of its image.
            prepare: makes the image, whose way the masks go, where one must be made.
        """
        found, prepared = {}, None
        for key in self.keys:
            labels = _read(case, key)
            name = f"{FOLDER}/{self._identity(key, labels, source)[:20]}.nii.gz"
            path = self.output_dir / name
            if not _is_sound(path):
                prepared = prepared or prepare()
                path.parent.mkdir(exist_ok=True)
                write_nifti(path, _follow(prepared, labels, key, case), prepared.volume.geometry)
            found[key] = name
        return found

    def _identity(self, key: str, labels: Volume, source: str) -> str:
        return identity_of(
            {
                "key": key,
                "voxels": content_of(labels.voxels),
                "geometry": labels.geometry.to_dict(),
                "image": source,
                "preprocessing": self.preprocessing,
            }
        )


def read_mask(path: Path) -> np.ndarray:
    """`(H, W, D, T)` or `(H, W, D)`, as the model's volumes lie."""
    return read_labels(path).voxels


def _read(case: Case, key: str) -> Volume:
    path = case.path(key)
    if path is None:
        raise CardioDiTError(f"The column {key!r} names no mask for {case.image.name}.")
    return read_label_map(path, order_of_row(case.row, key))


def _follow(prepared: Prepared, labels: Volume, key: str, case: Case) -> np.ndarray:
    voxels = prepared.apply_to_mask(labels)
    if voxels.shape != prepared.volume.voxels.shape:
        raise CardioDiTError(
            f"The mask {case.path(key)} becomes {voxels.shape}, its image {prepared.volume.voxels.shape}: a cine needs "
            "a mask of every frame."
        )
    return voxels


def _is_sound(path: Path) -> bool:
    """Whether a file is there and can be read to its end."""
    if not path.is_file():
        return False
    try:
        read_mask(path)
    except (CardioDiTError, OSError):
        return False
    return True
