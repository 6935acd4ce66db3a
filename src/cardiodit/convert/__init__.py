"""Conversion of the authors' checkpoints and YAML configs into our folders."""

from cardiodit.convert.cardiodit import convert_cardiodit, load_discriminator, load_transformer, load_vq_model

__all__ = ["convert_cardiodit", "load_discriminator", "load_transformer", "load_vq_model"]
