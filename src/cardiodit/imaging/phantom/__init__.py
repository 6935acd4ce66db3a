"""Beating short-axis hearts that nobody's privacy is at stake with, and whose volumes are known."""

from cardiodit.imaging.phantom.cohort import write_cohort
from cardiodit.imaging.phantom.heart import GROUPS, Heart, draw_heart
from cardiodit.imaging.phantom.scene import Phantom, render

__all__ = ["GROUPS", "Heart", "Phantom", "draw_heart", "render", "write_cohort"]
