"""`import cardiodit`: light, complete, and known to diffusers whichever is imported first."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cardiodit

SAVED = Path(__file__).parent / "fixtures" / "saved" / "cardiodit-0.1"


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, str(SAVED), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", cardiodit.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(cardiodit, name)
    assert name in dir(cardiodit)
    assert callable(value) or name == "PRESETS"


def test_type_checkers_see_the_names_that_are_imported_lazily() -> None:
    (block,) = (node for node in ast.parse(inspect.getsource(cardiodit)).body if isinstance(node, ast.If))
    imported = {
        alias.asname or alias.name: f"{node.module}:{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name: module if ":" in module else f"{module}:{name}" for name, module in cardiodit._LAZY.items()}
    assert lazy == imported
    assert set(cardiodit.__all__) == {*lazy, "CardioDiTError"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(cardiodit, "CardioDITPipeline")
    with pytest.raises(ImportError, match="cannot import name 'CardioDITPipeline' from 'cardiodit'"):
        from cardiodit import CardioDITPipeline  # noqa: F401


IMPORTS = (
    "import cardiodit; assert 'diffusers' not in sys.modules; from diffusers.models import AutoencoderKL; "
    "import diffusers",
    "import diffusers; import cardiodit",
    "from cardiodit import VQModel4D; import cardiodit, diffusers",
)


# Copies of a process that has imported what diffusers imports, but neither diffusers nor this package.
IN_ANY_ORDER = """
import os, sys
import peft, scipy.optimize, torch._dynamo, torchao
assert not {"cardiodit", "diffusers"} & set(sys.modules)
for imports in sys.argv[2:]:
    if os.fork() == 0:
        exec(imports)
        pipe = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
        assert type(pipe) is cardiodit.CardioDiTPipeline is diffusers.CardioDiTPipeline
        assert diffusers.pipelines.cardiodit is cardiodit
        assert diffusers.VQModel4D is cardiodit.VQModel4D
        assert not hasattr(diffusers, "evaluate") and not hasattr(diffusers, "NoSuchPipeline")
        print(type(pipe.vae).__name__, flush=True)
        os._exit(0)
    _, status = os.wait()
    assert status == 0, imports
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no copies of processes")
def test_diffusers_opens_our_folders_in_any_order_of_imports() -> None:
    assert run_python(IN_ANY_ORDER, *IMPORTS).count("VQModel4D") == len(IMPORTS)


def test_importing_the_package_loads_no_heavy_package() -> None:
    heavy = ["torch", "diffusers", "numpy", "monai", "nibabel", "scipy", "PIL", "yaml"]
    assert run_python(f"import sys, cardiodit; print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_subpackages_need_no_import_of_their_own() -> None:
    assert run_python("import cardiodit; print(cardiodit.imaging.Volume is cardiodit.Volume)") == "True"
