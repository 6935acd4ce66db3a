"""Train PRDiT: a transformer that denoises 3D volumes voxel by voxel.

Input: two manifests of images. Stage 1 (`model.num_layers` 0) trains the local denoiser. Stage 2 trains the refiner on
top of the frozen local denoiser that `--stage1` names. `--init_from` starts with a whole model, such as one of a lower
resolution. Output, in OUTPUT_DIR/RUN_NAME: checkpoints, `best/` with the lowest validation loss, previews, and
`pipeline/`, which `PRDiTPipeline.from_pretrained` and `cardiodit sample` open.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from cardiodit.hub.load import open_voxel_transformer
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.training.build_prdit import identity_of_local, model_for, tuned_model
from cardiodit.training.build_transformer import objective_from
from cardiodit.training.denoiser_loop import Denoiser, train_denoiser
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.processes import run_script
from cardiodit.training.harness.run import Run
from cardiodit.training.image_data import SliceDataset, data_config, preprocessing_of, read_volumes, say_oddities
from cardiodit.training.noisy_samples import LabelledSamples, Noising, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import VOXEL_OBJECTIVES, Batch
from cardiodit.training.pipeline_output import Upload, add_upload_options, finish_pipeline, make_preview
from cardiodit.training.prdit_config import translate_prdit
from cardiodit.training.settings import PRDiTSettings, build_augmentation

EXAMPLE = (
    "accelerate launch -m cardiodit.training.train_prdit --config prdit/lidc128_b_12_4.yaml --stage1 runs/local \\\n"
    "    --training_ids lidc/training.csv --validation_ids lidc/validation.csv \\\n"
    "    --output_dir runs --run_name prdit"
)


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv,
        PRDiTSettings,
        "Train PRDiT on voxels: its local denoiser (stage 1) or its refiner (stage 2).",
        EXAMPLE,
        translate_prdit,
        add_options,
    )
    with Run(request, "train_prdit") as run:
        train(request, run)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stage1",
        metavar="MODEL",
        help="for stage 2, the local denoiser: its folder, a run of stage 1, or org/name on the Hub",
    )
    parser.add_argument(
        "--base",
        metavar="MODEL",
        help="for super-resolution (model.super_resolution), the model of the lower resolution that is corrected: its "
        "folder, a run, or org/name on the Hub",
    )
    add_upload_options(parser)


def train(request: Request[PRDiTSettings], run: Run) -> None:
    settings, training = request.settings, request.settings.training

    # The objective, the data, the transformer.
    objective = objective_from(settings.process, classes=VOXEL_OBJECTIVES)
    tuned = tuned_model(request, objective)
    volumes, held_out = read_volumes(run, request, preprocessing_of(request, tuned))
    size = volumes.shapes[0][1:]
    model = model_for(request, objective, tuned, size, volumes.steps)
    say_oddities(run, volumes)
    model.register_to_config(**data_config(volumes))
    data = {"training_data": volumes.identity, "validation_data": held_out.identity}
    run.open(len(volumes), {**data, "local_denoiser": identity_of_local(model)})
    upload = Upload.begin(run, request.options)
    config = dict(model.config)

    # The samples and their noise.
    noising = Noising(objective, training.seed)
    augmentation = build_augmentation(settings.data.augmentation)
    noisy = NoisyDataset(SliceDataset(volumes, augmentation, training.seed, settings.data.crop), noising)
    samples = LabelledSamples(held_out, [case.subject for case in held_out.cases])
    members = LabelledSamples(volumes, [case.subject for case in volumes.cases])
    validation = ValidationDataset(samples, noising, training.validation_timesteps, run.samples_a_pass)

    def voxels_of(batch: Batch) -> torch.Tensor:
        return batch["sample"]

    def build() -> PRDiTTransformerModel:
        return PRDiTTransformerModel.from_config(config)

    def as_pipeline(transformer: PRDiTTransformerModel) -> PRDiTPipeline:
        return PRDiTPipeline(transformer, objective.sampling_scheduler())

    denoiser = Denoiser(run, model)
    preview = make_preview(run, denoiser, model, build, as_pipeline)
    train_denoiser(run, denoiser, objective, noisy, validation, voxels_of, preview, members)
    if run.was_interrupted:
        return

    def write(folder: Path) -> None:
        as_pipeline(open_voxel_transformer(run.folder / "best")).save_pretrained(folder)

    finish_pipeline(run, upload, write, earlier_stage=request.options.stage1 or request.options.base)


if __name__ == "__main__":
    run_script(main)
