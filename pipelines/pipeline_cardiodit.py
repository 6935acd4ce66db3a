"""CardioDiT: from noise to a beating heart."""

import time
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from cardiodit.energy import EnergyMeter
from cardiodit.errors import CardioDiTError
from cardiodit.hub.registration import public_library
from cardiodit.imaging import Geometry, Preprocessing
from cardiodit.imaging.intensity import Range
from cardiodit.models.autoencoder_vq import VQModel4D, slices_of, stack_slices
from cardiodit.models.loading import ConfigWithoutOrigin
from cardiodit.models.transformer_dit import DiT4DTransformerModel
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
from cardiodit.pipelines.solving import Stepper, check_scheduler, set_timesteps
from cardiodit.shipped import find_model

OUTPUT_TYPES = ("volumes", "np", "pt", "latent")
Callback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class CardioDiTPipeline(ConfigWithoutOrigin, DiffusionPipeline, TransformerLoraMixin):
    """Generates 4D cardiac cine volumes.

    Args:
        vae: autoencoder between cine slices and latents; its config holds the scaling factor and the geometry.
        transformer: denoises latents `(B, C, D, H, W, T)`.
        scheduler: any diffusers scheduler with the prediction type that the transformer was trained for.
    """

    model_cpu_offload_seq = "transformer->vae"
    _callback_tensor_inputs = ["latents"]
    _current_timestep: int | None = None

    def __init__(self, vae: VQModel4D, transformer: DiT4DTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        if vae.config.embedding_dim != transformer.config.in_channels:
            raise CardioDiTError(
                f"The autoencoder makes latents of {vae.config.embedding_dim} channels, the transformer takes "
                f"{transformer.config.in_channels}: they do not belong together."
            )
        self.register_modules(vae=vae, transformer=transformer, scheduler=scheduler)

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
    def geometry(self) -> Geometry:
        """Voxel size and frame time of generated volumes, as far as the model knows them."""
        spacing = self.vae.config.spacing
        return Geometry(None if spacing is None else tuple(spacing), self.vae.config.frame_time)

    @property
    def units(self) -> Range | None:
        """What -1 and 1 stand for in the units of the training volumes, as far as the model knows."""
        steps = self.vae.config.preprocessing
        return None if steps is None else Preprocessing.from_dict(steps).intensity.units

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
        num_inference_steps: int = 25,
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
    ) -> VolumePipelineOutput | tuple[torch.Tensor | np.ndarray]:
        """Generates volumes.

        Args:
            num_samples: how many; by default 1, or as many as there are labels, generators or latents.
            num_inference_steps: denoising steps; more than the schedule has is an error.
            guidance_scale: classifier-free guidance; 1 is none. Needs a model with labels and a null label.
            class_labels: a number or a name for all samples, or one for each. Without any, a labelled model
                samples with its null label; one without a null label needs them.
            depth, height, width, frames: size in voxels; by default the trained one.
            seed: sample i of a seed is the same whatever the batch size, the process or the device. Without a
                seed or a generator, one is drawn and recorded.
            first_sample: index of the first sample of `seed`, to go on where another call ended.
            generator: in place of a seed, one generator or one for each sample, as in diffusers.
            latents: start noise `(B, C, d, h, w, t)` in place of a drawn one.
            eta: DDIM's share of fresh noise, 0 to 1.
            decode_batch_size: slices decoded at once; more is faster on a large GPU.
            output_type: "volumes" (tensor on CPU, `(B, H, W, D, T)`), "np" (the same as an array), "pt" (tensor
                in the model's layout `(B, C, D, H, W, T)`, on the device) or "latent" (what the last step left).
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step;
                may return a dictionary with other latents.
            callback_on_step_end_tensor_inputs: tensors that the callback is handed; there is only "latents".
            return_dict: a `VolumePipelineOutput` (default) or a tuple.
        """
        started, meter = time.perf_counter(), EnergyMeter(self._execution_device)
        self._check(guidance_scale, output_type, callback_on_step_end_tensor_inputs)
        limit = self.scheduler.config.num_train_timesteps
        num_inference_steps = whole_number(
            "num_inference_steps", num_inference_steps, 1, limit, f": this model's schedule has {limit} steps"
        )
        decode_batch_size = whole_number("decode_batch_size", decode_batch_size, least=1)
        first_sample = whole_number("first_sample", first_sample, least=0)
        class_labels = plain_labels(class_labels)
        generator = list(generator) if isinstance(generator, Sequence) else generator
        num_samples = count_samples(num_samples, class_labels, generator, latents)
        labels = label_numbers(self.transformer, class_labels, num_samples)
        factor_h, factor_w, factor_t = self.vae.scale_factors
        size = latent_size(self.transformer, (depth, height, width, frames), (1, factor_h, factor_w, factor_t))
        seed, generators = make_generators(seed, generator, num_samples, first_sample)

        device = self._execution_device
        self._guidance_scale = float(guidance_scale)
        self._interrupt = False
        set_timesteps(self.scheduler, num_inference_steps, device)
        stepper = Stepper(self.scheduler, eta, generators)
        starts_from_given = latents is not None
        latents = self._start(latents, (num_samples, self.transformer.config.in_channels, *size), generators, device)
        latents = self._denoise(latents, None if labels is None else labels.to(device), stepper, callback_on_step_end)
        volumes = latents if output_type == "latent" else self._decode(latents, decode_batch_size, output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (volumes,)

        run = {
            **describe_model(self),
            "num_inference_steps": num_inference_steps,
            "guidance_scale": self._guidance_scale,
            "eta": float(eta),
            "latent_size": list(size),
            "given_latents": starts_from_given,
            "output_type": output_type,
            "seconds": round((time.perf_counter() - started) / num_samples, 3),
            "energy_kwh": float(f"{meter.read().kwh / num_samples:.3g}"),
        }
        names = self.transformer.config.class_names
        given_labels = [None] * num_samples if class_labels is None or labels is None else labels.tolist()
        shown_labels = [names[label] if names and label is not None else label for label in given_labels]
        records = make_records(run, seed, first_sample, generator, shown_labels)
        return VolumePipelineOutput(volumes=volumes, records=records, geometry=self.geometry, units=self.units)

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
        self, latents: torch.Tensor, labels: torch.Tensor | None, stepper: Stepper, callback: Callback | None
    ) -> torch.Tensor:
        timesteps = self.scheduler.timesteps
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                self._current_timestep = int(timestep)
                prediction = self._predict(self.scheduler.scale_model_input(latents, timestep), timestep, labels)
                latents = stepper.step(prediction, index, timestep, latents)
                if callback is not None:
                    latents = (callback(self, index, timestep, {"latents": latents}) or {}).get("latents", latents)
                progress.update()
        self._current_timestep = None
        return latents

    def _predict(self, latents: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """The prediction, with classifier-free guidance if asked (Ho and Salimans, arXiv:2207.12598, equation 6)."""
        with self.transformer.cache_context("cond"):
            conditional = self._run_transformer(latents, timestep, labels)
        if labels is None or not self.do_classifier_free_guidance:
            return conditional
        with self.transformer.cache_context("uncond"):
            null_labels = torch.full_like(labels, self.transformer.null_label)
            unconditional = self._run_transformer(latents, timestep, null_labels)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _run_transformer(
        self, latents: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor | None
    ) -> torch.Tensor:
        """In the model's precision inside, float32 outside: solvers lose digits in half precision."""
        sample = self.transformer(
            latents.to(self.transformer.dtype),
            timestep.expand(latents.shape[0]),
            class_labels=labels,
            return_dict=False,
        )[0]
        return sample[:, : latents.shape[1]].float()  # with learn_sigma the second half is log σ

    def _decode(self, latents: torch.Tensor, decode_batch_size: int, output_type: str) -> torch.Tensor | np.ndarray:
        """(B, C, d, h, w, t) → volumes in [-1, 1], a few slices at a time."""
        slices = slices_of(latents / self.vae.config.scaling_factor).to(self.vae.dtype)  # (B·D, C, h, w, t)
        decoded = torch.cat([self.vae.decode(batch).sample.float() for batch in slices.split(decode_batch_size)])
        volumes = stack_slices(decoded, latents.shape[2]).clamp(-1, 1)  # (B, 1, D, H, W, T)
        if not torch.isfinite(volumes).all():
            raise CardioDiTError(
                f"The model produced values that are not numbers (in {self.transformer.dtype}). Run it "
                "in float32 or bfloat16; if that does not help, its weights are broken."
            )
        if output_type == "pt":
            return volumes
        volumes = volumes[:, 0].movedim(1, 3).contiguous().cpu()  # (B, H, W, D, T)
        return volumes.numpy() if output_type == "np" else volumes
