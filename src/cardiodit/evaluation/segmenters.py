"""Networks that name the parts of a heart, opened by one name each and all asked in the same way.

Every network has a grid, an intensity and an order of labels of its own. Here a cine in [-1, 1] is brought to that grid
by weighted means, and what was found is brought back by the nearest voxel, and into our order: RV 1, myocardium 2,
LV 3. Which grid that is, `Segmenter.grid` says. Directions in the plane are left as they are in the cine; networks of
others were trained on files in their scanner's directions, turned and mirrored while training, if at all.
"""

import hashlib
import importlib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.function import LV, MYO, RV
from cardiodit.hashing import sha256_of
from cardiodit.hub.opening import CONFIG, HUB_NAME
from cardiodit.imaging.cohorts.found import ACDC_ORDER
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.preprocessing import FILL
from cardiodit.imaging.resampling import apply_plans, index_map, plan_axis
from cardiodit.models.segmenter import HeartSegmenter
from cardiodit.shipped import PHANTOM_SEGMENTER, find_model

OURS = {"RV": RV, "MYO": MYO, "LV": LV}
BATCH = 16  # planes at once
TRAINED = Path("best", "segmenter")  # in the folder of a training run

CINEMA_REPOSITORY = "mathpluscode/CineMA"
CINEMA_NAME = r"cinema(?::(?P<data>acdc|mnms|mnms2))?(?::(?P<seed>\d))?"
CINEMA_SLICES = 16

BUNDLE_METADATA, BUNDLE_CONFIG = Path("configs", "metadata.json"), Path("configs", "inference.json")
BUNDLE_WEIGHTS, BUNDLE_PICKLE = Path("models", "model.safetensors"), Path("models", "model.pt")
BUNDLE_PLANE = 256  # voxels along H and W, at least
BUNDLE_STEP = 16  # its U-Net halves them four times

Network = Callable[[np.ndarray, Geometry], np.ndarray]  # (H, W, D, T) in [-1, 1] → labels on the same grid


@dataclass(frozen=True)
class Grid:
    """What a cine is resampled to (mm) and then cropped or padded to (voxels) along H, W, D; None leaves it."""

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    size: tuple[int | None, int | None, int | None] = (None, None, None)


@dataclass(frozen=True)
class Segmenter:
    """A network that names the parts of a heart.

    Args:
        name: as it was asked for.
        identity: a hash of its weights, or of the source of a function.
        labels: its own order, as manifests write it in `mask_order`.
        grid: what cines are resampled to for it; labels come back by the nearest voxel.
        network: labels in its own order, of a cine on its grid.
        note: what a reader of its numbers should know.
    """

    name: str
    identity: str
    labels: str
    grid: Grid
    network: Network
    note: str = ""

    def segment(self, cine: np.ndarray, geometry: Geometry) -> np.ndarray:
        """Labels (uint8) of a cine `(H, W, D, T)` in [-1, 1]: RV 1, myocardium 2, LV 3."""
        if cine.ndim != 4:
            raise CardioDiTError(f"A cine (H, W, D, T) can be segmented, this has the shape {tuple(cine.shape)}.")
        known = geometry.spacing or (None, None, None)
        if geometry.spacing is None and any(self.grid.spacing):
            raise CardioDiTError(
                f"The segmenter {self.name} sees hearts at {self.grid.spacing} mm, and the voxel size of this cine is "
                "unknown. Give its spacing in mm."
            )
        axes = zip(cine.shape, known, self.grid.spacing, self.grid.size, strict=False)
        plans = [plan_axis(n, s, t, m, resize=False) for n, s, t, m in axes]
        seen = apply_plans(cine, plans, FILL)
        found = self.network(seen, geometry.after(index_map(plans)))
        if found.shape != seen.shape:
            raise CardioDiTError(f"The segmenter {self.name} answered {found.shape} to a cine of {seen.shape}.")
        ours = reorder(found, self.labels)
        return np.ascontiguousarray(apply_plans(ours, [plan.inverse() for plan in plans], 0, labels=True))


def open_segmenter(spec: str | Path, device: str = "cpu") -> Segmenter:
    """Opens a segmenter.

    Args:
        spec: the name of one that comes with the package; the folder of a `HeartSegmenter` or of its training run, or
            its name on the Hub; the folder of a MONAI bundle such as `ventricular_short_axis_3label`; "cinema",
            "cinema:mnms" or "cinema:mnms:1" (trained on acdc, mnms or mnms2, seed 0 to 2), for which the package
            `cinema` must be installed; or "module:function", a function of a cine `(H, W, D, T)` and its `Geometry`
            that gives label maps, whose order its attribute `mask_order` may tell.
        device: where networks run.
    """
    name = str(spec)
    if match := re.fullmatch(CINEMA_NAME, name):
        return _open_cinema(name, match["data"] or "acdc", int(match["seed"] or 0), device)
    found = Path(find_model(spec))
    if found.is_dir():
        return _open_folder(name, found, device)
    if re.fullmatch(r"[\w.]+:\w+", name):
        return _open_function(name)
    if not re.fullmatch(HUB_NAME, name):
        raise CardioDiTError(
            f"There is no segmenter {name}: it is no folder, no name on the Hub (org/name), no module:function, and "
            f"neither {PHANTOM_SEGMENTER} nor cinema."
        )
    return _heart_segmenter(name, _from_hub(name), device)


