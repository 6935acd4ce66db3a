"""Execute the notebooks from top to bottom, each in a fresh folder, and keep their outputs.

    python examples/run_notebooks.py              # all, written back with their outputs
    python examples/run_notebooks.py --check 1 2  # some, only checked

`make notebooks` checks all of them. Needs nbclient, nbformat and ipykernel: pip install "cardiodit[notebooks]".
"""

import argparse
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
LONGEST = 900  # seconds of a cell, on a machine that others use as well; two free cores need less than 300 for all
UNWANTED = re.compile(r"^Energy: |TqdmWarning|autonotebook")
LARGEST = 3_000_000  # bytes of a notebook with its outputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", help="numbers of the notebooks; default: all")
    parser.add_argument("--check", action="store_true", help="execute them without writing the outputs")
    arguments = parser.parse_args()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for path in sorted(FOLDER.glob("*.ipynb")):
        if arguments.numbers and path.name.partition("_")[0] not in arguments.numbers:
            continue
        began = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=LONGEST, resources={"metadata": {"path": folder}}).execute()
            tidy(notebook, folder)
        size = len(nbformat.writes(notebook))
        assert size < LARGEST, f"{path.name} has {size} bytes with its outputs."
        if not arguments.check:
            nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - began:.0f} s, {size / 1e6:.2f} MB", flush=True)


def tidy(notebook: Any, folder: str) -> None:
    """Remove what differs between machines and runs: folders, times of execution, energy, and warnings of others."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if "outputs" not in cell:
            continue
        merged: list[Any] = []
        for output in cell.outputs:  # a stream arrives in pieces
            same = [old for old in merged[-1:] if "text" in output and old.get("name") == output.get("name")]
            if same:
                same[0]["text"] += output["text"]
            else:
                merged.append(output)
        for output in merged:
            if "text" in output:
                lines = output["text"].replace(folder + os.sep, "").replace(folder, ".").splitlines()
                output["text"] = "".join(f"{line}\n" for line in lines if line.strip() and not UNWANTED.search(line))
        cell.outputs = [output for output in merged if output.get("text", "keep")]


if __name__ == "__main__":
    main()
