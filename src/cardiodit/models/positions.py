"""Positions of a transformer's tokens: tables that are added to tokens, and rotations of queries and keys.

One implementation for any number of axes. `TokenPositions` holds the published position modes; a mode adds a table, or
rotates (Su et al., arXiv:2104.09864), or does both. Modes that know the cardiac phase need a last axis of frames.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F

from cardiodit.errors import CardioDiTError

POSITION_MODES = (
    "absolute",
    "interpolated",
    "interpolated_rescaled",
    "phase",
    "time_rope",
    "axial_rope",
)
PHASE_SCHEMAS = ("frames", "cycle")
OF_FRAMES = ("interpolated", "interpolated_rescaled", "phase", "time_rope")  # modes that treat the last axis apart
ROTATED = ("time_rope", "axial_rope")
UNIT_TOLERANCE = 1e-4  # by which a phase may leave [0, 1]
ROPE_BASE = 10000.0

Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, each (1 or B, L, 1, pairs)


def sincos_positions(
    grid: Sequence[int],
    dim: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Return fixed sine-cosine positions of all tokens of a grid with any number of axes.

    Each axis gets an equal, even number of features, rounded up: first all sines, then all cosines of the positions
    0, 1, …; features beyond `dim` are cut off. Returns (tokens, dim), last axis fastest.
    """
    lengths = [torch.arange(length, device=device, dtype=torch.float32) for length in grid]
    return sincos_table(lengths, dim).to(dtype)


