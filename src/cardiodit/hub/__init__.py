"""At home in diffusers: registration, and folders that carry their own code."""

from cardiodit.hub.registration import register_with_diffusers

__all__ = ["register_with_diffusers"]
