"""A complete system outside the package: a tiny denoiser of voxels, its pipeline, one training stage, its record.

`test_toy_system.py` installs this file like a package of its own and runs train, sample, evaluate, card and publish
with it; CONTRIBUTING.md refers to it as the example of a new system.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, SchedulerMixin  # noqa: F401  diffusers looks up ModelMixin in a model's own module
from diffusers.configuration_utils import register_to_config
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from torch import nn

from cardiodit._util.typed_yaml import Section, settings_of
from cardiodit.models.loading import StrictModelMixin
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.systems import Stage, System
from cardiodit.systems.registry import CardTexts
from cardiodit.training.denoiser_loop import Denoiser, train_denoiser
from cardiodit.training.harness.command_line import Request, read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.image_data import SliceDataset, data_config, read_volumes
from cardiodit.training.noisy_samples import LabelledSamples, Noising, NoisyDataset, ValidationDataset
from cardiodit.training.objectives import Denoising
from cardiodit.training.pipeline_output import Upload, add_upload_options, finish_pipeline, make_preview
from cardiodit.training.settings import DataSettings, PreviewedTraining, build_augmentation, build_preprocessing

# --- The model ---


class ToyUNet(StrictModelMixin, CacheMixin):
    """Denoise volumes `(B, 1, H, W, D)` with three convolutions.

    Args:
        sample_size: size of the training volumes.
        width: channels between the convolutions.
        prediction_type: what the model was trained to predict.
        spacing: voxel size in mm, if known.
        preprocessing: how the training volumes were prepared, if known.
    """

    axis_names = ("height", "width", "depth")
    token_size = (1, 1, 1)
    null_label = None

    @register_to_config
    def __init__(
        self,
        sample_size: Sequence[int],
        width: int = 8,
        in_channels: int = 1,
        prediction_type: str = "v_prediction",
        spacing: Sequence[float] | None = None,
        preprocessing: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.time = nn.Linear(1, width)
        self.conv_in = nn.Conv3d(in_channels, width, 3, padding=1)
        self.conv_mid = nn.Conv3d(width, width, 3, padding=1)
        self.conv_out = nn.Conv3d(width, in_channels, 3, padding=1)

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, return_dict: bool = True) -> Any:
        time = self.time(timestep.to(hidden_states.dtype)[:, None] / 100)[..., None, None, None]
        hidden = nn.functional.silu(self.conv_in(hidden_states) + time)
        sample = self.conv_out(nn.functional.silu(self.conv_mid(hidden)))
        return UNet3DConditionOutput(sample=sample) if return_dict else (sample,)


# --- The pipeline ---


class ToyPipeline(VolumePipeline):
    """Generates 3D volumes.

    Args:
        unet: denoiser of volumes.
        scheduler: any diffusers scheduler with the prediction type that the model was trained for.
    """

    model_cpu_offload_seq = "unet"
    denoiser_name = "unet"
    default_steps = 5

    def __init__(self, unet: ToyUNet, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


# --- The training stage ---


@dataclass(frozen=True, kw_only=True)
class ToySettings:
    """Config of the toy system."""

    model: Section = settings_of(
        ToyUNet, omit=("sample_size", "in_channels", "prediction_type", "spacing", "preprocessing")
    )
    diffusion: Section = settings_of(Denoising, omit=("noise_power",))
    data: DataSettings = DataSettings()
    training: PreviewedTraining = PreviewedTraining()


def main(argv: Sequence[str] | None = None) -> None:
    request = read_command_line(
        argv, ToySettings, "Train the toy system.", "train_toy --config toy.yaml ...", None, add_upload_options
    )
    with Run(request, "train_toy") as run:
        train(request, run)


def train(request: Request[ToySettings], run: Run) -> None:
    settings, training = request.settings, request.settings.training
    objective = Denoising(**settings.diffusion)
    volumes, held_out = read_volumes(run, request, build_preprocessing(settings.data.preprocessing))
    model = ToyUNet(sample_size=volumes.shapes[0][1:], prediction_type=objective.prediction_type, **settings.model)
    model.register_to_config(**data_config(volumes))
    config = dict(model.config)
    run.open(len(volumes), {"training_data": volumes.identity, "validation_data": held_out.identity})
    upload = Upload.begin(run, request.options)

    noising = Noising(objective, training.seed)
    augmentation = build_augmentation(settings.data.augmentation)
    noisy = NoisyDataset(SliceDataset(volumes, augmentation, training.seed, settings.data.crop), noising)
    samples = LabelledSamples(held_out, [case.subject for case in held_out.cases])
    validation = ValidationDataset(samples, noising, training.validation_timesteps, run.samples_a_pass)

    def as_pipeline(unet: ToyUNet) -> ToyPipeline:
        return ToyPipeline(unet, objective.sampling_scheduler())

    denoiser = Denoiser(run, model, {"unet": model})
    preview = make_preview(run, denoiser, model, lambda: ToyUNet.from_config(config), as_pipeline)
    train_denoiser(run, denoiser, objective, noisy, validation, lambda batch: batch["sample"], preview)

    def write(folder: Path) -> None:
        as_pipeline(ToyUNet.from_pretrained(run.folder / "best" / "unet").eval()).save_pretrained(folder)

    if not run.was_interrupted:
        finish_pipeline(run, upload, write)


# --- The record ---

SYSTEM = System(
    name="toy",
    title="Toy",
    summary="CT, 3D: three convolutions denoise voxels.",
    dimensions=3,
    pipeline=ToyPipeline,
    denoiser=ToyUNet,
    component="unet",
    scheduler="diffusers:DPMSolverMultistepScheduler",
    default_steps=5,
    stages=(Stage("train_toy", "The toy's only stage", "unet", ToySettings),),
    card=CardTexts(
        method=lambda model: "Three convolutions denoise voxels.",
        architecture=lambda model: {"Width": model.denoiser["width"]},
        sampler=lambda model: {"Steps": model.default_steps},
        limits="Everything is invented.",
        tags=("toy",),
    ),
)
