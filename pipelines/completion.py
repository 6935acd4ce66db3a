"""Complete an image with a trained model as frozen prior: missing slices or frames, thick slices, noise.

At every noise level the model's estimate of the clean volume is brought into agreement with what was measured (its
range-space part is replaced; Wang et al., "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model",
arXiv:2212.00490), then it gets fresh noise. Each level is visited several times (Lugmayr et al., "RePaint",
arXiv:2201.09865), so that what is invented fits what was measured. No weight is changed, and no gradient is needed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from cardiodit._util.atomic_io import atomic_file
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Preprocessing, Volume, read_nifti, write_nifti
from cardiodit.imaging.figures import beating_rows
from cardiodit.imaging.gaps import Gaps, ModelView, find_gaps, view_for_model
from cardiodit.imaging.intensity import to_model
from cardiodit.imaging.volume import AXES
from cardiodit.latents.encoder import encode_volume
from cardiodit.pipelines.inputs import check_integer, label_numbers, make_generators, unguided_inputs
from cardiodit.pipelines.output import describe_model
from cardiodit.pipelines.scheduler_utils import check_scheduler, set_timesteps
from cardiodit.schedulers.flow_scheduler import FLOW, FLOWS
from cardiodit.schedulers.solvers import change_solver, clean_estimate, prediction_of

SOLVER = "null-space guidance"
DEFAULT_STRENGTH = 0.75  # the best of those tried on phantoms: docs/completion.md


@dataclass(frozen=True)
class Completion:
    """A completed image.

    Args:
        volume: mean of the samples on the target grid, in the image's units, with what was measured as it was.
        deviation: standard deviation of the samples, in the same units: where it is large, the model is guessing.
        interpolated: the same gaps filled by cubic interpolation, for comparison.
        samples: each sample on its own, with what was measured as it was.
        view: the incomplete image, as the model saw it.
        record: how the completion was made.
    """

    volume: Volume
    deviation: Volume
    interpolated: Volume
    samples: list[Volume]
    view: ModelView
    record: dict[str, Any]

    def summary(self) -> str:
        """Describe in a few sentences what was kept, what was added, and where the model is unsure."""
        incomplete = self.view.incomplete
        shape, gaps = " × ".join(map(str, self.volume.voxels.shape)), incomplete.gaps
        if gaps.noise:
            kept = "Noise was removed, so measured voxels changed."
        elif gaps.split_slices > 1:
            kept = f"The mean of each {gaps.split_slices} thin slices is the measured one (float32)."
        else:
            kept = f"{incomplete.measured.size} of {self.volume.voxels.size} voxels were measured, and are unchanged."
        spread = self.deviation.voxels[self.deviation.voxels > 0]
        low, high = self.view.prepared.source.limits
        unsure = f" Where voxels were added, samples differ by {np.mean(spread) / (high - low):.1%} of the range."
        return (
            f"Completed to {shape}. {kept}{unsure if len(spread) else ''} What was added is the model's guess: it is "
            "not for diagnosis."
        )

    def save(self, folder: str | Path, name: str = "image") -> list[Path]:
        """Write the volumes as NIfTI, a GIF and `completion.json`; existing files are never replaced."""
        folder = Path(folder)
        volumes = {"completed": self.volume, "deviation": self.deviation, "interpolated": self.interpolated}
        paths = {part: folder / f"{name}-{part}.nii.gz" for part in volumes}
        gif, record = folder / f"{name}-completed.gif", folder / "completion.json"
        for path in (*paths.values(), gif, record):
            if path.exists():
                raise CardioDiTError(f"{path} already exists and is not replaced. Choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for part, volume in volumes.items():
            write_nifti(paths[part], volume.voxels, volume.geometry)
        source = self.view.prepared.source
        rows = [
            (part, to_model(source.order.apply(volumes[part]).voxels, source.limits))
            for part in ("interpolated", "completed")
        ]
        with atomic_file(gif) as temporary:
            temporary.write_bytes(beating_rows(rows, self.volume.geometry.frame_time))
        with atomic_file(record) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n")
        return [*paths.values(), gif, record]


@torch.no_grad()
def complete(
    pipe: Any,
    image: Volume | str | Path,
    gaps: Gaps,
    num_samples: int = 8,
    num_inference_steps: int | None = None,
    visits: int = 1,
    renewal: float = 1.0,
    strength: float = DEFAULT_STRENGTH,
    seed: int = 0,
    class_label: int | str | None = None,
    guidance_scale: float = 1.0,
    preprocessing: Preprocessing | None = None,
    slices: str | None = None,
    end_diastole: int | None = None,
    batch_size: int = 4,
) -> Completion:
    """Complete an image with a pipeline whose model was trained on such images.

    Args:
        pipe: a pipeline with an autoencoder, such as `CardioDiTPipeline`.
        image: the image, or its NIfTI file.
        gaps: what is missing.
        num_samples: completions to draw; the result is their mean.
        num_inference_steps: noise levels; default: those of the pipeline.
        visits: how often the model sees every noise level.
        renewal: share of the noise's variance that is drawn afresh for every level, 0 to 1.
        strength: share of the noise levels that are run through, above 0 and at most 1: below 1 sampling starts from
            the noisy interpolated image instead of noise, and stays nearer to it.
        seed: random seed; sample i of a seed is always the same.
        class_label: class label of the heart, if the model has labels and it is known.
        guidance_scale: classifier-free guidance by this label.
        preprocessing: that of the model's training volumes, if its config does not hold it.
        slices: "base to apex" or "apex to base", if known.
        end_diastole: end-diastolic frame of the image, if known.
        batch_size: samples computed together; does not change the result.
    """
    steps = _check(pipe, preprocessing, guidance_scale, class_label)
    for name, value in (("num_samples", num_samples), ("visits", visits), ("batch_size", batch_size)):
        check_integer(name, value, least=1)
    if not 0 <= renewal <= 1:
        raise CardioDiTError(f"renewal={renewal} must be a number from 0 to 1.")
    if not 0 < strength <= 1:
        raise CardioDiTError(f"strength={strength} must be a number above 0 and at most 1.")
    number = pipe._check_steps(num_inference_steps)
    incomplete = find_gaps(image if isinstance(image, Volume) else read_nifti(image), gaps)
    first = None if end_diastole is None else end_diastole * (gaps.insert_frames + 1)
    view = view_for_model(incomplete, steps, steps.order_of(incomplete.filled, None, first, slices))
    size = dict(zip(AXES, view.prepared.volume.voxels.shape, strict=False))
    shape = (pipe.denoiser.config.in_channels, *pipe.latent_size(**size))
    labels = label_numbers(pipe.denoiser, class_label, num_samples)
    consistency = Consistency(pipe, view)
    sampler = GuidedSampler(pipe, consistency, number, visits, renewal, strength, guidance_scale)
    drawn: list[np.ndarray] = []
    while len(drawn) < num_samples:
        first_sample, count = len(drawn), min(batch_size, num_samples - len(drawn))
        _, generators = make_generators(seed, None, count, first_sample)
        chosen = None if labels is None else labels[first_sample : first_sample + count]
        drawn += [view.restore(voxels) for voxels in sampler(generators, (count, *shape), chosen)]
    samples = [incomplete.with_measured(voxels) for voxels in drawn]
    deviation = np.std([sample.voxels for sample in samples], axis=0, dtype=np.float64).astype(np.float32)
    record = {
        **describe_model(pipe),
        "solver": SOLVER,
        "num_samples": num_samples,
        "num_inference_steps": number,
        "visits": visits,
        "renewal": renewal,
        "strength": strength,
        "seed": seed,
        "class_label": class_label,
        "guidance_scale": guidance_scale,
        "gaps": asdict(gaps),
    }
    return Completion(
        volume=incomplete.with_measured(np.asarray(np.mean(drawn, axis=0, dtype=np.float64))),
        deviation=replace(incomplete.filled, voxels=deviation),
        interpolated=incomplete.with_measured(incomplete.filled.voxels),
        samples=samples,
        view=view,
        record=record,
    )


def _check(
    pipe: Any, preprocessing: Preprocessing | None, guidance_scale: float, label: int | str | None
) -> Preprocessing:
    """Check that a pipeline can complete images, and return the preprocessing of its model."""
    if getattr(pipe, "vae", None) is None or prediction_of(pipe.scheduler) is None:
        raise CardioDiTError(f"A {type(pipe).__name__} cannot complete images: only models of latents can.")
    if pipe.mask_adapter is not None:
        raise CardioDiTError(
            f"A {type(pipe).__name__} is steered by masks, which completion does not support. Use the pipeline without "
            "its adapter."
        )
    pipe._check(guidance_scale, "latent", ())
    if guidance_scale != 1 and label is None:
        raise CardioDiTError(f"guidance_scale={guidance_scale} needs a class label towards which it guides.")
    own = pipe.facts.preprocessing
    if own is None and preprocessing is None:
        raise CardioDiTError(
            "The model's config does not say how its training volumes were prepared: give the preprocessing."
        )
    return Preprocessing.from_dict(own) if own is not None else preprocessing  # type: ignore[return-value]


class Consistency:
    """Brings a model's estimates of the clean latents into agreement with what was measured.

    Slices that an autoencoder encodes on their own are treated one by one: those measured whole get the latents of the
    image, those not measured at all stay as they are, and only the others are decoded, corrected and encoded.
    """

    def __init__(self, pipe: Any, view: ModelView) -> None:
        self._pipe, self._noise = pipe, view.noise
        device = pipe._execution_device
        self.interpolated = view.prepared.tensor()
        self._by_slice = "frames" in pipe.denoiser.axis_names
        slices, frames = torch.from_numpy(view.slices).float(), torch.from_numpy(view.frames).float()
        values = torch.from_numpy(np.ascontiguousarray(view.values)).permute(2, 0, 1, 3)  # (M, H, W, N)
        self.known: dict[int, torch.Tensor] = {}  # latents of slices that were measured whole
        touched = (slices != 0).any(dim=0)
        self.partial = torch.arange(slices.shape[1])
        if self._by_slice:
            whole = self._whole(slices, frames) if self._noise == 0 else {}
            for place, row in whole.items():
                one = torch.einsum("tn,hwn->hwt", torch.linalg.pinv(frames), values[row])[None]
                self.known[place] = self._encode(one.to(device))[:, :, 0]
            self.partial = torch.tensor(
                [d for d in range(len(touched)) if touched[d] and d not in whole], dtype=torch.long
            )
        rows = (slices[:, self.partial] != 0).any(dim=1)
        self._slices, self._frames = slices[rows][:, self.partial].to(device), frames.to(device)
        self._values = values[rows].to(device)
        self._back = torch.linalg.pinv(self._slices), torch.linalg.pinv(self._frames)

    @staticmethod
    def _whole(slices: torch.Tensor, frames: torch.Tensor) -> dict[int, int]:
        """Return the model's slices that were measured directly and in all frames, with the row of their values."""
        if frames.shape[0] != frames.shape[1] or torch.linalg.matrix_rank(frames) < len(frames):
            return {}
        single = ((slices != 0).sum(dim=1) == 1) & (slices.amax(dim=1) - 1).abs().lt(1e-6)
        return {int(slices[row].argmax()): int(row) for row in torch.nonzero(single)[:, 0]}

    def start(self) -> torch.Tensor:
        """Return the scaled latents of the interpolated volume (1, C, …)."""
        latents = encode_volume(self._pipe.vae, self.interpolated.float())[None]
        return self(self._pipe.vae.scale_latents(latents.to(self._pipe._execution_device)))

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        """Return scaled latents (B, C, …) that agree with what was measured."""
        latents = latents.clone()
        for place, known in self.known.items():
            latents[:, :, place] = known
        if len(self.partial) == 0:
            return latents
        if not self._by_slice:
            return self._corrected(latents)
        places = self.partial.to(latents.device)
        latents[:, :, places] = self._corrected(latents[:, :, places])
        return latents

    def _corrected(self, latents: torch.Tensor) -> torch.Tensor:
        voxels = self.correct(self.decode(latents))
        return torch.cat([self._encode(one) for one in voxels])

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents to `(B, D, H, W, T)`."""
        voxels = self._pipe._to_voxels(latents, 1)[:, 0].clamp(-1, 1)
        return voxels if self._by_slice else voxels.movedim(3, 1)[..., None]

    def correct(self, voxels: torch.Tensor) -> torch.Tensor:
        """Correct `(B, D, H, W, T)`, of the slices `partial`, by what differs from the measured values.

        With noise, only by the share of the difference's variance that the noise does not explain.
        """
        measured = torch.einsum("md,bdhwt,nt->bmhwn", self._slices, voxels, self._frames)
        left = self._values - measured
        if self._noise > 0:
            variance = left.square().mean(dim=(1, 2, 3, 4), keepdim=True)
            left = left * (1 - self._noise**2 / variance.clamp(min=self._noise**2))
        return (voxels + torch.einsum("dm,bmhwn,tn->bdhwt", self._back[0], left, self._back[1])).clamp(-1, 1)

    def _encode(self, voxels: torch.Tensor) -> torch.Tensor:
        """Encode `(D, H, W, T)` to scaled latents (1, C, …)."""
        volume = voxels[None] if self._by_slice else voxels[..., 0].movedim(0, 2)[None]
        latents = encode_volume(self._pipe.vae, volume.float())[None]
        return self._pipe.vae.scale_latents(latents.to(self._pipe._execution_device))


class GuidedSampler:
    """Samples volumes that agree with what was measured.

    Args:
        pipe: the pipeline of the prior.
        consistency: what was measured.
        steps: noise levels.
        visits: how often the model sees each.
        renewal: share of the noise's variance that is drawn afresh.
        strength: share of the noise levels that are run through.
        guidance_scale: classifier-free guidance.
    """

    def __init__(
        self,
        pipe: Any,
        consistency: Consistency,
        steps: int,
        visits: int,
        renewal: float,
        strength: float,
        guidance_scale: float,
    ) -> None:
        self._pipe, self._consistency, self._visits, self._renewal = pipe, consistency, visits, renewal
        self._guidance_scale = float(guidance_scale)
        solver = "euler" if prediction_of(pipe.scheduler) in FLOWS else "ddim"
        self._scheduler = change_solver(pipe.scheduler, solver)
        check_scheduler(self._scheduler, pipe.denoiser.config.prediction_type)
        set_timesteps(self._scheduler, steps)
        self._times = self._scheduler.timesteps[-max(1, round(strength * steps)) :]
        self._start = consistency.start() if len(self._times) < len(self._scheduler.timesteps) else None

    def __call__(self, generators: Any, shape: tuple[int, ...], labels: torch.Tensor | None) -> Sequence[np.ndarray]:
        """Return volumes (H, W, D[, T]) in [-1, 1], one for each generator."""
        pipe, device = self._pipe, self._pipe._execution_device
        pipe._guidance_scale, pipe._estimate, pipe._interrupt, pipe._phase = self._guidance_scale, None, False, None
        given = {} if labels is None else {"class_labels": labels.to(device)}
        unguided = unguided_inputs(pipe.denoiser, given)
        times = self._times

        def noise() -> torch.Tensor:
            return randn_tensor(shape, generators, device, torch.float32)

        latents, clean = noise(), None
        if self._start is not None:
            signal, sigma = self._levels(float(times[0]))
            latents = signal * self._start + sigma * latents
        with pipe.progress_bar(total=len(times) * self._visits) as progress:
            for index, time in enumerate(times):
                signal, sigma = self._levels(float(time))
                last = index == len(times) - 1
                following = (1.0, 0.0) if last else self._levels(float(times[index + 1]))
                for visit in range(self._visits):
                    prediction = pipe._predict(latents, time.to(device), given, unguided, index)
                    clean = clean_estimate(self._scheduler, prediction, time, latents)
                    predicted = (latents - signal * clean) / sigma
                    clean = self._consistency(clean)
                    if pipe.denoiser.config.get("self_conditioning"):
                        pipe._estimate = clean
                    again = visit < self._visits - 1
                    to_signal, to_sigma = (signal, sigma) if again else following
                    mixed = (1 - self._renewal) ** 0.5 * predicted + self._renewal**0.5 * noise()
                    latents = to_signal * clean + to_sigma * mixed
                    progress.update()
        pipe._estimate = None
        assert clean is not None  # there is at least one step
        return self._volumes(clean)

    def _volumes(self, latents: torch.Tensor) -> list[np.ndarray]:
        voxels = self._consistency.decode(latents)
        partial = self._consistency.partial
        if len(partial):
            voxels[:, partial] = self._consistency.correct(voxels[:, partial])
        ordered = voxels.permute(0, 2, 3, 1, 4).cpu().numpy()  # (B, H, W, D, T)
        return list(ordered if "frames" in self._pipe.denoiser.axis_names else ordered[..., 0])

    def _levels(self, time: float) -> tuple[float, float]:
        """Return the shares of signal and noise at a timestep."""
        kind = prediction_of(self._scheduler)
        if kind in FLOWS:
            share = time / self._scheduler.config.num_train_timesteps
            return (1 - share, share) if kind == FLOW else (share, 1 - share)
        alpha = float(self._scheduler.alphas_cumprod[int(time)])
        return alpha**0.5, (1 - alpha) ** 0.5
