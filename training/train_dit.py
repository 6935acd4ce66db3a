"""Stage 2: train a diffusion transformer on the latents of a cohort.

Input: a VQ model of stage 1, and two manifests of latents (`cardiodit encode`) or of images. Output, in
OUTPUT_DIR/RUN_NAME: checkpoints, `best/` with the lowest validation loss, previews, and `pipeline/`, which
`CardioDiTPipeline.from_pretrained` (`VolDiTPipeline` for volumes) and `cardiodit sample` open.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from cardiodit.hub.load import open_transformer, open_vae
from cardiodit.latents.dataset import use_statistics
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.load import make_pipeline
from cardiodit.systems import system_of
from cardiodit.training.build_transformer import (
    add_adapter,
    check_fits,
    new_transformer,
    objective_from,
    transformer_to_tune,
    with_conditions,
    write_adapter,
)
from cardiodit.training.denoiser_loop import Denoiser, train_denoiser
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.schedule import BucketOrder
from cardiodit.training.harness.state import Network
from cardiodit.training.latent_augmentation import CHECKED, LatentAugmentation, check_augmentation
from cardiodit.training.latent_data import (
    check_scale,
    encode,
    read_cohort,
    shown_conditions,
    training_samples,
    with_model_frames,
    with_null_labels,
)
from cardiodit.training.noisy_samples import Noising, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import Batch
from cardiodit.training.pipeline_output import Upload, add_upload_options, finish_pipeline, make_preview
from cardiodit.training.settings import DiTSettings, build_augmentation
from cardiodit.training.upstream_config import translate_dit

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_dit --config cardiodit/dit_tiny.yaml --vae runs/vqgan \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name dit"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        DiTSettings,
        "Train a diffusion transformer on the latents of a VQ-GAN (stage 2).",
        EXAMPLE,
        translate_dit,
        add_options,
    )
    with Run(request, "train_dit") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae",
        required=True,
        metavar="MODEL",
        help="VQ model: its folder, a run of train_vqgan, or org/name on the Hub",
    )
    parser.add_argument(
        "--depth",
        type=int,
        help="number of slices to crop or pad to, if the manifests list images, which are then encoded during training",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("H", "W", "D"),
        help="voxel size in mm to resample to, if the manifests list images; default: as in the VQ model's "
        "preprocessing. Another voxel size than that of the VQ model's training volumes is refused",
    )
    add_upload_options(parser)


def train(request: Request[Any], run: Run) -> None:
    """Train the denoiser of latents that the run's script trains: a transformer, or `train_unet`'s U-Net."""
    settings, training, options = request.settings, request.settings.training, request.options

    # The VQ model, the data, the transformer.
    vae = open_vae(options.vae).requires_grad_(False)
    if settings.latent_statistics is not None:
        use_statistics(vae, Path(settings.latent_statistics))
    stage = run.record.stage
    model = transformer_to_tune(options.init_from, settings, request.given, stage) if options.init_from else None
    known_classes = model.config.get("class_names") if model is not None else None
    cohort = read_cohort(
        options.training_ids,
        options.validation_ids,
        vae,
        options.depth,
        settings.label_column,
        known_classes,
        None if options.spacing is None else tuple(options.spacing),
        run.say,
        any_size=training.batch_strategy == "bucket",
        frame_multiple=settings.frame_multiple,
        phases=(settings.phase_column, settings.phase_dir, settings.phase_pool),
        condition_columns=settings.condition_columns or (),
        known_conditions=getattr(model, "conditions", None),
    )
    buckets = None if cohort.shapes is None else BucketOrder(cohort.shapes, run.samples_a_step, training.seed)
    run.open(samples=len(cohort.training) if buckets is None else len(buckets), data=cohort.identities)
    upload = Upload.begin(run, options)
    vae.to(run.accelerator.device)
    check_scale(cohort, vae)
    augmentation = LatentAugmentation(**settings.augmentation)
    if not augmentation.is_none:
        some = (cohort.training.source[i] for i in range(min(CHECKED, len(cohort.training))))
        check_augmentation(augmentation, vae, [encode(vae, v[None])[0] if cohort.online else v for v in some], run.say)
    objective = objective_from(settings.diffusion, model)
    model = model or new_transformer(settings, cohort, objective, stage)
    model = with_conditions(model, cohort.conditions, settings)
    check_fits(model, cohort)
    cohort = with_model_frames(with_null_labels(cohort, model), model)
    if training.lora_rank:
        add_adapter(model, training)
    build = builder(model, settings)
    component = system_of(denoiser=model).component

    # The samples and their noise.
    has_labels = cohort.training.labels is not None
    dropout = model.config.class_dropout_prob if has_labels else 0.0
    noising = Noising(
        objective,
        training.seed,
        cohort.shape if cohort.online else None,
        model.null_label,
        dropout,
        model.config.get("condition_dropout_prob") or 0.0,
        model.config.get("unconditional_prob") or 0.0,
    )
    image_augmentation = build_augmentation(settings.image_augmentation)
    samples = training_samples(cohort, image_augmentation, vae, training.seed, buckets)
    noisy = NoisyDataset(samples, noising, augmentation)
    validation = ValidationDataset(cohort.validation, noising, training.validation_timesteps, run.samples_a_pass)

    def latents_of(batch: Batch) -> torch.Tensor:
        latents = encode(vae, batch["sample"]) if cohort.online else batch["sample"]
        latents = vae.scale_latents(latents)
        drawn = batch.get("augmentation")
        return latents if drawn is None else augmentation(latents, drawn, training.seed)

    def as_pipeline(model: Any) -> VolumePipeline:
        return make_pipeline(vae, model, objective.sampling_scheduler())

    denoiser = Denoiser(run, model, {component: model}, adapter_only=training.lora_rank > 0)
    asked = shown_conditions(cohort, training.preview_samples)
    preview = make_preview(run, denoiser, model, build, as_pipeline, asked)
    train_denoiser(run, denoiser, objective, noisy, validation, latents_of, preview, cohort.training)
    if run.was_interrupted:
        return

    def write(folder: Path) -> None:
        vae.cpu()
        if training.lora_rank:
            transformer = open_transformer(options.init_from)
            add_adapter(transformer, training)
            Network(component, transformer, adapter_only=True).load(run.folder / "best")
            write_adapter(run.folder / "lora", transformer)
            transformer.fuse_lora()
            transformer.unload_lora()
        else:
            transformer = open_transformer(run.folder / "best")
        as_pipeline(transformer).save_pretrained(folder)

    finish_pipeline(run, upload, write, earlier_stage=options.vae)


def builder(model: Any, settings: Any) -> Callable[[], Any]:
    """Return a function that makes models of the same shape, to be filled with weights."""
    kind, config, rank = type(model), dict(model.config), settings.training.lora_rank

    def build() -> Any:
        made = kind.from_config(config)
        if rank:
            add_adapter(made, settings.training)
        return made

    return build


if __name__ == "__main__":
    run_script(main)
