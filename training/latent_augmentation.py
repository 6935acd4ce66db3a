"""Random changes of latents at every visit of a training volume, so that a denoiser memorizes it less.

Latents are codes of patches: shifting them by whole latent voxels shifts the image, because convolutions do. Mirroring
them mirrors the image only as far as the VQ model learned to treat both sides alike. `check_augmentation` measures it
on the cohort's own latents and refuses what the VQ model does not decode as intended.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.models.autoencoder_vq import VQModel4D, slices_of, stack_slices
from cardiodit.training.harness.schedule import seed_for

CHECKED = 2  # latents that are decoded to check an augmentation
TOLERANCE = 0.1  # share of a volume's variance by which a decoded augmented latent may differ from the augmented volume
PLANE = (-3, -2)  # axes of H and W
TIME = -1

Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LatentAugmentation:
    """Random changes of latents within the plane and along the beat; by default none.

    Args:
        shift: largest shift along H and along W, in latent voxels, such as 1; the edge values extend outwards. Samples
            then lie less exactly in the middle.
        noise: standard deviation of noise added to scaled latents, such as 0.1; the codebook removes most of it when
            samples are decoded.
        flip_probability: probability of mirroring along each of H and W. Samples then include mirrored hearts, with the
            right ventricle on the other side; leave it at 0 if that matters.
        cycle_probability: probability of beginning the beat of a cine with another frame. The beats of samples then
            begin anywhere, not at end-diastole.
        depth_flip_probability: probability of reversing the slices. Samples then include volumes that are upside down.
    """

    shift: int = 0
    noise: float = 0.0
    flip_probability: float = 0.0
    cycle_probability: float = 0.0
    depth_flip_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flip_probability", "cycle_probability", "depth_flip_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise CardioDiTError(f"{name}={getattr(self, name)} must be between 0 and 1.")
        for name in ("shift", "noise"):
            if getattr(self, name) < 0:
                raise CardioDiTError(f"{name}={getattr(self, name)} must not be negative.")

    @property
    def is_none(self) -> bool:
        return self == LatentAugmentation()

    def draw(self, seed: int, visit: int) -> torch.Tensor:
        """Draw what happens to the latents of a visit; all numbers are always drawn, so that none depends on others."""
        generator = generator_for(seed_for(seed, "latent augmentation"), visit)
        return torch.cat([torch.rand(7, generator=generator, dtype=torch.float64), torch.tensor([visit]).double()])

    def __call__(self, latents: torch.Tensor, draws: torch.Tensor, seed: int) -> torch.Tensor:
        """Change scaled latents `(B, C, *size)` as drawn `(B, 8)`."""
        return torch.stack([self._one(one, drawn, seed) for one, drawn in zip(latents, draws.cpu(), strict=True)])

    def _one(self, latent: torch.Tensor, drawn: torch.Tensor, seed: int) -> torch.Tensor:
        numbers = drawn.tolist()
        for axis, flip, move in zip(PLANE, numbers[:2], numbers[2:4], strict=True):
            if flip < self.flip_probability:
                latent = latent.flip(axis)
            latent = shifted(latent, axis, int(move * (2 * self.shift + 1)) - self.shift)
        if numbers[6] < self.depth_flip_probability:
            latent = latent.flip(depth_of(latent))
        if latent.ndim == 5 and numbers[4] < self.cycle_probability:
            latent = latent.roll(int(numbers[5] * latent.shape[TIME]), TIME)
        if self.noise:
            generator = generator_for(seed_for(seed, "latent noise"), int(numbers[7]))
            latent = latent + self.noise * torch.randn(latent.shape, generator=generator).to(latent)
        return latent


def depth_of(latent: torch.Tensor) -> int:
    """Return the axis of slices of a cine `(C, D, H, W, T)` or a volume `(C, H, W, D)`."""
    return 1 if latent.ndim == 5 else 3


def shifted(latent: torch.Tensor, axis: int, by: int) -> torch.Tensor:
    """Move values along an axis; those at the edge extend outwards."""
    places = (torch.arange(latent.shape[axis], device=latent.device) - by).clamp(0, latent.shape[axis] - 1)
    return latent.index_select(axis, places)


def check_augmentation(
    augmentation: LatentAugmentation, vae: Any, latents: Sequence[torch.Tensor], say: Callable[[str], None]
) -> None:
    """Compare decoded augmented latents with augmented decoded latents; raise an error if they differ by much."""
    found: dict[str, float] = {}
    for latent in latents:
        decoded = _decode(vae, latent)
        for name, of_latents, of_volumes in _changes(augmentation, vae, latent):
            wanted, got = of_volumes(decoded), _decode(vae, of_latents(latent))
            height, width = (slice(n // 8, n - n // 8) for n in wanted.shape[-3:-1])  # without edges that moved in
            difference = (got - wanted)[..., height, width, :].square().mean() / wanted.var()
            found[name] = max(found.get(name, 0.0), difference.item())
    for name, share in found.items():
        say(f"Augmentation of latents: {name} changes decoded volumes as intended, but for {share:.1%} of variance.")
        if share > TOLERANCE:
            raise CardioDiTError(
                f"This VQ model does not decode latents after {name} as volumes after {name}: they differ by "
                f"{share:.0%} of the variance (at most {TOLERANCE:.0%} is accepted). Leave that augmentation out."
            )


def _changes(augmentation: LatentAugmentation, vae: Any, latent: torch.Tensor) -> Iterator[tuple[str, Change, Change]]:
    """Yield the name of each change that is switched on, as it acts on unscaled latents and on volumes."""
    height, width, last = vae.scale_factors
    for name, axis, factor in (("H", PLANE[0], height), ("W", PLANE[1], width)):
        if by := augmentation.shift:
            yield (
                f"a shift along {name}",
                partial(shifted, axis=axis, by=by),
                partial(shifted, axis=axis, by=by * factor),
            )
        if augmentation.flip_probability:
            yield f"a flip along {name}", partial(torch.flip, dims=(axis,)), partial(torch.flip, dims=(axis,))
    if augmentation.depth_flip_probability:
        flip = partial(torch.flip, dims=(depth_of(latent),))
        yield "a flip of the slices", flip, flip
    if augmentation.cycle_probability and latent.ndim == 5:
        half = latent.shape[TIME] // 2
        rolls = [partial(torch.roll, shifts=half * factor, dims=TIME) for factor in (1, last)]
        yield "another first frame", rolls[0], rolls[1]
    if augmentation.noise:
        noise = torch.randn(latent.shape, generator=generator_for(0, 0)).to(latent)
        yield "noise", partial(torch.add, noise * (augmentation.noise / vae.config.scaling_factor)), torch.clone


@torch.no_grad()
def _decode(vae: Any, latent: torch.Tensor) -> torch.Tensor:
    """Return the volume of an unscaled latent `(C, *size)`."""
    latent = latent.to(vae.device)
    if not isinstance(vae, VQModel4D):
        return vae.decode(latent[None]).sample[0]
    slices = torch.cat([vae.decode(piece).sample for piece in slices_of(latent[None]).split(1)])
    return stack_slices(slices, latent.shape[1])[0]
