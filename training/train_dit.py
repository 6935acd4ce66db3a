"""Stage 2: a diffusion transformer learns to denoise the latents of a cohort, and becomes a pipeline.

In: a VQ model of stage 1, and two manifests of latents (`cardiodit encode`) or of images. Out, in OUTPUT_DIR/RUN_NAME:
checkpoints to go on from, `best/` with the lowest validation loss, previews, and `pipeline/`, which
`CardioDiTPipeline.from_pretrained` (or `VolDiTPipeline`, of volumes) and `cardiodit sample` open.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from cardiodit._util.atomic_io import replace_folder
from cardiodit.hub.load import open_transformer, open_vae
from cardiodit.hub.model_card import write_card
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.pipelines.load import make_pipeline
from cardiodit.training.build_transformer import (
    add_adapter,
    check_fits,
    new_transformer,
    transformer_to_tune,
)
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.deepspeed import optimizer_part
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.run_record import RECORD
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.state import Average, Network, Part, decaying, reshard
from cardiodit.training.harness.upload import Upload, add_upload_options
from cardiodit.training.latent_data import check_scale, encode, read_cohort
from cardiodit.training.objectives import (
    Batch,
    Denoising,
    LabelledSamples,
    Noising,
    NoisyDataset,
    Process,
    ValidationDataset,
)
from cardiodit.training.previews import preview, sampler_of, write_pipeline
from cardiodit.training.settings import AveragedTraining, DiTSettings
from cardiodit.training.upstream_config import translate_dit

EXAMPLE = (
    "accelerate launch training/train_dit.py --config configs/cardiodit/dit_tiny.yaml --vae runs/vqgan \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name dit"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv, DiTSettings, "Train the diffusion transformer (stage 2).", EXAMPLE, translate_dit, add_options
    )
    with Run(request, "train_dit") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae", required=True, metavar="MODEL", help="VQ model: a folder, a run of stage 1, or org/name"
    )
    parser.add_argument(
        "--depth", type=int, help="slices to crop or pad images to, when they are encoded while training"
    )
    add_upload_options(parser)


def train(request: Request[DiTSettings], run: Run) -> None:
    settings, training, options = request.settings, request.settings.training, request.options
    device = run.accelerator.device

    # The VQ model, the data, the transformer.
    vae = open_vae(options.vae).requires_grad_(False)
    model = transformer_to_tune(options.init_from, settings, request.plain) if options.init_from else None
    known_classes = model.config.class_names if model is not None else None
    cohort = read_cohort(
        options.training_ids, options.validation_ids, vae, options.depth, settings.label_column, known_classes
    )
    run.open(samples=len(cohort.training.source), data=cohort.identities)
    upload = Upload.begin(run, options)
    vae.to(device)
    check_scale(cohort, vae)
    if model is None:
        model = new_transformer(settings, cohort)
    check_fits(model, cohort)
    if training.lora_rank:
        add_adapter(model, training)
    build = builder(model, settings)
    if training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if training.compile:
        model.compile_repeated_blocks(fullgraph=True)

    # What is trained, averaged and kept.
    optimizer = torch.optim.AdamW(
        decaying(model, training.weight_decay), training.learning_rate, (training.adam_beta1, training.adam_beta2)
    )
    model, optimizer = run.accelerator.prepare(model, optimizer)
    bare = run.accelerator.unwrap_model(model)
    is_adapter = training.lora_rank > 0
    network = Network("transformer", bare, is_adapter)
    parameters = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    ema = average_of(parameters, training) if training.use_ema else None
    averaged = Average("transformer_ema", bare, ema, is_adapter) if ema else None
    parts: list[Part] = [network, *([averaged] if averaged else []), optimizer_part("optimizer", bare, optimizer)]
    run.keep(parts, [(optimizer, training.learning_rate)])

    # The process that is undone.
    denoising = Denoising(settings.diffusion, device)
    dropout = bare.config.class_dropout_prob if cohort.training.labels is not None else 0.0
    noising = Noising(cohort.shape, settings.diffusion.num_train_timesteps, training.seed, bare.null_label, dropout)
    loader = run.loader(NoisyDataset(cohort.training, noising))
    fixed = validation_loader(run, cohort.validation, noising, training.validation_timesteps)
    validate_every = run.calendar.every(training.validation_epochs, training.validation_steps)
    preview_every = run.calendar.every(training.preview_epochs, training.preview_steps)

    def as_pipeline(transformer: DiTTransformerModel) -> VolumePipeline:
        return make_pipeline(vae, transformer, sampler_of(denoising))

    def latents_of(batch: Batch) -> torch.Tensor:
        latents = encode(vae, batch["sample"]) if cohort.online else batch["sample"]
        return latents * vae.config.scaling_factor

    for _, batches in run.steps(loader):
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches, start=1):
            with run.accumulating(model, is_last=number == len(batches)):
                loss = denoising.losses(model, latents_of(batch), batch).mean()
                run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, model)
        if ema:
            ema.step(parameters)
        run.log({"loss": total}, [subject for batch in batches for subject in batch["subject"]])
        if run.is_due(validate_every):
            best = Average("transformer", bare, ema, is_adapter) if ema else network
            value = with_average(ema, parameters, lambda: validate(run, model, denoising, fixed, latents_of))
            run.validated({"validation_loss": value}, [best], by="validation_loss")
        if training.preview_samples and run.is_due(preview_every):
            weights = Average("transformer", bare, ema) if ema else Network("transformer", bare)
            preview(run, weights, build, as_pipeline, training)
    if run.was_interrupted:
        return

    # The best weights become a pipeline.
    run.record.end("saving", run.step)
    if run.is_main:
        folder = finish_pipeline(run, request, vae.cpu(), denoising)
        upload.send(folder)
        run.say(f"The pipeline is {folder}. Try it: cardiodit sample {folder} --output_dir samples")
    run.finish()


def builder(model: DiTTransformerModel, settings: DiTSettings) -> Callable[[], DiTTransformerModel]:
    """Makes models of the same shape, to be filled with weights."""
    kind, config, rank = type(model), dict(model.config), settings.training.lora_rank

    def build() -> DiTTransformerModel:
        made = kind.from_config(config)
        if rank:
            add_adapter(made, settings.training)
        return made

    return build


def average_of(parameters: Sequence[torch.nn.Parameter], training: AveragedTraining) -> EMAModel:
    """A moving average of what is trained. Without a warm-up, 0.9999 keeps 74% of the first weights for 3000 steps."""
    decay, warmup = training.ema_decay, training.ema_warmup
    return EMAModel(parameters, decay, min_decay=0.0 if warmup else decay, use_ema_warmup=warmup, power=2 / 3)


def with_average(ema: EMAModel | None, parameters: Sequence[torch.nn.Parameter], work: Callable[[], Any]) -> Any:
    """Does something with the averaged weights in the model, and puts the others back."""
    if ema is None:
        return work()
    swap(parameters, ema.shadow_params)
    try:
        return work()
    finally:
        swap(parameters, ema.shadow_params)


@torch.no_grad()
def swap(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> None:
    """Exchanges values in place, to the bit, with room for one tensor more; sharded ones too."""
    for one, other in zip(some, others, strict=True):
        held = one.detach().clone()
        one.copy_(other)
        other.copy_(held)


def validation_loader(run: Run, patients: LabelledSamples, noising: Noising, levels: int) -> DataLoader:
    """This process's share: every process judges equally many."""
    batch_size, processes = run.settings.train_batch_size, run.accelerator.num_processes
    visits = ValidationDataset(patients, noising, levels, multiple=batch_size * processes)
    mine = torch.utils.data.Subset(visits, range(run.accelerator.process_index, len(visits), processes))
    return DataLoader(mine, batch_size, num_workers=min(1, run.settings.dataloader_num_workers))


