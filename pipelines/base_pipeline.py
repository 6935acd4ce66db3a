"""Base classes of all pipelines: `VolumePipeline`, and `LatentVolumePipeline` for those with an autoencoder.

`VolumePipeline.__call__` is the sampling loop of every system; subclasses only define how latents become volumes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor

from cardiodit._util.gpu import upload
from cardiodit.energy import Energy, EnergyMeter, two_digits
from cardiodit.errors import CardioDiTError, reading
from cardiodit.hub.bundled_models import find_pipeline
from cardiodit.hub.registration import LIBRARY, own_components, public_library
from cardiodit.imaging import Geometry, Preprocessing
from cardiodit.imaging.intensity import Range
from cardiodit.imaging.orientation import CT_DIRECTION
from cardiodit.models.clinical_conditions import ClinicalConditions
from cardiodit.models.loading import ConfigWithoutOrigin, check_model_files
from cardiodit.pipelines.inputs import (
    Generators,
    Labels,
    Row,
    check_integer,
    condition_numbers,
    condition_rows,
    count_samples,
    label_numbers,
    labels_come_first,
    labels_to_python,
    latent_size,
    make_generators,
    phases_of,
    unguided_inputs,
    warn_of_guidance,
)
from cardiodit.pipelines.lora import DenoiserLoraMixin
from cardiodit.pipelines.output import VolumePipelineOutput, describe_model, make_records
from cardiodit.pipelines.scheduler_utils import SchedulerStep, check_scheduler, check_scheduler_folder, set_timesteps
from cardiodit.schedulers.solvers import clean_estimate

OUTPUT_TYPES = ("volumes", "np", "pt", "latent")
Callback = Callable[[Any, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, torch.Tensor] | None]


class Control(Protocol):
    """Steers a denoiser step by step."""

    guidance_scale: float

    def arguments(
        self, latents: torch.Tensor, timestep: torch.Tensor, step: int, empty: bool = False
    ) -> dict[str, Any]:
        """Return the denoiser's extra arguments at a step; with `empty`, those of an empty condition."""
        ...