def reorder(labels: np.ndarray, order: str) -> np.ndarray:
    """Label maps (uint8) with RV 1, myocardium 2, LV 3, of label maps in an order such as "LV=1 MYO=2 RV=3"."""
    table = {0: 0, **{theirs: OURS[part] for part, theirs in parse_order(order).items()}}
    found = np.unique(labels)
    if unknown := [f"{value:g}" for value in found if float(value) not in table]:
        raise CardioDiTError(
            f"The label maps hold {', '.join(f'{value:g}' for value in found)}, and {', '.join(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} not in the order {order!r} (background 0). Give their true order."
        )
    ours = np.zeros(max(table) + 1, np.uint8)
    for theirs, value in table.items():
        ours[theirs] = value
    return ours[labels.astype(np.int64)]


def parse_order(order: str) -> dict[str, int]:
    """{"LV": 1, "MYO": 2, "RV": 3} of "LV=1 MYO=2 RV=3"."""
    pairs = re.findall(r"(\w+)=(\d+)", order)
    parts = {part: int(value) for part, value in pairs}
    if set(parts) != set(OURS) or len(pairs) != 3 or len(set(parts.values()) - {0}) != 3:
        raise CardioDiTError(f"The order of labels {order!r} must name three numbers above 0, such as {ACDC_ORDER!r}.")
    return parts


@torch.no_grad()
def identity_of(model: torch.nn.Module) -> str:
    """SHA-256 of all weights with their names, types and shapes: the same wherever and from whatever file."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _open_folder(name: str, folder: Path, device: str) -> Segmenter:
    if (folder / BUNDLE_METADATA).is_file():
        return _open_bundle(name, folder, device)
    place = next((place for place in (folder, folder / TRAINED) if (place / CONFIG).is_file()), None)
    if place is None:
        raise CardioDiTError(
            f"{folder} holds no segmenter: neither the {CONFIG} of a HeartSegmenter, here or in {TRAINED}, nor the "
            f"{BUNDLE_METADATA} of a MONAI bundle is in it."
        )
    class_name = _json(place / CONFIG).get("_class_name")
    if class_name != HeartSegmenter.__name__:
        raise CardioDiTError(f"{place / CONFIG} is that of a {class_name}, not of a HeartSegmenter.")
    return _heart_segmenter(name, HeartSegmenter.from_pretrained(place), device)


def _from_hub(name: str) -> HeartSegmenter:
    try:
        return HeartSegmenter.from_pretrained(name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CardioDiTError(f"There is no folder {name}, and the Hub gives no segmenter: {reason}") from error


def _heart_segmenter(name: str, model: HeartSegmenter, device: str) -> Segmenter:
    """Ours. Slices stay as they are, however far apart: resampling would mix what lies centimetres apart."""
    height, width, _ = model.config.spacing or (None, None, None)
    model = model.to(device).eval()
    note = "It was trained on drawn phantoms; of patients it knows nothing." if name == PHANTOM_SEGMENTER else ""
    return Segmenter(
        name=name,
        identity=identity_of(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(height, width, None)),
        network=lambda cine, _: model.segment(cine, BATCH),
        note=note,
    )


def _open_cinema(name: str, data: str, seed: int, device: str) -> Segmenter:
    """CineMA's ConvUNetR, fine-tuned on a public cohort (192 × 192 × 16 voxels of 1 × 1 × 10 mm)."""
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
        identity=identity_of(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(1.0, 1.0, 10.0), size=(192, 192, None)),
        network=lambda cine, _: _ask_cinema(model, cine, device),
        note=f"It was trained on {data}; hearts of that cohort are no test of it.",
    )


