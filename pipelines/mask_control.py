"""Steering of a pipeline by masks through an adapter: TGCA for transformers, a ControlNet for the U-Net."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.imaging.volume import AXES
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.autoencoder_vq import VQModel
from cardiodit.models.conditions import as_model_sees
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.pipelines.base_pipeline import LatentVolumePipeline
from cardiodit.pipelines.inputs import check_axes, warn_of_size
from cardiodit.pipelines.output import VolumePipelineOutput

Masks = np.ndarray | Mapping[str, np.ndarray]


@dataclass
class MaskControl:
    """The steering of one call.

    Args:
        adapter: the adapter.
        denoiser: the model that it steers.
        embedded: embedded masks of the samples.
        empty: an embedded mask without any label.
        conditioning_scale: strength of the adapter.
        steps: first steered step, and the first step after the steered ones.
        guidance_scale: classifier-free guidance towards the masks; 1 means none.
    """

    adapter: Any
    denoiser: Any
    embedded: torch.Tensor
    empty: torch.Tensor
    conditioning_scale: float
    steps: tuple[int, int]
    guidance_scale: float

    def arguments(
        self, latents: torch.Tensor, timestep: torch.Tensor, step: int, empty: bool = False
    ) -> dict[str, Any]:
        if not self.steps[0] <= step < self.steps[1]:
            return {}
        embedded = self.empty.expand_as(self.embedded) if empty else self.embedded
        return self.adapter.control(embedded, self.denoiser, latents, timestep, self.conditioning_scale)


class MaskControlMixin(LatentVolumePipeline):
    """A pipeline with an adapter that steers its denoiser by masks.

    Args:
        vae: autoencoder, as in the pipeline without masks.
        transformer: denoiser, as in the pipeline without masks.
        scheduler: scheduler, as in the pipeline without masks.
        adapter: adapter that was trained for this transformer.
    """

    model_cpu_offload_seq = "adapter->transformer->vae"
    adapter_name = "adapter"  # the component by which masks steer

    def __init__(
        self, vae: VQModel, transformer: DiTTransformerModel, scheduler: SchedulerMixin, adapter: TGCAAdapterModel
    ) -> None:
        DiffusionPipeline.__init__(self)
        self._register(vae=vae, transformer=transformer, scheduler=scheduler, adapter=adapter)
        adapter.check_base(transformer)

    @property
    def mask_adapter(self) -> Any:
        return getattr(self, self.adapter_name)

    def __call__(  # type: ignore[override]  # masks come first, as in diffusers' ControlNet pipelines
        self,
        masks: Masks | Sequence[Masks],
        conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        condition_guidance_scale: float = 1.0,
        **settings: Any,
    ) -> VolumePipelineOutput:
        """Generate volumes whose structures lie where the masks specify.

        Args:
            masks: label map `(H, W, D, T)` or `(H, W, D)` of the generated size, for all samples or one per sample; if
                the adapter takes several masks, a dictionary by name (`pipe.mask_adapter.conditions.keys`). A mask
                without any label steers nothing, like masks that were dropped in training.
            conditioning_scale: strength of the adapter; 0 is the base model alone.
            control_guidance_start, control_guidance_end: fractions of the steps at which steering starts and ends.
            condition_guidance_scale: classifier-free guidance towards the masks; 1 means none.
            settings: arguments of the pipeline without masks.
        """
        guidance = (control_guidance_start, control_guidance_end)
        _check_strengths(conditioning_scale, condition_guidance_scale, guidance)
        each = self._named_masks(masks, settings)
        condition = self._condition(each, settings)
        steps = self._check_steps(settings.get("num_inference_steps"))
        calls = steps * getattr(self.scheduler, "order", 1)
        first, end = (round(share * calls) for share in guidance)
        with torch.no_grad():
            self._control = self._make_control(condition, conditioning_scale, (first, end), condition_guidance_scale)
        del condition  # as large as several volumes
        self._control_record = {
            "conditioning_scale": float(conditioning_scale),
            "control_guidance_start": float(control_guidance_start),
            "control_guidance_end": float(control_guidance_end),
            "condition_guidance_scale": float(condition_guidance_scale),
        }
        try:
            output = super().__call__(**settings)
        finally:
            del self._control, self._control_record  # back to the class's values: no steering
        if isinstance(output, VolumePipelineOutput):
            identities = [self.mask_adapter.conditions.identity(named) for named in each]
            for number, record in enumerate(output.records):
                record["masks"] = identities[number % len(identities)]
        return output

    def latent_size_of(self, shape: Sequence[int]) -> list[int]:
        """Return the latent size for masks `(H, W, D[, T])`, or raise an error if the model cannot generate it."""
        check_axes(shape, self._trained_size)
        return self.latent_size(**dict(zip(AXES, shape, strict=False)))

    @property
    def _trained_size(self) -> dict[str, int]:
        """The trained size in voxels, in the order of a mask's axes."""
        denoiser = self.denoiser
        sizes = zip(denoiser.axis_names, denoiser.config.sample_size, self.voxels_per_latent, strict=True)
        voxels = {name: size * factor for name, size, factor in sizes}
        return {name: voxels[name] for name in AXES if name in voxels}

    @property
    def _prepared_size(self) -> tuple[int | None, ...]:
        """Size of masks after the training volumes' preprocessing; an adapter may be trained at another size."""
        steps = self.vae.config.preprocessing
        if steps is None:
            return ()
        prepared = Preprocessing.from_dict(steps)
        return (*prepared.size, prepared.frames)[: len(self.denoiser.axis_names)]

    def _named_masks(self, masks: Masks | Sequence[Masks], settings: dict[str, Any]) -> list[dict[str, np.ndarray]]:
        """Return the masks of each sample, or of all samples, by name."""
        each = list(masks) if isinstance(masks, Sequence) else [masks]
        if isinstance(masks, Sequence) and settings.setdefault("num_samples", len(each)) != len(each):
            raise CardioDiTError(f"{len(each)} masks were given for {settings['num_samples']} samples.")
        keys = self.mask_adapter.conditions.keys
        if len(keys) > 1 and not all(isinstance(one, Mapping) for one in each):
            raise CardioDiTError(f"The adapter takes several masks; give them by name: {', '.join(keys)}.")
        named = [one if isinstance(one, Mapping) else {keys[0]: one} for one in each]
        return [{key: np.asarray(mask) for key, mask in one.items()} for one in named]

    def _condition(self, each: Sequence[Mapping[str, np.ndarray]], settings: dict[str, Any]) -> torch.Tensor:
        """Stack the samples' masks as channels `(B, K, *axes)`; the volumes get the size of the masks."""
        channels = [self.mask_adapter.conditions.channels_of(named) for named in each]
        shapes = sorted({found.shape[1:] for found in channels})
        if len(shapes) != 1:
            raise CardioDiTError(
                "Masks of samples in one call must have the same size; these have "
                f"{' and '.join(map(str, shapes)) or 'none'}. Call the pipeline once per size."
            )
        self._size_from(shapes[0], settings)
        return torch.stack([as_model_sees(found) for found in channels])

    def _size_from(self, shape: Sequence[int], settings: dict[str, Any]) -> None:
        """Set the volumes' size to that of the masks; a different requested size is an error."""
        for name, size in zip(AXES, shape, strict=False):
            if settings.get(name) not in (None, size):
                raise CardioDiTError(f"{name}={settings[name]} was given, but the masks have {size} along that axis.")
        self.latent_size_of(shape)
        if tuple(shape) != self._prepared_size:
            warn_of_size(shape, self._trained_size)
        settings.update(zip(AXES, shape, strict=False))

    def _make_control(
        self, condition: torch.Tensor, scale: float, steps: tuple[int, int], guidance_scale: float
    ) -> MaskControl:
        size = [n // f for n, f in zip(condition.shape[2:], self.voxels_per_latent, strict=True)]
        denoiser, adapter = self.denoiser, self.mask_adapter
        grid = denoiser.grid_of(size)
        condition = condition.to(self._execution_device, adapter.dtype)
        embedded = adapter.embed(condition, denoiser, grid)
        empty = adapter.embed(torch.zeros_like(condition[:1]), denoiser, grid)
        return MaskControl(adapter, denoiser, embedded, empty, float(scale), steps, float(guidance_scale))


def _check_strengths(scale: Any, guidance_scale: Any, guidance: Sequence[Any]) -> None:
    names = ("conditioning_scale", "condition_guidance_scale", "control_guidance_start", "control_guidance_end")
    for name, value in zip(names, (scale, guidance_scale, *guidance), strict=True):
        if not isinstance(value, Real) or not math.isfinite(value):
            raise CardioDiTError(f"{name}={value!r} must be a finite number.")
    start, end = guidance
    if not 0 <= start <= end <= 1:
        raise CardioDiTError(
            f"Steering from {start} to {end} of the steps: expected two fractions from 0 to 1, the first not above "
            "the second."
        )
