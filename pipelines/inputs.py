"""What a user may ask of a pipeline, checked and turned into what the models take."""

from collections.abc import Sequence
from typing import Any

import torch

from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.randomness import generator_for

Generators = torch.Generator | list[torch.Generator] | None
Labels = int | str | Sequence[int | str] | torch.Tensor | None


def count_samples(num_samples: int | None, labels: Labels, generator: Generators, latents: torch.Tensor | None) -> int:
    """The number of samples, asked for or told by what is given one for each; contradictions are errors."""
    told = {
        "class_labels": len(labels) if isinstance(labels, (Sequence, torch.Tensor)) and not _is_one(labels) else None,
        "generator": len(generator) if isinstance(generator, list) else None,
        "latents": len(latents) if latents is not None else None,
    }
    counts = {name: number for name, number in {"num_samples": num_samples, **told}.items() if number is not None}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise CardioDiTError(f"The number of samples is not clear: {found}. They must agree.")
    count = next(iter(counts.values()), 1)
    if not isinstance(count, int) or count < 1:
        raise CardioDiTError(f"num_samples={count} must be a whole number of at least 1.")
    return count


def _is_one(labels: Any) -> bool:
    return isinstance(labels, str) or (isinstance(labels, torch.Tensor) and labels.ndim == 0)


def make_generators(
    seed: int | None, generator: Generators, num_samples: int, first_sample: int
) -> tuple[int | None, Generators]:
    """The seed that goes on record and the generators to draw from: one a sample, unless the user brought one."""
    if generator is not None:
        if seed is not None:
            raise CardioDiTError("Give either seed or generator, not both.")
        return None, generator
    if seed is None:
        seed = int(torch.randint(2**31, ()))  # follows torch.manual_seed, as in diffusers, and goes on record
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise CardioDiTError(f"seed={seed} must be a whole number of at least 0.")
    return seed, [generator_for(seed, first_sample + i) for i in range(num_samples)]


def label_numbers(transformer: DiTTransformerModel, labels: Labels, num_samples: int) -> torch.Tensor | None:
    """One label number a sample; names are looked up; no label is the null label."""
    num_classes, null_label = transformer.config.num_classes, transformer.null_label
    if labels is None:
        if num_classes and null_label is None:
            raise CardioDiTError(
                "This model was trained with labels and without label dropout, so it needs class_labels: "
                f"{_choices(transformer)}."
            )
        return None if null_label is None else torch.full((num_samples,), null_label)
    if not num_classes:
        raise CardioDiTError("class_labels were given, but this model was trained without labels (num_classes=0).")
    if isinstance(labels, torch.Tensor):
        labels = labels.tolist()
    given = [labels] if isinstance(labels, (int, float, str)) else list(labels)
    numbers = [_label_number(transformer, label) for label in given]
    return torch.tensor(numbers * num_samples if len(numbers) == 1 else numbers)


def _label_number(transformer: DiTTransformerModel, label: Any) -> int:
    names = transformer.config.class_names or []
    number = names.index(label) if label in names else label
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < transformer.config.num_classes:
        raise CardioDiTError(f"There is no class label {label!r} in this model; choose {_choices(transformer)}.")
    return number


def _choices(transformer: DiTTransformerModel) -> str:
    numbers, names = f"0 to {transformer.config.num_classes - 1}", transformer.config.class_names
    return f"{numbers} or {', '.join(names)}" if names else numbers


def latent_size(transformer: DiTTransformerModel, asked: Sequence[int | None], factors: Sequence[int]) -> list[int]:
    """The latent size for a size in voxels along the transformer's axes, the trained one where none is asked.

    `factors` are the voxels a latent along each axis.
    """
    size = []
    for name, voxels, trained, factor, patch in zip(
        transformer.axis_names, asked, transformer.config.sample_size, factors, transformer.patch_size, strict=True
    ):
        step = factor * patch
        if voxels is not None and (voxels < step or voxels % step):
            below, above = voxels // step * step, (voxels // step + 1) * step
            nearest = f"{below} or {above}" if below >= step else f"{above}"
            raise CardioDiTError(
                f"{name}={voxels} cannot be produced: along {name} this model makes multiples of {step} "
                f"(autoencoder {factor} × patch {patch}); nearest: {nearest}."
            )
        size.append(trained if voxels is None else voxels // factor)
    return size
