"""Synthetic beating hearts and chest CTs with known volumes: data without patients."""

from cardiodit.imaging.phantom.chest import Chest, draw_chest
from cardiodit.imaging.phantom.chest_scene import ChestPhantom, render_chest
from cardiodit.imaging.phantom.cohort import write_chests, write_cohort
from cardiodit.imaging.phantom.heart import GROUPS, Heart, draw_heart
from cardiodit.imaging.phantom.scene import Phantom, render
from cardiodit.imaging.phantom.style import RHYTHMS, VENDORS, Style

__all__ = [
    "GROUPS",
    "RHYTHMS",
    "VENDORS",
    "Chest",
    "ChestPhantom",
    "Heart",
    "Phantom",
    "Style",
    "draw_chest",
    "draw_heart",
    "render",
    "render_chest",
    "write_chests",
    "write_cohort",
]
