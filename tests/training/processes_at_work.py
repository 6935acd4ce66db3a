"""Runs of training, one after the other, by processes that have their ranks from the environment.

The plan lists runs: `arguments` of a command line, its `stage`, and whether weights are `sharded` (FSDP2). Each process
leaves in the run's folder what it held at the end of stage 1.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed
from accelerate.state import AcceleratorState

from cardiodit.training import train_controlnet, train_dit, train_prdit, train_unet, train_vqgan
from cardiodit.training.harness.command_line import read_command_line
from cardiodit.training.harness.run import Run
from cardiodit.training.harness.state import Checkpointable, Tensors
from cardiodit.training.settings import PRDiTSettings, VQGANSettings
from cardiodit.training.upstream_config import translate_vqgan

SHARDED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "DiTBlock",
}


class TellingRun(Run):
    """A run whose every process writes down what it holds before it leaves."""

    def register(self, parts: Sequence[Checkpointable], optimizers: Sequence[tuple[Any, float]]) -> None:
        super().register(parts, optimizers)
        self.held = parts

    def finish(self) -> None:
        digests = {f"{part.name}/{name}": value for part in self.held for name, value in digests_of(part.gather())}
        (self.folder / f"held-by-{self.accelerator.process_index}.json").write_text(json.dumps(digests))
        super().finish()


def digests_of(tensors: Tensors) -> list[tuple[str, str]]:
    return [(name, hashlib.sha256(tensor.numpy().tobytes()).hexdigest()) for name, tensor in tensors.items()]


def train_an_autoencoder(arguments: Sequence[str]) -> None:
    """`train_vqgan.main`, with a run that tells."""
    request = read_command_line(arguments, VQGANSettings, "", "", translate_vqgan)
    with TellingRun(request, "train_vqgan") as run:
        train_vqgan.train(request, run)


def train_voxels(arguments: Sequence[str]) -> None:
    """`train_prdit.main`, with a run that tells."""
    request = read_command_line(arguments, PRDiTSettings, "", "", None, train_prdit.add_options)
    with TellingRun(request, "train_prdit") as run:
        train_prdit.train(request, run)


STAGES = {
    "train_dit": train_dit.main,
    "train_unet": train_unet.main,
    "train_controlnet": train_controlnet.main,
    "train_vqgan": train_an_autoencoder,
    "train_prdit": train_voxels,
}


def work_off(plan: Path) -> None:
    rank, processes = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    groups = []  # held to the end: thrown away with a run's model, a group may wait for ever for its own thread
    for number, item in enumerate(json.loads(plan.read_text())):
        # Every run ends its process group, and a meeting point serves for one only.
        store = torch.distributed.FileStore(f"{plan}-{number}.store", processes)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=processes)
        groups.append(torch.distributed.group.WORLD)
        sharding = SHARDED if item["sharded"] else {}
        os.environ.update(sharding)
        STAGES[item["stage"]](item["arguments"])
        for name in sharding:
            del os.environ[name]
        AcceleratorState._reset_state(reset_partial_state=True)