@torch.no_grad()
def _ask_cinema(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Frame by frame, each from 0 to 1, with black slices added behind the last one."""
    depth = cine.shape[2]
    if depth > CINEMA_SLICES:
        raise CardioDiTError(f"CineMA sees at most {CINEMA_SLICES} slices of 10 mm, and this stack has {depth}.")
    labels = []
    for frame in np.moveaxis(cine, 3, 0):  # (H, W, D)
        image = F.pad(_from_0_to_1(frame), (0, CINEMA_SLICES - depth))
        logits = model({"sax": image[None, None].to(device)})["sax"]  # (1, 4, H, W, 16)
        labels.append(logits.argmax(dim=1)[0, :, :, :depth].cpu())
    return torch.stack(labels, dim=-1).numpy()


def _open_bundle(name: str, folder: Path, device: str) -> Segmenter:
    """A MONAI bundle of a 2D U-Net."""
    channels = _json(folder / BUNDLE_METADATA)["network_data_format"]["outputs"]["pred"]["channel_def"]
    model = _bundle_network(folder).to(device).eval()
    return Segmenter(
        name=name,
        identity=identity_of(model),
        labels=_order_of_channels(channels, folder),
        grid=Grid(),
        network=lambda cine, _: ask_planes(model, cine, device),
        note="It sees planes one by one at the cine's own voxel size.",
    )


def _bundle_network(folder: Path) -> torch.nn.Module:
    """Only the numbers of the U-Net's definition are taken from the bundle: its configs may hold code."""
    from monai.networks.nets.unet import UNet
    from safetensors.torch import load_file

    if not (folder / BUNDLE_WEIGHTS).is_file():
        raise CardioDiTError(
            f"The bundle {folder} has no {BUNDLE_WEIGHTS}. Make it of the bundle's own weights: cardiodit convert "
            f"weights {folder / BUNDLE_PICKLE} --output {folder / BUNDLE_WEIGHTS}"
        )
    settings = {k: v for k, v in _json(folder / BUNDLE_CONFIG).get("network_def", {}).items() if k != "_target_"}
    try:
        model = UNet(**settings)
        model.load_state_dict(load_file(folder / BUNDLE_WEIGHTS), strict=True)
    except Exception as error:  # damaged files, settings and names each have their own
        raise CardioDiTError(
            f"{folder / BUNDLE_WEIGHTS} cannot be opened as the U-Net of {BUNDLE_CONFIG}: {error}"
        ) from error
    return model


def _order_of_channels(channels: dict[str, str], folder: Path) -> str:
    """ "LV=1 MYO=2 RV=3" of {"0": "background", "1": "lv_pool", "2": "myocardium", "3": "rv_pool"}."""
    pairs = [(part, number) for number, text in channels.items() for part in OURS if text.upper().startswith(part)]
    if sorted(part for part, _ in pairs) != sorted(OURS):
        raise CardioDiTError(
            f"The bundle {folder} names {', '.join(channels.values())}; a left ventricle (lv…), a right one (rv…) and "
            "a myocardium (myo…) are needed."
        )
    return " ".join(f"{part}={number}" for part, number in pairs)


@torch.no_grad()
def ask_planes(model: torch.nn.Module, cine: np.ndarray, device: str) -> np.ndarray:
    """Plane by plane, the whole cine from 0 to 1, with a black margin where planes are small."""
    height, width, depth, frames = cine.shape
    planes = _from_0_to_1(cine).permute(2, 3, 0, 1).reshape(depth * frames, 1, height, width)
    margins = [max(BUNDLE_PLANE, -(-n // BUNDLE_STEP) * BUNDLE_STEP) - n for n in (width, height)]
    left, top = (margin // 2 for margin in margins)
    padded = F.pad(planes, (left, margins[0] - left, top, margins[1] - top))
    found = [model(part.to(device)).argmax(dim=1).cpu() for part in padded.split(BATCH)]
    labels = torch.cat(found)[:, top : top + height, left : left + width]  # (D·T, H, W)
    return labels.reshape(depth, frames, height, width).permute(2, 3, 0, 1).numpy()


def _open_function(name: str) -> Segmenter:
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise CardioDiTError(f"The module of the segmenter {name} cannot be imported: {error}.") from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise CardioDiTError(f"{module_name} has no function {function_name}.")
    source = inspect.getsourcefile(module)
    return Segmenter(
        name=name,
        identity=sha256_of(Path(source)) if source else "unknown",
        labels=getattr(function, "mask_order", ACDC_ORDER),
        grid=Grid(),
        network=lambda cine, geometry: np.asarray(function(cine, geometry)),
        note="The identity is that of its source, not of weights that it may load.",
    )


def _from_0_to_1(voxels: np.ndarray) -> torch.Tensor:
    """Its smallest value becomes 0 and its largest 1; all 0 where they are the same."""
    image = torch.from_numpy(np.ascontiguousarray(voxels)).float()
    low, high = image.min(), image.max()
    return (image - low) / (high - low) if high > low else torch.zeros_like(image)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardioDiTError(f"{path} cannot be read as JSON: {error}.") from error
