"""An adapter learns to steer a trained transformer by masks; the transformer stays as it is.

In: a pipeline, and two manifests of latents with masks beside them (`cardiodit encode --condition_keys`). Out, in
OUTPUT_DIR/RUN_NAME: checkpoints to go on from, `best/` with the lowest validation loss, and `pipeline/`, which
`cardiodit sample --masks` opens.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from cardiodit.errors import CardioDiTError, try_all
from cardiodit.hub.model_card import write_card
from cardiodit.imaging.manifest import check_disjoint
from cardiodit.latents import LatentCohort, identity_of_vae
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.fingerprint import fingerprint_of
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines import CardioDiTControlPipeline, VolDiTControlPipeline
from cardiodit.pipelines.latent_volumes import LatentVolumePipeline
from cardiodit.pipelines.opening import open_pipeline
from cardiodit.training.conditioned import CohortMasks, Conditioned
from cardiodit.training.denoising import Denoising, FixedVisits, Noising, NoisyVisits, Patients
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.parts import Average, Network, Optimizer, decaying
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.upload import Upload, add_upload_options
from cardiodit.training.patients import numbers_of
from cardiodit.training.settings import DiffusionSettings, TGCASettings
from cardiodit.training.steered import Steered, new_adapter
from cardiodit.training.train_dit import average_of, validate, with_average
from cardiodit.writing import replace_folder

PIPELINES: dict[int, Any] = {3: VolDiTControlPipeline, 4: CardioDiTControlPipeline}
EXAMPLE = (
    "accelerate launch training/train_tgca.py --config configs/phantom/tgca.yaml --base runs/dit/pipeline \\\n"
    "    --training_ids latents/training/manifest.csv --validation_ids latents/validation/manifest.csv \\\n"
    "    --output_dir runs --run_name tgca"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        TGCASettings,
        "Train an adapter that steers by masks (TGCA).",
        EXAMPLE,
        lambda path, raw: None,
        add_options,
    )
    with Run(request, "train_tgca") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base", required=True, metavar="MODEL", help="pipeline to be steered: a folder, org/name, cardiodit-phantom"
    )
    add_upload_options(parser)


def train(request: Request[TGCASettings], run: Run) -> None:
    settings, training, options = request.settings, request.settings.training, request.options
    device = run.accelerator.device
    if options.init_from:
        raise CardioDiTError("--init_from: an adapter is trained from nothing, on --base. Leave the option out.")

    # The base, the data, the adapter.
    pipe = open_pipeline(options.base)
    base = pipe.transformer
    cohorts = read_cohorts(request, pipe)
    patients = [patients_of(cohort, settings, base) for cohort in cohorts]
    identities = {"training_data": cohorts[0].identity, "validation_data": cohorts[1].identity}
    run.open(len(cohorts[0]), {**identities, "base": " ".join(map(str, fingerprint_of(base)))})
    upload = Upload.begin(run, options)
    freed = settings.adapter.finetune_last_n_blocks
    model = Steered(base, new_adapter(settings, base, pipe.voxels_a_latent), freed)
    size = tuple(n * f for n, f in zip(cohorts[0].size, pipe.voxels_a_latent, strict=True))
    masks = try_all(*(partial(CohortMasks, c.cases, model.adapter.conditions, size) for c in cohorts))
    if training.gradient_checkpointing:
        base.enable_gradient_checkpointing()

    # What is trained, averaged and kept.
    adapter = model.adapter
    both = torch.nn.ModuleList([adapter, base])  # of which only what is trained has gradients
    optimizer = torch.optim.AdamW(
        decaying(both, training.weight_decay), training.learning_rate, (training.adam_beta1, training.adam_beta2)
    )
    wrapped, optimizer = run.accelerator.prepare(model, optimizer)
    trained: list[tuple[str, Any]] = [("adapter", adapter), *([("transformer", base)] if freed else [])]
    emas = [average_of(weights_of(module), training) if training.use_ema else None for _, module in trained]
    networks = [Network(name, module) for name, module in trained]
    averages = [Average(f"{name}_ema", module, ema) for (name, module), ema in zip(trained, emas) if ema]
    run.keep([*networks, *averages, Optimizer("optimizer", both, optimizer)], [(optimizer, training.learning_rate)])
    best = [Average(name, module, ema) if ema else Network(name, module) for (name, module), ema in zip(trained, emas)]

    # The process that is undone: the base's own.
    process = DiffusionSettings(
        num_train_timesteps=pipe.scheduler.config.num_train_timesteps,
        prediction_type=base.config.prediction_type,
        loss=settings.loss,
    )
    denoising = Denoising(process, device)
    loader, fixed = loaders(run, settings, patients, masks, cohorts, base, process.num_train_timesteps)
    validate_every = run.calendar.every(training.validation_epochs, training.validation_steps)
    scale = pipe.vae.config.scaling_factor

    for _, batches in run.steps(loader):
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches, start=1):
            with run.accumulating(wrapped, is_last=number == len(batches)):
                loss = denoising.losses(wrapped, batch["sample"] * scale, batch).mean()
                run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, wrapped)
        for (_, module), ema in zip(trained, emas, strict=True):
            if ema:
                ema.step(weights_of(module))
        run.log({"loss": total}, [subject for batch in batches for subject in batch["subject"]])
        if run.is_due(validate_every):
            work = partial(validate, run, wrapped, denoising, fixed, lambda batch: batch["sample"] * scale)
            for (_, module), ema in zip(trained, emas, strict=True):
                work = partial(with_average, ema, weights_of(module), work)
            run.validated({"validation_loss": work()}, best, by="validation_loss")
    if run.was_interrupted:
        return

    # The best weights become a pipeline.
    run.record.end("saving", run.step)
    if run.is_main:
        folder = finish_pipeline(run, pipe, freed)
        upload.send(folder)
        run.say(f"The pipeline is {folder}. Try it: cardiodit sample {folder} --masks masks.csv --output_dir samples")
    run.finish()


def weights_of(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Those that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def read_cohorts(request: Request[TGCASettings], pipe: LatentVolumePipeline) -> list[LatentCohort]:
    """Latents of the base's own VQ model, for training and validation."""
    options, made_by = request.options, identity_of_vae(pipe.vae)
    paths = (options.training_ids, options.validation_ids)
    cohorts = try_all(*(partial(LatentCohort.open, path, made_by) for path in paths))
    check_disjoint(training=cohorts[0].cases, validation=cohorts[1].cases)
    if cohorts[0].size != cohorts[1].size:
        raise CardioDiTError(
            f"Latents for training are {cohorts[0].size} and for validation {cohorts[1].size}: they must agree."
        )
    return list(cohorts)


