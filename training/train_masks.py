"""Train a second decoder of a pipeline's autoencoder, by which every sample comes with its mask.

Input: a pipeline, and two manifests of latents with masks (`cardiodit encode --condition_keys mask`). The autoencoder
and the denoiser stay as they are. Output, in OUTPUT_DIR/RUN_NAME: checkpoints, `best/` with the highest Dice on the
validation latents, and `pipeline/`, whose samples have masks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from cardiodit._util.atomic_io import replace_folder
from cardiodit._util.randomness import generator_for
from cardiodit.hub.model_card import write_card
from cardiodit.latents import LatentCohort
from cardiodit.models.conditions import Conditions
from cardiodit.models.loading import bounded_model
from cardiodit.models.segmenter import dice
from cardiodit.pipelines.load import open_pipeline
from cardiodit.training.adapter_data import CohortMasks, read_cohorts, read_masks
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.run_record import RECORD
from cardiodit.training.harness.schedule import SampleOrder, seed_for
from cardiodit.training.harness.state import Network, Optimizer, decay_groups
from cardiodit.training.settings import MasksSettings

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_masks --base runs/dit/pipeline \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name masks"
)
KEY, LABELS = "mask", {1: "rv", 2: "myo", 3: "lv"}
CONDITIONS = Conditions((KEY,), (tuple(LABELS),))


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        MasksSettings,
        "Train a second decoder, by which a pipeline's samples come with their masks.",
        EXAMPLE,
        None,
        add_options,
        can_tune=False,
    )
    with Run(request, "train_masks") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="pipeline whose samples are to have masks: a folder, org/name on the Hub, or cardiodit-phantom",
    )


def train(request: Request[MasksSettings], run: Run) -> None:
    from monai.losses.dice import DiceCELoss

    settings, training, options = request.settings, request.settings.training, request.options
    pipe = open_pipeline(options.base)
    cohorts = read_cohorts((options.training_ids, options.validation_ids), pipe.vae)
    masks = read_masks(cohorts, CONDITIONS, pipe.voxels_per_latent)
    data = {"training_data": cohorts[0].identity, "validation_data": cohorts[1].identity}
    data |= {"training_masks": masks[0].identity, "validation_masks": masks[1].identity}
    run.open(len(cohorts[0]), data)
    vae = with_mask_head(pipe.vae, settings.channels, training.seed)
    vae.requires_grad_(False)
    vae.mask_head.requires_grad_(True)
    optimizer = torch.optim.AdamW(decay_groups(vae.mask_head, training.weight_decay), training.learning_rate)
    vae.to(run.accelerator.device)
    head, optimizer = run.accelerator.prepare(vae.mask_head, optimizer)
    bare = run.accelerator.unwrap_model(head)
    networks = [Network("mask_head", bare, adapter_only=True)]
    run.register([*networks, Optimizer("optimizer", bare, optimizer)], [(optimizer, training.learning_rate)])
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True)
    loader = run.loader(LatentsWithMasks(cohorts[0], masks[0], settings.latent_noise, training.seed))
    validate_every = run.schedule.every(training.validation_epochs, training.validation_steps)
    for _, batches in run.steps(loader):
        total = torch.zeros((), device=run.accelerator.device)
        for batch in run.accumulating(head, batches):
            logits = logits_of(vae, head, batch["sample"]).float()
            loss = loss_of(logits.flatten(3), batch["labels"][:, None].flatten(3))
            run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, head)
        run.log({"loss": total}, batches)
        if run.is_due(validate_every):
            run.validated(validate(vae, bare, cohorts[1], masks[1]), networks, by="validation_dice_error")
    if run.was_interrupted:
        return
    run.record.end("saving", run.step)
    if run.is_main:
        Network("mask_head", bare, adapter_only=True).load(run.folder / "best")
        pipe.vae = vae.cpu().eval().requires_grad_(True)
        folder, earlier = run.folder / "pipeline", Path(options.base)
        with replace_folder(folder) as temporary:
            pipe.save_pretrained(temporary)
            runs = [place for place in (earlier, earlier.parent) if (place / RECORD).is_file()]
            write_card(temporary, runs[:1])
        run.say(f"The pipeline is {folder}. Its samples have masks: cardiodit sample {folder} --output_dir samples")
    run.finish()


class LatentsWithMasks(Dataset):
    """Latents by visit number with the labels of their voxels `(*axes)`, and a little noise.

    Args:
        latents: the cohort.
        masks: its masks.
        noise: standard deviation of the noise over that of the latents.
        seed: the run's seed.
    """

    def __init__(self, latents: LatentCohort, masks: CohortMasks, noise: float, seed: int) -> None:
        self.latents, self.masks, self.noise = latents, masks, noise
        self.order, self.seed = SampleOrder(len(latents), seed), seed_for(seed, "masks")

    def __getitem__(self, visit: int) -> dict[str, Any]:
        index, generator = self.order[visit], generator_for(self.seed, visit)
        latents = self.latents[index].float()
        strength = self.noise * float(torch.rand((), generator=generator))
        latents = latents + strength * latents.std() * torch.randn(latents.shape, generator=generator)
        labels, subject = label_map(self.masks[index]), self.latents.cases[index].subject
        return {"sample": latents, "labels": labels, "subject": subject}


def label_map(channels: torch.Tensor) -> torch.Tensor:
    """Return one label per voxel `(*axes)` from binary channels `(K, *axes)`."""
    numbers = torch.tensor(list(LABELS)).view(-1, *(1,) * (channels.ndim - 1))
    return (channels.long() * numbers).amax(dim=0)


def with_mask_head(vae: Any, channels: int, seed: int) -> Any:
    """Return an autoencoder with the same weights and a new decoder of masks."""
    config = {key: value for key, value in vae.config.items() if not key.startswith("_")}
    torch.manual_seed(generator_for(seed_for(seed, "weights"), 0).initial_seed())
    with bounded_model():
        made = type(vae).from_config({**config, "mask_labels": 1 + len(LABELS), "mask_channels": channels})
    kept = {name: value for name, value in vae.state_dict().items() if not name.startswith("mask_head.")}
    made.load_state_dict(kept, strict=False)  # only the new decoder is missing
    return made.eval()


def logits_of(vae: Any, head: torch.nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Return what `vae.decode_masks` returns, through the wrapped decoder."""
    with torch.no_grad():
        if vae.config.quantize_latents:
            latents = vae.quantizer(latents, may_learn=False).latents
    return vae._by_batch(head, latents)


@torch.no_grad()
def validate(vae: Any, head: torch.nn.Module, latents: LatentCohort, masks: CohortMasks) -> dict[str, float]:
    """Return the mean Dice of each label over volumes."""
    overlaps = []
    device = next(head.parameters()).device
    for index in range(len(latents)):
        found = logits_of(vae, head, latents[index][None].float().to(device)).argmax(dim=1)[0]
        overlaps.append(list(dice(found.cpu().numpy(), label_map(masks[index]).numpy(), tuple(LABELS)).values()))
    means = np.mean(overlaps, axis=0)
    values = {f"validation_dice_{name}": float(mean) for name, mean in zip(LABELS.values(), means, strict=True)}
    return {**values, "validation_dice_error": float(1 - means.mean())}


if __name__ == "__main__":
    run_script(main)
