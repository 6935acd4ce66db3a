"""Networks that name the parts of a heart, opened by one name each and all asked in the same way."""

from cardiodit.evaluation.segmenters.factory import open_segmenter
from cardiodit.evaluation.segmenters.segmenter import Grid, Segmenter, identity_of
from cardiodit.imaging.masks import parse_order, reorder

__all__ = ["Grid", "Segmenter", "identity_of", "open_segmenter", "parse_order", "reorder"]
