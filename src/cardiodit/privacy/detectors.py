"""Detectors of copies: each turns a volume into rows that correlate more with rows of copies than with others.

A row describes one slice of a cine (over its whole beat) or one slab of a volume. Slices are compared one by one, to
find partial copies, and all together. Samples and held-out patients are also described flipped and rotated.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.signal import resample

from cardiodit._util.hashing import sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.geometry import Triple
from cardiodit.models.copy_detector import DIGITS

FORMAT = 2  # to be raised when the same volume would get other rows
PIXELS, LATENTS, RECONSTRUCTIONS = "pixels", "latents", "reconstructions"
CELLS = 16  # of a grid along H and W
SPAN = 0.8  # share of the field of view that a grid covers
HARMONICS = 3  # of a beat: its mean, and the amplitudes of one and two oscillations per beat
LEVELS = 4096  # of grey, between which ranks are not distinguished
SLABS = 8  # of a volume without frames
ANGLES = (-10, -5, 0, 5, 10)  # degrees by which a query is turned
ZOOMS = ((0.93, 0.93), (1.07, 1.07), (0.96, 1.04), (1.04, 0.96))  # along H and W, of a query that is not turned
CONFIG = "config.json"


@dataclass(frozen=True)
class Variant:
    """How a query is altered before it is compared: mirrored along H and W, turned by degrees, enlarged."""

    flip_h: bool = False
    flip_w: bool = False
    degrees: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)


AS_IT_IS = (Variant(),)
FLIPPED = tuple(Variant(flip_h, flip_w) for flip_h, flip_w in product((False, True), (False, True)))
ALTERED = tuple(
    replace(variant, degrees=degrees, zoom=zoom)
    for variant in FLIPPED
    for degrees, zoom in [*((degrees, (1.0, 1.0)) for degrees in ANGLES), *((0.0, zoom) for zoom in ZOOMS)]
)


class Detector(Protocol):
    """The interface that the search uses."""

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str:
        """SHA-256 over everything that affects the rows."""

    def describe(self) -> dict[str, Any]:
        """Describe the detector for the report."""

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        """Return `(variants, slices, f)` float32 for a volume `(H, W, D)` or `(H, W, D, T)` in [-1, 1].

        Training volumes are described as they are; queries (samples and held-out patients) in several variants.

        Args:
            is_generated: whether the volume is a sample, which the model's decoder has made.
        """


@dataclass(frozen=True)
class DetectorConfig:
    """Settings from which any process opens a detector.

    Args:
        name: "pixels", "reconstructions", "latents", a feature network of `cardiodit evaluate`, or the folder of a
            trained copy detector.
        model: model whose VQ model encodes latents.
        weights: of a feature network.
        device: where networks run.
    """

    name: str = PIXELS
    model: str | None = None
    weights: str | None = None
    device: str = "cpu"


@lru_cache(maxsize=4)
def open_detector(config: DetectorConfig) -> Detector:
    if config.name == PIXELS:
        return PixelDetector()
    if config.name == LATENTS:
        return LatentDetector(_open_vae(config))
    if config.name == RECONSTRUCTIONS:
        return ReconstructionDetector(_open_vae(config))
    if (Path(config.name) / CONFIG).is_file() or (Path(config.name) / "best").is_dir():
        return TrainedDetector.open(config)
    return _open_features(config)


def check_unseen(detector: Detector, held_out: Sequence[Path]) -> None:
    """Raise an error if a trained detector has seen held-out files: what it learned to tell apart is no null."""
    seen = set(detector.model.config.seen_files or ()) if isinstance(detector, TrainedDetector) else set()
    if not seen:
        return
    if known := [file.name for file in held_out if sha256_of(file)[:DIGITS] in seen]:
        raise CardioDiTError(
            f"The detector was trained or validated on {len(known)} of the held-out files ({', '.join(known[:8])}), "
            "which it therefore tells apart better than others. Remove them from the held-out manifest, or train the "
            "detector without them."
        )


def _identity(description: dict[str, Any], *parts: str) -> str:
    return hashlib.sha256(json.dumps([FORMAT, description, *parts], sort_keys=True).encode()).hexdigest()


def _identity_with_vae(description: dict[str, Any], vae: Any) -> str:
    from cardiodit.latents.file import identity_of_vae

    return _identity(description, identity_of_vae(vae))


# --- Grids of pixels and latents, aligned ---


@dataclass(frozen=True)
class PixelDetector:
    """Compares coarse grids of the image, centred on what moves, with amplitudes over a beat that ignore its phase."""

    name: str = PIXELS

    @property
    def identity(self) -> str:
        return _identity(self.describe())

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "compares": "grey values on a coarse grid, centred on what moves; of a beat, the mean and the amplitudes "
            "of its first oscillations, whatever the phase",
            "grid": [CELLS, CELLS],
            "span": SPAN,
            "harmonics": HARMONICS,
            "variants": len(ALTERED),
            "training": "none",
        }

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        return aligned_grid(equalized(voxels)[..., None], ALTERED if is_query else AS_IT_IS)


@dataclass(frozen=True)
class LatentDetector:
    """Compares the model's own latents in the same way; they leave out what the autoencoder cannot represent."""

    vae: Any
    name: str = LATENTS

    @cached_property
    def identity(self) -> str:
        return _identity_with_vae(self.describe(), self.vae)

    def describe(self) -> dict[str, Any]:
        grid = PixelDetector().describe()
        return {**grid, "name": self.name, "compares": grid["compares"].replace("grey values", "latents")}

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        from cardiodit.imaging.preprocessing import as_tensor
        from cardiodit.latents.encoder import encode_volume

        beat = as_tensor(_whole_beat(self.vae, voxels))
        latents = encode_volume(self.vae, beat).cpu().numpy()  # (C, D, h, w, t) or (C, h, w, d)
        axes = (2, 3, 1, 4, 0) if latents.ndim == 5 else (1, 2, 3, 0)
        channels = latents.transpose(axes)
        mean = channels.mean(axis=tuple(range(channels.ndim - 1)), keepdims=True)
        return aligned_grid((channels - mean) / (channels.std() + 1e-6), ALTERED if is_query else AS_IT_IS)


