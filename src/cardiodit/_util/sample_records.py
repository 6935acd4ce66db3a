"""`samples.jsonl` beside generated volumes: a line for each that tells how it was made."""

import json
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError

SAMPLE_LIST = "samples.jsonl"


def read_sample_list(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by file name, in their order; of a file that was made twice the later one. Nothing without a list."""
    path = folder / SAMPLE_LIST
    if not path.is_file():
        return {}
    records = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            record = json.loads(line)
            records[str(record["file"])] = record
        except (ValueError, KeyError, TypeError) as error:
            raise CardioDiTError(f"Line {number} of {path} is no record of a sample. Remove it.") from error
    return records
