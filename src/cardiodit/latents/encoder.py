"""The encoder: one function for one volume, which online training calls too, and a resumable run over a cohort."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cardiodit._util.gpu import fixed_kernels
from cardiodit._util.memory import set_tiling
from cardiodit._util.terminal import progress, say
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging import PRESETS, Preprocessing, Volume, read_case, read_manifest
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.geometry import Geometry, Triple, common_spacing, mm_of
from cardiodit.imaging.label_order import ACDC_ORDER, ORDER, OURS, check_orders, order_of_row, parse_order
from cardiodit.imaging.manifest import PATH_COLUMNS, Case, beat_of_case, order_of_case, write_manifest
from cardiodit.imaging.masks import read_label_map
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.imaging.preprocessing import Prepared, note_on_padding
from cardiodit.latents.dataset import COLUMN, read_mask
from cardiodit.latents.file import (
    DamagedLatentError,
    LatentHeader,
    identity_of,
    identity_of_source,
    identity_of_steps,
    identity_of_vae,
    read_latent,
    write_latent,
)
from cardiodit.latents.folder import MASK_FOLDER, LatentFolder
from cardiodit.models import VQModel3D, VQModel4D
from cardiodit.models.autoencoder_vq import VQModel, slices_of, stack_slices

OTHER_FRAME_TIME = 1.5  # factor between frame times that is more than hearts' rates usually differ by
KEY_LENGTH = 20  # of a latent's name, the beginning of its source's identity: it identifies no subject or file
NEW, KEPT, CHANGED, REPAIRED = "new", "kept", "changed", "repaired"


@torch.no_grad()
def encode_volume(
    vae: VQModel,
    volume: torch.Tensor,
    batch_size: int = 1,
    dtype: torch.dtype = torch.float32,
    tiling: str = "auto",
) -> torch.Tensor:
    """Return the latents of a volume in float32, not scaled; quantised unless the VQ model's config says otherwise.

    The result depends only on the arguments and the device, not on other volumes or on what the process has
    configured, so that latents encoded in training equal those of `cardiodit encode` to the bit.

    Args:
        vae: VQ model in float32 and in eval mode, so that its codebook does not change; it computes on its device.
        volume: `(1, D, H, W, T)` for a VQModel4D, `(1, H, W, D)` for a VQModel3D.
        batch_size: slices of a cine encoded together, if they fit into the memory that "auto" allows.
        dtype: precision in which the VQ model computes; its weights and codes stay in float32.
        tiling: "on" encodes in tiles, "off" in one piece, "auto" in tiles what is large, see `set_tiling`.
    """
    is_cine = volume.ndim == 5
    if is_cine != isinstance(vae, VQModel4D):
        kind, expected = ("is a cine", "volumes") if is_cine else ("is 3D", "cines")
        raise CardioDiTError(f"The image {kind}, and a {type(vae).__name__} encodes {expected}.")
    size = (*volume.shape[2:4], volume.shape[1], volume.shape[4]) if is_cine else volume.shape[1:]  # (H, W, D[, T])
    if tiling == "auto" and batch_size > 1 and set_tiling(vae, size, tiling, batch_size):
        batch_size = 1  # saves memory without changing the result, as tiles would
    set_tiling(vae, size, tiling)
    items = slices_of(volume[None]) if is_cine else volume[None]
    with fixed_kernels():
        codes = torch.cat([_codes(vae, batch, dtype) for batch in items.split(batch_size)])
    return (stack_slices(codes, volume.shape[1]) if is_cine else codes)[0].contiguous()


def _codes(vae: VQModel, batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Look up the codes, if latents are quantised: the straight-through output differs from them by a rounding."""
    with torch.autocast(vae.device.type, dtype, enabled=dtype != torch.float32):
        encoded = vae.encode(batch.to(vae.device)).latents
    if not torch.isfinite(encoded).all():
        raise CardioDiTError(
            f"The VQ model produced values that are not finite (in {dtype}). Encode in float32; if that does not "
            "help, its weights are broken."
        )
    if not vae.config.quantize_latents:
        return encoded.float()
    return vae.quantizer.embed(vae.quantizer(encoded.float(), may_learn=False).indices).float()