@torch.no_grad()
def validate(
    run: Run,
    model: torch.nn.Module,
    denoising: Process,
    loader: DataLoader,
    latents_of: Callable[[Batch], torch.Tensor],
) -> float:
    """Mean loss over fixed noise and timesteps, over all processes."""
    model.eval()
    sums = torch.zeros(2, device=run.accelerator.device)
    for batch in map(run.to_device, loader):
        losses = denoising.losses(model, latents_of(batch), batch)
        sums += torch.stack([(losses * batch["weight"]).sum(), batch["weight"].sum()])
    model.train()
    reshard(model)
    total, count = run.accelerator.reduce(sums, reduction="sum").tolist()
    return total / count


def finish_pipeline(run: Run, request: Request[DiTSettings], vae: VQModel, denoising: Denoising) -> Path:
    """`pipeline/` in the run folder, from the weights with the lowest validation loss."""
    training = request.settings.training
    if training.lora_rank:
        transformer = open_transformer(request.options.init_from)
        add_adapter(transformer, training)
        Network("transformer", transformer, adapter_only=True).load(run.folder / "best")
    else:
        transformer = open_transformer(run.folder / "best")
    folder = run.folder / "pipeline"
    with replace_folder(folder) as temporary:
        write_pipeline(temporary, transformer, vae, denoising, training.lora_rank)
        stage1 = Path(request.options.vae)
        write_card(temporary, [folder for folder in (stage1, run.folder) if (folder / RECORD).is_file()])
    return folder


if __name__ == "__main__":
    run_script(main)
