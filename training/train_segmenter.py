"""Train a segmenter of both ventricles and the myocardium in cine volumes, by which generated hearts are measured.

Input: two manifests with a column `mask` (RV 1, myocardium 2, LV 3; frames without labels are not used). Output, in
OUTPUT_DIR/RUN_NAME: checkpoints, and `best/segmenter` with the highest Dice on the validation volumes.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import Dataset

from cardiodit._util.hashing import sha256_of
from cardiodit._util.randomness import generator_for
from cardiodit._util.terminal import progress
from cardiodit.errors import Problems, try_all
from cardiodit.evaluation.metrics.function import ejection_fraction, volumes_ml
from cardiodit.imaging.augmentation import Augmentation
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.manifest import Case, check_disjoint, prepare_case, prepare_mask, read_manifest
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.models.loading import bounded_model
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.schedule import SampleOrder, seed_for
from cardiodit.training.harness.state import Network, Optimizer, decay_groups
from cardiodit.training.settings import SegmenterSettings, build_augmentation, build_preprocessing

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_segmenter --config phantom/segmenter.yaml \\\n"
    "    --training_ids phantoms/manifest.csv --validation_ids fresh/manifest.csv --output_dir runs --run_name seg"
)
Batch = dict[str, Any]

LABELS = {1: "rv", 2: "myo", 3: "lv"}


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        SegmenterSettings,
        "Train a segmenter of the ventricles and myocardium, by which generated hearts are measured.",
        EXAMPLE,
        None,
        can_tune=False,
    )
    with Run(request, "train_segmenter") as run:
        train(request, run)


def train(request: Request[SegmenterSettings], run: Run) -> None:
    from monai.losses.dice import DiceCELoss

    settings, training = request.settings, request.settings.training
    cines, validation = read_cines(request)
    run.open(len(cines.frames), {"training_data": cines.identity, "validation_data": validation.identity})
    model = new_segmenter(settings, cines)
    optimizer = torch.optim.AdamW(decay_groups(model, training.weight_decay), training.learning_rate)
    model, optimizer = run.accelerator.prepare(model, optimizer)
    bare = run.accelerator.unwrap_model(model)
    networks = [Network("segmenter", bare)]
    run.register([*networks, Optimizer("optimizer", bare, optimizer)], [(optimizer, training.learning_rate)])

    data = settings.data
    loader = run.loader(
        FrameDataset(cines, build_augmentation(data.augmentation), data.blur, data.noise, training.seed)
    )
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        for batch in run.accumulating(model, batches):
            loss = loss_of(model(batch["image"]).float(), batch["labels"])
            run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, model)
        run.log({"loss": total}, batches)
        if run.is_due(validate_every):
            run.validated(validate(bare, validation), networks, by="validation_dice_error")
    if run.was_interrupted:
        return
    run.finish()
    run.say(f"The segmenter is {run.folder / 'best' / 'segmenter'}.")


class SegmentedCines:
    """Cines `(H, W, D, T)` with their label maps in memory, and the list of labelled frames."""

    def __init__(self, cases: Sequence[Case], steps: Preprocessing, most_label: int) -> None:
        self.cases, self.steps = list(cases), steps
        self.images: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.geometries: list[Geometry] = []
        problems = Problems("The segmenter cannot be trained with these rows")
        for case in progress(self.cases, "Reading volumes", leave=False):
            prepared = prepare_case(case, steps)
            mask = prepare_mask(case, prepared)
            if mask is None:
                problems.add(f"{case.subject} has no mask; the manifest needs a column of that name")
                continue
            if mask.voxels.max() > most_label or mask.voxels.max() == 0:
                problems.add(f"{case.path('mask')} holds labels up to {mask.voxels.max()}, not 1 to {most_label}")
            self.images.append(prepared.volume.voxels.astype(np.float32))
            self.labels.append(mask.voxels.astype(np.uint8))
            self.geometries.append(prepared.volume.geometry)
        problems.raise_if_any()
        self.frames = [
            (i, int(t)) for i, mask in enumerate(self.labels) for t in np.flatnonzero(mask.any(axis=(0, 1, 2)))
        ]

    @property
    def identity(self) -> str:
        """Hashes of the files, independent of their paths."""
        return " ".join(sha256_of(case.image)[:12] for case in self.cases)

    def frame(self, index: int, time: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return image and labels `(H, W, D)`."""
        return torch.from_numpy(self.images[index][..., time]), torch.from_numpy(self.labels[index][..., time])


