"""The code blocks of README.md and docs/, and whether they are run."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# In the order of a project; tests/hub/test_readme_commands.py runs the commands of these pages one after the other.
RUN_PAGES = ("README", "start", "checkpoints", "sample", "your-data", "train", "evaluate", "publish")
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>.*?) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of code, and why it is not run; None if it is."""

    page: str
    language: str
    code: str
    reason: str | None


def path_of(page: str) -> Path:
    return ROOT / "README.md" if page == "README" else ROOT / "docs" / f"{page}.md"


def text_of(page: str) -> str:
    return path_of(page).read_text()


def pages() -> list[str]:
    return ["README", *sorted(path.stem for path in (ROOT / "docs").glob("*.md"))]


def blocks(*pages: str, language: str | None = None) -> list[Block]:
    found = [
        Block(page, *match.group("language", "code", "reason"))
        for page in pages
        for match in FENCE.finditer(text_of(page))
    ]
    return [block for block in found if language in (None, block.language)]


def commands(*pages: str, run: bool = False) -> list[str]:
    """Return the lines of shell blocks; with `run`, of those that are run."""
    shell = [block.code for block in blocks(*pages, language="bash") if not run or block.reason is None]
    return "\n".join(shell).replace("\\\n", " ").splitlines()
