"""What a release promises: one version everywhere, and the right publications wherever a system is named."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cardiodit import __version__
from cardiodit.systems import all_systems

ROOT = Path(__file__).parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
METHODS = {  # what is built on, besides the systems
    "Unconditional Latent Diffusion Models Memorize Patient Imaging Data": "https://arxiv.org/abs/2402.01054",
    "Latent Pollution Model: The Hidden Carbon Footprint in 3D Image Synthesis": "https://arxiv.org/abs/2407.14892",
}


def publications() -> dict[str, str]:
    systems = [system.publication for system in all_systems()]
    assert None not in systems
    return {**{publication.title: publication.link for publication in systems}, **METHODS}


def test_every_publication_is_cited_with_its_title_and_identifier() -> None:
    cited = {reference["title"]: reference for reference in CITATION["references"]}
    assert {title: reference["url"] for title, reference in cited.items()} == publications()
    for title, reference in cited.items():
        number = re.search(r"arxiv.org/abs/([\d.]+)$", reference["url"])
        if number:
            assert reference["doi"] == f"10.48550/arXiv.{number[1]}", title


@pytest.mark.parametrize("page", ["README.md"])
def test_each_system_is_linked_to_its_publication(page: str) -> None:
    text = (ROOT / page).read_text()
    for system in all_systems():
        assert f"({system.publication.link})" in text, system.title


def test_the_version_is_the_same_everywhere() -> None:
    newest = re.search(r"^## (\d\S*) – (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert __version__ == newest[1] == CITATION["version"]
    assert str(CITATION["date-released"]) == newest[2]


def test_the_description_of_the_package_leads_somewhere_from_anywhere() -> None:
    """As an index shows it: without the repository around it."""
    asked = [sys.executable, "setup.py", "-q", "--long-description"]
    text = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert len(targets) >= 10
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