def check_geometries(vae: VQModel, volumes: Mapping[Path, Geometry]) -> list[str]:
    """Compare the geometry of preprocessed volumes with that of the VQ model's training volumes.

    The model generates volumes of its own voxel size, so latents of another one would be generated, and measured in
    mL, as if they had that of the model. Raises an error that lists them; returns notes on what is unknown or unusual.
    """
    problems = Problems("The VQ model cannot encode these volumes")
    for path, geometry in volumes.items():
        if problem := other_voxel_size(vae, geometry):
            problems.add(f"{path} {problem}")
    if problems.found:
        problems.raise_if_any(advice_on_spacing(vae))
    return notes_on_geometries(vae, list(volumes.values()))


def other_voxel_size(vae: VQModel, geometry: Geometry) -> str:
    """Return how a preprocessed volume's voxel size differs from the VQ model's; empty if not or if one is unknown."""
    own = None if vae.config.spacing is None else Geometry(tuple(vae.config.spacing))
    if own is None or geometry.spacing is None or common_spacing([own, own, geometry]):
        return ""
    return f"has voxels of {mm_of([geometry])} after preprocessing, and the VQ model was trained on {mm_of([own])}"


def advice_on_spacing(vae: VQModel) -> str:
    size = " ".join(f"{mm:.6g}" for mm in vae.config.spacing)
    return (
        f"Resample them to the model's voxel size with --spacing {size}, or train a VQ model on volumes of one voxel "
        "size, which its config sets (data.preprocessing.spacing). train_vqgan --init_from fine-tunes this model on "
        "these volumes, and the result has their voxel size."
    )


def notes_on_geometries(vae: VQModel, geometries: Sequence[Geometry]) -> list[str]:
    """Return what could not be compared with the VQ model's training volumes, and a frame time unlike theirs."""
    notes = []
    if vae.config.spacing is None:
        notes.append(
            "The VQ model does not know the voxel size of its training volumes, because they differed or because it "
            f"was converted without --spacing. These volumes have {_known_sizes(geometries)}; volumes generated from "
            "their latents will have no voxel size."
        )
    elif unknown := sum(geometry.spacing is None for geometry in geometries):
        notes.append(
            f"The voxel size of {unknown} of {len(geometries)} volumes is unknown, so it could not be compared with "
            "the VQ model's."
        )
    own, times = vae.config.frame_time, [geometry.frame_time for geometry in geometries if geometry.frame_time]
    if own and times and not own / OTHER_FRAME_TIME < (usual := float(np.median(times))) < own * OTHER_FRAME_TIME:
        notes.append(
            f"A frame lasts {1000 * usual:.3g} ms in these volumes (median after preprocessing) and {1000 * own:.3g} "
            "ms in the VQ model's training volumes, which generated volumes will have. If the hearts do not beat at "
            "another rate, check frame_time in the manifest and frames in the preprocessing."
        )
    return notes


def _known_sizes(geometries: Sequence[Geometry]) -> str:
    known = [geometry for geometry in geometries if geometry.spacing is not None]
    return mm_of(known) if known else "no known voxel size either"


@dataclass(frozen=True)
class Counts:
    """Number of latent files by what was done."""

    new: int = 0
    kept: int = 0
    changed: int = 0
    repaired: int = 0

    def __str__(self) -> str:
        return (
            f"{self.new} new, {self.kept} kept, {self.changed} changed (encoded before with another VQ model, "
            f"preprocessing or precision), {self.repaired} repaired (damaged before)"
        )


@dataclass(frozen=True)
class Outcome:
    """Result for one row of the manifest: a latent file, or a problem."""

    row: int
    status: str = ""
    source: str = ""
    shape: tuple[int, ...] = ()
    problem: str = ""
    geometry: Geometry | None = None  # of the preprocessed volume
    slices: tuple[int, int] = (0, 0)  # of the preprocessed volume: from the file, and all
    masks: Mapping[str, str] = field(default_factory=dict)  # file by column
    latent: str = ""  # path relative to the folder, in a shard with the shard's name


