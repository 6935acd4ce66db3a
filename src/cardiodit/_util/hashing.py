"""Hashes of files and of weights."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_weights(digest: Any, weights: Mapping[str, Any]) -> None:
    """Add names, shapes and values of tensors to a digest; half precision is hashed as float32, on any device."""
    for name, tensor in sorted(weights.items()):
        values = tensor.float() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
