"""PRDiT: a transformer learns to denoise 3D volumes voxel by voxel, and becomes a pipeline.

In: two manifests of images. Stage 1 (`model.num_layers` 0) trains the local denoiser, stage 2 the refiner on top of the
one that `--stage1` names, which is loaded and frozen; `--init_from` begins with a whole model, such as one of a lower
resolution. Out, in OUTPUT_DIR/RUN_NAME: checkpoints to go on from, `best/` with the lowest validation loss, previews,
and `pipeline/`, which `PRDiTPipeline.from_pretrained` and `cardiodit sample` open.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from cardiodit._util.atomic_io import replace_folder
from cardiodit.hub.load import open_voxel_transformer
from cardiodit.hub.model_card import write_card
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.schedulers import NoiseAndImageScheduler
from cardiodit.training.build_prdit import identity_of_local, model_for, tuned_model
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.run_record import RECORD
from cardiodit.training.harness.script import run_script
from cardiodit.training.harness.state import Average, Network, Optimizer, decaying
from cardiodit.training.harness.upload import Upload, add_upload_options
from cardiodit.training.objectives import Batch, LabelledSamples, Noising
from cardiodit.training.prdit_data import NoiseAndImage, NoisyVolumes
from cardiodit.training.previews import preview
from cardiodit.training.settings import PRDiTSettings
from cardiodit.training.train_dit import average_of, validate, validation_loader, with_average
from cardiodit.training.volumes import facts_of, preprocessing_of, read_volumes

EXAMPLE = (
    "accelerate launch training/train_prdit.py --config configs/prdit/lidc128_b_12_4.yaml --stage1 runs/local \\\n"
    "    --training_ids lidc/training.csv --validation_ids lidc/validation.csv \\\n"
    "    --output_dir runs --run_name prdit"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv, PRDiTSettings, "Train PRDiT, voxel by voxel (stage 1 or 2).", EXAMPLE, None, add_options
    )
    with Run(request, "train_prdit") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage1", metavar="MODEL", help="stage 2: the trained local denoiser, a folder, a run of stage 1, or org/name"
    )
    add_upload_options(parser)


def train(request: Request[PRDiTSettings], run: Run) -> None:
    settings, training = request.settings, request.settings.training
    device = run.accelerator.device

    # The data, the transformer.
    tuned = tuned_model(request)
    volumes, validation = read_volumes(run, request, preprocessing_of(request, tuned))
    size = volumes.shapes[0][1:]
    model = model_for(request, tuned, size, volumes.steps)
    model.register_to_config(**facts_of(volumes))
    data = {"training_data": volumes.identity, "validation_data": validation.identity}
    run.open(len(volumes), {**data, "local_denoiser": identity_of_local(model)})
    upload = Upload.begin(run, request.options)
    if training.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    if training.compile:
        model.compile_repeated_blocks(fullgraph=True)
    config = dict(model.config)

    # What is trained, averaged and kept.
    betas = (training.adam_beta1, training.adam_beta2)
    optimizer = torch.optim.AdamW(decaying(model, training.weight_decay), training.learning_rate, betas)
    model, optimizer = run.accelerator.prepare(model, optimizer)
    bare = run.accelerator.unwrap_model(model)
    network = Network("transformer", bare)
    parameters = [parameter for parameter in bare.parameters() if parameter.requires_grad]
    ema = average_of(parameters, training) if training.use_ema else None
    averages = [Average("transformer_ema", bare, ema)] if ema else []
    best = Average("transformer", bare, ema) if ema else network
    run.keep([network, *averages, Optimizer("optimizer", bare, optimizer)], [(optimizer, training.learning_rate)])

    # The process that is undone.
    scheduler = NoiseAndImageScheduler(**asdict(settings.process))
    process, timesteps = NoiseAndImage(scheduler), settings.process.num_train_timesteps
    augmentation = settings.data.augmentation.build()
    loader = run.loader(NoisyVolumes(volumes, augmentation, timesteps, training.seed, settings.data.crop))
    judged = LabelledSamples(validation, [case.subject for case in validation.cases])
    noising = Noising((1, *size), timesteps, training.seed)
    fixed = validation_loader(run, judged, noising, training.validation_timesteps)
    validate_every = run.calendar.every(training.validation_epochs, training.validation_steps)
    preview_every = run.calendar.every(training.preview_epochs, training.preview_steps)

    def volumes_of(batch: Batch) -> torch.Tensor:
        return batch["sample"]

    def build() -> PRDiTTransformerModel:
        return PRDiTTransformerModel.from_config(config)

    def as_pipeline(transformer: PRDiTTransformerModel) -> PRDiTPipeline:
        return PRDiTPipeline(transformer, scheduler)

    for _, batches in run.steps(loader):
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches, start=1):
            with run.accumulating(model, is_last=number == len(batches)):
                loss = process.losses(model, batch["sample"], batch).mean()
                run.backward(loss)
            total += loss.detach() / len(batches)
        run.update(optimizer, model)
        if ema:
            ema.step(parameters)
        run.log({"loss": total}, [subject for batch in batches for subject in batch["subject"]])
        if run.is_due(validate_every):
            value = with_average(ema, parameters, lambda: validate(run, model, process, fixed, volumes_of))
            run.validated({"validation_loss": value}, [best], by="validation_loss")
        if training.preview_samples and run.is_due(preview_every):
            preview(run, best, build, as_pipeline, training)
    if run.was_interrupted:
        return

    # The best weights become a pipeline.
    run.record.end("saving", run.step)
    if run.is_main:
        folder = finish_pipeline(run, request, scheduler)
        upload.send(folder)
        run.say(f"The pipeline is {folder}. Try it: cardiodit sample {folder} --output_dir samples")
    run.finish()


def finish_pipeline(run: Run, request: Request[PRDiTSettings], scheduler: NoiseAndImageScheduler) -> Path:
    """`pipeline/` in the run folder, from the weights with the lowest validation loss."""
    folder, before = run.folder / "pipeline", request.options.stage1
    with replace_folder(folder) as temporary:
        PRDiTPipeline(open_voxel_transformer(run.folder / "best"), scheduler).save_pretrained(temporary)
        runs = [Path(before)] if before and (Path(before) / RECORD).is_file() else []
        write_card(temporary, [*runs, run.folder])
    return folder


if __name__ == "__main__":
    run_script(main)
