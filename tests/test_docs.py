"""The pages of the documentation: nothing is broken, undocumented, or shown without being run or saying why."""

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from cardiodit.cli import build_parser

from .documented import ROOT, RUN_PAGES, blocks, commands, pages, path_of, text_of

# Pages whose Python is run by another test, and that test.
PYTHON_OF = {"evaluation": "tests/evaluation/test_docs.py"}


def test_every_block_is_run_or_says_why_not() -> None:
    found = [block for block in blocks(*pages()) if block.language in ("bash", "python")]
    assert len(found) > 40
    for block in found:
        if block.reason is not None:
            assert len(block.reason) > 20, block
            for test in re.findall(r"tests/[\w/.]+\w", block.reason):
                assert (ROOT / test).exists(), test
        else:
            assert block.page in RUN_PAGES or (block.language == "python" and block.page in PYTHON_OF), block
    for page, test in PYTHON_OF.items():
        assert f"{page}.md" in (ROOT / test).read_text() or f'"{page}.md"' in (ROOT / test).read_text()


def test_commands_parse() -> None:
    lines = [line for line in commands(*pages()) if line.startswith("cardiodit ")]
    whole = [line for line in lines if "…" not in line and "..." not in line]
    assert len(whole) > 60
    for line in whole:
        assert build_parser().parse_args(shlex.split(line, comments=True)[1:]).run, line


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*pages(), "reference/api"])
def test_links_and_pictures_lead_somewhere(page: str) -> None:
    path = path_of(page)
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists() and file.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(file), target


def test_the_site_shows_every_page() -> None:
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(listed) == sorted(there)
    sections = [next(iter(entry)) for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]]
    assert sections[1:] == [
        "Start",
        "Sample",
        "Your data",
        "Train",
        "Evaluate",
        "Audit",
        "Publish",
        "Concepts",
        "Reference",
    ]


def test_the_reference_documents_every_public_name() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        hooks = importlib.import_module("site_hooks")
    finally:
        sys.path.pop(0)
    shown = "".join(path.read_text() for path in (ROOT / "docs" / "reference").glob("*.md"))
    modules = re.findall(r"<!-- api: ([\w.]+) -->", shown)
    assert {"cardiodit", "cardiodit.imaging", "cardiodit.schedulers", "cardiodit.latents"} <= set(modules)
    for module in modules:
        paths = hooks.public_paths(module)  # raises if one has no docstring
        assert len(paths) == len(importlib.import_module(module).__all__)
    assert "## cardiodit sample\n" in hooks.commands() and "## cardiodit train dit\n" in hooks.stages()


def test_readme_is_a_page_for_the_first_minute() -> None:
    assert len(text_of("README").splitlines()) <= 160
