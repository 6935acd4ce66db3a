"""The report of an evaluation as one HTML page: read from disk, without network and without WebGL."""

from cardiodit.evaluation.page.page import SCHEMA, write_page

__all__ = ["SCHEMA", "write_page"]
