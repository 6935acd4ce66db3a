"""Alignment of heart beats in time: where each new frame lies among the old ones, and the way back.

A beat is resampled evenly (linear, Fourier), piecewise between five keyframes, or by dynamic time warping (DTW) of a
curve, such as the volume of the left ventricle, to the curve of a template.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.imaging.resampling import weighted

# End-diastole, mid-systole, end-systole, peak filling, mid-diastole, in this order.
KEYFRAMES = ("ED", "MS", "ES", "PF", "MD")
DEFAULT_TARGETS = (0 / 32, 6 / 32, 12 / 32, 19 / 32, 28 / 32)  # shares of the beat, as published
METHODS = ("linear", "fourier", "piecewise", "dtw")
ITERATIONS, TEMPLATE_WARP = 5, 0.5
CONSTANT = 1e-6  # standard deviation below which a curve is only centred


@dataclass(frozen=True, kw_only=True)
class BeatAlignment:
    """Settings by which beats are aligned; the values of a beat itself come from its manifest.

    Args:
        targets: for piecewise, where the keyframes ED, MS, ES, PF and MD lie in the new beat, as shares of it.
        template: for dtw, the curve of the template, with as many values as there are frames.
        template_keyframes: for dtw between keyframes, their positions in the template, in frames.
        max_warp_fraction: share of the beat by which dtw may move a frame.
        non_diagonal_penalty: cost of each step by which dtw stretches or shortens.
    """

    targets: tuple[float, ...] = DEFAULT_TARGETS
    template: tuple[float, ...] | None = None
    template_keyframes: tuple[float, ...] | None = None
    max_warp_fraction: float = 0.25
    non_diagonal_penalty: float = 1e-3

    def __post_init__(self) -> None:
        for name, values in (("targets", self.targets), ("template_keyframes", self.template_keyframes)):
            if values is None:
                continue
            if len(values) != len(KEYFRAMES) or list(values) != sorted(set(values)):
                raise CardioDiTError(
                    f"{name}={list(values)} of the alignment must be {len(KEYFRAMES)} rising numbers, one for each of "
                    f"{', '.join(KEYFRAMES)}."
                )
        if not self.targets[0] >= 0 or not self.targets[-1] < 1:
            raise CardioDiTError(
                f"targets={list(self.targets)} of the alignment must be shares of the beat, in [0, 1)."
            )
        if not 0 < self.max_warp_fraction <= 1 or self.non_diagonal_penalty < 0:
            raise CardioDiTError("The alignment needs a max_warp_fraction in (0, 1] and a penalty of at least 0.")


@dataclass(frozen=True)
class Beat:
    """What is known about the frames of one beat.

    Args:
        keyframes: frames of ED, MS, ES, PF and MD.
        curve: a value for each frame, such as the volume of the left ventricle.
    """

    keyframes: tuple[int, ...] | None = None
    curve: tuple[float, ...] | None = None

    def rolled(self, first_frame: int) -> "Beat":
        """Return the beat that begins with another frame."""
        if not first_frame:
            return self
        keyframes = self.keyframes and tuple(frame - first_frame for frame in self.keyframes)
        curve = self.curve and (*self.curve[first_frame:], *self.curve[:first_frame])
        return Beat(keyframes, curve)


@dataclass(frozen=True)
class FramePlan:
    """New frames as weighted sums of old ones, and back.

    Args:
        weights: (new frames, old frames).
        back: (old frames, new frames).
        nearest: for labels, the old frame nearest to each new one.
    """

    weights: np.ndarray
    back: np.ndarray
    nearest: np.ndarray

    def apply(self, voxels: np.ndarray, labels: bool = False) -> np.ndarray:
        """Return the new frames of `(…, old frames)`."""
        if voxels.shape[-1] != self.weights.shape[1]:
            raise CardioDiTError(f"Expected {self.weights.shape[1]} frames, found {voxels.shape[-1]}.")
        if labels:
            return voxels.T.take(self.nearest, axis=0).T
        return weighted(self.weights, voxels, voxels.ndim - 1)

    def inverse(self, voxels: np.ndarray) -> np.ndarray:
        """Return the old frames of `(…, new frames)`."""
        return weighted(self.back, voxels, voxels.ndim - 1)


def plan_frames(
    method: str,
    source: int,
    frames: int,
    alignment: BeatAlignment,
    keyframes: Sequence[int] | None = None,
    curve: Sequence[float] | None = None,
) -> FramePlan:
    """Plan the frames of a beat of `source` frames.

    Args:
        method: one of `METHODS`.
        source, frames: number of old and of new frames.
        alignment: the settings.
        keyframes: old frames of ED, MS, ES, PF and MD; later ones may lie behind the end of the beat, at its beginning.
        curve: for dtw, a value for each old frame.
    """
    if method == "linear":
        return _even(linear_weights(source, frames), linear_weights(frames, source))
    if method == "fourier":
        return _even(fourier_weights(source, frames), fourier_weights(frames, source))
    if method == "piecewise":
        if keyframes is None:
            raise CardioDiTError(f"Piecewise alignment needs the keyframes {', '.join(KEYFRAMES)} of the beat.")
        targets = [share * frames for share in alignment.targets]
        return _by_positions(piecewise_positions(lifted(keyframes, source), targets, frames), source)
    if method != "dtw":
        raise CardioDiTError(f"There is no alignment {method!r}; choose one of {', '.join(METHODS)}.")
    if curve is None or len(curve) != source:
        raise CardioDiTError(
            f"Alignment by dtw needs a curve with a value for each of the {source} frames, found "
            f"{'none' if curve is None else len(curve)}."
        )
    if alignment.template is None or len(alignment.template) != frames:
        raise CardioDiTError(
            f"Alignment by dtw needs a template with a value for each of the {frames} frames, found "
            f"{'none' if alignment.template is None else len(alignment.template)}."
        )
    how = (alignment.max_warp_fraction, alignment.non_diagonal_penalty)
    if alignment.template_keyframes is None:
        positions = dtw_positions(curve, alignment.template, *how)
    elif keyframes is None:
        raise CardioDiTError(f"Alignment to a template with keyframes needs those of the beat: {', '.join(KEYFRAMES)}.")
    else:
        positions = interval_positions(curve, alignment.template, keyframes, alignment.template_keyframes, *how)
    return _by_positions(positions, source)


def _even(weights: np.ndarray, back: np.ndarray) -> FramePlan:
    return FramePlan(weights, back, _evenly_nearest(weights.shape[1], weights.shape[0]))


def _evenly_nearest(source: int, frames: int) -> np.ndarray:
    return np.clip(np.floor(_half_pixel(source, frames) + 0.5), 0, source - 1).astype(int)


def _by_positions(positions: np.ndarray, source: int) -> FramePlan:
    """Return the plan of frames at rising positions on the circle of `source` old frames."""
    back = inverse_positions(positions, source)
    nearest = np.floor(positions + 0.5).astype(int) % source
    return FramePlan(circular_weights(positions, source), circular_weights(back, len(positions)), nearest)


# --- Weights ---


def _half_pixel(source: int, frames: int) -> np.ndarray:
    return (np.arange(frames) + 0.5) * source / frames - 0.5


def linear_weights(source: int, frames: int) -> np.ndarray:
    """Return the weights of linear interpolation between the centres of frames; the ends are held."""
    positions = np.clip(_half_pixel(source, frames), 0, source - 1)
    first = np.floor(positions).astype(int)
    weights = np.zeros((frames, source))
    rest = positions - first
    np.add.at(weights, (np.arange(frames), first), 1 - rest)
    np.add.at(weights, (np.arange(frames), np.minimum(first + 1, source - 1)), rest)
    return weights


def fourier_weights(source: int, frames: int, as_published: bool = False) -> np.ndarray:
    """Return the weights of trigonometric interpolation over the beat.

    The highest frequency of an even number of frames stands for two, of which the published code forgets one.
    """
    spectrum = np.fft.rfft(np.eye(source), axis=1)
    kept = np.zeros((source, frames // 2 + 1), complex)
    shared = min(kept.shape[1], spectrum.shape[1])
    kept[:, :shared] = spectrum[:, :shared]
    fewest = min(source, frames)
    if not as_published and fewest % 2 == 0 and source != frames:
        kept[:, fewest // 2] *= 2 if frames < source else 0.5
    return (np.fft.irfft(kept, frames, axis=1) * frames / source).T


def circular_weights(positions: np.ndarray, source: int) -> np.ndarray:
    """Return the weights of linear interpolation at positions on the circle of `source` frames."""
    first, rows = np.floor(positions).astype(int), np.arange(len(positions))
    rest = positions - first
    weights = np.zeros((len(positions), source))
    np.add.at(weights, (rows, first % source), 1 - rest)
    np.add.at(weights, (rows, (first + 1) % source), rest)
    return weights


def inverse_positions(positions: np.ndarray, source: int) -> np.ndarray:
    """Return where each old frame lies among new frames at non-falling positions on the circle of `source` frames."""
    frames = len(positions)
    around = np.concatenate([positions + turn * source for turn in (-1, 0, 1, 2)])
    numbers = np.arange(-frames, 3 * frames)
    rising = np.concatenate([[True], np.diff(around) > 1e-9])
    start = math.floor(positions[0] / source) * source
    return np.interp(start + np.arange(source), around[rising], numbers[rising]) % frames


# --- Keyframes ---


def lifted(keyframes: Sequence[float], source: int) -> list[float]:
    """Return rising keyframes, of which later ones lie in the next beat if need be, and end-diastole of that beat."""
    if len(keyframes) != len(KEYFRAMES):
        raise CardioDiTError(f"{len(keyframes)} keyframes were given, expected {', '.join(KEYFRAMES)}.")
    rising = [float(keyframes[0])]
    for value in keyframes[1:]:
        lift = float(value)
        while lift <= rising[-1]:
            lift += source
        rising.append(lift)
    rising.append(rising[0] + source)
    if rising[-2] >= rising[-1]:
        raise CardioDiTError(
            f"The keyframes {list(keyframes)} ({', '.join(KEYFRAMES)}) of a beat of {source} frames are not in this "
            "order."
        )
    return rising


def piecewise_positions(bounds: Sequence[float], targets: Sequence[float], frames: int) -> np.ndarray:
    """Return the old position of each new frame, linear between keyframes.

    Args:
        bounds: rising old keyframes with the next end-diastole, see `lifted`.
        targets: new position of each keyframe, without the last.
        frames: number of new frames.
    """
    places = np.arange(frames, dtype=float)
    ends = [*targets, targets[0] + frames]
    places = np.where(places < targets[0], places + frames, places)
    positions = np.interp(places, ends, bounds)
    return np.where(np.arange(frames) < targets[0], positions - (bounds[-1] - bounds[0]), positions)


# --- Dynamic time warping ---


def z_scores(curve: Sequence[float] | np.ndarray) -> np.ndarray:
    values = np.asarray(curve, float)
    centred, deviation = values - values.mean(), values.std()
    return centred if deviation <= CONSTANT else centred / deviation


def warp(
    source: np.ndarray, template: np.ndarray, max_warp_fraction: float, penalty: float
) -> tuple[float, list[tuple[int, int]]]:
    """Return the lowest cost per pair of a path through two curves, and its pairs (source, template)."""
    n, m = len(source), len(template)
    cost = np.square(source[:, None] - template[None, :])
    rows, columns = np.arange(n) / max(n - 1, 1), np.arange(m) / max(m - 1, 1)
    outside = np.abs(rows[:, None] - columns[None, :]) > max_warp_fraction
    if 1 in (n, m):
        outside[:] = False  # one frame belongs to all others
    outside[0, 0] = outside[-1, -1] = False
    cost[outside] = np.inf
    total = np.full((n + 1, m + 1), np.inf)
    total[0, 0] = 0.0
    move = np.zeros((n, m), int)
    for i in range(n):
        for j in range(m):
            options = (total[i, j], total[i, j + 1] + penalty, total[i + 1, j] + penalty)
            move[i, j] = int(np.argmin(options))  # the first of equal ones: diagonal, source, template
            total[i + 1, j + 1] = cost[i, j] + options[move[i, j]]
    if not math.isfinite(total[n, m]):
        raise CardioDiTError(
            f"A curve of {n} frames cannot be warped to one of {m} within max_warp_fraction {max_warp_fraction}: allow "
            "more."
        )
    path, i, j = [], n - 1, m - 1
    while True:
        path.append((i, j))
        if i == j == 0:
            return total[n, m] / len(path), path[::-1]
        step = move[i, j]
        i, j = i - (step != 2), j - (step != 1)


def dtw_positions(
    curve: Sequence[float], template: Sequence[float], max_warp_fraction: float, penalty: float, cyclic: bool = True
) -> np.ndarray:
    """Return the old position of each frame of a template, for the rotation of the beat that fits best."""
    source, target = z_scores(curve), z_scores(template)
    best: tuple[float, int, list[tuple[int, int]]] | None = None
    for shift in range(len(source) if cyclic else 1):
        cost, path = warp(np.roll(source, -shift), target, max_warp_fraction, penalty)
        if best is None or cost < best[0]:
            best = (cost, shift, path)
    assert best is not None
    return _means(best[2], len(target)) + best[1]


def interval_positions(
    curve: Sequence[float],
    template: Sequence[float],
    keyframes: Sequence[float],
    template_keyframes: Sequence[float],
    max_warp_fraction: float,
    penalty: float,
) -> np.ndarray:
    """Return the old position of each frame of a template, warped between keyframes."""
    frames = len(template)
    bounds = lifted(keyframes, len(curve))
    positions = piecewise_positions(bounds, template_keyframes, frames)
    found = dict(_matches(z_scores(curve), z_scores(template), bounds, template_keyframes, max_warp_fraction, penalty))
    for frame, partners in found.items():
        positions[frame] = np.mean(partners)
    return positions


def _matches(
    source: np.ndarray,
    target: np.ndarray,
    bounds: Sequence[float],
    template_keyframes: Sequence[float],
    max_warp_fraction: float,
    penalty: float,
) -> list[tuple[int, list[float]]]:
    """Return for frames of the template the old positions that were matched with them, over all intervals."""
    ends = integer_bounds(template_keyframes, len(target))
    partners: dict[int, list[float]] = {}
    for first, last, start, stop in zip(bounds[:-1], bounds[1:], ends[:-1], ends[1:], strict=True):
        old, new = np.arange(round(first), round(last)), np.arange(start, stop)
        _, path = warp(source[old % len(source)], target[new % len(target)], max_warp_fraction, penalty)
        for i, j in path:
            partners.setdefault(int(new[j] % len(target)), []).append(float(old[i]))
    return sorted(partners.items())


def integer_bounds(positions: Sequence[float], frames: int) -> list[int]:
    """Return keyframes as whole frames at least 1 apart, and the end of the beat."""
    rounded = [round(position) for position in positions]
    for place in range(1, len(rounded)):
        rounded[place] = max(rounded[place], rounded[place - 1] + 1)
    rounded.append(rounded[0] + frames)
    for place in range(len(rounded) - 2, 0, -1):
        rounded[place] = min(rounded[place], rounded[place + 1] - 1)
    return rounded


def _means(path: Sequence[tuple[int, int]], frames: int) -> np.ndarray:
    partners: list[list[int]] = [[] for _ in range(frames)]
    for i, j in path:
        partners[j].append(i)
    return np.array([np.mean(found) for found in partners])


def make_template(
    curves: Sequence[Sequence[float]],
    keyframes: Sequence[Sequence[float]],
    frames: int,
    iterations: int = ITERATIONS,
    aggregation: str = "median",
    max_warp_fraction: float = TEMPLATE_WARP,
    penalty: float = 1e-3,
) -> tuple[list[float], list[float]]:
    """Return the curve of a template of several beats, and the positions of its keyframes.

    Args:
        curves, keyframes: a value for each frame, and the five keyframes, of each beat.
        frames: number of frames of the template.
        iterations: how often all beats are warped to the template, which then becomes what was matched.
        aggregation: how beats are brought together: median (of an even number, the lower middle) or mean.
        max_warp_fraction, penalty: see `BeatAlignment`.
    """
    if aggregation not in ("median", "mean"):
        raise CardioDiTError(f"aggregation={aggregation!r} must be median or mean.")
    together = _lower_median if aggregation == "median" else np.mean
    scores = [z_scores(curve) for curve in curves]
    bounds = [lifted(frame, len(curve)) for frame, curve in zip(keyframes, curves, strict=True)]
    shares = np.array([np.diff(each) / len(curve) for each, curve in zip(bounds, curves, strict=True)])
    share = np.array([together(column) for column in shares.T])
    ends = np.concatenate([[0.0], np.cumsum(share / share.sum())]) * frames
    positions = ends[:-1].tolist()
    warped = [
        circular_weights(piecewise_positions(each, positions, frames), len(score)) @ score
        for each, score in zip(bounds, scores, strict=True)
    ]
    template = np.array([together(column) for column in np.array(warped).T])
    for _ in range(iterations):
        values: list[list[float]] = [[] for _ in range(frames)]
        target = template
        for each, score in zip(bounds, scores, strict=True):
            for frame, partners in _matches(score, target, each, positions, max_warp_fraction, penalty):
                values[frame] += [float(score[round(old) % len(score)]) for old in partners]
        template = np.array([together(found) if found else template[place] for place, found in enumerate(values)])
    return template.tolist(), positions


def _lower_median(values: Any) -> float:
    return float(np.sort(values)[(len(values) - 1) // 2])