def encode_cohort(
    manifest: Path,
    vae: VQModel4D | VQModel3D,
    output_dir: Path,
    depth: int | None = None,
    steps: Preprocessing | None = None,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    process_index: int = 0,
    num_processes: int = 1,
    gather: Callable[[list[Outcome]], list[Outcome]] = list,
    report: Callable[[str], None] = say,
    condition_keys: Sequence[str] = (),
    tiling: str = "auto",
    spacing: Triple | None = None,
    shard_size: int | None = None,
    any_size: bool = False,
) -> Counts:
    """Write a latent file for each image of a manifest, and a manifest of the latents once all are complete.

    A file that was made from the same source with the same VQ model and preprocessing is kept. Images that cannot be
    read or preprocessed are reported in one error, after all others have been encoded.

    Args:
        manifest: manifest of the images.
        vae: VQ model in float32; its scaling factor does not matter.
        output_dir: folder of the latents; may contain those of an earlier run.
        depth: number of slices to crop or pad every volume to, instead of that of the preprocessing.
        steps: preprocessing; default: that of the VQ model's training.
        batch_size: slices of a cine encoded together.
        device: device of the VQ model.
        dtype: precision in which the VQ model computes.
        process_index: number of this process; the first one reports, raises all problems and writes the manifest.
        num_processes: number of processes; each encodes every `num_processes`-th row, or the rows of every
            `num_processes`-th shard.
        gather: concatenates lists of all processes and returns the result to each, like accelerate's `gather_object`.
        report: receives progress messages, one sentence each.
        condition_keys: columns of masks, which are preprocessed like the images and stored with the latents, with the
            labels of the heart in ACDC's order.
        tiling: "on" encodes in tiles, "off" in one piece, "auto" in tiles what is large, see `set_tiling`.
        spacing: voxel size in mm to resample to, instead of that of the preprocessing.
        shard_size: number of latents in a file, see `LatentFolder`.
        any_size: allow latents of different sizes.

    Returns the counts of all processes.
    """
    if process_index > 0:
        report = _no_report
    cases = read_manifest(manifest)
    _check_label_orders(cases, condition_keys, report)
    steps = preprocessing_for(vae, steps, depth, spacing, report)
    folder = LatentFolder(output_dir, len(cases), shard_size)
    encoder = CohortEncoder(vae, steps, folder, batch_size, device, dtype, tuple(condition_keys), tiling)
    output_dir.mkdir(parents=True, exist_ok=True)
    own_groups = folder.groups(len(cases))[process_index::num_processes]
    count = sum(map(len, own_groups))
    outcomes: list[Outcome] = []
    bar = progress(description="Encoding", total=count, is_shown=process_index == 0)
    with bar:
        for group in own_groups:
            for row in group:
                outcomes.append(encoder.encode(row, cases[row]))
                if not any_size:
                    _check_same_size(outcomes, outcomes[-1], cases)
                status = outcomes[-1].status or "cannot be encoded"
                bar.update()
                if bar.disable:  # as in a log
                    report(f"{len(outcomes)} of {count}: {cases[row].image.name} {status}")
            done = outcomes[-len(group) :]
            if not any(outcome.problem for outcome in done):
                places = folder.store([outcome.latent for outcome in done])
                outcomes[-len(group) :] = [replace(o, latent=place) for o, place in zip(done, places, strict=True)]
    outcomes = sorted(gather(outcomes), key=lambda outcome: outcome.row)
    if process_index == 0:
        _finish(outcomes, cases, manifest, folder, vae, report, any_size)
    counts = Counter(outcome.status for outcome in outcomes)
    return Counts(counts[NEW], counts[KEPT], counts[CHANGED], counts[REPAIRED])


