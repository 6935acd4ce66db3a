"""The type check of `make lint` sees into the package: errors across its modules fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CALL = "from cardiodit._util.randomness import generator_for\n\ngenerator_for({arguments})\n"


def check_call(folder: Path, arguments: str) -> subprocess.CompletedProcess:
    """Check a file that calls one of our functions, with the repository's settings and cache."""
    pytest.importorskip("mypy")
    (folder / "caller.py").write_text(CALL.format(arguments=arguments))
    settings = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / ".mypy_cache")]
    command = [sys.executable, "-m", "mypy", *settings, str(folder / "caller.py")]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_wrong_call_of_another_module_fails(tmp_path: Path) -> None:
    checked = check_call(tmp_path, '"no such", 1, 2, 3')
    assert checked.returncode == 1, checked.stderr
    assert 'Too many arguments for "generator_for"' in checked.stdout
    assert 'Argument 1 to "generator_for" has incompatible type "str"; expected "int"' in checked.stdout


def test_a_correct_call_passes(tmp_path: Path) -> None:
    checked = check_call(tmp_path, "0, 1")
    assert checked.returncode == 0, checked.stdout + checked.stderr
