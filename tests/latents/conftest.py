"""A small cohort, and VQ models that know how its volumes are prepared."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardiodit import VQModel4D
from cardiodit.imaging import Preprocessing
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import encode_cohort


@pytest.fixture
def steps() -> Preprocessing:
    return Preprocessing(size=(32, 32, 4), frames=8)


@pytest.fixture
def vae(make_vae: Callable[..., Any], steps: Preprocessing) -> VQModel4D:
    return make_vae(preprocessing=steps.to_dict())


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of two hearts that no test changes."""
    return write_cohort(tmp_path_factory.mktemp("phantoms") / "two", num=2, size=(32, 32, 3, 8))


@pytest.fixture
def own_phantoms(phantoms: Path, tmp_path: Path) -> Path:
    """The same two hearts, to be spoilt."""
    return shutil.copytree(phantoms.parent, tmp_path / "phantoms") / phantoms.name


@pytest.fixture
def latents(vae: VQModel4D, phantoms: Path, tmp_path: Path) -> Path:
    """The manifest of the hearts' latents."""
    encode_cohort(phantoms, vae, tmp_path / "latents", report=list)
    return tmp_path / "latents" / "manifest.csv"
