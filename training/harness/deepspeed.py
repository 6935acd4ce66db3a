"""DeepSpeed's ZeRO 1 and 2, as accelerate starts them: the same run with the optimizer's state sharded over GPUs.

The engine clips and steps within `backward`, and holds flat pieces of the weights and moments. The model's own weights
stay float32 and bf16 is autocast, as without DeepSpeed, so averages, validation and checkpoints work as in any run.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin, PartialState
from accelerate.utils import DistributedType, compare_versions

from cardiodit.errors import CardioDiTError
from cardiodit.training.harness.state import Optimizer, Tensors, trained, whole
from cardiodit.training.settings import Training

MOMENTS = ("exp_avg", "exp_avg_sq")
OLDEST = "0.18"  # older versions silently ignore `torch_autocast`
FSDP2, DDP = "configs/accelerate/fsdp2.yaml (FSDP2)", "configs/accelerate/multi_gpu.yaml (DDP)"


def is_requested() -> bool:
    """Return whether accelerate is configured for DeepSpeed; raise an error if it is not installed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return False
    is_installed = all(importlib.util.find_spec(name) for name in ("deepspeed", "transformers"))
    if not is_installed or compare_versions("deepspeed", "<", OLDEST):
        raise CardioDiTError(
            f"accelerate is configured for DeepSpeed, which needs deepspeed {OLDEST} or newer, and transformers: "
            f"pip install 'cardiodit[deepspeed]'. Or use {FSDP2}, which needs neither."
        )
    return True


def enable_on_cpu(accelerator: Accelerator) -> None:
    """Enable DeepSpeed on CPUs, which accelerate does on GPUs only, to test it without a GPU."""
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision(accelerator.mixed_precision)
    plugin.select(_from_accelerator_state=True)
    accelerator.state.deepspeed_plugins = plugin
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.DEEPSPEED


def check(accelerator: Accelerator, stage: str) -> None:
    """Raise an error for what is not supported with DeepSpeed."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    if stage != "train_dit":
        raise CardioDiTError(f"Only train_dit supports DeepSpeed; use {DDP} for {stage}.")
    if plugin.zero_stage not in (1, 2):
        raise CardioDiTError(
            f"DeepSpeed's ZeRO stage must be 1 or 2, not {plugin.zero_stage}. To shard the weights too, use {FSDP2}."
        )
    if plugin.offload_optimizer_device not in (None, "none"):
        raise CardioDiTError(
            f"DeepSpeed's offload_optimizer_device must be none, not {plugin.offload_optimizer_device!r}. If memory is "
            f"short, use {FSDP2}."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise CardioDiTError(f"With DeepSpeed, mixed_precision must be bf16 or no; use {DDP} for fp16.")


def configure(accelerator: Accelerator, settings: Training) -> None:
    """Configure DeepSpeed from the settings; after this, accelerate no longer knows about bf16."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    plugin.deepspeed_config |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": settings.train_batch_size,
        "gradient_accumulation_steps": 1,  # the run determines which batch is the last of a step
        "gradient_clipping": settings.max_grad_norm,
        "torch_autocast": {
            "enabled": accelerator.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are summed in float32
        },
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }


def optimizer_state(name: str, model: torch.nn.Module, optimizer: Any) -> Optimizer:
    """Return the checkpointable state of an optimizer that accelerate prepared."""
    is_zero = hasattr(getattr(optimizer, "optimizer", None), "single_partition_of_fp32_groups")
    return (ZeroOptimizer if is_zero else Optimizer)(name, model, optimizer)


class ZeroOptimizer(Optimizer):
    """Adam's moments from the flat pieces that each process holds.

    It must be loaded after the network, since it also refreshes its pieces of the weights.
    """

    def __init__(self, name: str, model: torch.nn.Module, optimizer: Any) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        super().__init__(name, model, optimizer)
        states = self.optimizer.optimizer.state
        # DeepSpeed links weights to their moments after the first group's step, when other groups have none yet.
        for parameters, flat in zip(
            self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True
        ):
            states[flat] = {"step": torch.tensor(0.0), **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
            lazy_init_hp_params_optimizer_state(parameters, flat, states)
        self.states: list[Tensors] = [states[flat] for flat in self.optimizer.single_partition_of_fp32_groups]

    def gather(self) -> Tensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        moments: Tensors = {}
        for name, parameter in trained(self.model).items():
            moments |= whole({f"{name}/step": self.states[0]["step"]})
            for moment in MOMENTS:  # one at a time: whole ones may not fit in memory
                moments |= whole({f"{name}/{moment}": safe_get_full_optimizer_state(parameter, moment)})
        return moments

    def load(self, folder: Path) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self.optimizer.refresh_fp32_params()
        for parameter, moment, values in self.saved(folder):
            if moment == "step":
                for state in self.states:
                    state["step"].copy_(values)
            else:
                safe_set_full_optimizer_state(parameter, values, moment)
