"""Latents of a cohort: the files, the encoder that writes them, and the data set that a transformer is trained on."""

from cardiodit.latents.dataset import LatentCohort, channel_statistics, measure_scale, read_mask, write_scale
from cardiodit.latents.encoder import Counts, check_geometries, encode_cohort, encode_volume, preprocessing_for
from cardiodit.latents.file import (
    LatentHeader,
    identity_of_source,
    identity_of_steps,
    identity_of_vae,
    read_header,
    read_latent,
    write_latent,
)

__all__ = [
    "Counts",
    "LatentCohort",
    "LatentHeader",
    "channel_statistics",
    "check_geometries",
    "encode_cohort",
    "encode_volume",
    "identity_of_source",
    "identity_of_steps",
    "identity_of_vae",
    "measure_scale",
    "preprocessing_for",
    "read_header",
    "read_latent",
    "read_mask",
    "write_latent",
    "write_scale",
]
