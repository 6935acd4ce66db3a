"""An adapter learns to steer a trained transformer by masks; the transformer stays as it is.

In: a pipeline, and two manifests of latents with masks beside them (`cardiodit encode --condition_keys`). Out, in
OUTPUT_DIR/RUN_NAME: checkpoints to go on from, `best/` with the lowest validation loss, and `pipeline/`, which
`cardiodit sample --masks` opens.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from cardiodit._util.atomic_io import replace_folder
from cardiodit.errors import CardioDiTError, try_all
from cardiodit.hub.model_card import write_card
from cardiodit.imaging.manifest import check_disjoint
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents import LatentCohort, identity_of_steps, identity_of_vae
from cardiodit.models.adapter_tgca import TGCAAdapterModel, fingerprint_of
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline
from cardiodit.pipelines.load import make_pipeline, open_pipeline
from cardiodit.training.adapter_data import CohortMasks, Conditioned
from cardiodit.training.adapter_model import Steered, conditions_of, new_adapter, with_fingerprints
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.state import Average, Network, Optimizer, decaying
from cardiodit.training.harness.upload import Upload, add_upload_options
from cardiodit.training.latent_data import numbers_of
from cardiodit.training.objectives import Denoising, LabelledSamples, Noising, NoisyDataset, ValidationDataset
from cardiodit.training.settings import DiffusionSettings, TGCASettings
from cardiodit.training.train_dit import average_of, validate, with_average

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
        None,
        add_options,
        can_tune=False,
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

    # The base, the data, the adapter.
    pipe = open_pipeline(options.base)
    base = pipe.transformer
    cohorts = read_cohorts(request, pipe)
    patients = [patients_of(cohort, settings, base) for cohort in cohorts]
    steps = steps_of(cohorts, pipe.vae)
    masks = read_masks(cohorts, settings, pipe.voxels_per_latent)
    fingerprint = fingerprint_of(base)
    told = {"base_fingerprint": fingerprint, **({"preprocessing": steps.to_dict()} if steps else {})}
    run.open(len(cohorts[0]), {**identities_of(cohorts, masks), **told})
    upload = Upload.begin(run, options)
    freed = settings.adapter.finetune_last_n_blocks
    model = Steered(base, new_adapter(settings, base, pipe.voxels_per_latent, fingerprint), freed)
    if training.gradient_checkpointing:
        base.enable_gradient_checkpointing()
    if training.compile:
        base.compile_repeated_blocks(fullgraph=True)

    # What is trained, averaged and kept.
    adapter = model.adapter
    both = torch.nn.ModuleList([adapter, base])  # of which only what is trained has gradients
    optimizer = torch.optim.AdamW(
        decaying(both, training.weight_decay), training.learning_rate, (training.adam_beta1, training.adam_beta2)
    )
    wrapped, optimizer = run.accelerator.prepare(model, optimizer)
    trained: list[tuple[str, Any]] = [*([("transformer", base)] if freed else []), ("adapter", adapter)]
    emas = [average_of(weights_of(module), training) if training.use_ema else None for _, module in trained]
    networks = [Network(name, module) for name, module in trained]
    averages = [Average(f"{name}_ema", module, ema) for (name, module), ema in zip(trained, emas) if ema]
    best = [Average(name, module, ema) if ema else Network(name, module) for (name, module), ema in zip(trained, emas)]
    parts = [*with_fingerprints([*networks, *averages]), Optimizer("optimizer", both, optimizer)]
    run.keep(parts, [(optimizer, training.learning_rate)])

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
            run.validated({"validation_loss": work()}, with_fingerprints(best), by="validation_loss")
    if run.was_interrupted:
        return

    # The best weights become a pipeline.
    run.record.end("saving", run.step)
    if run.is_main:
        if steps is not None:
            pipe.vae.register_to_config(preprocessing=steps.to_dict(), spacing=cohorts[0].spacing)
            run.say("The pipeline prepares masks as the latents were encoded, not as its VQ model was trained.")
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


def steps_of(cohorts: Sequence[LatentCohort], vae: VQModel) -> Preprocessing | None:
    """How the latents, and so their masks, were prepared, where that is not the VQ model's own preprocessing.

    It can be another one: the authors' adapter learns from volumes that are cropped, their base from resized ones.
    """
    training, validation = cohorts
    if training.preprocessing != validation.preprocessing:
        raise CardioDiTError(
            "The latents for training and for validation were prepared in different ways. Encode both with the same "
            "--preset and --depth."
        )
    own = None if vae.config.preprocessing is None else Preprocessing.from_dict(vae.config.preprocessing)
    if own is not None and identity_of_steps(own) == training.preprocessing:
        return None
    if training.steps is None:
        raise CardioDiTError(
            "The latents do not say how they were prepared, because an older version of cardiodit wrote them. Run the "
            "same `cardiodit encode` again."
        )
    limits = training.steps.intensity.low, training.steps.intensity.high
    if own is not None and (own.intensity.low, own.intensity.high) == limits:
        return replace(training.steps, intensity=own.intensity)  # which knows what -1 and 1 usually stand for
    return training.steps


def read_masks(
    cohorts: Sequence[LatentCohort], settings: TGCASettings, voxels_per_latent: Sequence[int]
) -> tuple[CohortMasks, ...]:
    """Masks of the volumes' size beside all latents."""
    conditions = conditions_of(settings)
    size = tuple(n * f for n, f in zip(cohorts[0].size, voxels_per_latent, strict=True))
    return tuple(try_all(*(partial(CohortMasks, cohort.cases, conditions, size) for cohort in cohorts)))


def identities_of(cohorts: Sequence[LatentCohort], masks: Sequence[CohortMasks]) -> dict[str, str]:
    """Of the latents and the masks, which must be the same when a run goes on."""
    sets = ("training", "validation")
    data = {f"{name}_data": cohort.identity for name, cohort in zip(sets, cohorts, strict=True)}
    return data | {f"{name}_masks": held.identity for name, held in zip(sets, masks, strict=True)}


def patients_of(cohort: LatentCohort, settings: TGCASettings, base: DiTTransformerModel) -> LabelledSamples:
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
    return LabelledSamples(cohort, [case.subject for case in cohort.cases], labels)


def loaders(
    run: Run,
    settings: TGCASettings,
    patients: Sequence[LabelledSamples],
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
    visits = NoisyDataset(patients[0], noising)
    items = Conditioned(visits, visits.order.__getitem__, masks[0], settings.conditions, training.seed)
    processes = run.accelerator.num_processes
    places = ValidationDataset(
        patients[1], noising, training.validation_timesteps, training.train_batch_size * processes
    )
    fixed = Conditioned(places, lambda place: place % places.real // places.levels, masks[1], None, training.seed)
    mine = Subset(fixed, range(run.accelerator.process_index, len(fixed), processes))
    return run.loader(items), DataLoader(mine, training.train_batch_size)


def finish_pipeline(run: Run, pipe: LatentVolumePipeline, freed: int) -> Path:
    """`pipeline/` in the run folder: the base, and the adapter with the lowest validation loss."""
    best, folder = run.folder / "best", run.folder / "pipeline"
    adapter = TGCAAdapterModel.from_pretrained(best / "adapter")
    transformer = type(pipe.transformer).from_pretrained(best / "transformer") if freed else pipe.transformer.cpu()
    made = make_pipeline(pipe.vae, transformer.eval(), pipe.scheduler, adapter.eval())
    with replace_folder(folder) as temporary:
        made.save_pretrained(temporary)
        write_card(temporary, [run.folder])
    return folder


if __name__ == "__main__":
    run_script(main)
