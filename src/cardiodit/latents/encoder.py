"""Encodes a cohort into a folder of latents, and goes on where it stopped."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from cardiodit._util.memory import set_tiling
from cardiodit.errors import CardioDiTError, Problems
from cardiodit.imaging import PRESETS, Preprocessing, Volume, read_case, read_manifest
from cardiodit.imaging.cases import order_of_case
from cardiodit.imaging.label_maps import ORDER, check_orders, order_of_row
from cardiodit.imaging.label_order import ACDC_ORDER, OURS, parse_order
from cardiodit.imaging.manifest import PATH_COLUMNS, Case, read_table, write_manifest
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.latents.file import DamagedLatentError, LatentHeader, read_header, write_latent
from cardiodit.latents.identity import identity_of_source, identity_of_steps, identity_of_vae
from cardiodit.latents.masks import FOLDER, MaskStore
from cardiodit.latents.volume_encoder import encode_volume
from cardiodit.models import VQModel3D, VQModel4D

MANIFEST = "manifest.csv"
COLUMN = "latent"
LEFTOVER = re.compile(r"\.tmp-[0-9a-f]{8}-([0-9a-f]{20}\.(safetensors|nii\.gz)|manifest\.csv)")
NEW, KEPT, CHANGED, REPAIRED = "new", "kept", "changed", "repaired"


@dataclass(frozen=True)
class Counts:
    """How many files were made, and why."""

    new: int = 0
    kept: int = 0
    changed: int = 0
    repaired: int = 0

    def __str__(self) -> str:
        return (
            f"{self.new} new, {self.kept} kept, {self.changed} changed (of another VQ model, preprocessing or "
            f"precision before), {self.repaired} repaired (damaged before)"
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one row of the manifest: a file, or a problem."""

    row: int
    what: str = ""
    source: str = ""
    shape: tuple[int, ...] = ()
    problem: str = ""
    masks: Mapping[str, str] = field(default_factory=dict)


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
    report: Callable[[str], None] = print,
    condition_keys: Sequence[str] = (),
    tiling: str = "auto",
) -> Counts:
    """Writes a latent file for each image of a manifest, and a manifest of them once every row has its file.

    A file that was made of the same source with the same VQ model and preprocessing is kept. Images that cannot be
    read or prepared are named in one error, after all others have been encoded.

    Args:
        manifest: of the images.
        vae: in float32; its scaling factor does not matter.
        output_dir: folder of the latents; may hold those of an earlier run.
        depth: slices to crop or pad every volume to, in place of the preprocessing's own number.
        steps: the preprocessing; by default the one that the VQ model was trained with.
        batch_size: slices at once.
        device, dtype: where, and in which precision, the VQ model computes.
        process_index, num_processes: this process takes every `num_processes`-th row. The first one reports, raises
            what was wrong with any image, and writes the manifest.
        gather: collects lists from all processes and returns the whole to each, like accelerate's `gather_object`.
        report: is told what happens, a sentence at a time.
        condition_keys: columns of the manifest that name masks, which are prepared as the images are and kept beside
            the latents, the parts of hearts in ACDC's order.
        tiling: "on" encodes in tiles, "off" in one piece, "auto" in tiles what is large, see `set_tiling`.

    Returns the counts of all processes.
    """
    if process_index > 0:
        report = _say_nothing
    cases = read_manifest(manifest)
    _look_at_orders(cases, condition_keys, report)
    encoder = CohortEncoder(
        vae, _steps(vae, steps, depth, report), output_dir, batch_size, device, dtype, tuple(condition_keys), tiling
    )
    _refuse_foreign_manifest(output_dir / MANIFEST)
    output_dir.mkdir(parents=True, exist_ok=True)
    own = range(process_index, len(cases), num_processes)
    outcomes: list[Outcome] = []
    for number, row in enumerate(own, start=1):
        outcomes.append(encoder.encode(row, cases[row]))
        _refuse_another_size(outcomes, outcomes[-1], cases)
        report(f"{number} of {len(own)}: {cases[row].image.name} {outcomes[-1].what or 'cannot be encoded'}")
    outcomes = sorted(gather(outcomes), key=lambda outcome: outcome.row)
    if process_index == 0:
        _finish(outcomes, cases, manifest, output_dir, report)
    counts = Counter(outcome.what for outcome in outcomes)
    return Counts(counts[NEW], counts[KEPT], counts[CHANGED], counts[REPAIRED])