class CohortEncoder:
    """Encode one image after the other into a folder; the arguments are those of `encode_cohort`."""

    def __init__(
        self,
        vae: VQModel4D | VQModel3D,
        steps: Preprocessing,
        folder: LatentFolder,
        batch_size: int,
        device: torch.device | str,
        dtype: torch.dtype,
        condition_keys: tuple[str, ...] = (),
        tiling: str = "auto",
    ) -> None:
        if batch_size < 1:
            raise CardioDiTError(f"batch_size={batch_size} must be at least 1.")
        if vae.dtype != torch.float32:
            raise CardioDiTError(
                f"The VQ model is in {vae.dtype}. Open it in float32, and give dtype={vae.dtype} here."
            )
        self.vae, self.steps, self.folder = vae.to(device).eval(), steps, folder
        self.batch_size, self.dtype, self.tiling, self.condition_keys = batch_size, dtype, tiling, condition_keys
        self.origin = {
            "vae": identity_of_vae(vae),
            "preprocessing": identity_of_steps(steps),
            "precision": str(dtype).removeprefix("torch."),
        }

    def encode(self, row: int, case: Case) -> Outcome:
        """Write the latent file and the masks, unless valid ones of the same origin exist, and return the outcome."""
        try:
            volume = read_case(case)
            order = order_of_case(case, volume, self.steps)
            beat = beat_of_case(case, self.steps)
            source = identity_of_source(volume, order, beat)
            name = source[:KEY_LENGTH]
            geometry, slices = self.steps.geometry_of(volume, order), self.steps.slices_of(volume, order)
            if problem := other_voxel_size(self.vae, geometry):
                return Outcome(row, problem=f"{case.image} {problem}", geometry=geometry)
            masks = self._store_masks(case, volume, order, source)
            status, shape = self._status(name, source)
            known: dict[str, Any] = {"geometry": geometry, "slices": slices, "masks": masks, "latent": name}
            if status == KEPT:
                return Outcome(row, status, source, shape, **known)
            prepared = self.steps(volume, order, beat)
            latents = encode_volume(self.vae, prepared.tensor(), self.batch_size, self.dtype, self.tiling).cpu()
        except (CardioDiTError, OSError) as error:
            prefix = "" if str(case.image) in str(error) else f"{case.image} cannot be encoded. "
            return Outcome(row, problem=f"{prefix}{error}")
        is_repeated = prepared.volume.is_cine and prepared.volume.voxels.shape[3] > volume.voxels.shape[3]
        header = LatentHeader(
            **self.origin,
            source=source,
            geometry=geometry,
            shape=tuple(latents.shape),
            frames=prepared.volume.voxels.shape[3] if prepared.volume.is_cine else 1,
            steps=self.steps.to_dict(),
            valid_frames=volume.voxels.shape[3] if is_repeated and self.steps.frame_multiple > 1 else None,
        )
        write_latent(self.folder.file(name), latents, header)
        return Outcome(row, status, source, header.shape, **known)

    def _status(self, name: str, source: str) -> tuple[str, tuple[int, ...]]:
        """Return the status of a latent, and its shape."""
        place = self.folder.place(name)
        if place is None:
            return (REPAIRED if name in self.folder.lost else NEW), ()
        try:
            header, _ = read_latent(place)
        except DamagedLatentError:
            return REPAIRED, ()
        expected = {**self.origin, "source": source}
        is_same = header.steps is not None and all(getattr(header, name) == value for name, value in expected.items())
        return (KEPT if is_same else CHANGED), header.shape

    def _store_masks(self, case: Case, volume: Volume, order: StorageOrder, source: str) -> dict[str, str]:
        """Write the masks of a row that are not stored yet; return their files by column, relative to the folder."""
        files: dict[str, str] = {}
        prepared: Prepared | None = None
        for key in self.condition_keys:
            mask_path = case.path(key)
            if mask_path is None:
                raise CardioDiTError(f"The column {key!r} names no mask for {case.image.name}.")
            labels = read_label_map(mask_path, order_of_row(case.row, key))
            identity = identity_of(
                {
                    "key": key,
                    "voxels": content_of(labels.voxels),
                    "geometry": labels.geometry.to_dict(),
                    "image": source,
                    "preprocessing": self.origin["preprocessing"],
                }
            )
            files[key] = f"{MASK_FOLDER}/{identity[:20]}.nii.gz"
            path = self.folder.path / files[key]
            if _is_readable_mask(path):
                continue
            prepared = prepared or self.steps(volume, order, beat_of_case(case, self.steps))
            voxels = prepared.apply_to_mask(labels)
            if voxels.shape != prepared.volume.voxels.shape:
                raise CardioDiTError(
                    f"The mask {mask_path} becomes {voxels.shape}, its image {prepared.volume.voxels.shape}: a cine "
                    "needs a mask of every frame."
                )
            path.parent.mkdir(exist_ok=True)
            write_nifti(path, voxels, prepared.volume.geometry)
        return files


def _is_readable_mask(path: Path) -> bool:
    try:
        read_mask(path)
    except (CardioDiTError, OSError):
        return False
    return True


def _no_report(sentence: str) -> None:
    """Ignore the progress messages of all processes but the first."""


