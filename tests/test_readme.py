"""What the README and the pages behind it promise: their Python runs as written, and what they name is there.

Its commands are run, in their order, in tests/hub/test_readme_commands.py.
"""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cardiodit.training import train_controlnet, train_dit, train_prdit, train_tgca, train_unet, train_vqgan
from cardiodit.training.harness.command_line import read_command_line
from cardiodit.training.settings import (
    ControlNetSettings,
    DiTSettings,
    PRDiTSettings,
    TGCASettings,
    UNetSettings,
    VQGANSettings,
)

from .documented import ROOT, RUN_PAGES, pages, text_of
from .documented import blocks as all_blocks
from .prepared_python import python

README = text_of("README")


def blocks(language: str) -> list[str]:
    """The blocks of the README and of the pages behind it, each once."""
    return list(dict.fromkeys(block.code for block in all_blocks(*RUN_PAGES, language=language)))


def test_it_opens_with_an_example_of_about_ten_lines() -> None:
    first = blocks("python")[0]
    assert README.index(first) < 900
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_python_runs_as_written(tmp_path: Path) -> None:
    """All blocks at the same time, each in a folder and a process of its own."""
    begun = {}
    for number, block in enumerate(blocks("python")):
        (tmp_path / f"{number}").mkdir()
        caught: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun[block] = subprocess.Popen([python(), "-c", block], cwd=tmp_path / f"{number}", **caught)
    for number, (block, process) in enumerate(begun.items()):
        said, errors = process.communicate()
        assert process.returncode == 0, errors
        promised = re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
        printed = said.splitlines()
        assert promised and len(promised) == len(printed)
        for comment, line in zip(promised, printed):
            assert comment.startswith(line)
        if "save(" in block:
            assert len(list((tmp_path / f"{number}" / "samples").glob("*.nii.gz"))) == 2


def test_what_pip_is_asked_for_exists() -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("pip ")]
    assert len(lines) >= 3
    known = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    text = "".join(map(text_of, pages()))
    asked = {extra for extras in re.findall(r"(?:cardiodit|\.)\[([\w,]+)\]", text) for extra in extras.split(",")}
    assert {"train", "dicom", "lora", "dev"} <= asked <= known


TRAINING = {
    "train_vqgan": (train_vqgan, VQGANSettings),
    "train_dit": (train_dit, DiTSettings),
    "train_tgca": (train_tgca, TGCASettings),
    "train_unet": (train_unet, UNetSettings),
    "train_controlnet": (train_controlnet, ControlNetSettings),
    "train_prdit": (train_prdit, PRDiTSettings),
}


@pytest.mark.parametrize("page", ["train", "training"])
def test_training_commands_parse(page: str) -> None:
    text = text_of(page).replace("\\\n", " ")
    commands = re.findall(r"^cardiodit train (\w+) (.*)$", text, re.MULTILINE)
    whole = [(f"train_{stage}", options) for stage, options in commands if "…" not in options]
    assert {"train_vqgan", "train_dit"} <= {name for name, _ in whole} <= set(TRAINING)
    for name, options in whole:
        script, kind = TRAINING[name]
        add_options = getattr(script, "add_options", lambda parser: None)
        read_command_line(shlex.split(options), kind, "", "", lambda path, raw: None, add_options)


def test_make_targets_and_folders_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:^|`)make ([a-z-]+)(?:`| )", "".join(map(text_of, pages())), re.MULTILINE)
    assert {"test", "demo", "docs", "test-oldest"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    folders = re.findall(r"^\| `([a-z/]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert len(folders) >= 15
    for folder in folders:
        assert (ROOT / folder).is_dir(), folder
