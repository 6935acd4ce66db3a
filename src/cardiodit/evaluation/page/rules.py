"""The rules of plausibility that a volume breaks, and names of numbers as one says them."""

from collections.abc import Mapping
from typing import Any

SHORT = {"lv", "rv", "ef", "edv", "esv", "sv", "psnr", "ssim", "l1"}  # written in capitals
UNITS = {"percent": "%", "ml": "mL", "mm": "mm", "g": "g"}


def broken_rules(volume: Mapping[str, Any]) -> list[str]:
    return [in_words(name)[0] for name, kept in (volume.get("plausible") or {}).items() if not kept]


def in_words(name: str) -> tuple[str, str]:
    """`lv_ef_percent` → `("LV EF", "%")`."""
    words = [word.upper() if word in SHORT else word for word in name.split("_")]
    unit = UNITS.get(words[-1], "") if len(words) > 1 else ""
    return " ".join(words[:-1] if unit else words), unit
