"""At home in diffusers: registration."""

from cardiodit.hub.registration import register_with_diffusers

__all__ = ["register_with_diffusers"]
