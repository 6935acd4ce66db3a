"""A viewer that plays volumes in a browser: one HTML file that needs no network and no WebGL."""

from cardiodit.viewer.page import Shown, show, write_viewer

__all__ = ["Shown", "show", "write_viewer"]
