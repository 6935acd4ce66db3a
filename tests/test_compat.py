"""Without a private name of diffusers or torch, the package imports and the feature that needs the name says so."""

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cardiodit._util import memory

from .conftest import begin


def estimate_memory() -> None:
    from cardiodit._util.memory import peak_bytes

    peak_bytes(lambda: None)


def load_lora() -> None:
    from cardiodit import CardioDiTPipeline

    CardioDiTPipeline.lora_state_dict({})


def cache() -> None:
    small_transformer().enable_cache(None)


def parallelise() -> None:
    small_transformer().enable_parallelism(config=None)


def small_transformer() -> Any:
    from cardiodit import PRDiTTransformerModel

    return PRDiTTransformerModel(sample_size=(8, 8, 8), patch_size=8, num_layers=0)


NAMES = [
    ("torch._subclasses.fake_tensor", "FakeTensorMode", estimate_memory),
    ("torch.utils._python_dispatch", "TorchDispatchMode", estimate_memory),
    ("torch.utils._pytree", "tree_leaves", estimate_memory),
    ("diffusers.loaders.lora_base", "_fetch_state_dict", load_lora),
    ("diffusers.loaders.peft", "_SET_ADAPTER_SCALE_FN_MAPPING", None),
    ("diffusers.hooks._helpers", "TransformerBlockRegistry", cache),
    ("diffusers.hooks._helpers", "TransformerBlockMetadata", cache),
    ("diffusers.models._modeling_parallel", "ContextParallelInput", parallelise),
    ("diffusers.models._modeling_parallel", "ContextParallelOutput", parallelise),
]


@pytest.mark.parametrize("module, name, feature", NAMES, ids=[name for _, name, _ in NAMES])
def test_a_missing_private_name_switches_off_its_feature_only(
    module: str, name: str, feature: Callable[[], None] | None, tmp_path: Path
) -> None:
    process = begin(import_without, module, name, feature, said=tmp_path / "output")
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()


def import_without(module: str, name: str, feature: Callable[[], None] | None) -> None:
    assert hasattr(importlib.import_module(module), name)
    delattr(sys.modules[module], name)
    for imported in [key for key in sys.modules if key.split(".")[0] == "cardiodit"]:
        del sys.modules[imported]
    import cardiodit

    for public in cardiodit.__all__:
        getattr(cardiodit, public)
    if feature is None:
        small_transformer()
        return
    with pytest.raises(cardiodit.CardioDiTError, match=f"is not available: .* lacks {name}"):
        feature()


def test_automatic_tiling_needs_no_estimate(monkeypatch: pytest.MonkeyPatch, make_vae: Callable[..., Any]) -> None:
    monkeypatch.setitem(memory._TOOLS, "tree_leaves", None)
    with pytest.warns(UserWarning, match="cannot estimate memory"):
        assert memory.set_tiling(make_vae(), (16, 16, 2, 8)) is False


def test_private_names_are_imported_in_one_place_only() -> None:
    root = Path(__file__).parents[1]
    private = re.compile(r"^\s*from (torch|diffusers|peft)\S*( import .*\b_[a-zA-Z]|\._)", re.MULTILINE)
    files = [file for folder in ("src/cardiodit", "pipelines", "training") for file in (root / folder).rglob("*.py")]
    assert len(files) > 100
    assert [file.name for file in files if private.search(file.read_text(encoding="utf-8"))] == []
