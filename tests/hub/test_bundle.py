"""Modules bundled into one file behave as before."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundle import bundle
from cardiodit.hub.export import export_with_code

MODULES = {
    "first.py": """
'''The first.'''
LIMIT = 3

def _check(x):
    '''Of the first.'''
    return f"first {x} {LIMIT}"

def first(x):
    return _check(x)
""",
    "second.py": """
from cardiodit.made_up import first

LIMIT = 5

def _check(x):
    return f"second {first(x)} {LIMIT}"

class Second:
    def run(self, x: int, vae: int = 0):
        from cardiodit.made_up.first import LIMIT as low
        return f"{_check(x)} {low}"

    def empty(self):
        from cardiodit.made_up.first import first
""",
    "__init__.py": "from cardiodit.made_up.first import first\n",
}


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cardiodit

    folder = tmp_path / "made_up"
    folder.mkdir()
    for name, text in MODULES.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(cardiodit, "__path__", [*cardiodit.__path__, str(tmp_path)])
    yield
    for name in [name for name in sys.modules if name.startswith("cardiodit.made_up")]:
        del sys.modules[name]


def test_names_that_two_modules_use_stay_apart(made_up: None) -> None:
    source = bundle("cardiodit.made_up.second", "A heading.", untyped=("vae",))
    assert source.startswith('"""A heading."""') and "cardiodit" not in source
    assert "Of the first." in source and "vae=0" in source.replace(" ", "")
    module = ModuleType("bundled")
    exec(compile(source, "bundled.py", "exec"), module.__dict__)
    assert module.Second().run(7) == "second first 7 3 5 3"
    assert module.Second().empty() is None and module.first(1) == "first 1 3"


def test_only_pipeline_folders_are_exported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(CardioDiTError, match="is not a pipeline folder"):
        export_with_code(tmp_path, tmp_path / "out")
    assert main(["export", str(tmp_path), "--output_dir", str(tmp_path / "out")]) == 1
    assert not (tmp_path / "out").exists()
