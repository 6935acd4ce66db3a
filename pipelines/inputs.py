"""Checks of a pipeline call's arguments, and their conversion into what the models take."""

import math
import operator
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging

from cardiodit._util.foreign_files import physical_memory
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.models.clinical_conditions import ClinicalConditions, without

logger = logging.get_logger(__name__)

Generators = torch.Generator | list[torch.Generator] | None
Label = int | str
Labels = Label | Sequence[Label] | torch.Tensor | np.ndarray | None
Row = Mapping[str, Any]  # conditions of a sample by name
CLASS_LABEL = "class_label"  # in `guidance_over`: the class label


def check_integer(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> int:
    """Return the value as an int (NumPy integers included), or raise an error that names the argument."""
    number = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise CardioDiTError(f"{name}={value} must be a whole number {limits}{why}.")
    return number


def labels_come_first(num_samples: Any, labels: Labels) -> tuple[Any, Labels]:
    """Return number and labels of a call like `pipe("dilated")`, whose first argument is a label or a list of them."""
    if not isinstance(num_samples, (str, Sequence)):
        return num_samples, labels
    if labels is not None:
        raise CardioDiTError(f"num_samples={num_samples!r} must be a whole number if class_labels are given.")
    return None, num_samples


def labels_to_python(labels: Labels) -> Label | list[Label] | None:
    """Convert labels to None, one label for all samples, or a list with one label per sample."""
    if isinstance(labels, (torch.Tensor, np.ndarray, np.generic)):
        labels = labels.tolist()
    return labels if labels is None or isinstance(labels, (str, int, float)) else list(labels)


def count_samples(
    num_samples: int | None,
    labels: Label | list[Label] | None,
    generator: Generators,
    latents: torch.Tensor | None,
    rows: Row | list[Row] | None = None,
) -> int:
    """Return the number of samples, given or implied by the other arguments, which must agree."""
    implied = {
        "class_labels": len(labels) if isinstance(labels, list) else None,
        "conditions": len(rows) if isinstance(rows, list) else None,
        "generator": len(generator) if isinstance(generator, list) else None,
        "latents": len(latents) if latents is not None else None,
    }
    counts = {name: number for name, number in {"num_samples": num_samples, **implied}.items() if number is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise CardioDiTError(f"The number of samples is ambiguous: {found}. They must agree.")
    return check_integer("num_samples", next(iter(counts.values()), 1), least=1)


def make_generators(
    seed: int | None, generator: Generators, num_samples: int, first_sample: int
) -> tuple[int | None, Generators]:
    """Return the seed to record and the generators to draw from: one per sample, unless the user gave their own."""
    if generator is not None:
        if seed is not None:
            raise CardioDiTError("Give either seed or generator, not both.")
        return None, generator
    if seed is None:
        seed = int(torch.randint(2**31, ()))  # follows torch.manual_seed, as in diffusers, and is recorded
    seed = check_integer("seed", seed, least=0)
    return seed, [generator_for(seed, first_sample + i) for i in range(num_samples)]


def phases_of(phase: Any, denoiser: Any, num_samples: int, device: torch.device) -> torch.Tensor | None:
    """Return phases `(L)` or `(B, L)` as the denoiser takes them, or raise an error if it takes none."""
    if phase is None:
        return None
    if not getattr(getattr(denoiser, "positions", None), "uses_phase", False):
        raise CardioDiTError("phase was given, but the positions of this model do not depend on it. Leave it out.")
    phases = torch.as_tensor(phase, dtype=torch.float32, device=device)
    if phases.ndim not in (1, 2) or (phases.ndim == 2 and len(phases) not in (1, num_samples)):
        raise CardioDiTError(
            f"phase has the shape {tuple(phases.shape)}; one number per frame, or one such row for each of the "
            f"{num_samples} samples, was expected."
        )
    return phases


def label_numbers(denoiser: Any, labels: Label | list[Label] | None, num_samples: int) -> torch.Tensor | None:
    """Return one class number per sample: names are looked up, and no label means the null label."""
    num_classes, null_label = denoiser.config.get("num_classes"), denoiser.null_label
    if labels is None:
        if num_classes and null_label is None:
            raise CardioDiTError(
                "This model was trained with labels and without label dropout, so it requires class_labels: "
                f"{_choices(denoiser)}."
            )
        return None if null_label is None else torch.full((num_samples,), null_label)
    if not num_classes:
        raise CardioDiTError("class_labels were given, but this model was trained without labels.")
    each = labels if isinstance(labels, list) else [labels] * num_samples
    return torch.tensor([_label_number(denoiser, label) for label in each])


def _label_number(denoiser: Any, label: Any) -> int:
    names = denoiser.config.class_names or []
    number = names.index(label) if label in names else label
    is_whole = hasattr(number, "__index__") and not isinstance(number, bool)
    if not is_whole or not 0 <= number < denoiser.config.num_classes:
        raise CardioDiTError(f"There is no class label {label!r} in this model; choose {_choices(denoiser)}.")
    return operator.index(number)


def _choices(denoiser: Any) -> str:
    numbers, names = f"0 to {denoiser.config.num_classes - 1}", denoiser.config.class_names
    return f"{numbers} or {', '.join(names)}" if names else numbers


def condition_rows(
    denoiser: Any, conditions: Row | Sequence[Row] | None, named: Mapping[str, Any]
) -> Row | list[Row] | None:
    """Return the conditions of a call by name: one row for all samples, or a list with one row per sample.

    Args:
        denoiser: the model.
        conditions: the argument `conditions`.
        named: further arguments of the call, such as `ef=35` or `ef=[35, 60]`.
    """
    known: ClinicalConditions | None = getattr(denoiser, "conditions", None)
    if known is None:
        if named:  # as Python says it
            raise TypeError(
                f"{', '.join(named)} is not an argument of this pipeline, and its model has no clinical conditions."
            )
        if conditions:
            raise CardioDiTError("conditions were given, but this model was trained without clinical conditions.")
        return None
    rows: Row | list[Row] = (
        {} if conditions is None else conditions if isinstance(conditions, Mapping) else list(conditions)
    )
    for row in rows if isinstance(rows, list) else [rows]:
        known.check_names(row)
    known.check_names(named)
    lists = {
        name: list(value) for name, value in named.items() if not isinstance(value, str) and hasattr(value, "__len__")
    }
    lengths = {name: len(values) for name, values in lists.items()}
    lengths |= {"conditions": len(rows)} if isinstance(rows, list) else {}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {number}" for name, number in lengths.items())
        raise CardioDiTError(f"The number of samples is ambiguous: {found}. They must agree.")
    if not lengths:
        return {**rows, **named}  # type: ignore[dict-item]
    count = next(iter(lengths.values()))
    each = rows if isinstance(rows, list) else [rows] * count
    return [{**row, **named, **{name: values[i] for name, values in lists.items()}} for i, row in enumerate(each)]


def condition_numbers(
    denoiser: Any, rows: Row | list[Row] | None, num_samples: int, extrapolate: bool
) -> torch.Tensor | None:
    """Return the conditions as the model takes them, `(num_samples, columns)`; None for a model without conditions."""
    if rows is None:
        return None
    if not isinstance(rows, list):
        return torch.tensor(denoiser.conditions.numbers_of([rows], [""], extrapolate) * num_samples)
    names = [f"sample {i}" for i in range(len(rows))]
    return torch.tensor(denoiser.conditions.numbers_of(rows, names, extrapolate))


def unguided_inputs(
    denoiser: Any, given: Mapping[str, torch.Tensor], guidance_over: Sequence[str] | None = None
) -> dict[str, torch.Tensor]:
    """Return the denoiser's inputs of the prediction from which classifier-free guidance leads away.

    Args:
        denoiser: the model.
        given: its inputs with labels and conditions.
        guidance_over: conditions to drop there, and "class_label"; default: everything that the model can drop.
    """
    known: ClinicalConditions | None = getattr(denoiser, "conditions", None)
    dropped = dict(given)
    if guidance_over is not None:
        names = [name for name in guidance_over if name != CLASS_LABEL]
        if names and known is None:
            raise CardioDiTError(f"guidance_over={list(guidance_over)}: this model has no clinical conditions.")
        if known is not None:
            known.check_names(names)
    else:
        names = list(known or ())
    over_label = guidance_over is None or CLASS_LABEL in guidance_over
    if over_label and guidance_over is not None and denoiser.null_label is None:
        raise CardioDiTError(f"guidance_over names {CLASS_LABEL!r}, but this model has no null label.")
    if over_label and "class_labels" in given and denoiser.null_label is not None:
        dropped["class_labels"] = torch.full_like(given["class_labels"], denoiser.null_label)
    if names and known is not None and "conditions" in given:
        dropped["conditions"] = without(given["conditions"], [list(known).index(name) for name in names])
    return dropped


def latent_size(denoiser: Any, requested: Sequence[int | None], factors: Sequence[int]) -> list[int]:
    """Return the latent size for a size in voxels.

    Args:
        denoiser: the model; axes without a requested size get the trained one.
        requested: voxels along each axis of the model, or None.
        factors: voxels per latent along each axis.
    """
    size = []
    for name, voxels, trained, factor, token in zip(
        denoiser.axis_names, requested, denoiser.config.sample_size, factors, denoiser.token_size, strict=True
    ):
        step = factor * token
        voxels = None if voxels is None else check_integer(name, voxels, least=1)
        if voxels is not None and voxels % step:
            below, above = voxels // step * step, (voxels // step + 1) * step
            nearest = f"{below} or {above}" if below >= step else f"{above}"
            raise CardioDiTError(
                f"{name}={voxels} cannot be generated: along {name} this model generates multiples of {step}"
                f"{f' (autoencoder {factor} × patch {token})' if factor > 1 else ''}; nearest: {nearest}."
            )
        size.append(trained if voxels is None else voxels // factor)
    needed = 4 * math.prod(n * factor for n, factor in zip(size, factors, strict=True))
    if needed > physical_memory():
        raise CardioDiTError(
            f"A volume of {' × '.join(str(n * factor) for n, factor in zip(size, factors, strict=True))} voxels needs "
            f"{needed} bytes, more than this machine's memory. Request a smaller one."
        )
    return size


def check_axes(shape: Sequence[int], trained: Mapping[str, int]) -> None:
    """Raise an error if a mask lacks an axis or has the trained size with its axes permuted.

    Args:
        shape: shape of the mask.
        trained: trained size in voxels by axis name, in the order of a mask's axes.
    """
    if len(shape) != len(trained):
        axes = "(H, W, D, T)" if len(trained) == 4 else "(H, W, D)"
        raise CardioDiTError(f"A mask has the shape {tuple(shape)}; {axes} was expected.")
    expected = tuple(trained.values())
    if tuple(shape) != expected and sorted(shape) == sorted(expected):
        raise CardioDiTError(
            f"A mask has the shape {tuple(shape)}, the trained size with its axes permuted: "
            f"{expected} along ({', '.join(trained)}) was expected. Transpose the mask."
        )


def warn_of_size(shape: Sequence[int], trained: Mapping[str, int]) -> None:
    """Warn about masks of another size than the trained one; arguments as in `check_axes`."""
    if tuple(shape) != (expected := tuple(trained.values())):
        _warn_once(
            f"The masks are {tuple(shape)} along ({', '.join(trained)}), and so will be the volumes; the model was "
            f"trained on {expected} and may perform worse at another size."
        )


def warn_of_guidance(scale: float) -> None:
    """Warn that guidance does nothing: without labels, both of its predictions are the same."""
    _warn_once(f"guidance_scale={scale:g} has no effect without class labels: give class_labels, or leave it at 1.")


@cache
def _warn_once(sentence: str) -> None:
    """Warn once per sentence: a table has many masks of one size."""
    logger.warning(sentence)
