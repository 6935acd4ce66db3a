"""Whether two sets of weights are the same but for rounding: an adapter belongs to the model it was trained on."""

import math
from collections.abc import Sequence

import torch

NUMBERS = 8
# Projections of all weights over their norm: rounding to bfloat16 moves them by 0.002, a short fine-tuning by more.
TOLERANCE = 0.01
# Weights of 8 bits move them by 0.02, those of 4 bits by 0.2; those of another model are 1 away.
QUANTISED_TOLERANCE = 0.4


@torch.no_grad()
def fingerprint_of(model: torch.nn.Module) -> list[float]:
    """A few numbers that all weights enter."""
    sums, square = torch.zeros(NUMBERS, dtype=torch.float64), 0.0
    for _, parameter in sorted(model.named_parameters()):
        generator = torch.Generator().manual_seed(parameter.numel())
        plain = parameter.detach().dequantize() if is_quantised(parameter) else parameter.detach()
        weights = plain.to("cpu", torch.float32).flatten()
        draws = torch.randint(2**NUMBERS, weights.shape, generator=generator, dtype=torch.uint8)  # a sign in each bit
        total = weights.sum(dtype=torch.float64)
        for number in range(NUMBERS):
            is_plus = (draws >> number) & 1 == 1
            sums[number] += 2 * weights[is_plus].sum(dtype=torch.float64) - total
        square += float(weights.double().square().sum())
    norm = math.sqrt(square) or 1.0
    return [round(float(value) / norm, 6) for value in sums]


def is_quantised(parameter: torch.Tensor) -> bool:
    """Whether torchao keeps a weight as integers with scales."""
    return type(parameter.data).__module__.startswith("torchao.")


def is_same(first: Sequence[float], second: Sequence[float], tolerance: float = TOLERANCE) -> bool:
    """Whether two fingerprints are of the same weights, up to half precision."""
    return len(first) == len(second) and all(abs(a - b) <= tolerance for a, b in zip(first, second, strict=True))


def fits(fingerprint: Sequence[float], model: torch.nn.Module) -> bool:
    """Whether a model's weights are those of a fingerprint, but for rounding to its precision."""
    tolerance = QUANTISED_TOLERANCE if any(map(is_quantised, model.parameters())) else TOLERANCE
    return is_same(fingerprint, fingerprint_of(model), tolerance)
