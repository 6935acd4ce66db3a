"""Reconstruction of the user's own data by an autoencoder: an upper bound for the quality of samples."""

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import binary_dilation

from cardiodit._util.atomic_io import atomic_file, new_folder
from cardiodit._util.terminal import progress
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.similarity import psnr, ssim
from cardiodit.imaging.manifest import Case, prepare_case, prepare_mask
from cardiodit.imaging.pictures import write_comparison, write_gif, write_slices
from cardiodit.imaging.preprocessing import Prepared, Preprocessing, without_typical
from cardiodit.models.autoencoder_vq import VQModel, VQModel4D
from cardiodit.models.codebook import perplexity

PICTURED = 3  # volumes with pictures
HEART_MARGIN = 3  # voxels around the labels that count as the heart, because its border matters most


@dataclass(frozen=True)
class Reconstruction:
    """A volume encoded and decoded by an autoencoder.

    Args:
        voxels: `(H, W, D, T)` or `(H, W, D)`, decoded from codes and clipped to [-1, 1], as samples are.
        unquantised: the same, decoded from the encoder's output without the codebook.
        code_counts: number of latent vectors per code.
    """

    voxels: np.ndarray
    unquantised: np.ndarray
    code_counts: np.ndarray


@dataclass(frozen=True)
class Quality:
    """Reconstruction quality of one volume. Values are in [-1, 1], so that an L1 of 0.02 is 1% of the range.

    Args:
        number: position in the manifest, from 1; also in the names of its pictures.
        file: name of the image, without its folders.
        l1, psnr, ssim: over the whole field of view.
        l1_unquantised: L1 without the codebook.
        quantisation_share: share of the L1 error that disappears without the codebook; negative if the decoder, which
            was trained on codes, does worse without them.
        heart_l1, heart_psnr: within the manifest's mask and three voxels around it; None without a mask.
    """

    number: int
    subject: str
    l1: float
    psnr: float
    ssim: float
    l1_unquantised: float
    quantisation_share: float
    heart_l1: float | None = None
    heart_psnr: float | None = None
    file: str = ""


@dataclass(frozen=True)
class Report:
    """Reconstruction quality of a cohort."""

    volumes: list[Quality]
    code_counts: np.ndarray
    steps: Preprocessing

    def mean(self, name: str) -> float | None:
        """Return the mean over the volumes that have this number; None if none has."""
        values = [value for quality in self.volumes if (value := getattr(quality, name)) is not None]
        return float(np.mean(values)) if values else None

    @property
    def perplexity(self) -> float:
        return float(perplexity(torch.from_numpy(self.code_counts).double()))

    @property
    def used_codes(self) -> int:
        return int((self.code_counts > 0).sum())

    def summary(self) -> dict[str, Any]:
        """Return the content of `summary.json`."""
        codes = len(self.code_counts)
        return {
            "volumes": len(self.volumes),
            "volumes_with_mask": sum(quality.heart_l1 is not None for quality in self.volumes),
            **{name: _plain(self.mean(name)) for name in NUMBERS},
            "codes": codes,
            "codes_used": self.used_codes,
            "codes_used_share": self.used_codes / codes,
            "code_perplexity": self.perplexity,
            "latent_vectors": int(self.code_counts.sum()),
            "preprocessing": self.steps.to_dict(),
        }


NAMES = ("number", "subject", "file")
NUMBERS = [field.name for field in fields(Quality) if field.name not in NAMES]


def reconstruct_cohort(
    vae: VQModel,
    cases: Sequence[Case],
    steps: Preprocessing,
    output_dir: Path,
    batch_size: int = 4,
    pictured: int = PICTURED,
) -> Report:
    """Write `reconstruction.csv`, `summary.json` and pictures of the first volumes into a new folder."""
    if batch_size < 1:
        raise CardioDiTError(f"batch_size={batch_size} must be at least 1.")
    qualities, counts = [], np.zeros(vae.config.num_embeddings, np.int64)
    with new_folder(output_dir) as folder:
        (folder / "pictures").mkdir()
        for number, case in enumerate(progress(cases, "Reconstructing"), 1):
            prepared = prepare_case(case, steps)
            result = reconstruct(vae, prepared, batch_size)
            mask = prepare_mask(case, prepared)
            subject = case.row.get("subject") or f"volume-{number}"  # the default subject would be its path
            labels = None if mask is None else mask.voxels
            quality = judge(number, subject, prepared.volume.voxels, result, labels)
            qualities.append(replace(quality, file=case.image.name))
            counts += result.code_counts
            if number <= pictured:
                _draw(folder / "pictures", number, prepared, result)
        report = Report(qualities, counts, steps)
        _write_table(folder / "reconstruction.csv", qualities)
        (folder / "summary.json").write_text(json.dumps(report.summary(), indent=2) + "\n")
    return report


