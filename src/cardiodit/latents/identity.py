"""Hashes that tell whether latents are still those of their source, their VQ model and their preprocessing.

A setting at its default value is left out, so that settings which a later version adds change no identity.
"""

import hashlib
import inspect
import json
from typing import Any

from cardiodit._util.hashing import add_weights
from cardiodit.imaging import Preprocessing, Volume
from cardiodit.imaging.checks import content_of
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.models import VQModel3D, VQModel4D


def identity_of_vae(vae: VQModel4D | VQModel3D) -> str:
    """Of the weights, on any device, and the config; the scaling factor is found later and changes no latent."""
    parameters = inspect.signature(type(vae).__init__).parameters.values()
    defaults = {parameter.name: parameter.default for parameter in parameters}
    private = [key for key in vae.config if key.startswith("_")]
    config = {key: value for key, value in vae.config.items() if key not in ("scaling_factor", *private)}
    digest = hashlib.sha256(f"{type(vae).__name__} {identity_of(_unlike(config, defaults))}".encode())
    add_weights(digest, vae.state_dict())
    return digest.hexdigest()


def identity_of_steps(steps: Preprocessing) -> str:
    """Of what changes voxels: not of the units that -1 and 1 usually stand for."""
    settings, defaults = steps.to_dict(), Preprocessing().to_dict()
    for values in (settings, defaults):
        del values["intensity"]["typical"]
    return identity_of(_unlike(settings, defaults))


def identity_of_source(volume: Volume, order: StorageOrder) -> str:
    """Of the voxels as stored, where they lie, and how they are turned; not of the file's name or compression."""
    return identity_of(
        {
            "voxels": content_of(volume.voxels),
            "dtype": volume.voxels.dtype.str,
            "geometry": volume.geometry.to_dict(),
            "order": [order.axes, order.flips, order.first_frame],
        }
    )


def identity_of(value: Any) -> str:
    """The same for equal JSON: 1 and 1.0, tuples and lists, keys in any order."""
    same_numbers = json.loads(json.dumps(value), parse_int=float)
    return hashlib.sha256(json.dumps(same_numbers, sort_keys=True).encode()).hexdigest()


def _unlike(settings: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings that do not have their default value."""
    return {
        key: value
        for key, value in settings.items()
        if key not in defaults or identity_of(value) != identity_of(defaults[key])
    }
