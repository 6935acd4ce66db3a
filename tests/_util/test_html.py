"""Pages from templates: text is escaped whatever a template is called, and a missing value is an error."""

from pathlib import Path

import jinja2
import pytest

from cardiodit._util.html import render_page, templates

HOSTILE = "</script><img src=x onerror='alert(1)'>{{ 7 * 7 }}"


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "page.css").write_text("p > b { color: red }")
    (tmp_path / "page.js").write_text("if (1 < 2 && contents) draw();")
    path = tmp_path / "page.html.j2"
    path.write_text('{% extends "base.html.j2" %}{% block body %}<p title="{{ title }}">{{ title }}</p>{% endblock %}')
    return path


def render(page: Path, **context: object) -> str:
    return render_page(page, styles=("page.css",), scripts=("page.js",), **context).decode()


def test_text_is_escaped_in_elements_attributes_and_scripts(page: Path) -> None:
    assert templates(page.parent).autoescape is True
    text = render(page, title=HOSTILE, contents={HOSTILE: HOSTILE})
    assert "<img" not in text and "onerror='" not in text and "49" not in text
    assert text.count("</script>") == 2 and text.count("{{ 7 * 7 }}") == 5


def test_style_and_script_are_inserted_as_they_are(page: Path) -> None:
    text = render(page, title="", contents={})
    assert "p > b { color: red }" in text and "if (1 < 2 && contents) draw();" in text
    assert "class Player" in text  # shared by all pages


def test_a_missing_value_is_an_error(page: Path) -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render(page, contents={})