def check_preparation(vae: VQModel, steps: Preprocessing) -> str | None:
    """Raise an error if the model was trained with other preprocessing; return a note if that is unknown."""
    if vae.config.preprocessing is None:
        return (
            "The VQ model of --reconstructions does not say how its training volumes were prepared; whether the real "
            "volumes are prepared identically could not be checked."
        )
    own = Preprocessing.from_dict(dict(vae.config.preprocessing))
    theirs, ours = (_relevant(each, vae) for each in (own, steps))
    if differing := [name for name in ours if theirs[name] != ours[name]]:
        differences = "; ".join(f"{name} {theirs[name]} there and {ours[name]} here" for name in differing)
        raise CardioDiTError(
            f"The VQ model of --reconstructions was trained on differently prepared volumes ({differences}), so its "
            "reconstructions of these would be meaningless. Give the VQ model of the pipeline that made the samples, "
            "or leave --reconstructions out."
        )
    return None


def _relevant(steps: Preprocessing, vae: VQModel) -> dict[str, Any]:
    """Return the settings that affect a model's input: a 4D model encodes single slices, however many there are."""
    plain = without_typical(steps)
    if isinstance(vae, VQModel4D):
        plain = replace(plain, size=(*plain.size[:2], None))
    return plain.to_dict()


@torch.no_grad()
def reconstruct(vae: VQModel, prepared: Prepared, batch_size: int = 4) -> Reconstruction:
    """Encode and decode a volume, a cine's slices in batches, without changing the model."""
    was_training = vae.training
    vae.eval()
    image = prepared.tensor()  # (1, D, H, W, T) or (1, H, W, D)
    is_cine = isinstance(vae, VQModel4D)
    if is_cine != prepared.volume.is_cine:
        kinds = ("a beating cine (H, W, D, T)", "a volume (H, W, D)")
        expected, given = kinds if is_cine else kinds[::-1]
        raise CardioDiTError(f"{type(vae).__name__} encodes {expected}, but the image is {given}.")
    items = image.movedim(1, 0) if is_cine else image[None]  # (D, 1, H, W, T) or (1, 1, H, W, D)
    decoded: list[torch.Tensor] = []
    unquantised: list[torch.Tensor] = []
    counts = torch.zeros(vae.config.num_embeddings, dtype=torch.int64)
    for batch in items.split(batch_size):
        latents = vae.encode(batch.to(vae.device, vae.dtype)).latents
        codes = vae.quantize(latents)
        counts += torch.bincount(codes.indices.flatten().cpu(), minlength=len(counts))
        for latent, results in ((codes.latents, decoded), (latents, unquantised)):
            results.append(vae.decode(latent, force_not_quantize=True).sample.float().clamp(-1, 1).cpu())
    vae.train(was_training)
    return Reconstruction(_stored(decoded, is_cine), _stored(unquantised, is_cine), counts.numpy())


def judge(
    number: int, subject: str, image: np.ndarray, result: Reconstruction, labels: np.ndarray | None = None
) -> Quality:
    """Return the quality of one volume; `labels` have the image's shape, or are None."""
    image = image.astype(np.float64)
    error = result.voxels - image
    l1, unquantised = float(np.abs(error).mean()), float(np.abs(result.unquantised - image).mean())
    heart = None if labels is None or labels.shape != image.shape else _with_margin(labels)
    has_heart = heart is not None and bool(heart.any())
    return Quality(
        number,
        subject,
        l1=l1,
        psnr=psnr(float(np.square(error).mean())),
        ssim=ssim(image, result.voxels),
        l1_unquantised=unquantised,
        quantisation_share=1 - unquantised / l1 if l1 else 0.0,
        heart_l1=float(np.abs(error[heart]).mean()) if has_heart else None,
        heart_psnr=psnr(float(np.square(error[heart]).mean())) if has_heart else None,
    )


def _stored(batches: list[torch.Tensor], is_cine: bool) -> np.ndarray:
    """Return batches in the axis order of files, `(H, W, D, T)` or `(H, W, D)`."""
    items = torch.cat(batches)[:, 0].numpy()  # (D, H, W, T) or (1, H, W, D)
    return np.moveaxis(items, 0, 2) if is_cine else items[0]


def _with_margin(labels: np.ndarray) -> np.ndarray:
    """Return where labels are, with a margin within each slice of each frame."""
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    in_plane = cross.reshape(3, 3, *(1,) * (labels.ndim - 2))
    return binary_dilation(labels > 0, in_plane, iterations=HEART_MARGIN)


def _draw(folder: Path, number: int, prepared: Prepared, result: Reconstruction) -> None:
    image, drawn = prepared.volume.voxels, result.voxels
    name = f"{number:04d}"
    if not prepared.volume.is_cine:
        for kind, volume in (("original", image), ("reconstruction", drawn)):
            write_slices(folder / f"{name}-{kind}.png", volume)
        return
    write_comparison(folder / f"{name}.png", image, drawn)
    # The second axis runs upwards in pictures: the original lies above its reconstruction.
    pair = np.concatenate([drawn, image], axis=1)
    write_gif(folder / f"{name}.gif", pair, prepared.volume.geometry, rows=2)


def _write_table(path: Path, qualities: Iterable[Quality]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*NAMES, *NUMBERS])
        writer.writeheader()
        for quality in qualities:
            row = asdict(quality)
            numbers = {name: "" if row[name] is None else f"{row[name]:.6g}" for name in NUMBERS}
            writer.writerow({**row, **numbers})


def _plain(value: float | None) -> float | None:
    """Return None for infinity, which JSON lacks."""
    return None if value is None or not np.isfinite(value) else value