def preprocessing_for(
    vae: VQModel4D | VQModel3D,
    given: Preprocessing | None = None,
    depth: int | None = None,
    spacing: Triple | None = None,
    report: Callable[[str], None] = say,
) -> Preprocessing:
    """Return how images are prepared for the VQ model: as given or else as its training volumes were.

    `depth` and `spacing` replace the number of slices and the voxel size of the preprocessing.
    """
    own = None if vae.config.preprocessing is None else Preprocessing.from_dict(vae.config.preprocessing)
    steps = given or own
    if steps is None:
        raise CardioDiTError(
            "The VQ model's config does not say how its training volumes were prepared. Give a preset: "
            f"{', '.join(PRESETS)}."
        )
    if own is not None and identity_of_steps(own) != identity_of_steps(steps):
        report("The preprocessing given is not the one that the VQ model was trained with.")
    if depth is not None:
        steps = replace(steps, size=(*steps.size[:2], depth))
    return steps if spacing is None else replace(steps, spacing=spacing)


def _check_label_orders(cases: Sequence[Case], keys: Sequence[str], report: Callable[[str], None]) -> None:
    """Report how many masks are relabelled so that all hearts have the same labels."""
    check_orders([case.row for case in cases], keys)
    orders = Counter(order_of_row(case.row, key) or ACDC_ORDER for case in cases for key in keys if case.path(key))
    for order, number in orders.items():
        if parse_order(order) != OURS:
            report(f"Relabelling {number} of {orders.total()} masks from {order} to ACDC's {ACDC_ORDER}.")


def _check_same_size(outcomes: Sequence[Outcome], new: Outcome, cases: Sequence[Case]) -> None:
    """Raise at the first image of another size, because latents of different sizes cannot be batched."""
    first = next((outcome for outcome in outcomes if outcome.shape), new)
    if new.shape and new.shape != first.shape:
        raise CardioDiTError(
            f"The latents would differ in size: {first.shape} of {cases[first.row].image}, {new.shape} of "
            f"{cases[new.row].image}. Give a depth, or a preprocessing whose size names H, W and D."
        )


def _finish(
    outcomes: Sequence[Outcome],
    cases: Sequence[Case],
    manifest: Path,
    folder: LatentFolder,
    vae: VQModel,
    report: Callable[[str], None],
    any_size: bool,
) -> None:
    """Remove temporary files, then raise all problems or write the manifest, once all processes have finished."""
    for name in folder.remove_temporary():
        report(f"Removed {name}, left over from an interrupted run.")
    _raise_problems(outcomes, cases, manifest, folder.path, vae)
    for note in notes_on_geometries(vae, [outcome.geometry for outcome in outcomes if outcome.geometry is not None]):
        report(note)
    if note := note_on_padding({cases[outcome.row].image: outcome.slices for outcome in outcomes}):
        report(note)
    for outcome in () if any_size else outcomes:
        _check_same_size(outcomes, outcome, cases)
    names = [outcome.latent for outcome in outcomes]
    rows = [
        {
            COLUMN: name,
            **{key: value for key, value in case.row.items() if key not in (*PATH_COLUMNS, COLUMN)},
            **outcome.masks,
            **({ORDER: ACDC_ORDER} if any(order_of_row(case.row, key) for key in outcome.masks) else {}),
        }
        for name, case, outcome in zip(names, cases, outcomes, strict=True)
    ]
    write_manifest(folder.manifest, rows)
    if unneeded := folder.other_files(names):
        report(f"Kept latent files that belong to no image in {manifest}: {', '.join(unneeded)}.")


def _raise_problems(
    outcomes: Sequence[Outcome], cases: Sequence[Case], manifest: Path, output_dir: Path, vae: VQModel
) -> None:
    problems = Problems(f"Not every image of {manifest} could be encoded, so no manifest was written")
    first: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.problem:
            problems.add(outcome.problem)
        elif same := first.get(outcome.source):
            problems.add(f"{cases[outcome.row].image} holds the same volume as {cases[same.row].image}")
        else:
            first[outcome.source] = outcome
    has_other_size = any(outcome.geometry and other_voxel_size(vae, outcome.geometry) for outcome in outcomes)
    problems.raise_if_any(
        (f"{advice_on_spacing(vae)}\n" if has_other_size else "")
        + f"The others are encoded in {output_dir} and are kept. Fix these or remove them from the manifest, and run "
        "the same command again."
    )
