"""Every private name of diffusers and torch that the package uses.

A version that lacks one of them loses the feature that needs it, which then says so; the package still imports.
"""

import importlib
from typing import Any

from cardiodit.errors import CardioDiTError


def private_name(module: str, name: str) -> Any:
    """Return a private name of another package, or None if the installed version lacks it."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def require(feature: str, **names: Any) -> None:
    """Raise an error that names the feature if a private name that it needs is missing."""
    if missing := [name for name, value in names.items() if value is None]:
        raise CardioDiTError(
            f"{feature} is not available: the installed version of torch or diffusers lacks {', '.join(missing)}. "
            "Install a version that cardiodit was tested with (requirements/lock.txt)."
        )


# Memory estimates (`cardiodit._util.memory`)
FakeTensorMode = private_name("torch._subclasses.fake_tensor", "FakeTensorMode")
TorchDispatchMode = private_name("torch.utils._python_dispatch", "TorchDispatchMode")
tree_leaves = private_name("torch.utils._pytree", "tree_leaves")
tree_map = private_name("torch.utils._pytree", "tree_map")

# LoRA files
fetch_state_dict = private_name("diffusers.loaders.lora_base", "_fetch_state_dict")

# Versions of diffusers with this table look up in it, by a class's name, how an adapter's scale is spread over blocks.
ADAPTER_SCALES = private_name("diffusers.loaders.peft", "_SET_ADAPTER_SCALE_FN_MAPPING")

# Caching between sampling steps: FirstBlockCache and others look up what a block returns.
TransformerBlockRegistry = private_name("diffusers.hooks._helpers", "TransformerBlockRegistry")
TransformerBlockMetadata = private_name("diffusers.hooks._helpers", "TransformerBlockMetadata")

# Tokens of one volume split over several GPUs
ContextParallelInput = private_name("diffusers.models._modeling_parallel", "ContextParallelInput")
ContextParallelOutput = private_name("diffusers.models._modeling_parallel", "ContextParallelOutput")


def register_block(block: type) -> None:
    """Tell diffusers' caches that a transformer block returns its hidden states first."""
    if TransformerBlockRegistry is not None and TransformerBlockMetadata is not None:
        TransformerBlockRegistry.register(block, TransformerBlockMetadata(return_hidden_states_index=0))


def context_parallel_plan(inputs: dict[str, dict[str, int]], output: str) -> dict[str, Any] | None:
    """Split tokens along axis 1 at the inputs of some modules and gather them at the output of another.

    Args:
        inputs: number of dimensions by argument name, by module name.
        output: module whose output (B, L, C) is gathered.
    """
    if ContextParallelInput is None or ContextParallelOutput is None:
        return None
    splits = {
        module: {
            argument: ContextParallelInput(split_dim=1, expected_dims=dims, split_output=False)
            for argument, dims in arguments.items()
        }
        for module, arguments in inputs.items()
    }
    return {**splits, output: ContextParallelOutput(gather_dim=1, expected_dims=3)}
