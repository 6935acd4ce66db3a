"""Self-contained HTML pages from jinja2 templates: they open from disk and need no network."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from cardiodit._util.atomic_io import atomic_file

SHARED = Path(__file__).parent  # base.html.j2, base.css and player.js


@cache
def templates(*folders: Path) -> Environment:
    """Return the templates of the folders and the shared ones.

    `autoescape` is set to True rather than chosen by file name, because jinja2's own choice ignores names that end in
    `.j2`: every file name, title or note becomes text, never markup.
    """
    environment = Environment(
        loader=FileSystemLoader([*folders, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def asset(name: str) -> Markup:
        place = next(place for place in (*folders, SHARED) if (place / name).is_file())
        return Markup((place / name).read_text(encoding="utf-8"))

    environment.globals["asset"] = asset  # a style sheet or script, inserted as it is
    return environment


def render_page(template: Path, *more_folders: Path, **context: Any) -> bytes:
    """Render a page; templates, styles and scripts may also come from more folders."""
    return templates(template.parent, *more_folders).get_template(template.name).render(context).encode()


def write_page_file(page: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_bytes(page)
