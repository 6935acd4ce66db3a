"""The weights of a published network, from a torch file to safetensors, so that nothing else needs to open a pickle."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.hashing import sha256_of
from cardiodit.convert.checkpoint import read_checkpoint
from cardiodit.errors import CardioDiTError

NESTED = ("state_dict", "model_state_dict", "model")  # under which checkpoints keep their tensors
SUFFIX = ".safetensors"
CONVERTED_FROM = "converted_from_sha256"  # in the file's metadata


def convert_weights(checkpoint: Path, output: Path) -> Path:
    """Writes the named tensors of a torch file (.pth, .pt), of which only tensors are read; names stay.

    Args:
        output: a new file that ends in .safetensors.
    """
    if output.suffix != SUFFIX:
        raise CardioDiTError(f"The output {output} must be a file that ends in {SUFFIX}.")
    if output.exists():
        raise CardioDiTError(f"{output} exists already, and is not replaced. Give another name, or remove it.")
    entries = read_checkpoint(checkpoint).entries
    for name in NESTED:
        if isinstance(entries.get(name), dict):
            entries = entries[name]
            break
    if not entries or not all(torch.is_tensor(value) for value in entries.values()):
        raise CardioDiTError(f"{checkpoint.name} is not a table of named tensors (a state dict).")
    output.parent.mkdir(parents=True, exist_ok=True)
    tensors = {str(name): value.clone().contiguous() for name, value in entries.items()}  # none shares another's memory
    with atomic_file(output) as temporary:
        save_file(tensors, temporary, {CONVERTED_FROM: sha256_of(checkpoint)})
    return output
