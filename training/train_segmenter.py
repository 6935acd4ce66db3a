"""A segmenter learns to find both ventricles and the muscle in cine volumes, to measure what is generated.

In: two manifests with a column `mask` (RV 1, myocardium 2, LV 3; frames without labels are left out). Out, in
OUTPUT_DIR/RUN_NAME: checkpoints to go on from, and `best/segmenter` with the highest Dice on the validation volumes.
"""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import try_all
from cardiodit.evaluation.metrics.function import ejection_fraction, volumes_ml
from cardiodit.imaging.manifest import check_disjoint, read_manifest
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.state import Network, Optimizer, decaying
from cardiodit.training.segmenter_data import FrameVisits, SegmentedCines
from cardiodit.training.settings import SegmenterSettings

EXAMPLE = (
    "accelerate launch training/train_segmenter.py --config configs/phantom/segmenter.yaml \\\n"
    "    --training_ids phantoms/manifest.csv --validation_ids fresh/manifest.csv --output_dir runs --run_name seg"
)
LABELS = {1: "rv", 2: "myo", 3: "lv"}


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(argv, SegmenterSettings, "Train a segmenter.", EXAMPLE, None, can_tune=False)
    with Run(request, "train_segmenter") as run:
        train(request, run)


def train(request: Request[SegmenterSettings], run: Run) -> None:
    from monai.losses.dice import DiceCELoss

    settings, training = request.settings, request.settings.training
    cines, validation = read_cines(request)
    run.open(len(cines.frames), {"training_data": cines.identity, "validation_data": validation.identity})
    model = new_segmenter(settings, cines)
    optimizer = torch.optim.AdamW(decaying(model, training.weight_decay), training.learning_rate)
    model, optimizer = run.accelerator.prepare(model, optimizer)
    bare = run.accelerator.unwrap_model(model)
    networks = [Network("segmenter", bare)]
    run.keep([*networks, Optimizer("optimizer", bare, optimizer)], [(optimizer, training.learning_rate)])

    data = settings.data
    loader = run.loader(FrameVisits(cines, data.augmentation.build(), data.blur, data.noise, training.seed))
    validate_every = run.calendar.every(training.validation_epochs, training.validation_steps)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        for number, batch in enumerate(batches, start=1):
            with run.accumulating(model, is_last=number == len(batches)):
                loss = loss_of(model(batch["image"]).float(), batch["labels"])
                run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, model)
        run.log({"loss": total}, [subject for batch in batches for subject in batch["subject"]])
        if run.is_due(validate_every):
            run.validated(validate(bare, validation), networks, by="validation_dice_error")
    if run.was_interrupted:
        return
    run.finish()
    run.say(f"The segmenter is {run.folder / 'best' / 'segmenter'}.")


def read_cines(request: Request[SegmenterSettings]) -> tuple[SegmentedCines, SegmentedCines]:
    options, steps = request.options, request.settings.data.preprocessing.build()
    cases = try_all(partial(read_manifest, options.training_ids), partial(read_manifest, options.validation_ids))
    check_disjoint(training=cases[0], validation=cases[1])
    most = request.settings.model.num_labels - 1
    first, second = try_all(*(partial(SegmentedCines, held, steps, most) for held in cases))
    return first, second


def new_segmenter(settings: SegmenterSettings, cines: SegmentedCines) -> HeartSegmenter:
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    spacings = {geometry.spacing for geometry in cines.geometries}
    return HeartSegmenter(
        **asdict(settings.model),
        preprocessing=cines.steps.to_dict(),
        spacing=spacings.pop() if len(spacings) == 1 else None,
    )


def validate(model: HeartSegmenter, cines: SegmentedCines) -> dict[str, float]:
    """Mean Dice over volumes, label by label, and by how much the ejection fraction is off, in points."""
    overlaps, errors = [], []
    for image, labels, geometry in zip(cines.images, cines.labels, cines.geometries, strict=True):
        found = model.segment(image)
        labelled = labels.any(axis=(0, 1, 2))
        overlaps.append(list(dice(found[..., labelled], labels[..., labelled], tuple(LABELS)).values()))
        if labelled.all():
            errors.append(
                ejection_fraction(volumes_ml(found, geometry)) - ejection_fraction(volumes_ml(labels, geometry))
            )
    means = np.mean(overlaps, axis=0)
    values = {f"validation_dice_{name}": float(mean) for name, mean in zip(LABELS.values(), means, strict=True)}
    if errors:
        values |= {"validation_ef_bias": float(np.mean(errors)), "validation_ef_error": float(np.abs(errors).mean())}
    return {**values, "validation_dice_error": float(1 - means.mean())}


if __name__ == "__main__":
    run_script(main)
