"""Phantom hearts and random CTs, stored as scanners and cohorts store them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.phantom import Phantom, draw_heart, render
from cardiodit.imaging.volume import Volume

TO_LPS = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture(scope="session")
def small_heart() -> Callable[..., Phantom]:
    """Return a function that renders the phantom of a seed."""

    def make(seed: int = 0, group: str = "normal", size: tuple = (32, 28, 5, 8)) -> Phantom:
        random = np.random.default_rng(seed)
        return render(draw_heart(group, random), size, random)

    return make


def dicom_image(storage: str, geometry: Geometry, d: int, pixels: np.ndarray, **attributes: Any) -> Any:
    """Return a classic DICOM image of slice d; `attributes` are set or, with None, absent."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = getattr(pydicom.uid, storage)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.PatientName, data.SeriesInstanceUID = "Secret^Name", "1.2.3"
    direction = TO_LPS @ np.array(geometry.direction)
    data.ImageOrientationPatient = [*direction[:, 0], *direction[:, 1]]
    data.ImagePositionPatient = list(TO_LPS @ (geometry.affine @ [0, 0, d, 1])[:3])
    data.PixelSpacing, data.SliceThickness = [geometry.spacing[1], geometry.spacing[0]], geometry.spacing[2]
    data.Rows, data.Columns = pixels.shape
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 15, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = np.ascontiguousarray(pixels, dtype=np.uint16).tobytes()
    for name, value in attributes.items():
        if value is not None:
            setattr(data, name, value)
        elif name in data:
            delattr(data, name)
    return data


def one_picture(volume: Volume, d: int, t: int, **changes: Any) -> Any:
    """Return the DICOM image of one slice and phase of a cine."""
    attributes = {
        "SeriesNumber": 4,
        "SeriesDescription": "cine_sax_stack",
        "TriggerTime": t * volume.geometry.frame_time * 1000,
        "TemporalPositionIdentifier": t + 1,
        "AcquisitionTime": f"1015{10 + t}.25",
        "InstanceNumber": d * volume.voxels.shape[3] + t + 1,
        "NominalInterval": round(volume.beat_time * 1000),
    }
    return dicom_image("MRImageStorage", volume.geometry, d, volume.voxels[:, :, d, t].T, **{**attributes, **changes})


@pytest.fixture
def write_dicom() -> Callable[..., list[Path]]:
    """Write each slice and phase as a file with a meaningless name; `changes` apply to all."""

    def write(folder: Path, volume: Volume, **changes: Any) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        depth, frames = volume.voxels.shape[2:]
        names = np.random.default_rng(len(list(folder.iterdir()))).permutation(depth * frames)
        paths = []
        for d in range(depth):
            for t in range(frames):
                path = folder / f"IM{len(list(folder.iterdir())):02d}{names[d * frames + t]:04d}"
                one_picture(volume, d, t, **changes).save_as(path, enforce_file_format=True)
                paths.append(path)
        return paths

    return write


def one_slice(volume: Volume, d: int, **changes: Any) -> Any:
    """Return a slice of a CT in Hounsfield units as scanners store it: unsigned, 1024 higher."""
    attributes = {
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SeriesNumber": 3,
        "SeriesDescription": "Chest",
        "InstanceNumber": d + 1,
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
    }
    pixels = volume.voxels[:, :, d].T + 1024
    return dicom_image("CTImageStorage", volume.geometry, d, pixels, **{**attributes, **changes})


@pytest.fixture
def write_ct() -> Callable[..., list[Path]]:
    """Write each slice as a file, numbered against its position; `changes` apply to all, `name` to their files."""

    def write(folder: Path, volume: Volume, name: str = "1", **changes: Any) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        depth = volume.voxels.shape[2]
        paths = [folder / f"{name}-{depth - d:03d}.dcm" for d in range(depth)]
        for d, path in enumerate(paths):
            one_slice(volume, d, **changes).save_as(path, enforce_file_format=True)
        return paths

    return write


@pytest.fixture
def ct() -> Callable[..., Volume]:
    """Return a function that makes random Hounsfield units, from outside the scanner's circle to bone."""

    def make(seed: int = 0, size: tuple = (20, 16, 10), spacing: tuple = (0.7, 0.7, 1.25)) -> Volume:
        affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
        affine[:3, 3] = 120, 90, -300
        voxels = np.random.default_rng(seed).integers(-1024, 1500, size).astype(np.int16)
        return Volume(voxels, Geometry.of_affine(affine))

    return make