@dataclass(frozen=True)
class ReconstructionDetector:
    """Compares samples with patients as the model's VQ model reconstructs them: what it blurs is blurred on both sides.

    A model that memorized the latents of a training image generates its reconstruction, not the image itself.
    """

    vae: Any
    name: str = RECONSTRUCTIONS

    @cached_property
    def identity(self) -> str:
        return _identity_with_vae(self.describe(), self.vae)

    def describe(self) -> dict[str, Any]:
        grid = PixelDetector().describe()
        return {
            **grid,
            "name": self.name,
            "compares": f"{grid['compares']}; patients as the VQ model reconstructs them",
        }

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        image = voxels if is_generated else self._reconstruct(_whole_beat(self.vae, voxels))
        return aligned_grid(equalized(image)[..., None], ALTERED if is_query else AS_IT_IS)

    def _reconstruct(self, voxels: np.ndarray) -> np.ndarray:
        import torch

        from cardiodit.imaging.preprocessing import as_tensor
        from cardiodit.latents.encoder import encode_volume
        from cardiodit.models.autoencoder_vq import slices_of

        codes = encode_volume(self.vae, as_tensor(voxels))[None]  # (1, C, D, h, w, t) or (1, C, h, w, d)
        parts = slices_of(codes) if voxels.ndim == 4 else codes
        with torch.no_grad():
            decoded = [self.vae.decode(part, force_not_quantize=True).sample[0, 0] for part in parts.split(1)]
        images = torch.stack(decoded).float().clamp(-1, 1).cpu().numpy()  # (D, H, W, T) or (1, H, W, D)
        return np.moveaxis(images, 0, 2) if voxels.ndim == 4 else images[0]


def _whole_beat(vae: Any, voxels: np.ndarray) -> np.ndarray:
    """Resample a beat to the next number of frames that the VQ model encodes."""
    if voxels.ndim == 4 and voxels.shape[3] % (factor := vae.scale_factors[2]):
        return resample(voxels, factor * math.ceil(voxels.shape[3] / factor), axis=3).astype(np.float32)
    return voxels


