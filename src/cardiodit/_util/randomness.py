"""Random numbers that depend only on a seed and an index, not on earlier draws."""

import numpy as np
import torch

GOLDEN_STEP = 0x9E3779B9  # odd, so index → seed is one to one modulo 2**32


def generator_for(seed: int, index: int) -> torch.Generator:
    """Return the CPU generator of the `index`-th sample or step of `seed`, with the same numbers for every device.

    torch's CPU generator uses only 32 bits of its seed. Random 32-bit seeds would soon collide (a chance of 1% among
    10,000 samples), so the seeds of different indices are distinct by construction.
    """
    base = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((base + index * GOLDEN_STEP) % 2**32)
