"""Records of energy: each command is measured whole and leaves a line in `energy.jsonl` of its output folder.

Training records its energy in `run.json`, and each sample has its own in `samples.jsonl`; all have the same form.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cardiodit import __version__
from cardiodit._util.atomic_io import append_line
from cardiodit._util.foreign_files import read_object
from cardiodit._util.launch import process_rank
from cardiodit._util.terminal import say
from cardiodit.energy.electricity import (
    GRAMS_A_KILOMETRE,
    Footprint,
    choose_electricity,
    footprint_of,
    format_grams,
    format_kilometres,
    used_electricity,
)
from cardiodit.energy.meter import Energy, EnergyMeter, two_digits
from cardiodit.errors import CardioDiTError, reading, reason_of

RECORDS, RUN = "energy.jsonl", "run.json"


@dataclass
class Comparison:
    """A forecast beside what was measured.

    Args:
        forecast, measured: the same work, in kWh.
        method: how it was forecast.
    """

    forecast: float
    measured: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        ratio = two_digits(self.forecast / self.measured) if self.measured > 0 else None
        kwh = {"kwh": two_digits(self.forecast), "measured_kwh": two_digits(self.measured), "ratio": ratio}
        return {**kwh, "method": self.method}


@contextmanager
def measured_command(arguments: argparse.Namespace) -> Iterator[None]:
    """Measure a command, whose parser has `add_electricity`, and record it, also if it fails or is interrupted.

    A command that compares itself with a forecast leaves a `Comparison` as `arguments.comparison`.
    """
    chosen = choose_electricity(arguments.country, arguments.pue, arguments.months)
    folder = Path(getattr(arguments, arguments.measured_in))
    folder = folder if arguments.measured_in == "output_dir" else folder.parent
    before, began, started, meter = _changed(folder), datetime.now(UTC), time.monotonic(), EnergyMeter(None)

    def record(status: str) -> Footprint:
        footprint = footprint_of(meter.read(), chosen, began)
        comparison = getattr(arguments, "comparison", None)
        line = {
            "command": arguments.measured_as,
            "began": began.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - started, 1),
            "status": status,
            "cardiodit": __version__,
            "process": process_rank(),
            **({"forecast": comparison.to_dict()} if comparison else {}),
            "energy": footprint.to_dict(),
        }
        append_line(folder / _name_of(process_rank()), json.dumps(line))
        return footprint

    try:
        with used_electricity(chosen):
            yield
    except BaseException as error:
        if _changed(folder) not in (None, before):  # one that failed before it wrote anything leaves no trace
            with suppress(CardioDiTError, OSError):  # the command's own error is the one to be read
                record("interrupted" if isinstance(error, KeyboardInterrupt) else "failed")
        raise
    if getattr(arguments, "estimate", False) or not folder.is_dir():
        return
    try:
        sentence = f"Energy: {record('finished')}. Recorded in {folder / RECORDS}."
    except (CardioDiTError, OSError) as error:  # the command has done its work, perhaps in somebody else's folder
        sentence = f"The energy of this command was not recorded in {folder}: {reason_of(error)}."
    if process_rank() == 0:
        say(sentence, aside=True)


def _changed(folder: Path) -> int | None:
    """Return when files were last added to a folder or removed from it."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def _name_of(process: int) -> str:
    """Return the file of a process: several machines that append to one would lose lines on a network file system."""
    return RECORDS if process == 0 else RECORDS.replace(".", f"-{process:05d}.")


def read_records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all commands that wrote into a folder."""
    records = []
    for path in sorted(folder.glob(RECORDS.replace(".", "*."))):
        with reading(path, "a record of energy", "Remove it."), path.open(encoding="utf-8") as lines:
            records += [json.loads(line) for line in lines if line.strip()]
    return records


def mean_of_samples(records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return energy and emissions of a volume, on average over the records of samples; None unless all have them."""
    found = [record.get("energy") for record in records]
    known = [each for each in found if isinstance(each, dict)]
    if not known or len(known) < len(found):
        return None
    means = {key: two_digits(sum(each[key] for each in known) / len(known)) for key in ("kwh", "co2_grams")}
    ranges = {
        key: [two_digits(sum(each[key][end] for each in known) / len(known)) for end in (0, 1)]
        for key in ("kwh_range", "co2_grams_range")
    }
    electricity = known[0]["electricity"] if all(e["electricity"] == known[0]["electricity"] for e in known) else None
    return {"volumes": len(known), **means, **ranges, "method": known[0]["method"], "electricity": electricity}


def energy_of_sample(energy: Energy, count: int) -> dict[str, Any]:
    """Return the record of each of several samples that were generated together."""
    return footprint_of(energy * (1 / count), choose_electricity()).to_dict()


def total_of(folders: Sequence[Path]) -> list[str]:
    """Return a line for each training run and command that recorded its energy below some folders, and their sum."""
    found: list[tuple[str, dict[str, Any]]] = []
    silent = 0
    for file in sorted(
        {path.resolve() for folder in folders for path in folder.rglob("*") if path.name in (RECORDS, RUN)}
    ):
        if file.name == RUN:
            sessions = read_object(file, ["sessions"])["sessions"]
            found += [(f"{file.parent.name}: training", each["energy"]) for each in sessions if "energy" in each]
            silent += sum("energy" not in each for each in sessions)
        else:
            records = read_records(file.parent)
            found += [(f"{file.parent.name}: {each['command']}", each["energy"]) for each in records]
    if not found:
        raise CardioDiTError(f"No energy is recorded in {', '.join(map(str, folders))}.")
    lines = [f"{name}: {each['kwh']:g} kWh, {format_grams(each['co2_grams'])}" for name, each in found]
    kwh, grams = (sum(each[key] for _, each in found) for key in ("kwh", "co2_grams"))
    low, high = (sum(each["co2_grams_range"][end] for _, each in found) for end in (0, 1))
    least = "at least " if silent or any(each["is_at_least"] for _, each in found) else ""
    lines.append(
        f"Together: {least}{two_digits(kwh):g} kWh, {format_grams(grams)} ({format_grams(low, '')} to "
        f"{format_grams(high, '')}), {format_kilometres(grams / GRAMS_A_KILOMETRE)} by car."
    )
    return lines + ([f"Training sessions without recorded energy: {silent}."] if silent else [])
