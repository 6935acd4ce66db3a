"""The notebooks are kept with their outputs; `make notebooks` executes them."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from cardiodit.cli import build_parser

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 3_000_000  # bytes


def cells(path: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_there_are_six() -> None:
    assert [path.name[0] for path in NOTEBOOKS] == list("123456")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_kept_small_and_without_errors(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    executed = [cell["execution_count"] for cell in cells(path)]
    assert executed == list(range(1, len(executed) + 1))  # from top to bottom, once
    outputs = [output for cell in cells(path) for output in cell["outputs"]]
    assert outputs and all(output["output_type"] != "error" for output in outputs)
    text = json.dumps(outputs)
    assert "/tmp/" not in text and "Traceback" not in text and "/home/" not in text


def test_a_pipelines_output_shows_itself_playing() -> None:
    shown = [output["data"] for cell in cells(NOTEBOOKS[0]) for output in cell["outputs"] if "data" in output]
    assert any("data:image/gif;base64," in "".join(data.get("text/html", "")) for data in shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_commands_parse(path: Path) -> None:
    shell = [
        "".join(cell["source"]) for cell in cells(path) if cell["source"] and cell["source"][0].startswith("%%bash")
    ]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    for line in (line for line in lines if line.startswith("cardiodit ")):
        words = shlex.split(line.partition("||")[0].partition("2>")[0])
        assert build_parser().parse_args(words[1:]).run, line
