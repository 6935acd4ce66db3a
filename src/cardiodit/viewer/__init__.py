"""Volumes that play in a browser: one HTML file, from disk, without network and without WebGL."""

from cardiodit.viewer.page import Shown, write_viewer

__all__ = ["Shown", "write_viewer"]