class VolumePipeline(ConfigWithoutOrigin, DiffusionPipeline, DenoiserLoraMixin):
    """A pipeline of a denoiser and a scheduler; subclasses define how latents become volumes."""

    model_cpu_offload_seq = "transformer"
    denoiser_name = "transformer"  # the component that denoises
    default_steps = 25
    _callback_tensor_inputs = ["latents"]
    _current_timestep: int | None = None
    _estimate: torch.Tensor | None = None  # of the clean latents, by the step before, for self-conditioned models
    _phase: torch.Tensor | None = None  # of each frame in the heart beat, for positions that depend on it
    _control: Control | None = None
    _control_record: dict[str, Any] = {}  # how the samples are steered, for their records
    _without_audit: str | None = None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Open a pipeline folder, a training run, a Hub repository `org/model`, or the model "cardiodit-phantom".

        A repository of the authors (`cardiodit models` lists them) is converted when it is first opened. If it holds
        several denoisers, `checkpoint` names the file of one of them.
        """
        choice = {"is_controlled": hasattr(cls, "adapter_name"), "checkpoint": kwargs.pop("checkpoint", None)}
        model = find_pipeline(pretrained_model_name_or_path, kwargs.get("revision"), **choice)
        if not Path(model).is_dir():
            with _without_loading_bars():
                return super().from_pretrained(model, **kwargs)
        for folder in (Path(model), *(path for path in sorted(Path(model).iterdir()) if path.is_dir())):
            check_model_files(folder)
        check_scheduler_folder(Path(model) / "scheduler")
        with reading(model, "a pipeline", "Save or copy the folder again."), _without_loading_bars():
            return super().from_pretrained(model, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, without_audit: str | None = None, **kwargs: Any) -> Any:
        """Upload the pipeline, if the folder that it was opened from holds an audit of these weights.

        Args:
            repo_id: destination, org/name.
            args, kwargs: as in diffusers.
            without_audit: why the model was not audited (`cardiodit audit`); written into the card.
        """
        self._check_push(without_audit)
        return super().push_to_hub(repo_id, *args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, without_audit: str | None = None, **kwargs: Any) -> None:
        """Save the pipeline into a folder; with `push_to_hub=True` also upload it, as `push_to_hub` does."""
        if kwargs.get("push_to_hub"):
            self._check_push(without_audit)
        super().save_pretrained(save_directory, *args, **kwargs)

    def _check_push(self, without_audit: str | None) -> None:
        self._without_audit = without_audit
        _audit_gate().check_push(self._origin, without_audit)

    def _upload_folder(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        """Add the audit, or the reason why there is none, to what diffusers uploads."""
        _audit_gate().complete_push(Path(working_dir), self._origin, self._without_audit)
        return super()._upload_folder(working_dir, *args, **kwargs)

    @property
    def _origin(self) -> str:
        return str(self.config.get("_name_or_path") or "")

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """Read `model_index.json`, with the classes of this package in place of code that the folder contains."""
        loaded = super().load_config(pretrained_model_name_or_path, **kwargs)
        if cls.__module__.partition(".")[0] != LIBRARY:  # another package's pipeline, or an exported one
            return loaded
        index, *more = loaded if isinstance(loaded, tuple) else (loaded,)
        index = own_components(index, pretrained_model_name_or_path)
        return (index, *more) if more else index

    def register_to_config(self, **kwargs: Any) -> None:
        super().register_to_config(**{key: public_library(value) for key, value in kwargs.items()})

    @property
    def denoiser(self) -> Any:
        return getattr(self, self.denoiser_name)

    @property
    def mask_adapter(self) -> Any:
        """The component by which masks steer the denoiser; None without one."""
        return None

    @property
    def facts(self) -> Any:
        """The config that holds the preprocessing and the geometry of the training volumes."""
        return self.denoiser.config

    @property
    def geometry(self) -> Geometry:
        """Voxel size and frame time of generated volumes and the orientation of CT, if the model knows them."""
        spacing = self.facts.spacing
        geometry = Geometry(None if spacing is None else tuple(spacing), self.facts.get("frame_time"))
        steps = self.facts.preprocessing
        is_turned = steps is not None and Preprocessing.from_dict(steps).orient
        is_ct = is_turned and "frames" not in self.denoiser.axis_names
        return replace(geometry, direction=CT_DIRECTION) if is_ct else geometry

    @property
    def units(self) -> Range | None:
        """The values of -1 and 1 in the units of the training volumes, if the model knows them."""
        steps = self.facts.preprocessing
        return None if steps is None else Preprocessing.from_dict(steps).intensity.units

    @property
    def labels(self) -> list[str] | list[int]:
        """The class labels that the pipeline takes: names, or numbers if they have none; empty without labels."""
        config = self.denoiser.config
        return list(config.get("class_names") or range(config.get("num_classes") or 0))

    @property
    def conditions(self) -> ClinicalConditions | None:
        """The clinical conditions that the pipeline takes, each with its categories or its range; None without."""
        return getattr(self.denoiser, "conditions", None)

    @property
    def voxels_per_latent(self) -> tuple[int, ...]:
        """Voxels per latent along each of the denoiser's axes; 1 where voxels themselves are denoised."""
        return (1,) * len(self.denoiser.axis_names)

    def latent_size(self, **voxels: int | None) -> list[int]:
        """Return the latent size of a volume with the given number of voxels per axis; None means as trained."""
        names = self.denoiser.axis_names
        if unknown := [name for name, number in voxels.items() if number is not None and name not in names]:
            raise CardioDiTError(f"{unknown[0]}={voxels[unknown[0]]}: volumes of this model have {', '.join(names)}.")
        return latent_size(self.denoiser, [voxels.get(name) for name in names], self.voxels_per_latent)

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
        num_samples: int | str | Sequence[int | str] | None = None,
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
        phase: Any = None,
        decode_batch_size: int = 1,
        output_type: str = "volumes",
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        return_dict: bool = True,
        conditions: Row | Sequence[Row] | None = None,
        guidance_over: Sequence[str] | None = None,
        extrapolate: bool = False,
        **named_conditions: Any,
    ) -> VolumePipelineOutput:
        """Generate volumes.

        Args:
            num_samples: number of volumes; default: 1, or the number of labels, generators or latents. A name or a list
                is taken as `class_labels`, so that `pipe("dilated")` generates a dilated heart.
            num_inference_steps: denoising steps, at most those of the training schedule; default: `default_steps`.
            guidance_scale: classifier-free guidance; 1 means none. Requires a model with a null label.
            class_labels: a class number or name for all samples, or one per sample. Without labels, a labelled model
                samples with its null label; a model without a null label requires them.
            depth, height, width, frames: size in voxels; default: as trained. Only cine has frames.
            seed: random seed. Sample i of a seed is the same whatever the batch size, process or device. Without a
                seed or a generator, a seed is drawn and recorded.
            first_sample: index of the first sample of `seed`, to continue an earlier call.
            generator: one generator or one per sample, as in diffusers, instead of a seed.
            latents: initial noise `(B, C, *latent size)`, instead of drawing it.
            eta: DDIM's share of fresh noise, or that of pc and pc_heun, 0 to 1.
            phase: phase of each frame in the heart beat, `(L)` or one row per sample `(B, L)`, for a model that was
                trained with phases; default: evenly spaced frames.
            decode_batch_size: slices (cine) or volumes decoded at once; larger is faster on a large GPU.
            output_type: "volumes" (tensor on the CPU, `(B, H, W, D, T)` or `(B, H, W, D)`), "np" (the same as an
                array), "pt" (tensor in the model's layout, `(B, C, D, H, W, T)` or `(B, C, H, W, D)`, on the device) or
                "latent" (the result of the last step).
            callback_on_step_end: called as `callback(pipe, step, timestep, {"latents": ...})` after every step;
                may return a dictionary with modified latents.
            callback_on_step_end_tensor_inputs: tensors to pass to the callback; only "latents" is available.
            return_dict: return a `VolumePipelineOutput` (default) or a tuple.
            conditions: clinical conditions by name for all samples, or a list with one dictionary per sample; what is
                left out is not given (`pipe.conditions` lists them).
            guidance_over: conditions by which guidance leads, and "class_label"; default: all that are given.
            extrapolate: allow numbers outside the range of the training cohort.
            named_conditions: the same as `conditions`, as arguments: `pipe(ef=35, edv=[180, 220])`.
        """
        started, meter = time.perf_counter(), EnergyMeter(self._execution_device)
        self._check(guidance_scale, output_type, callback_on_step_end_tensor_inputs)
        num_inference_steps = self._check_steps(num_inference_steps)
        decode_batch_size = check_integer("decode_batch_size", decode_batch_size, least=1)
        first_sample = check_integer("first_sample", first_sample, least=0)
        number, class_labels = labels_come_first(num_samples, class_labels)
        class_labels = labels_to_python(class_labels)
        generator = list(generator) if isinstance(generator, Sequence) else generator
        rows = condition_rows(self.denoiser, conditions, named_conditions)
        num_samples = count_samples(number, class_labels, generator, latents, rows)
        labels = label_numbers(self.denoiser, class_labels, num_samples)
        asked = condition_numbers(self.denoiser, rows, num_samples, extrapolate)
        if guidance_scale != 1.0 and class_labels is None and (asked is None or bool(asked.isnan().all())):
            warn_of_guidance(guidance_scale)
        size = self.latent_size(depth=depth, height=height, width=width, frames=frames)
        seed, generators = make_generators(seed, generator, num_samples, first_sample)

        device = self._execution_device
        self._guidance_scale = float(guidance_scale)
        self._interrupt = False
        set_timesteps(self.scheduler, num_inference_steps)
        scheduler_step = SchedulerStep(self.scheduler, eta, generators)
        latents_were_given = latents is not None
        latents = self._initial_noise(latents, (num_samples, self.denoiser.config.in_channels, *size), generators)
        self._phase = phases_of(phase, self.denoiser, num_samples, device)
        inputs = {"class_labels": labels, "conditions": asked}
        given = {name: value.to(device) for name, value in inputs.items() if value is not None}
        unguided = unguided_inputs(self.denoiser, given, guidance_over)
        latents = self._denoise(latents, given, unguided, scheduler_step, callback_on_step_end)
        volumes = latents if output_type == "latent" else self._decode(latents, decode_batch_size, output_type)
        masks = self._masks_of(latents, decode_batch_size) if output_type in ("volumes", "np") else None
        self.maybe_free_model_hooks()
        if not return_dict:
            return (volumes,)  # type: ignore[return-value]

        run = {
            **describe_model(self),
            "num_inference_steps": num_inference_steps,
            "guidance_scale": self._guidance_scale,
            "eta": float(eta),
            "latent_size": list(size),
            "given_latents": latents_were_given,
            **({} if phase is None else {"phase": torch.as_tensor(phase).tolist()}),
            "output_type": output_type,
            **self._control_record,
            "seconds": round((time.perf_counter() - started) / num_samples, 3),
            **_energy_of_sample(meter.read(), num_samples),
        }
        names = self.denoiser.config.get("class_names")
        given_labels = [None] * num_samples if class_labels is None or labels is None else labels.tolist()
        shown_labels = [names[label] if names and label is not None else label for label in given_labels]
        records = make_records(run, seed, first_sample, generator, shown_labels)
        if self.conditions is not None and asked is not None:
            for record, row in zip(records, asked.tolist(), strict=True):
                record["conditions"] = self.conditions.values_of(row)
                record["guidance_over"] = None if guidance_over is None else list(guidance_over)
        return VolumePipelineOutput(
            volumes=volumes, records=records, geometry=self.geometry, units=self.units, masks=masks
        )

    def _check_steps(self, number: int | None) -> int:
        number = self.default_steps if number is None else number
        limit = self.scheduler.config.num_train_timesteps
        return check_integer("num_inference_steps", number, 1, limit, f": this model's schedule has {limit} steps")

    def _check(self, guidance_scale: float, output_type: str, callback_inputs: Sequence[str]) -> None:
        check_scheduler(self.scheduler, self.denoiser.config.prediction_type)
        if output_type not in OUTPUT_TYPES:
            raise CardioDiTError(f"output_type={output_type!r} is not one of {', '.join(OUTPUT_TYPES)}.")
        if not isinstance(guidance_scale, Real):
            raise CardioDiTError(f"guidance_scale={guidance_scale!r} must be a number; 1 means no guidance.")
        if guidance_scale != 1.0 and self.denoiser.null_label is None and self.conditions is None:
            raise CardioDiTError(
                f"guidance_scale={guidance_scale} requires a model trained with labels and label dropout; this one has "
                "no null label. Leave guidance_scale at 1."
            )
        if not set(callback_inputs) <= set(self._callback_tensor_inputs):
            raise CardioDiTError(
                f"callback_on_step_end_tensor_inputs={list(callback_inputs)}: this pipeline offers "
                f"{self._callback_tensor_inputs}."
            )

    def _initial_noise(
        self, given: torch.Tensor | None, shape: tuple[int, ...], generators: Generators
    ) -> torch.Tensor:
        """Draw noise in float32, so that it does not depend on the model's precision."""
        device = self._execution_device
        if given is not None and tuple(given.shape) != shape:
            raise CardioDiTError(f"latents have the shape {tuple(given.shape)}, expected {shape}.")
        noise = randn_tensor(shape, generators, device, torch.float32) if given is None else given
        return noise.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    def _denoise(
        self,
        latents: torch.Tensor,
        given: dict[str, torch.Tensor],
        unguided: dict[str, torch.Tensor],
        scheduler_step: SchedulerStep,
        callback: Callback | None,
    ) -> torch.Tensor:
        """Denoise latents with the denoiser's inputs, labels and conditions, and those without what guides."""
        timesteps = self.scheduler.timesteps  # on the CPU, since a scheduler that reads one would wait for the device
        on_device = upload(timesteps, latents.device)
        self._estimate = None
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress:
            for index, timestep in enumerate(timesteps):
                if self.interrupt:
                    break
                self._current_timestep, moment = int(timestep), on_device[index]
                prediction = self._predict(scheduler_step.start(timestep, latents), moment, given, unguided, index)
                if self.denoiser.config.get("self_conditioning"):
                    self._estimate = clean_estimate(self.scheduler, prediction, timestep, latents)
                latents = scheduler_step(prediction, index, timestep, latents)
                if callback is not None:
                    latents = (callback(self, index, moment, {"latents": latents}) or {}).get("latents", latents)
                progress.update()
        self._current_timestep = self._estimate = self._phase = None
        return latents

    def _predict(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        given: dict[str, torch.Tensor],
        unguided: dict[str, torch.Tensor],
        step: int = 0,
    ) -> torch.Tensor:
        """Predict with classifier-free guidance by label and conditions, by mask or both (arXiv:2207.12598, eq. 6)."""
        full = self._run_denoiser("cond", latents, timestep, given, step)
        prediction = full
        if given and self.do_classifier_free_guidance:
            without = self._run_denoiser("uncond", latents, timestep, unguided, step)
            prediction = without + self.guidance_scale * (full - without)
        if self._control is not None and self._control.guidance_scale != 1.0:
            uncontrolled = self._run_denoiser("uncontrolled", latents, timestep, given, step, empty_condition=True)
            prediction = prediction + (self._control.guidance_scale - 1) * (full - uncontrolled)
        return prediction

    def _run_denoiser(
        self,
        cache: str,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        given: dict[str, torch.Tensor],
        step: int,
        empty_condition: bool = False,
    ) -> torch.Tensor:
        """Run the denoiser in its own precision and return float32: solvers lose digits in half precision."""
        inputs, times = latents.to(self.denoiser.dtype), timestep.expand(latents.shape[0])
        arguments = {} if self._control is None else self._control.arguments(inputs, times, step, empty_condition)
        arguments |= given
        if self._estimate is not None:
            arguments["self_condition"] = self._estimate
        if self._phase is not None:
            arguments["phase"] = self._phase
        with self.denoiser.cache_context(cache):
            sample = self.denoiser(inputs, times, return_dict=False, **arguments)[0]
        if self.denoiser.config.get("learn_sigma"):
            sample = sample.chunk(2, dim=1)[0]  # the second half is log σ
        return sample.float()

    def _decode(self, latents: torch.Tensor, decode_batch_size: int, output_type: str) -> torch.Tensor | np.ndarray:
        """Turn latents `(B, C, *size)` into volumes in [-1, 1]."""
        volumes = self._to_voxels(latents, decode_batch_size).clamp(-1, 1)
        if not torch.isfinite(volumes).all():
            raise CardioDiTError(
                f"The model produced NaN or infinite values (in {self.denoiser.dtype}). Run it in float32 or bfloat16; "
                "if that does not help, its weights are broken."
            )
        if output_type == "pt":
            return volumes
        volumes = self._to_file_order(volumes[:, 0]).contiguous().cpu()
        return volumes.numpy() if output_type == "np" else volumes

    def _to_voxels(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Turn latents `(B, C, *size)` into float32 voxels `(B, 1, *voxels)`."""
        return latents

    def _masks_of(self, latents: torch.Tensor, batch_size: int) -> np.ndarray | None:
        """Return the masks of latents in the order of files; None if the model decodes none."""
        return None

    def _to_file_order(self, volumes: torch.Tensor) -> torch.Tensor:
        """Permute `(B, *voxels)` into the order of files: H, W, D and, for cine, T."""
        return volumes


@contextmanager
def _without_loading_bars() -> Iterator[None]:
    """Leave out diffusers' bar over the few components of a pipeline; downloads still show theirs."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()


def _energy_of_sample(energy: Energy, count: int) -> dict[str, Any]:
    """Return the energy of each of several samples, and what it emits where the electricity comes from."""
    kwh = {"energy_kwh": two_digits(energy.kwh / count)}
    try:
        records = import_module("cardiodit.energy.records")  # not by `from`: its table does not fit in an exported file
    except ImportError:
        return kwh
    return {**kwh, "energy": records.energy_of_sample(energy, count)}


def _audit_gate() -> Any:
    try:
        return import_module("cardiodit.hub.audit_gate")  # not by `from`: it does not fit in an exported file
    except ImportError as error:
        raise CardioDiTError("Uploading to the Hub needs the package cardiodit, which checks the audit.") from error


class LatentVolumePipeline(VolumePipeline):
    """A pipeline of `vae`, denoiser and scheduler: latents are denoised and decoded a few at a time."""

    model_cpu_offload_seq = "transformer->vae"

    vae_class: type | None = None  # of the models that the pipeline was written for, if it needs certain ones
    denoiser_class: type | None = None

    def _register(self, **components: Any) -> None:
        vae, denoiser = components["vae"], components[self.denoiser_name]
        for model, kind in ((vae, self.vae_class), (denoiser, self.denoiser_class)):
            # A compiled or wrapped model is of another class, but has the attributes of the model inside.
            if kind is not None and tuple(model.axis_names) != tuple(kind.axis_names):  # type: ignore[attr-defined]
                raise CardioDiTError(
                    f"A {type(self).__name__} needs a {kind.__name__}, and this model has a {type(model).__name__}. "
                    "Open it with the pipeline that its model_index.json names, or with cardiodit.open_pipeline, which "
                    "finds it."
                )
        if vae.config.embedding_dim != denoiser.config.in_channels:
            raise CardioDiTError(
                f"The autoencoder's latents have {vae.config.embedding_dim} channels, but the {self.denoiser_name} "
                f"takes {denoiser.config.in_channels}: they do not belong together."
            )
        self.register_modules(**components)

    @property
    def facts(self) -> Any:
        return self.vae.config

    @property
    def voxels_per_latent(self) -> tuple[int, ...]:
        factors = tuple(self.vae.scale_factors)
        return (1,) * (len(self.denoiser.axis_names) - len(factors)) + factors

    def _to_voxels(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        return self._decode_batches(self.vae.unscale_latents(latents), batch_size)

    def _masks_of(self, latents: torch.Tensor, batch_size: int) -> np.ndarray | None:
        if not self.vae.config.get("mask_labels"):
            return None
        labels = self._label_batches(self.vae.unscale_latents(latents), batch_size)  # (B, 1, *voxels)
        return self._to_file_order(labels[:, 0]).contiguous().cpu().numpy()

    def _label_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Decode latents `(B, C, *size)` to labels `(B, 1, *voxels)` (uint8), `batch_size` pieces at a time."""
        parts = [self.vae.decode_masks(part).argmax(dim=1, keepdim=True) for part in latents.split(batch_size)]
        return torch.cat(parts).to(torch.uint8)

    def decoding_batches(self, size: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """Return the number of pieces in which a latent of this size is decoded, and the size of a piece."""
        return 1, tuple(size)

    def _decode_batches(self, latents: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Decode latents `(B, C, *size)` to float32 voxels `(B, 1, *voxels)`, `batch_size` pieces at a time."""
        return torch.cat([self.vae.decode(part).sample.float() for part in latents.split(batch_size)])
