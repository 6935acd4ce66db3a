"""The type checker sees into the package: a call with wrong types across modules fails `make lint`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WRONG = "from cardiodit._util.randomness import generator_for\n\ngenerator_for('no such', 1, 2, 3)\n"


def test_a_type_error_across_modules_is_found(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(WRONG)
    settings = ["--config-file", "pyproject.toml", "--follow-imports", "silent", "--no-error-summary"]
    command = [sys.executable, "-m", "mypy", *settings, str(tmp_path / "wrong.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert 'Too many arguments for "generator_for"' in done.stdout