class FrameDataset(Dataset):
    """Training samples by visit number: an image `(1, H, W, D)` with its labels.

    Args:
        blur: largest blur in voxels within the plane; half of the images are not blurred.
        noise: largest standard deviation of added noise; the intensity range is 2.
    """

    def __init__(self, cines: SegmentedCines, augmentation: Augmentation, blur: float, noise: float, seed: int) -> None:
        self.cines, self.augmentation, self.blur, self.noise = cines, augmentation, blur, noise
        self.order = SampleOrder(len(cines.frames), seed)
        self.seed = seed_for(seed, "frames")

    def __getitem__(self, visit: int) -> Batch:
        index, time = self.cines.frames[self.order[visit]]
        generator = generator_for(self.seed, visit)
        image, labels = self.cines.frame(index, time)
        spacing = self.cines.geometries[index].spacing or (1.0, 1.0, 1.0)
        image, (labels,) = self.augmentation(image, [labels], generator, spacing=spacing)
        is_blurred, blur, noise = torch.rand(3, generator=generator).tolist()
        if is_blurred < 0.5:
            sigma = blur * self.blur
            image = torch.from_numpy(gaussian_filter(image.numpy(), (sigma, sigma, 0), mode="nearest"))
        image = image + noise * self.noise * torch.randn(image.shape, generator=generator)
        return {"image": image[None], "labels": labels[None].long(), "subject": self.cines.cases[index].subject}


def read_cines(request: Request[SegmenterSettings]) -> tuple[SegmentedCines, SegmentedCines]:
    options, steps = request.options, build_preprocessing(request.settings.data.preprocessing)
    cases = try_all(partial(read_manifest, options.training_ids), partial(read_manifest, options.validation_ids))
    check_disjoint(training=cases[0], validation=cases[1])
    most = request.settings.model.num_labels - 1
    first, second = try_all(*(partial(SegmentedCines, held, steps, most) for held in cases))
    return first, second


def new_segmenter(settings: SegmenterSettings, cines: SegmentedCines) -> HeartSegmenter:
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    spacings = {geometry.spacing for geometry in cines.geometries}
    with bounded_model():
        return HeartSegmenter(
            **settings.model,
            preprocessing=cines.steps.to_dict(),
            spacing=spacings.pop() if len(spacings) == 1 else None,
        )


def validate(model: HeartSegmenter, cines: SegmentedCines) -> dict[str, float]:
    """Return the mean Dice of each label over volumes, and the error of the ejection fraction in percentage points."""
    overlaps, errors = [], []
    for image, labels, geometry in zip(cines.images, cines.labels, cines.geometries, strict=True):
        predicted = model.segment(image)
        labelled = labels.any(axis=(0, 1, 2))
        overlaps.append(list(dice(predicted[..., labelled], labels[..., labelled], tuple(LABELS)).values()))
        if labelled.all():
            errors.append(
                ejection_fraction(volumes_ml(predicted, geometry)) - ejection_fraction(volumes_ml(labels, geometry))
            )
    means = np.mean(overlaps, axis=0)
    values = {f"validation_dice_{name}": float(mean) for name, mean in zip(LABELS.values(), means, strict=True)}
    if errors:
        values |= {"validation_ef_bias": float(np.mean(errors)), "validation_ef_error": float(np.abs(errors).mean())}
    return {**values, "validation_dice_error": float(1 - means.mean())}


if __name__ == "__main__":
    run_script(main)
