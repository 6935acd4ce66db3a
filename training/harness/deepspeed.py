"""DeepSpeed's ZeRO 1 and 2, as accelerate starts them: the same run with the optimizer's states spread over GPUs.

The engine clips and steps within `backward`, and holds flat pieces of the weights and moments. The model's own weights
stay float32, and bf16 is autocast, as without DeepSpeed; so averages, validation and checkpoints are those of any run.
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
OLDEST = "0.18"  # older ones leave `torch_autocast` out in silence
FSDP2, DDP = "configs/accelerate/fsdp2.yaml (FSDP2)", "configs/accelerate/multi_gpu.yaml (DDP)"


def is_asked_for() -> bool:
    """Whether accelerate is configured for DeepSpeed; where it is, it must be installed."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return False
    is_there = all(importlib.util.find_spec(name) for name in ("deepspeed", "transformers"))
    if not is_there or compare_versions("deepspeed", "<", OLDEST):
        raise CardioDiTError(
            f"accelerate is configured for DeepSpeed, which needs deepspeed {OLDEST} or newer, and transformers: "
            f"pip install 'cardiodit[deepspeed]'. Or take {FSDP2}, which needs neither."
        )
    return True


def try_on_cpu(accelerator: Accelerator) -> None:
    """accelerate turns to DeepSpeed on GPUs only, though it runs on CPUs too: how it is tried without a GPU."""
    plugin = DeepSpeedPlugin()
    plugin.set_mixed_precision(accelerator.mixed_precision)
    plugin.select(_from_accelerator_state=True)
    accelerator.state.deepspeed_plugins = plugin
    accelerator.state.distributed_type = PartialState().distributed_type = DistributedType.DEEPSPEED


def check(accelerator: Accelerator, stage: str) -> None:
    """What DeepSpeed cannot do here ends the run before it begins."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    if stage != "train_dit":
        raise CardioDiTError(f"DeepSpeed is for train_dit alone; for {stage} take {DDP}.")
    if plugin.zero_stage not in (1, 2):
        raise CardioDiTError(
            f"DeepSpeed's ZeRO {plugin.zero_stage} is none of 1, 2. To spread the weights too, take {FSDP2}."
        )
    if plugin.offload_optimizer_device not in (None, "none"):
        raise CardioDiTError(
            f"DeepSpeed's offload_optimizer_device {plugin.offload_optimizer_device!r} is not none. Where memory is "
            f"short, take {FSDP2}."
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise CardioDiTError(f"With DeepSpeed mixed_precision is bf16 or no; for fp16 take {DDP}.")


def configure(accelerator: Accelerator, settings: Training) -> None:
    """Tells DeepSpeed what the settings say; after this accelerate no longer knows of bf16."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return
    plugin.deepspeed_config |= {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": settings.train_batch_size,
        "gradient_accumulation_steps": 1,  # the run says which batch is a step's last
        "gradient_clipping": settings.max_grad_norm,
        "torch_autocast": {
            "enabled": accelerator.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],  # gradients are summed in float32
        },
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
    }


def optimizer_part(name: str, model: torch.nn.Module, optimizer: Any) -> Optimizer:
    """What a checkpoint holds of an optimizer that accelerate prepared."""
    is_zero = hasattr(getattr(optimizer, "optimizer", None), "single_partition_of_fp32_groups")
    return (ZeroOptimizer if is_zero else Optimizer)(name, model, optimizer)


class ZeroOptimizer(Optimizer):
    """Adam's moments from the flat pieces that each process holds; and the weights' pieces, which follow the model's.

    It loads after the network.
    """

    def __init__(self, name: str, model: torch.nn.Module, optimizer: Any) -> None:
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        super().__init__(name, model, optimizer)
        states = self.optimizer.optimizer.state
        # DeepSpeed ties weights to their moments after the step of the first group, when other groups have none.
        for parameters, flat in zip(
            self.optimizer.bit16_groups, self.optimizer.single_partition_of_fp32_groups, strict=True
        ):
            states[flat] = {"step": torch.tensor(0.0), **{moment: torch.zeros_like(flat) for moment in MOMENTS}}
            lazy_init_hp_params_optimizer_state(parameters, flat, states)
        self.states: list[Tensors] = [states[flat] for flat in self.optimizer.single_partition_of_fp32_groups]

    def gather(self) -> Tensors:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: Tensors = {}
        for name, parameter in trained(self.model).items():
            found |= whole({f"{name}/step": self.states[0]["step"]})
            for moment in MOMENTS:  # one at a time: whole ones may not fit beside the rest
                found |= whole({f"{name}/{moment}": safe_get_full_optimizer_state(parameter, moment)})
        return found

    def load(self, folder: Path) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        self.optimizer.refresh_fp32_params()
        for parameter, moment, values in self.saved(folder):
            if moment == "step":
                for state in self.states:
                    state["step"].copy_(values)
            else:
                safe_set_full_optimizer_state(parameter, values, moment)
