"""The authors' checkpoints and YAML configs → our folders."""

from cardiodit.convert.cardiodit import convert_cardiodit, load_discriminator, load_transformer, load_vq_model

__all__ = ["convert_cardiodit", "load_discriminator", "load_transformer", "load_vq_model"]
