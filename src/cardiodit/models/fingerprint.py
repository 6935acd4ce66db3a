"""Whether two sets of weights are the same but for rounding: an adapter belongs to the model it was trained on."""

import hashlib
import math
from typing import Any

import torch

VERSION = 2  # the first one could not tell tensors of one size apart
NUMBERS = 64  # the distance of two fingerprints is that of the weights to 9%
# Rounding to bfloat16 moves weights by 0.0017 to 0.0019 of their size, to float16 by 0.0002; one step of AdamW at 2e-4
# by 0.004 and more, 24 steps by 0.05. What moves them by less than TOLERANCE, such as 24 steps at 1e-5, is not told
# from rounding.
TOLERANCE = 0.003
# Our phantom's weights of 8 bits are 0.004 away, those of 4 bits 0.06, and coarser ones more: many a fine-tuning is not
# told from that. With two blocks exchanged they are 0.7 away, those of another model 1.4.
QUANTISED_TOLERANCE = 0.4
SMALLEST = 2**-14  # float16 holds what is nearer to 0 less well, or not at all


@torch.no_grad()
def fingerprint_of(model: torch.nn.Module) -> str:
    """A version, and a few numbers that all weights enter, each tensor as much as another however large it is."""
    sums, tensors = torch.zeros(NUMBERS, dtype=torch.float64), 0
    for name, parameter in getattr(model, "_orig_mod", model).named_parameters():  # of torch.compile, the model itself
        plain = parameter.detach().dequantize() if is_quantised(parameter) else parameter.detach()
        weights = torch.nn.functional.hardshrink(plain.to("cpu", torch.float32).flatten(), SMALLEST)
        norm = float(weights.norm())
        if norm > 0:
            sums += signed_sums(name, weights) / norm
            tensors += 1
    return " ".join([f"{VERSION}:", *(f"{value:.6f}" for value in (sums / math.sqrt(max(tensors, 1))).tolist())])


def signed_sums(name: str, weights: torch.Tensor) -> torch.Tensor:
    """Weights added up in turn, under random signs that belong to the tensor's name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
    signs = torch.randint(2, weights.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.int8) * 2 - 1
    signed = torch.nn.functional.pad(weights * signs, (0, -len(weights) % NUMBERS))
    return signed.view(-1, NUMBERS).sum(dim=0, dtype=torch.float64)


def is_quantised(parameter: torch.Tensor) -> bool:
    """Whether torchao keeps a weight as integers with scales."""
    return type(parameter.data).__module__.startswith("torchao.")


def is_readable(fingerprint: Any) -> bool:
    """Whether it is one of this version; those of others cannot be compared."""
    return isinstance(fingerprint, str) and fingerprint.startswith(f"{VERSION}:")


def distance(first: str, second: str) -> float:
    """How far apart the weights of two fingerprints are, as a share of their size."""
    numbers = [[float(number) for number in text.split()[1:]] for text in (first, second)]
    return math.dist(*numbers)


def fits(fingerprint: str, model: torch.nn.Module) -> bool:
    """Whether a model's weights are those of a fingerprint, but for rounding to its precision."""
    tolerance = QUANTISED_TOLERANCE if any(map(is_quantised, model.parameters())) else TOLERANCE
    return distance(fingerprint, fingerprint_of(model)) <= tolerance
