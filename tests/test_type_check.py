"""The type check of `make lint` sees into the package: errors across its modules fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALLS = """from pathlib import Path

import cardiodit.training.harness
import cardiodit.training.nowhere
from cardiodit._util.hashing import sha256_of

sha256_of(Path("correct"))
sha256_of(1, "no such")
"""
ERRORS = [
    '4: error: Cannot find implementation or library stub for module named "cardiodit.training.nowhere"',
    '8: error: Too many arguments for "sha256_of"',
    '8: error: Argument 1 to "sha256_of" has incompatible type "int"; expected "Path"',
]


def test_a_wrong_call_of_another_module_fails_and_a_correct_one_passes(tmp_path: Path) -> None:
    """With the repository's settings, in the package as it is without what its own `__init__.py` imports.

    That would be everything, with torch and numpy; `make lint` checks it.
    """
    pytest.importorskip("mypy")
    package = tmp_path / "src" / "cardiodit"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for folder in ("_util", "training"):
        (package / folder).symlink_to(ROOT / "src" / "cardiodit" / folder)
    (tmp_path / "caller.py").write_text(CALLS)
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", os.devnull]
    command = [sys.executable, "-m", "mypy", *settings, "caller.py"]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert checked.returncode == 1, checked.stderr
    errors = [
        line.partition("caller.py:")[2].partition("  [")[0] for line in checked.stdout.splitlines() if "error:" in line
    ]
    assert errors == ERRORS, checked.stdout
