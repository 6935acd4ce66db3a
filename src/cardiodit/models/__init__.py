"""Networks, each a diffusers `ModelMixin`."""

from cardiodit.models.autoencoder_vq import VQModel3D, VQModel4D
from cardiodit.models.transformer_dit import DiT3DTransformerModel, DiT4DTransformerModel

__all__ = ["DiT3DTransformerModel", "DiT4DTransformerModel", "VQModel3D", "VQModel4D"]