def sincos_table(coordinates: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """Return the sine-cosine positions (tokens, dim) of a grid with these coordinates along each axis."""
    grid, half = [len(along) for along in coordinates], math.ceil(dim / (2 * len(coordinates)))
    features = [expand_axis(sincos(along, half), axis, grid) for axis, along in enumerate(coordinates)]
    return torch.cat(features, dim=-1).flatten(0, -2)[:, :dim]


def sincos(coordinates: torch.Tensor, half: int) -> torch.Tensor:
    """Return `half` sines, then as many cosines, of coordinates (..., L): (..., L, 2·half)."""
    frequencies = torch.tensor([ROPE_BASE ** (-i / half) for i in range(half)], device=coordinates.device)
    angles = coordinates[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def expand_axis(features: torch.Tensor, axis: int, grid: Sequence[int]) -> torch.Tensor:
    """Repeat the features (length, width) of one axis over the other axes of the grid: (*grid, width)."""
    shape = [length if a == axis else 1 for a, length in enumerate(grid)]
    return features.view(*shape, -1).expand(*grid, -1)


def kept_positions(
    make: Callable[..., torch.Tensor], grid: Sequence[int], dim: int, like: torch.Tensor
) -> torch.Tensor:
    """Return `make(grid, dim, device, dtype)` on the device and in the dtype of a tensor, made once for each grid.

    Making positions copies from the CPU to the device, which would wait for the device in every forward pass.
    """
    if type(torch.empty(0, device=like.device)) is not torch.Tensor or like.is_meta or torch.compiler.is_compiling():
        return make(grid, dim, like.device, like.dtype)  # tensors without values must not be kept
    return _made_positions(make, tuple(grid), dim, like.device, like.dtype)


@lru_cache(maxsize=16)
def _made_positions(
    make: Callable[..., torch.Tensor], grid: tuple[int, ...], dim: int, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return make(grid, dim, device, dtype)


@dataclass(frozen=True)
class TokenPositions:
    """The positions of one model, for grids of any size.

    Args:
        mode: one of `POSITION_MODES`.
        trained_grid: token grid of the training size.
        steps: distance between neighbouring tokens along each axis.
        largest_grid: grid of the largest size; smaller ones take the centre of its table. None: positions start at 0.
        time_scale: factor of the time of frames.
        phase_schema: "frames" counts frames from 0, as CardioDiT's legacy_v1; "cycle" is periodic, as its cyclic_v2.
    """

    mode: str
    trained_grid: tuple[int, ...]
    steps: tuple[float, ...]
    largest_grid: tuple[int, ...] | None = None
    time_scale: float = 1.0
    phase_schema: str = "frames"

    def check(self, hidden_size: int, head_dim: int, has_frames: bool) -> None:
        """Raise an error for a mode that does not exist or that the model's axes and widths do not allow."""
        axes = len(self.trained_grid)
        if self.mode not in POSITION_MODES:
            raise CardioDiTError(f"position_mode={self.mode!r} is not one of {', '.join(POSITION_MODES)}.")
        if self.phase_schema not in PHASE_SCHEMAS:
            raise CardioDiTError(f"phase_schema={self.phase_schema!r} is not one of {', '.join(PHASE_SCHEMAS)}.")
        if self.mode in OF_FRAMES and not has_frames:
            raise CardioDiTError(
                f"position_mode={self.mode!r} places frames by their time, and this model has no frames: use absolute "
                "or axial_rope."
            )
        if self.mode in OF_FRAMES and hidden_size % (2 * axes):
            raise CardioDiTError(
                f"position_mode={self.mode!r} needs a hidden size that is a multiple of {2 * axes}, found "
                f"{hidden_size}."
            )
        if self.mode == "axial_rope" and head_dim < 2 * axes:
            raise CardioDiTError(
                f"position_mode='axial_rope' needs heads of at least {2 * axes} features, two for each axis, found "
                f"{head_dim}."
            )
        if len(self.steps) != axes or not all(math.isfinite(step) and step > 0 for step in self.steps):
            raise CardioDiTError(f"position_steps={self.steps}: expected {axes} positive numbers, one for each axis.")
        if not (math.isfinite(self.time_scale) and self.time_scale > 0):
            raise CardioDiTError(f"position_time_scale={self.time_scale} must be a positive number.")

    @property
    def uses_phase(self) -> bool:
        """Whether the phase of each frame changes the positions."""
        return self.mode in ("interpolated", "phase", "time_rope", "axial_rope")

    def added(self, grid: Sequence[int], like: torch.Tensor, phase: torch.Tensor | None) -> torch.Tensor | None:
        """Return what is added to tokens `like` (B, L, dim): (1 or B, L, dim); None if nothing is."""
        if phase is not None and not self.uses_phase:
            raise CardioDiTError(f"phase was given, but positions of the mode {self.mode!r} do not depend on it.")
        if self.mode == "axial_rope":
            return None
        if phase is None:
            return kept_positions(self._table, grid, like.shape[-1], like)[None]
        return self._added(grid, like.shape[-1], like.device, phase).to(like.dtype)

    def angles(
        self, grid: Sequence[int], head_dim: int, like: torch.Tensor, phase: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the angles by which pairs of features turn (1 or B, L, pairs); None if they do not."""
        if self.mode not in ROTATED:
            return None
        if phase is None:
            like_angles = torch.empty_like(like[:0], dtype=torch.float32)
            return kept_positions(self._angles, grid, head_dim, like_angles)[None]
        return self._rotation_angles(grid, head_dim, like.device, phase)

    def stored_table(self, dim: int) -> torch.Tensor:
        """Return the table that the authors' checkpoints hold for this model, of the largest grid: (tokens, dim)."""
        grid = self.largest_grid or self.trained_grid
        return sincos_table([torch.arange(n) * step for n, step in zip(grid, self.steps, strict=True)], dim)

    def _table(self, grid: Sequence[int], dim: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return self._added(grid, dim, device, None)[0].to(dtype)

    def _angles(self, grid: Sequence[int], head_dim: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        return self._rotation_angles(grid, head_dim, device, None)[0].to(dtype)

    def _added(self, grid: Sequence[int], dim: int, device: torch.device, phase: torch.Tensor | None) -> torch.Tensor:
        """Return the added positions (1 or B, tokens, dim)."""
        places = [first + torch.arange(n, device=device) for first, n in zip(self._starts(grid), grid, strict=True)]
        table = sincos_table([place * step for place, step in zip(places, self.steps, strict=True)], dim)[None]
        if self.mode == "absolute":
            return table
        frames, quarter = grid[-1], dim // len(grid)
        if self.mode == "phase" and self.phase_schema == "frames":
            turns = self._times(frames, device, phase) / (self.steps[-1] * max(frames - 1, 1))
            return table + self._over_frames(sincos(2 * math.pi * turns, dim // 2), grid)
        table = table.clone()
        if self.mode in ("time_rope", "phase"):
            table[..., -quarter:] = 0
        if self.mode == "phase":
            turns = (self._times(frames, device, phase) / (self.steps[-1] * frames)) % 1
            angles = (
                turns[..., None] * torch.arange(1, dim // 2 + 1, device=device, dtype=torch.float32) * (2 * math.pi)
            )
            return table + self._over_frames(torch.cat([angles.sin(), angles.cos()], dim=-1), grid)
        if self.mode == "time_rope":
            return table
        times = self._times(frames, device, phase)
        if self.mode == "interpolated_rescaled":
            last = max(self.trained_grid[-1] - 1, 0)
            times = torch.linspace(0, last, frames, device=device)[None] * self.steps[-1]
        of_time = self._over_frames(sincos(times, quarter // 2), grid)
        return torch.cat([table[..., :-quarter].expand(len(of_time), -1, -1), of_time], dim=-1)

    def _rotation_angles(
        self, grid: Sequence[int], head_dim: int, device: torch.device, phase: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the angle of each pair of features (1 or B, tokens, pairs)."""
        time = self._over_frames(self._times(grid[-1], device, phase)[..., None], grid)[..., 0]
        pairs = head_dim // 2
        if self.mode == "time_rope":
            return time[..., None] * rope_frequencies(pairs, device)
        angles = []
        for axis, (length, step) in enumerate(zip(grid, self.steps, strict=True)):
            along = torch.arange(length, device=device, dtype=torch.float32) * step
            at_token = time if axis == len(grid) - 1 else expand_axis(along[:, None], axis, grid).reshape(1, -1)
            angles.append(at_token[..., None] * rope_frequencies(pairs_of_axis(axis, len(grid), pairs), device))
        return torch.cat([part.expand(len(time), -1, -1) for part in angles], dim=-1)

    def _times(self, frames: int, device: torch.device, phase: torch.Tensor | None) -> torch.Tensor:
        """Return the time of each token column of the last axis (1 or B, frames)."""
        if phase is None:
            start = 0.5 if self.phase_schema == "cycle" else 0.0
            times = torch.arange(frames, device=device, dtype=torch.float32)[None] + start
        else:
            times = times_of_phase(phase.to(device, torch.float32), frames, self.phase_schema == "cycle")
        return times * (self.steps[-1] * self.time_scale)

    def _starts(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Return the first position along each axis: the centre of the largest grid's table."""
        return tuple((most - n) // 2 for most, n in zip(self.largest_grid or grid, grid, strict=True))

    @staticmethod
    def _over_frames(features: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
        """Repeat features (B, frames, width) over all other axes: (B, tokens, width)."""
        return features.repeat(1, math.prod(grid[:-1]), 1)


def rope_frequencies(pairs: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([ROPE_BASE ** (-2 * j / (2 * pairs)) for j in range(pairs)], device=device)


def pairs_of_axis(axis: int, axes: int, pairs: int) -> int:
    """Return the pairs of features that turn by an axis: equally many, and one more for the first and the last."""
    left_over = pairs % axes
    is_one_more = (axis == 0 and left_over >= 1) or (axis == axes - 1 and left_over >= 2)
    return pairs // axes + is_one_more


def rotate(features: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn neighbouring pairs of features (B, L, H, D); features beyond the last pair stay."""
    cosine, sine = rotation
    turned = features[..., : 2 * cosine.shape[-1]].float().unflatten(-1, (-1, 2))
    first, second = turned.unbind(-1)
    pairs = torch.stack([first * cosine - second * sine, first * sine + second * cosine], dim=-1).flatten(-2)
    return torch.cat([pairs.to(features.dtype), features[..., pairs.shape[-1] :]], dim=-1)


# --- Cardiac phase ---


def times_of_phase(phase: torch.Tensor, frames: int, is_cycle: bool) -> torch.Tensor:
    """Return the time of each of `frames` token columns (B, frames) from phases of any length, (L), (1, L) or (B, L).

    A phase in [0, 1] is a fraction of the heart beat, judged for each sample; other numbers are frames.
    """
    phase = phase.reshape(-1, phase.shape[-1])
    resized = phase
    if phase.shape[-1] != frames:
        resized = F.interpolate(phase[:, None], frames, mode="linear", align_corners=True)[:, 0]
    of_frames = torch.where(_is_unit(resized), resized * max(frames - 1, 1), resized)
    if not is_cycle:
        return of_frames
    return torch.where(_is_unit(phase), circular_pool(phase, frames) * frames, of_frames)


def circular_pool(phase: torch.Tensor, frames: int) -> torch.Tensor:
    """Return the circular mean in [0, 1) of phases (..., L) over `frames` equal parts of the beat."""
    length = phase.shape[-1]
    if length == frames:
        return phase % 1
    means = []
    for k in range(frames):
        start, end = k * length // frames, (k + 1) * length // frames
        if start == end:
            start = min(length - 1, int((k + 0.5) * length / frames))
            end = start + 1
        angles = phase[..., start:end] * (2 * math.pi)
        means.append(torch.atan2(angles.sin().mean(-1), angles.cos().mean(-1)) / (2 * math.pi))
    return torch.stack(means, dim=-1) % 1


def _is_unit(phase: torch.Tensor) -> torch.Tensor:
    inside = (phase >= -UNIT_TOLERANCE) & (phase <= 1 + UNIT_TOLERANCE)
    return inside.all(dim=-1, keepdim=True)
