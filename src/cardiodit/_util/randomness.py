"""Random numbers that depend on a seed and an index, never on what was drawn before."""

import numpy as np
import torch

GOLDEN_STEP = 0x9E3779B9  # odd, so index → seed is one to one modulo 2**32


def generator_for(seed: int, index: int) -> torch.Generator:
    """The generator of the `index`-th sample (or step) of `seed`, on CPU: the same numbers on every device.

    torch's CPU generator uses 32 bits of its seed. Seeds drawn at random would soon collide (two equal hearts
    among 10,000, once in a hundred times), so all indices of one seed get different ones by construction.
    """
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((base + index * GOLDEN_STEP) % 2**32)
