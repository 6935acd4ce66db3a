"""Read `samples.jsonl`, which records beside generated volumes how each was generated."""

import json
from pathlib import Path
from typing import Any

from cardiodit._util.foreign_files import read_text
from cardiodit.errors import CardioDiTError

SAMPLE_LIST = "samples.jsonl"


def read_sample_list(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the records by file name, in order; the last one if a file was generated twice. Empty without a list."""
    path = folder / SAMPLE_LIST
    if not path.exists():
        return {}
    records = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            record = json.loads(line)
            records[str(record["file"])] = record
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CardioDiTError(f"Line {number} of {path} is not a record of a sample. Remove it.") from error
    return records
