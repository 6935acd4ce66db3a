"""The list of samples in a folder, `samples.jsonl`, which records how each was generated.

Several processes that sample into one folder each write a list of their own, since appending to one file from several
machines loses lines on a network file system. Readers read all lists; the last process to finish merges them.
"""

import json
from pathlib import Path
from typing import Any

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.foreign_files import check_file
from cardiodit.errors import CardioDiTError, reading

SAMPLE_LIST = "samples.jsonl"
PARTS = "samples-*.jsonl"
DROPPED = "dropped"  # key of a record: why a filter did not write the sample


def list_of_process(process: int) -> str:
    """Return the name of the list that one of several processes writes."""
    return PARTS.replace("*", f"{process:05d}")


def read_sample_list(folder: Path, with_dropped: bool = False) -> dict[str, dict[str, Any]]:
    """Return the records by file name, in order; the last one if a file was generated twice. Empty without a list.

    Args:
        with_dropped: also return samples that a filter dropped, of which there is no file.
    """
    records: dict[str, dict[str, Any]] = {}
    shared: dict[str, Any] = {}  # what many records repeat, held once
    for path in (folder / SAMPLE_LIST, *sorted(folder.glob(PARTS))):
        if not path.exists():
            continue
        check_file(path)
        with reading(path), path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    record = json.loads(line)
                    if isinstance(record.get("preprocessing"), dict):
                        text = json.dumps(record["preprocessing"])
                        record["preprocessing"] = shared.setdefault(text, record["preprocessing"])
                    records[str(record["file"])] = record
                except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                    raise CardioDiTError(f"Line {number} of {path} is not a record of a sample. Remove it.") from error
    return {name: record for name, record in records.items() if with_dropped or DROPPED not in record}


def merge_sample_lists(folder: Path) -> None:
    """Merge the lists of several processes into `samples.jsonl`, when none of them is writing any more."""
    parts = sorted(folder.glob(PARTS))
    if not parts:
        return
    records = read_sample_list(folder, with_dropped=True)
    with atomic_file(folder / SAMPLE_LIST) as temporary:
        temporary.write_text("".join(f"{json.dumps(record)}\n" for record in records.values()), encoding="utf-8")
    for part in parts:
        part.unlink()
