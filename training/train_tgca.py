"""Train an adapter by which masks steer a trained transformer (TGCA); the transformer stays as it is.

Input: a pipeline, and two manifests of latents with masks (`cardiodit encode --condition_keys`). Output, in
OUTPUT_DIR/RUN_NAME: checkpoints, `best/` with the lowest validation loss, and `pipeline/`, which
`cardiodit sample --masks` opens.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cardiodit.errors import CardioDiTError
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.pipelines.load import make_pipeline, open_pipeline
from cardiodit.systems import system_of
from cardiodit.training.adapter_data import (
    MaskDropout,
    conditions_of,
    labelled_samples,
    own_preprocessing,
    read_cohorts,
    read_masks,
)
from cardiodit.training.adapter_model import Steered, new_adapter, with_fingerprints
from cardiodit.training.denoiser_loop import Denoiser, train_denoiser
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.noisy_samples import Noising, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import Batch, Denoising
from cardiodit.training.pipeline_output import Upload, add_upload_options, finish_pipeline
from cardiodit.training.settings import TGCASettings

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_tgca --config phantom/tgca.yaml --base runs/dit/pipeline \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name tgca"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        TGCASettings,
        "Train an adapter through which masks steer a trained pipeline (TGCA).",
        EXAMPLE,
        None,
        add_options,
        can_tune=False,
    )
    with Run(request, "train_tgca") as run:
        train(request, run, new_adapter, request.settings.adapter.finetune_last_n_blocks)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        required=True,
        metavar="MODEL",
        help="pipeline to steer: a folder, org/name on the Hub, or cardiodit-phantom",
    )
    add_upload_options(parser)


def train(request: Request[Any], run: Run, make_adapter: Callable[..., Any], freed: int = 0) -> None:
    """Train an adapter of any kind.

    Args:
        make_adapter: makes it from the settings, the base, the voxels per latent and the base's fingerprint.
        freed: number of last blocks of the base that are trained too.
    """
    settings, training, options = request.settings, request.settings.training, request.options

    # The base, the data, the adapter.
    pipe = open_pipeline(options.base)
    base = pipe.denoiser
    system = system_of(run.record.stage, denoiser=base)
    if base.config.get("self_conditioning"):
        raise CardioDiTError(
            "An adapter cannot be trained on a self-conditioned base: the base would steer itself by its own estimate. "
            "Train the base without self_conditioning."
        )
    cohorts = read_cohorts((options.training_ids, options.validation_ids), pipe.vae)
    masks = read_masks(cohorts, conditions_of(settings), pipe.voxels_per_latent)
    samples, held_out = (labelled_samples(*pair, settings.label_column, base) for pair in zip(cohorts, masks))
    steps = own_preprocessing(cohorts, pipe.vae)
    fingerprint = fingerprint_of(base)
    data = {"training_data": cohorts[0].identity, "validation_data": cohorts[1].identity}
    data |= {"training_masks": masks[0].identity, "validation_masks": masks[1].identity}
    run.open(
        len(samples),
        {**data, "base_fingerprint": fingerprint, **({"preprocessing": steps.to_dict()} if steps else {})},
    )
    upload = Upload.begin(run, options)
    model = Steered(base, make_adapter(settings, base, pipe.voxels_per_latent, fingerprint), freed)

    # The base's own objective; the samples, their noise, and masks of which some are dropped.
    timesteps = pipe.scheduler.config.num_train_timesteps
    is_pure_noise = (pipe.scheduler.config.get("trained_betas") or [0.0])[-1] == 1.0
    objective = Denoising(
        timesteps, base.config.prediction_type, settings.loss, training.noise_power, zero_terminal_snr=is_pure_noise
    )
    dropout = base.config.class_dropout_prob if samples.labels is not None else 0.0
    noising = Noising(objective, training.seed, null_label=base.null_label, label_dropout=dropout)
    shuffled = MaskDropout(samples.shuffled(training.seed), settings.conditions, training.seed)
    noisy = NoisyDataset(shuffled, noising)
    validation = ValidationDataset(held_out, noising, training.validation_timesteps, run.samples_a_pass)

    def latents_of(batch: Batch) -> torch.Tensor:
        return pipe.vae.scale_latents(batch["sample"])

    modules = {**({system.component: base} if freed else {}), system.adapter_component: model.adapter}
    both = torch.nn.ModuleList([model.adapter, base])
    denoiser = Denoiser(run, model, modules, both, as_saved=with_fingerprints)
    train_denoiser(run, denoiser, objective, noisy, validation, latents_of, members=samples)
    if run.was_interrupted:
        return

    def write(folder: Path) -> None:
        best = run.folder / "best"
        if steps is not None:
            pipe.vae.register_to_config(preprocessing=steps.to_dict(), spacing=cohorts[0].spacing)
            run.say("The pipeline prepares masks like the latents were encoded, not like its VQ model was trained.")
        adapter = type(model.adapter).from_pretrained(best / system.adapter_component)
        denoiser = type(base).from_pretrained(best / system.component) if freed else base.cpu()
        make_pipeline(pipe.vae, denoiser.eval(), pipe.scheduler, adapter.eval()).save_pretrained(folder)

    try_it = "cardiodit sample {} --masks masks.csv --output_dir samples"
    finish_pipeline(run, upload, write, try_it=try_it)


if __name__ == "__main__":
    run_script(main)