def patients_of(cohort: LatentCohort, settings: TGCASettings, base: DiTTransformerModel) -> Patients:
    """With the labels under which the base is steered: without a column its null label, as sampling without one has."""
    names, column, null_label = base.config.class_names, settings.label_column, base.null_label
    if column is not None and not names:
        raise CardioDiTError(f"label_column is {column!r}, but the base has no named labels.")
    if column is None and base.config.num_classes and null_label is None:
        raise CardioDiTError(
            "The base was trained with labels and without label dropout, so it cannot do without one: name the column "
            "of the manifests that holds them (label_column)."
        )
    labels = numbers_of(cohort.cases, column, names or ())
    if labels is None and null_label is not None:
        labels = [null_label] * len(cohort.cases)
    return Patients(cohort, [case.subject for case in cohort.cases], labels)


def loaders(
    run: Run,
    settings: TGCASettings,
    patients: Sequence[Patients],
    masks: Sequence[CohortMasks],
    cohorts: Sequence[LatentCohort],
    base: Any,
    timesteps: int,
) -> tuple[DataLoader, DataLoader]:
    """Training samples, of whose masks some are left out, and this process's share of the validation samples."""
    training = settings.training
    shape = (cohorts[0].channels, *cohorts[0].size)
    dropout = base.config.class_dropout_prob if patients[0].labels is not None else 0.0
    noising = Noising(shape, timesteps, training.seed, base.null_label, dropout, training.noise_power)
    visits = NoisyVisits(patients[0], noising)
    items = Conditioned(visits, visits.order.__getitem__, masks[0], settings.conditions, training.seed)
    processes = run.accelerator.num_processes
    places = FixedVisits(patients[1], noising, training.validation_timesteps, training.train_batch_size * processes)
    fixed = Conditioned(places, lambda place: place % places.real // places.levels, masks[1], None, training.seed)
    mine = Subset(fixed, range(run.accelerator.process_index, len(fixed), processes))
    return run.loader(items), DataLoader(mine, training.train_batch_size)


def finish_pipeline(run: Run, pipe: LatentVolumePipeline, freed: int) -> Path:
    """`pipeline/` in the run folder: the base, and the adapter with the lowest validation loss."""
    best, folder = run.folder / "best", run.folder / "pipeline"
    adapter = TGCAAdapterModel.from_pretrained(best / "adapter")
    transformer = type(pipe.transformer).from_pretrained(best / "transformer") if freed else pipe.transformer.cpu()
    adapter.register_to_config(fingerprint=fingerprint_of(transformer))
    made = PIPELINES[len(transformer.axis_names)](pipe.vae, transformer.eval(), pipe.scheduler, adapter.eval())
    with replace_folder(folder) as temporary:
        made.save_pretrained(temporary)
        write_card(temporary, [run.folder])
    return folder


if __name__ == "__main__":
    run_script(main)