def _open_vae(config: DetectorConfig) -> Any:
    from cardiodit.hub.load import open_vae

    if config.model is None:
        raise CardioDiTError(f"The detector {config.name} needs the model: give --model.")
    return open_vae(config.model).to(config.device)


def aligned_grid(channels: np.ndarray, variants: Sequence[Variant]) -> np.ndarray:
    """Return rows `(variants, slices, f)` of `(H, W, D, T, C)` or `(H, W, D, C)`; every slice is centred by itself."""
    maps = _amplitudes(channels)  # (H, W, D, f)
    height, width, depth = maps.shape[:3]
    cell = np.array([height, width]) * SPAN / CELLS
    steps = (np.arange(CELLS) + 0.5) - CELLS / 2
    grids = np.empty((len(variants), depth, maps.shape[3] * CELLS**2), np.float32)
    for d in range(depth):
        centre = _centre(maps[:, :, d], is_still=channels.ndim == 4, count=channels.shape[-1])
        for v, variant in enumerate(variants):
            along_h = steps[:, None] * (-cell[0] if variant.flip_h else cell[0]) / variant.zoom[0]
            along_w = steps[None, :] * (-cell[1] if variant.flip_w else cell[1]) / variant.zoom[1]
            cosine, sine = np.cos(np.deg2rad(variant.degrees)), np.sin(np.deg2rad(variant.degrees))
            places = [centre[0] + cosine * along_h - sine * along_w, centre[1] + sine * along_h + cosine * along_w]
            sampled = [
                map_coordinates(each, places, order=1, mode="nearest") for each in np.moveaxis(maps[:, :, d], 2, 0)
            ]
            grids[v, d] = np.stack(sampled).ravel()
    return grids


def _amplitudes(channels: np.ndarray) -> np.ndarray:
    """Return smooth maps `(H, W, D, f)`: of a beat, its mean and amplitudes, which ignore where the beat begins."""
    sigma = (*(np.array(channels.shape[:2]) * SPAN / CELLS / 2), *[0] * (channels.ndim - 2))
    if channels.ndim == 4:
        slabs = np.array_split(gaussian_filter(channels, sigma), min(SLABS, channels.shape[2]), axis=2)
        return np.stack([slab.mean(axis=2) for slab in slabs], axis=2)
    frames = channels.shape[3]
    spectrum = np.fft.rfft(channels, axis=3)[:, :, :, :HARMONICS] / frames
    spectrum = np.pad(spectrum, [(0, 0)] * 3 + [(0, HARMONICS - spectrum.shape[3]), (0, 0)])
    real, imaginary = (gaussian_filter(part, sigma) for part in (spectrum.real, spectrum.imag))
    maps = 2 * np.hypot(real, imaginary)
    maps[:, :, :, 0] = real[:, :, :, 0]
    return maps.reshape(*maps.shape[:3], -1).astype(np.float32)  # harmonics, then channels


def _centre(maps: np.ndarray, is_still: bool, count: int) -> tuple[float, float]:
    """Return the centre of what moves or, without frames, of what is bright, in voxels along H and W."""
    energy = maps.mean(axis=2) if is_still else (maps[:, :, count : 2 * count] ** 2).sum(axis=2)
    weights = np.clip(energy - np.quantile(energy, 0.5 if is_still else 0.9), 0, None)
    total = weights.sum()
    if total <= 0:
        return (maps.shape[0] - 1) / 2, (maps.shape[1] - 1) / 2
    along_h, along_w = weights.sum(axis=1), weights.sum(axis=0)
    return (
        float((along_h * np.arange(len(along_h))).sum() / total),
        float((along_w * np.arange(len(along_w))).sum() / total),
    )


