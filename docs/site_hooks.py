"""Hooks of the documentation site: they fill in the reference, and lead links that leave `docs` to the repository."""

import importlib
import inspect
import io
import os
import re
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

REPOSITORY = "https://github.com/cardiodit/cardiodit/blob/main"
ROOT = Path(__file__).parents[1]
OUTWARD = re.compile(r"(\]\()((?:\.\./)+[^)\s]*)\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Complete a page before it is rendered."""
    markdown = re.sub(r"<!-- api: ([\w.]+) -->", lambda found: api_of(found[1]), markdown)
    markdown = markdown.replace("<!-- commands -->", commands())
    markdown = markdown.replace("<!-- stages -->", stages())
    return OUTWARD.sub(lambda found: f"{found[1]}{outward(found[2], Path(page.file.src_uri))})", markdown)


def outward(link: str, page: Path) -> str:
    """Return the address in the repository of a link that leaves `docs`; other links as they are."""
    target, _, anchor = link.partition("#")
    path = Path(os.path.normpath(ROOT / "docs" / page.parent / target))
    if path.is_relative_to(ROOT / "docs"):
        return link
    if not path.exists():
        raise FileNotFoundError(f"{page} links to {link}, which is not in the repository.")
    return f"{REPOSITORY}/{path.relative_to(ROOT).as_posix()}{f'#{anchor}' if anchor else ''}"


def api_of(module: str) -> str:
    """Return directives that document every public name of a module; one that `cardiodit` exports too gets a link."""
    top = set() if module == "cardiodit" else set(public_paths("cardiodit"))
    paths = public_paths(module)
    links = "\n".join(f"- [`{path.rpartition('.')[2]}`][{path}]" for path in paths if path in top)
    return "\n\n".join([links, *(f"::: {path}" for path in paths if path not in top)])


def public_paths(module: str) -> list[str]:
    """Return where the public names of a module are defined; one without a docstring is an error."""
    package = importlib.import_module(module)
    paths = []
    for name in package.__all__:
        value = getattr(package, name)
        if not callable(value):
            top = getattr(importlib.import_module("cardiodit"), name, None)
            paths.append(f"cardiodit.{name}" if top is value else f"{module}.{name}")
            continue
        if not inspect.getdoc(value):
            raise ValueError(f"{module}.{name} is public and has no docstring.")
        own = f"{value.__module__}.{value.__qualname__}"
        paths.append(own if value.__qualname__ == name else f"{module}.{name}")
    return paths


def commands() -> str:
    """Return the help texts of all commands."""
    from cardiodit.cli import build_parser

    os.environ["COLUMNS"] = "100"
    parts = [f"## {parser.prog}\n\n```text\n{parser.format_help()}```" for parser in parsers(build_parser())]
    return "\n\n".join(parts)


def parsers(parser: ArgumentParser) -> Iterator[ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for inner in action.choices.values():
                yield from parsers(inner)


def stages() -> str:
    """Return the help texts of all training stages."""
    from cardiodit.cli import main
    from cardiodit.commands.train import STAGES

    parts = []
    for stage, text in STAGES.items():
        with redirect_stdout(io.StringIO()) as shown:
            main(["train", stage, "--help"])
        parts.append(f"## cardiodit train {stage}\n\n{text[0].upper()}{text[1:]}.\n\n```text\n{shown.getvalue()}```")
    return "\n\n".join(parts)
