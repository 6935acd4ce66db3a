"""Whether two sets of weights are the same but for rounding: an adapter belongs to the model it was trained on."""

import math
from collections.abc import Sequence

import torch

NUMBERS = 8
# Projections of all weights over their norm: rounding to bfloat16 moves them by 0.002, a short fine-tuning by more.
TOLERANCE = 0.01


@torch.no_grad()
def fingerprint_of(model: torch.nn.Module, without: Sequence[str] = ()) -> list[float]:
    """A few numbers that all weights enter, but for those whose names begin with one of `without`."""
    sums, square = torch.zeros(NUMBERS, dtype=torch.float64), 0.0
    for name, parameter in sorted(model.named_parameters()):
        if name.startswith(tuple(without)):
            continue
        generator = torch.Generator().manual_seed(parameter.numel())
        weights = parameter.detach().to("cpu", torch.float32).flatten()
        draws = torch.randint(2**NUMBERS, weights.shape, generator=generator, dtype=torch.uint8)  # a sign in each bit
        total = weights.sum(dtype=torch.float64)
        for number in range(NUMBERS):
            is_plus = (draws >> number) & 1 == 1
            sums[number] += 2 * weights[is_plus].sum(dtype=torch.float64) - total
        square += float(weights.double().square().sum())
    norm = math.sqrt(square) or 1.0
    return [round(float(value) / norm, 6) for value in sums]


def is_same(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two fingerprints are of the same weights, up to half precision."""
    return len(first) == len(second) and all(abs(a - b) <= TOLERANCE for a, b in zip(first, second, strict=True))
