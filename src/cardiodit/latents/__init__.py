"""What a transformer is trained on: the latents of a cohort, each in a file that says what it was made of."""

from cardiodit.latents.dataset import LatentCohort
from cardiodit.latents.encoder import Counts, encode_cohort
from cardiodit.latents.file import LatentHeader, read_header, read_latent, write_latent
from cardiodit.latents.identity import identity_of_source, identity_of_steps, identity_of_vae
from cardiodit.latents.scale import measure_scale, write_scale

__all__ = [
    "Counts",
    "LatentCohort",
    "LatentHeader",
    "encode_cohort",
    "identity_of_source",
    "identity_of_steps",
    "identity_of_vae",
    "measure_scale",
    "read_header",
    "read_latent",
    "write_latent",
    "write_scale",
]