def equalized(volume: np.ndarray) -> np.ndarray:
    """Replace each value by its rank within its slice, from -1 to 1: contrast, brightness and gamma do not matter.

    Planes are smoothed a little first, because ranks would magnify the noise of the background.
    """
    sigma = np.array(volume.shape[:2]) * SPAN / CELLS / 4
    smooth = gaussian_filter(volume.astype(np.float32), (*sigma, *[0] * (volume.ndim - 2)))
    ranks = np.empty_like(smooth)
    for d in range(volume.shape[2]):
        low, high = smooth[:, :, d].min(), smooth[:, :, d].max()
        levels = ((smooth[:, :, d] - low) * ((LEVELS - 1) / max(high - low, 1e-6))).astype(np.int32)
        counts = np.bincount(levels.ravel(), minlength=LEVELS)
        ranks[:, :, d] = ((np.cumsum(counts) - counts / 2) / levels.size * 2 - 1)[levels]
    return ranks


# --- Networks ---


@dataclass(frozen=True)
class FeatureDetector:
    """Compares the feature vectors of `cardiodit evaluate`: one row for the whole volume."""

    networks: tuple[Any, ...]

    @property
    def name(self) -> str:
        return str(self.networks[0].name)

    @cached_property
    def identity(self) -> str:
        return _identity(self.describe(), *(network.identity for network in self.networks))

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "compares": "features of a network",
            "networks": [network.describe() for network in self.networks],
            "variants": len(FLIPPED),
            "training": "see the network's weights",
        }

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        parts = [network for network in self.networks if voxels.ndim == 4 or network.kind == "spatial"]
        turned = [_flip(voxels, variant) for variant in (FLIPPED if is_query else AS_IT_IS)]
        rows = [np.concatenate([part.features(each, spacing) for part in parts]) for each in turned]
        return np.stack(rows).astype(np.float32)[:, None]


def _flip(voxels: np.ndarray, variant: Variant) -> np.ndarray:
    axes = tuple(axis for axis, is_flipped in enumerate((variant.flip_h, variant.flip_w)) if is_flipped)
    return np.ascontiguousarray(np.flip(voxels, axes)) if axes else voxels


def _open_features(config: DetectorConfig) -> FeatureDetector:
    from cardiodit.evaluation.features import NAMES, Choice, load_network
    from cardiodit.evaluation.features.network import KINDS

    if config.name not in NAMES and ":" not in config.name:
        raise CardioDiTError(
            f"--detector {config.name}: neither {PIXELS}, {RECONSTRUCTIONS}, {LATENTS} or a feature network "
            f"({', '.join(NAMES)}, or module:callable), nor the folder of a detector trained by train_copy_detector."
        )
    choices = [Choice(kind=kind, weights=config.weights, device=config.device) for kind in KINDS]
    networks = [load_network(config.name, choices[0])]
    with suppress(CardioDiTError):  # a network without features of motion
        networks.append(load_network(config.name, choices[1]))
    return FeatureDetector(tuple(networks))


@dataclass(frozen=True)
class TrainedDetector:
    """Compares embeddings of a network that learned to tell the cohort's patients apart (`train_copy_detector`)."""

    model: Any
    name: str = "trained"

    @classmethod
    def open(cls, config: DetectorConfig) -> "TrainedDetector":
        from cardiodit.models.copy_detector import CopyDetector

        folder = Path(config.name)
        places = (folder, folder / "copy_detector", folder / "best" / "copy_detector")
        place = next((place for place in places if (place / CONFIG).is_file()), folder)
        return cls(CopyDetector.from_pretrained(place).eval().to(config.device))

    @cached_property
    def identity(self) -> str:
        from cardiodit.evaluation.features.weights import hash_of_weights

        return _identity(self.describe(), hash_of_weights(self.model))

    def describe(self) -> dict[str, Any]:
        config = self.model.config
        return {
            "name": self.name,
            "compares": "embeddings of a network that was trained to tell this cohort's patients apart",
            "size": list(config.size),
            "embedding": config.embedding_dim,
            "variants": len(FLIPPED),
            "training": config.training_data,
        }

    def rows(
        self, voxels: np.ndarray, spacing: Triple | None, is_query: bool, is_generated: bool = False
    ) -> np.ndarray:
        turned = [_flip(voxels, variant) for variant in (FLIPPED if is_query else AS_IT_IS)]
        return np.stack([self.model.embed(each) for each in turned])
