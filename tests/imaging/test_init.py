import subprocess
import sys
from pathlib import Path

import pytest

import cardiodit
from cardiodit import imaging

HEAVY = ("torch", "monai", "diffusers", "nibabel", "scipy", "PIL", "pydicom")

# `cardiodit` itself is replaced by an empty package, so that only what imaging imports counts.
IMPORT = """
import sys, types
package = types.ModuleType("cardiodit")
package.__path__ = [sys.argv[1]]
sys.modules["cardiodit"] = package
from cardiodit.imaging import PRESETS, read_manifest, read_nifti
print([name for name in sys.argv[2:] if name in sys.modules])
"""


def test_presets_and_manifests_are_imported_without_heavy_packages() -> None:
    """`--help` lists the presets and has to answer quickly."""
    folder = Path(cardiodit.__file__).parent
    printed = subprocess.run([sys.executable, "-c", IMPORT, folder, *HEAVY], capture_output=True, text=True, check=True)
    assert printed.stdout == "[]\n"


@pytest.mark.parametrize("name", imaging.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(imaging, name) is not None
    assert name in dir(imaging)


def test_submodules_need_no_import_of_their_own() -> None:
    assert imaging.nifti.read_nifti is imaging.read_nifti


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'prepare_heart'"):
        _ = imaging.prepare_heart
