"""The report of an evaluation: `report.json`, and `report.html`, a page that opens from disk without a network."""

from cardiodit.evaluation.report.report_file import SCHEMA, read_report, rounded, write_report, write_text

__all__ = ["SCHEMA", "read_report", "rounded", "write_report", "write_text"]
