"""Segmenters: networks that label the parts of a heart, opened by name and used alike whatever their grid and labels.

A cine in [-1, 1] is resampled to the network's grid (`Segmenter.grid`) with weighted means. Its labels are resampled
back by nearest neighbour and mapped to our order: RV 1, myocardium 2, LV 3. In-plane directions stay as they are in the
cine; external networks were trained on files in their scanner's directions, sometimes with rotations and flips.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cardiodit._util.foreign_files import check_file, read_object
from cardiodit.errors import CardioDiTError, reading, reason_of
from cardiodit.evaluation.features.weights import hash_of_weights
from cardiodit.evaluation.metrics.anatomy import TOTALSEGMENTATOR
from cardiodit.evaluation.user_code import hash_of_sources, load_own
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, find_model
from cardiodit.hub.load import CONFIG, HUB_NAME
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.label_order import ACDC_ORDER, OURS, parse_order
from cardiodit.imaging.masks import reorder
from cardiodit.imaging.preprocessing import FILL
from cardiodit.imaging.resampling import apply_plans, index_map, plan_axis
from cardiodit.models.loading import bounded_model
from cardiodit.models.segmenter import HeartSegmenter

BATCH = 16  # planes per forward pass

Network = Callable[[np.ndarray, Geometry], np.ndarray]  # (H, W, D, T) in [-1, 1] → labels on the same grid


@dataclass(frozen=True)
class Grid:
    """Spacing (mm) to resample to, and size (voxels) to then crop or pad to, along H, W, D; None keeps an axis."""

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    size: tuple[int | None, int | None, int | None] = (None, None, None)


@dataclass(frozen=True)
class Segmenter:
    """A network that labels the parts of a heart.

    Args:
        name: as requested.
        identity: hash of its weights, or of a function's source.
        labels: its label order, in the format of a manifest's `mask_order`.
        grid: grid that cines are resampled to.
        network: function from a cine on this grid to labels in the network's order.
        note: what a reader of its numbers should know.
        structures: label of each structure by its name, for a network that labels CT volumes and not hearts.
    """

    name: str
    identity: str
    labels: str
    grid: Grid
    network: Network
    note: str = ""
    structures: dict[str, int] | None = None

    def segment_volume(self, volume: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Return labels for a CT volume `(H, W, D)` in [-1, 1], as numbered in `structures`."""
        if self.structures is None:
            raise CardioDiTError(
                f"The segmenter {self.name} labels hearts in cines. For CT volumes, name a function with an attribute "
                '`structures`, such as {"liver": 5, "heart": 51}.'
            )
        labels = self.network(volume, geometry)
        if labels.shape != volume.shape:
            raise CardioDiTError(
                f"The segmenter {self.name} returned labels of the shape {labels.shape} for a volume of the shape "
                f"{volume.shape}."
            )
        return labels

    def segment(self, cine: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Return labels (uint8) for a cine `(H, W, D, T)` in [-1, 1]: RV 1, myocardium 2, LV 3."""
        if cine.ndim != 4:
            raise CardioDiTError(f"Only a cine (H, W, D, T) can be segmented, got the shape {tuple(cine.shape)}.")
        if geometry.spacing is None and any(self.grid.spacing):
            raise CardioDiTError(
                f"The segmenter {self.name} needs a spacing of {self.grid.spacing} mm, but the voxel size of this cine "
                "is unknown. Give its spacing in mm."
            )
        axes = zip(cine.shape, geometry.spacing or (None,) * 3, self.grid.spacing, self.grid.size, strict=False)
        plans = [plan_axis(n, spacing, target, size, resize=False) for n, spacing, target, size in axes]
        resampled = apply_plans(cine, plans, FILL)
        labels = self.network(resampled, geometry.reindexed(index_map(plans)))
        if labels.shape != resampled.shape:
            raise CardioDiTError(
                f"The segmenter {self.name} returned labels of the shape {labels.shape} for a cine of the shape "
                f"{resampled.shape}."
            )
        ours = reorder(labels, self.labels)
        return np.ascontiguousarray(apply_plans(ours, [plan.inverse() for plan in plans], 0, labels=True))


FUNCTION_NAME = r"([\w.]+|.+\.py):\w+"


def labels_volumes(spec: str | Path) -> bool:
    """Return whether a segmenter is a function that labels CT volumes; all others label hearts."""
    name = str(spec)
    if re.fullmatch(CINEMA_NAME, name) or not re.fullmatch(FUNCTION_NAME, name):
        return False
    return bool(getattr(load_own(name, "a segmenter")[1], "structures", None))


def open_segmenter(spec: str | Path, device: str = "cpu") -> Segmenter:
    """Open a segmenter.

    Args:
        spec: one of these:
            - the name of a bundled segmenter;
            - the folder of a `HeartSegmenter` or of its training run, or its name on the Hub;
            - the folder of a MONAI bundle, such as `ventricular_short_axis_3label`;
            - "cinema", "cinema:mnms" or "cinema:mnms:1" (trained on acdc, mnms or mnms2; seed 0 to 2), for which the
              package `cinema` must be installed;
            - "module:function" or "file.py:function": a function from a cine `(H, W, D, T)` and its `Geometry` to label
              maps, whose order is given by its attribute `mask_order`, such as "RV=1 MYO=2 LV=3"; or from a CT volume
              `(H, W, D)`, whose labels are named by its attribute `structures`: a dictionary such as {"liver": 5}, or
              "totalsegmentator" for the numbers of that network's task "total".
        device: where networks run.
    """
    name = str(spec)
    if match := re.fullmatch(CINEMA_NAME, name):
        return _open_cinema(name, match["data"] or "acdc", int(match["seed"] or 0), device)
    place = Path(find_model(spec))
    if place.is_dir():
        return (_open_bundle if (place / BUNDLE_METADATA).is_file() else _open_folder)(name, place, device)
    if re.fullmatch(FUNCTION_NAME, name):
        return _open_function(name)
    if not re.fullmatch(HUB_NAME, name):
        raise CardioDiTError(
            f"There is no segmenter {name}: it is not a folder, a name on the Hub (org/name), module:function, "
            f"file.py:function, {PHANTOM_SEGMENTER} or cinema."
        )
    try:
        model = HeartSegmenter.from_pretrained(name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CardioDiTError(f"There is no folder {name}, and no segmenter on the Hub: {reason}") from error
    return _heart_segmenter(name, model, device)


# Our own network

TRAINED = Path("best", "segmenter")  # in the folder of a training run


def _open_folder(name: str, folder: Path, device: str) -> Segmenter:
    place = next((place for place in (folder, folder / TRAINED) if (place / CONFIG).is_file()), None)
    if place is None:
        raise CardioDiTError(
            f"{folder} contains no segmenter: neither the {CONFIG} of a HeartSegmenter, here or in {TRAINED}, nor the "
            f"{BUNDLE_METADATA} of a MONAI bundle."
        )
    class_name = read_object(place / CONFIG).get("_class_name")
    if class_name != HeartSegmenter.__name__:
        raise CardioDiTError(f"{place / CONFIG} belongs to a {class_name}; expected a HeartSegmenter.")
    return _heart_segmenter(name, HeartSegmenter.from_pretrained(place), device)


def _heart_segmenter(name: str, model: HeartSegmenter, device: str) -> Segmenter:
    """Wrap our network. Slices are not resampled: that would mix voxels that are centimetres apart."""
    height, width, _ = model.config.spacing or (None, None, None)
    model = model.to(device).eval()
    return Segmenter(
        name=name,
        identity=hash_of_weights(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(height, width, None)),
        network=lambda cine, _: model.segment(cine, BATCH),
        note="It was trained on synthetic phantoms only, not on patients." if name == PHANTOM_SEGMENTER else "",
    )


# MONAI bundles of 2D networks, such as `ventricular_short_axis_3label`

BUNDLE_METADATA, BUNDLE_CONFIG = Path("configs", "metadata.json"), Path("configs", "inference.json")
BUNDLE_WEIGHTS, BUNDLE_PICKLE = Path("models", "model.safetensors"), Path("models", "model.pt")
PLANE = 256  # smallest size in voxels along H and W
STEP = 16  # the U-Net halves them four times


def _open_bundle(name: str, folder: Path, device: str) -> Segmenter:
    metadata = read_object(folder / BUNDLE_METADATA)
    with reading(folder / BUNDLE_METADATA, "the metadata of a MONAI bundle", "Download the bundle again."):
        channels = dict(metadata["network_data_format"]["outputs"]["pred"]["channel_def"])
    model = _bundle_network(folder).to(device).eval()
    return Segmenter(
        name=name,
        identity=hash_of_weights(model),
        labels=_order_of_channels(channels, folder),
        grid=Grid(),
        network=lambda cine, _: segment_planes(model, cine, device),
        note="It segments planes one by one, at the cine's own voxel size.",
    )


def _bundle_network(folder: Path) -> torch.nn.Module:
    """Build the U-Net. Only its settings are read from the bundle, since a bundle's configs may contain code."""
    from monai.networks.nets.unet import UNet
    from safetensors.torch import load_file

    weights = folder / BUNDLE_WEIGHTS
    if not weights.is_file():
        raise CardioDiTError(
            f"The bundle {folder} has no {BUNDLE_WEIGHTS}. Convert the bundle's own weights: cardiodit convert weights "
            f"{folder / BUNDLE_PICKLE} --output {weights}"
        )
    config = read_object(folder / BUNDLE_CONFIG)
    check_file(weights)
    try:
        settings = {key: value for key, value in config["network_def"].items() if key != "_target_"}
        with bounded_model():
            model = UNet(**settings)
        model.load_state_dict(load_file(weights), strict=True)
    except Exception as error:  # damaged files, wrong settings and wrong names raise different errors
        raise CardioDiTError(
            f"{weights} cannot be loaded into the U-Net of {BUNDLE_CONFIG}: {reason_of(error)}."
        ) from error
    return model


def _order_of_channels(channels: dict[str, str], folder: Path) -> str:
    """Return `LV=1 MYO=2 RV=3` for {"0": "background", "1": "lv_pool", "2": "myocardium", "3": "rv_pool"}."""
    pairs = [(part, number) for number, text in channels.items() for part in OURS if str(text).upper().startswith(part)]
    if sorted(part for part, _ in pairs) != sorted(OURS):
        raise CardioDiTError(
            f"The bundle {folder} labels {', '.join(map(str, channels.values()))}; it must label a left ventricle "
            "(lv…), a right ventricle (rv…) and a myocardium (myo…)."
        )
    return " ".join(f"{part}={number}" for part, number in pairs)


@torch.no_grad()
def segment_planes(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Segment plane by plane; the whole cine is scaled to [0, 1], and small planes get a black margin."""
    height, width, depth, frames = cine.shape
    planes = _min_max(cine).permute(2, 3, 0, 1).reshape(depth * frames, 1, height, width)
    margins = [max(PLANE, -(-n // STEP) * STEP) - n for n in (width, height)]
    left, top = (margin // 2 for margin in margins)
    padded = F.pad(planes, (left, margins[0] - left, top, margins[1] - top))
    parts = [model(part.to(device)).argmax(dim=1).cpu() for part in padded.split(BATCH)]
    labels = torch.cat(parts)[:, top : top + height, left : left + width]  # (D·T, H, W)
    return labels.reshape(depth, frames, height, width).permute(2, 3, 0, 1).numpy()


# CineMA's segmenters (https://github.com/mathpluscode/CineMA), through their own package

CINEMA_REPOSITORY = "mathpluscode/CineMA"
CINEMA_NAME = r"cinema(?::(?P<data>acdc|mnms|mnms2))?(?::(?P<seed>\d))?"
CINEMA_SLICES = 16


def _open_cinema(name: str, data: str, seed: int, device: str) -> Segmenter:
    """Open CineMA's ConvUNetR, fine-tuned on a public cohort (192 × 192 × 16 voxels of 1 × 1 × 10 mm)."""
    try:
        from cinema import ConvUNetR
    except ImportError as error:
        raise CardioDiTError(
            "CineMA's segmenter needs its package: pip install git+https://github.com/mathpluscode/CineMA"
        ) from error
    folder = f"finetuned/segmentation/{data}_sax"
    model = ConvUNetR.from_finetuned(
        repo_id=CINEMA_REPOSITORY,
        model_filename=f"{folder}/{data}_sax_{seed}.safetensors",
        config_filename=f"{folder}/config.yaml",
    )
    model = model.to(device).eval()
    return Segmenter(
        name=name,
        identity=hash_of_weights(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(1.0, 1.0, 10.0), size=(192, 192, None)),
        network=lambda cine, _: _segment_with_cinema(model, cine, device),
        note=f"It was trained on {data}: hearts of that cohort are not independent test data.",
    )


@torch.no_grad()
def _segment_with_cinema(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Segment frame by frame; each frame is scaled to [0, 1], and black slices are added after the last one."""
    depth = cine.shape[2]
    if depth > CINEMA_SLICES:
        raise CardioDiTError(f"CineMA takes at most {CINEMA_SLICES} slices of 10 mm; this stack has {depth}.")
    labels = []
    for frame in np.moveaxis(cine, 3, 0):  # (H, W, D)
        image = F.pad(_min_max(frame), (0, CINEMA_SLICES - depth))
        logits = model({"sax": image[None, None].to(device)})["sax"]  # (1, 4, H, W, 16)
        labels.append(logits.argmax(dim=1)[0, :, :, :depth].cpu())
    return torch.stack(labels, dim=-1).numpy()


# The user's own functions


def _open_function(name: str) -> Segmenter:
    module, function = load_own(name, "a segmenter")
    if not callable(function):
        raise CardioDiTError(f"{name} is not a function.")
    structures = getattr(function, "structures", None)
    order = getattr(function, "mask_order", "" if structures else None)
    if order is None:
        function_name = name.rpartition(":")[2]
        raise CardioDiTError(
            f"The segmenter {name} does not define its label order. Add it below the function, for example: "
            f'{function_name}.mask_order = "{ACDC_ORDER}", or for CT {function_name}.structures = {{"liver": 5}}.'
        )
    if order:
        parse_order(order)
    return Segmenter(
        name=Path(name).name,  # without the folders above a file: reports are shared
        identity=hash_of_sources(module, function) or "unknown",
        labels=order,
        grid=Grid(),
        network=lambda cine, geometry: np.asarray(function(cine, geometry)),
        note="The identity covers its source file, not other code or weights that it may load.",
        structures=_structures(name, structures) if structures else None,
    )


def _structures(name: str, given: Any) -> dict[str, int]:
    """Return the label of each structure by its name in lower case."""
    if given == "totalsegmentator":
        return TOTALSEGMENTATOR
    is_named = isinstance(given, dict) and all(re.fullmatch(r"\w+", str(key)) for key in given)
    if not is_named or not all(isinstance(label, int) and label > 0 for label in given.values()):
        raise CardioDiTError(
            f'The structures of {name} must be "totalsegmentator" or a dictionary from names to positive labels, such '
            'as {"liver": 5}.'
        )
    return {str(key).lower(): label for key, label in given.items()}


def _min_max(voxels: np.ndarray) -> torch.Tensor:
    """Scale the smallest value to 0 and the largest to 1; return zeros if they are equal."""
    image = torch.from_numpy(np.ascontiguousarray(voxels)).float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else torch.zeros_like(image)