class CohortEncoder:
    """Makes the latent file of one image after the other."""

    def __init__(
        self,
        vae: VQModel4D | VQModel3D,
        steps: Preprocessing,
        output_dir: Path,
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
        self.vae, self.steps, self.output_dir = vae.to(device).eval(), steps, output_dir
        self.batch_size, self.dtype, self.tiling = batch_size, dtype, tiling
        self.origin = {
            "vae": identity_of_vae(vae),
            "preprocessing": identity_of_steps(steps),
            "precision": str(dtype).removeprefix("torch."),
        }
        self.masks = MaskStore(output_dir, condition_keys, self.origin["preprocessing"])

    def encode(self, row: int, case: Case) -> Outcome:
        """Makes the file unless a sound one of the same origin is there; what is wrong with the image is returned."""
        try:
            volume = read_case(case)
            order = order_of_case(case, volume, self.steps)
            source = identity_of_source(volume, order)
            path = self.output_dir / file_name(source)
            masks = self.masks.store(case, source, partial(self.steps, volume, order))
            what, shape = self._look(path, source)
            if what == KEPT:
                return Outcome(row, what, source, shape, masks=masks)
            latents, header = self._encode(volume, order, source)
        except (CardioDiTError, OSError) as error:
            where = "" if str(case.image) in str(error) else f"{case.image} cannot be encoded. "
            return Outcome(row, problem=f"{where}{error}")
        write_latent(path, latents, header)
        return Outcome(row, what, source, header.shape, masks=masks)

    def _look(self, path: Path, source: str) -> tuple[str, tuple[int, ...]]:
        if not path.exists():
            return NEW, ()
        try:
            header = read_header(path)
        except DamagedLatentError:
            return REPAIRED, ()
        expected = {**self.origin, "source": source}
        is_same = header.steps is not None and all(getattr(header, name) == value for name, value in expected.items())
        return (KEPT if is_same else CHANGED), header.shape

    def _encode(self, volume: Volume, order: StorageOrder, source: str) -> tuple[torch.Tensor, LatentHeader]:
        prepared = self.steps(volume, order)
        at_once = self.batch_size if prepared.volume.is_cine else 1
        set_tiling(self.vae, prepared.volume.voxels.shape, self.tiling, at_once)
        latents = encode_volume(self.vae, prepared.tensor(), self.batch_size, self.dtype)
        shape = prepared.volume.voxels.shape
        header = LatentHeader(
            **self.origin,
            source=source,
            geometry=prepared.volume.geometry,
            shape=tuple(latents.shape),
            frames=shape[3] if prepared.volume.is_cine else 1,
            steps=self.steps.to_dict(),
        )
        return latents, header


def file_name(source: str) -> str:
    """Tells nothing of whose image it is, and is the same wherever and under whatever name the image lies."""
    return f"{source[:20]}.safetensors"


def _say_nothing(sentence: str) -> None:
    """The report of all processes but the first."""


def _steps(
    vae: VQModel4D | VQModel3D, given: Preprocessing | None, depth: int | None, report: Callable[[str], None]
) -> Preprocessing:
    own = None if vae.config.preprocessing is None else Preprocessing.from_dict(vae.config.preprocessing)
    steps = given or own
    if steps is None:
        raise CardioDiTError(
            "The VQ model's config does not say how its training volumes were prepared. Give a preset: "
            f"{', '.join(PRESETS)}."
        )
    if own is not None and identity_of_steps(own) != identity_of_steps(steps):
        report("The preprocessing given is not the one that the VQ model was trained with.")
    return steps if depth is None else replace(steps, size=(*steps.size[:2], depth))


def _look_at_orders(cases: Sequence[Case], keys: Sequence[str], report: Callable[[str], None]) -> None:
    """Says how many masks get other labels than they have, so that all hearts have the same."""
    check_orders([case.row for case in cases], keys)
    orders = Counter(order_of_row(case.row, key) or ACDC_ORDER for case in cases for key in keys if case.path(key))
    for order, number in orders.items():
        if parse_order(order) != OURS:
            report(f"Labels {order}, of {number} of {orders.total()} masks, become those of ACDC, {ACDC_ORDER}.")


def _refuse_foreign_manifest(path: Path) -> None:
    if path.exists() and any(COLUMN not in row or "image" in row for _, row in read_table(path, ())):
        raise CardioDiTError(
            f"{path} would be overwritten, and it is no manifest of latents. Choose another output folder."
        )


def _refuse_another_size(outcomes: Sequence[Outcome], new: Outcome, cases: Sequence[Case]) -> None:
    """Batches need one size; noticed at the second image, not when all are encoded."""
    first = next((outcome for outcome in outcomes if outcome.shape), new)
    if new.shape and new.shape != first.shape:
        raise CardioDiTError(
            f"The latents would differ in size: {first.shape} of {cases[first.row].image}, {new.shape} of "
            f"{cases[new.row].image}. Give a depth, or a preprocessing whose size names H, W and D."
        )


def _finish(
    outcomes: Sequence[Outcome], cases: Sequence[Case], manifest: Path, output_dir: Path, report: Callable[[str], None]
) -> None:
    """When all processes are done: tidies up, raises what was wrong, or writes the manifest."""
    for path in [*output_dir.iterdir(), *output_dir.glob(f"{FOLDER}/.*")]:
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)
            report(f"Removed {path.name}, which a run that was stopped had left.")
    _raise_problems(outcomes, cases, manifest, output_dir)
    for outcome in outcomes:
        _refuse_another_size(outcomes, outcome, cases)
    names = [file_name(outcome.source) for outcome in outcomes]
    rows = [
        {
            COLUMN: name,
            **{key: value for key, value in case.row.items() if key not in (*PATH_COLUMNS, COLUMN)},
            **outcome.masks,
            **({ORDER: ACDC_ORDER} if any(order_of_row(case.row, key) for key in outcome.masks) else {}),
        }
        for name, case, outcome in zip(names, cases, outcomes, strict=True)
    ]
    write_manifest(output_dir / MANIFEST, rows)
    unneeded = sorted({path.name for path in output_dir.glob("[!.]*.safetensors")} - set(names))
    if unneeded:
        report(f"Of no image in {manifest}, and left where they are: {', '.join(unneeded)}.")


def _raise_problems(outcomes: Sequence[Outcome], cases: Sequence[Case], manifest: Path, output_dir: Path) -> None:
    problems = Problems(f"Not every image of {manifest} could be encoded, so no manifest was written")
    first: dict[str, Outcome] = {}
    for outcome in outcomes:
        if outcome.problem:
            problems.add(outcome.problem)
        elif same := first.get(outcome.source):
            problems.add(f"{cases[outcome.row].image} holds the same volume as {cases[same.row].image}")
        else:
            first[outcome.source] = outcome
    problems.raise_if_any(
        f"The others are encoded in {output_dir} and are kept. Mend these or take them out of the manifest, and run "
        "the same again."
    )
