"""What all pipelines share: from noise to volumes, whatever their axes, with an autoencoder or without."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor

from cardiodit.energy import EnergyMeter
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import find_model
from cardiodit.hub.registration import public_library
from cardiodit.imaging import Geometry, Preprocessing
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.orientation import CT_DIRECTION
from cardiodit.models.loading import ConfigWithoutOrigin
from cardiodit.pipelines.inputs import (
    Generators,
    Labels,
    count_samples,
    label_numbers,
    latent_size,
    make_generators,
    plain_labels,
    whole_number,
)
from cardiodit.pipelines.lora import TransformerLoraMixin
from cardiodit.pipelines.output import VolumePipelineOutput
from cardiodit.pipelines.provenance import check_is_pipeline_folder, describe_model, make_records
from cardiodit.pipelines.scheduler_utils import SchedulerStep, check_scheduler, set_timesteps

OUTPUT_TYPES = ("volumes", "np", "pt", "latent")
Callback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class Control(Protocol):
    """Steers a transformer, step by step."""

    guidance_scale: float

    def at(self, latents: torch.Tensor, timestep: torch.Tensor, step: int, of_nothing: bool = False) -> Any:
        """What the blocks are given at a step, or None; `of_nothing`: what an empty condition would give."""
        ...


class VolumePipeline(ConfigWithoutOrigin, DiffusionPipeline, TransformerLoraMixin):
    """A pipeline of a `transformer` and a `scheduler`. Subclasses say how what is denoised becomes volumes."""

    model_cpu_offload_seq = "transformer"
    default_steps = 25
    _callback_tensor_inputs = ["latents"]
    _current_timestep: int | None = None
    _control: Control | None = None
    _described: dict[str, Any] = {}  # how it was steered, for the record

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Opens a pipeline folder, one on the Hub by its name `org/model`, or the one that comes with the package,
        "cardiodit-phantom"."""
        model = find_model(pretrained_model_name_or_path)
        check_is_pipeline_folder(model)
        return super().from_pretrained(model, **kwargs)

    def register_to_config(self, **kwargs: Any) -> None:
        super().register_to_config(**{key: public_library(value) for key, value in kwargs.items()})

    @property
    def facts(self) -> Any:
        """The config that knows how training volumes were prepared, and their geometry."""
        return self.transformer.config

    @property
    def geometry(self) -> Geometry:
        """Voxel size and frame time of generated volumes, and how a CT's axes run, as far as the model knows them."""
        spacing = self.facts.spacing
        geometry = Geometry(None if spacing is None else tuple(spacing), self.facts.get("frame_time"))
        steps = self.facts.preprocessing
        is_turned = steps is not None and Preprocessing.from_dict(steps).orient
        is_ct = is_turned and "frames" not in self.transformer.axis_names
        return replace(geometry, direction=CT_DIRECTION) if is_ct else geometry

    @property
    def units(self) -> Range | None:
        """What -1 and 1 stand for in the units of the training volumes, as far as the model knows."""
        steps = self.facts.preprocessing
        return None if steps is None else Preprocessing.from_dict(steps).intensity.units

    @property
    def voxels_a_latent(self) -> tuple[int, ...]:
        """Along the transformer's axes; 1 where voxels themselves are denoised."""
        return (1,) * len(self.transformer.axis_names)

    def latent_size(self, **voxels: int | None) -> list[int]:
        """Of a volume with so many voxels along its named axes, as trained where a number is None."""
        names = self.transformer.axis_names
        if strangers := [name for name, number in voxels.items() if number is not None and name not in names]:
            raise CardioDiTError(
                f"{strangers[0]}={voxels[strangers[0]]}: volumes of this model have {', '.join(names)}."
            )
        return latent_size(self.transformer, [voxels.get(name) for name in names], self.voxels_a_latent)

    @property
    def guidance_scale(self) -> float:
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        return self._guidance_scale != 1.0

    @property
    def num_timesteps(self) -> int:
        return self._num_timesteps

    @property
    def current_timestep(self) -> int | None:
        return self._current_timestep

    @property
    def interrupt(self) -> bool:
        return self._interrupt

    @torch.no_grad()
    def __call__(
        self,
        num_samples: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        class_labels: Labels = None,
        depth: int | None = None,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        seed: int | None = None,
        first_sample: int = 0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        eta: float = 0.0,
        decode_batch_size: int = 1,
        output_type: str = "volumes",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> VolumePipelineOutput:
        """Generates volumes.

        Args:
            num_samples: how many; by default 1, or as many as there are labels, generators or latents.
            num_inference_steps: denoising steps, by default `default_steps`; more than the schedule has is an error.
            guidance_scale: classifier-free guidance; 1 is none. Needs a model with labels and a null label.
            class_labels: a number or a name for all samples, or one for each. Without any, a labelled model
                samples with its null label; one without a null label needs them.
            depth, height, width, frames: size in voxels; by default the trained one. Only a cine has frames.
            seed: sample i of a seed is the same whatever the batch size, the process or the device. Without a
                seed or a generator, one is drawn and recorded.
            first_sample: index of the first sample of `seed`, to go on where another call ended.
            generator: in place of a seed, one generator or one for each sample, as in diffusers.
            latents: start noise `(B, C, *latent size)` in place of a drawn one.
            eta: DDIM's share of fresh noise, 0 to 1.
            decode_batch_size: slices (of a cine) or volumes decoded at once; more is faster on a large GPU.
            output_type: "volumes" (tensor on CPU, `(B, H, W, D, T)` or `(B, H, W, D)`), "np" (the same as an array),
                "pt" (tensor in the model's layout, `(B, C, D, H, W, T)` or `(B, C, H, W, D)`, on the device) or
                "latent" (what the last step left).
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step;
                may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: tensors that the callback is handed; there is only "latents".
            return_dict: a `VolumePipelineOutput` (default) or a tuple.
        """
        started, meter = time.perf_counter(), EnergyMeter(self._execution_device)
        self._check(guidance_scale, output_type, callback_on_step_end_tensor_inputs)
        num_inference_steps = self._whole_steps(num_inference_steps)
        decode_batch_size = whole_number("decode_batch_size", decode_batch_size, least=1)
        first_sample = whole_number("first_sample", first_sample, least=0)
        class_labels = plain_labels(class_labels)
        generator = list(generator) if isinstance(generator, Sequence) else generator
        num_samples = count_samples(num_samples, class_labels, generator, latents)
        labels = label_numbers(self.transformer, class_labels, num_samples)
        size = self.latent_size(depth=depth, height=height, width=width, frames=frames)
        seed, generators = make_generators(seed, generator, num_samples, first_sample)

        device = self._execution_device
        self._guidance_scale = float(guidance_scale)
        self._interrupt = False
        set_timesteps(self.scheduler, num_inference_steps, device)
        stepper = SchedulerStep(self.scheduler, eta, generators)
        starts_from_given = latents is not None
        latents = self._start(latents, (num_samples, self.transformer.config.in_channels, *size), generators, device)
        latents = self._denoise(latents, None if labels is None else labels.to(device), stepper, callback_on_step_end)
        volumes = latents if output_type == "latent" else self._decode(latents, decode_batch_size, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (volumes,)  # type: ignore[return-value]

        run = {
            **describe_model(self),
            "num_inference_steps": num_inference_steps,
            "guidance_scale": self._guidance_scale,
            "eta": float(eta),
            "latent_size": list(size),
            "given_latents": starts_from_given,
            "output_type": output_type,
            **self._described,
            "seconds": round((time.perf_counter() - started) / num_samples, 3),
            "energy_kwh": float(f"{meter.read().kwh / num_samples:.3g}"),
        }
        names = self.transformer.config.get("class_names")
        given_labels = [None] * num_samples if class_labels is None or labels is None else labels.tolist()
        shown_labels = [names[label] if names and label is not None else label for label in given_labels]
        records = make_records(run, seed, first_sample, generator, shown_labels)
        return VolumePipelineOutput(volumes=volumes, records=records, geometry=self.geometry, units=self.units)

    def _whole_steps(self, number: int | None) -> int:
        number = self.default_steps if number is None else number
        limit = self.scheduler.config.num_train_timesteps
        return whole_number("num_inference_steps", number, 1, limit, f": this model's schedule has {limit} steps")

    def _check(self, guidance_scale: float, output_type: str, callback_inputs: Sequence[str]) -> None:
        check_scheduler(self.scheduler, self.transformer.config.prediction_type)
        if output_type not in OUTPUT_TYPES:
            raise CardioDiTError(f"output_type={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")
        if not isinstance(guidance_scale, Real):
            raise CardioDiTError(f"guidance_scale={guidance_scale!r} must be a number; 1 is no guidance.")
        if guidance_scale != 1.0 and self.transformer.null_label is None:
            raise CardioDiTError(
                f"guidance_scale={guidance_scale} needs a model with labels that was trained with label dropout; "
                "this one has no null label. Leave guidance_scale at 1."
            )
        if not set(callback_inputs) <= set(self._callback_tensor_inputs):
            raise CardioDiTError(
                f"callback_on_step_end_tensor_inputs={list(callback_inputs)}: this pipeline can hand out "
                f"{self._callback_tensor_inputs}."
            )

    def _start(
        self, given: torch.Tensor | None, shape: tuple[int, ...], generators: Generators, device: torch.device
    ) -> torch.Tensor:
        """Start noise, in float32 so that it does not depend on the precision of the model."""
        if given is not None and tuple(given.shape) != shape:
            raise CardioDiTError(f"latents have the shape {tuple(given.shape)}, expected {shape}.")
        noise = randn_tensor(shape, generators, device, torch.float32) if given is None else given
        return noise.to(device, torch.float32) * self.scheduler.init_noise_sigma

    def _denoise(
        self, latents: torch.Tensor, labels: torch.Tensor | None, stepper: SchedulerStep, callback: Callback | None
    ) -> torch.Tensor:
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                self._current_timestep = int(timestep)
                prediction = self._predict(self.scheduler.scale_model_input(latents, timestep), timestep, labels, index)
                latents = stepper.step(prediction, index, timestep, latents)
                if callback is not None:
                    latents = (callback(self, index, timestep, {"latents": latents}) or {}).get("latents", latents)
                progress.update()
        self._current_timestep = None
        return latents

    def _predict(
        self, latents: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None, step: int = 0
    ) -> torch.Tensor:
        """The prediction, with classifier-free guidance by label, by condition or both, if asked.

        (Ho and Salimans, arXiv:2207.12598, equation 6, for each.)
        """
        full = self._run_transformer("cond", latents, timestep, labels, step)
        prediction = full
        if labels is not None and self.do_classifier_free_guidance:
            null_labels = torch.full_like(labels, self.transformer.null_label)
            unlabelled = self._run_transformer("uncond", latents, timestep, null_labels, step)
            prediction = unlabelled + self.guidance_scale * (full - unlabelled)
        if self._control is not None and self._control.guidance_scale != 1.0:
            free = self._run_transformer("uncontrolled", latents, timestep, labels, step, of_nothing=True)
            prediction = prediction + (self._control.guidance_scale - 1) * (full - free)
        return prediction

    def _run_transformer(
        self,
        cache: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        labels: torch.Tensor | None,
        step: int,
        of_nothing: bool = False,
    ) -> torch.Tensor:
        """In the model's precision inside, float32 outside: solvers lose digits in half precision."""
        inputs, times = latents.to(self.transformer.dtype), timestep.expand(latents.shape[0])
        controls = (
            {} if self._control is None else {"block_controls": self._control.at(inputs, times, step, of_nothing)}
        )
        labelled = {} if labels is None else {"class_labels": labels}
        with self.transformer.cache_context(cache):
            sample = self.transformer(inputs, times, **labelled, return_dict=False, **controls)[0]
        if self.transformer.config.get("learn_sigma"):
            sample = sample.chunk(2, dim=1)[0]  # the second half is log σ
        return sample.float()

    def _decode(self, latents: torch.Tensor, decode_batch_size: int, output_type: str) -> torch.Tensor | np.ndarray:
        """(B, C, *size) → volumes in [-1, 1]."""
        volumes = self._voxels(latents, decode_batch_size).clamp(-1, 1)
        if not torch.isfinite(volumes).all():
            raise CardioDiTError(
                f"The model produced values that are not numbers (in {self.transformer.dtype}). Run it "
                "in float32 or bfloat16; if that does not help, its weights are broken."
            )
        if output_type == "pt":
            return volumes
        volumes = self._as_stored(volumes[:, 0]).contiguous().cpu()
        return volumes.numpy() if output_type == "np" else volumes

    def _voxels(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """(B, C, *size) → (B, 1, *voxels), float32."""
        return latents

    def _as_stored(self, volumes: torch.Tensor) -> torch.Tensor:
        """(B, *voxels) in the order of files: H, W, D and, where it beats, T."""
        return volumes
