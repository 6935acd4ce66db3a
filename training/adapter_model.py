"""A frozen transformer with the adapter that is trained on it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.hub.load import open_transformer
from cardiodit.models.adapter_tgca import TGCAAdapterModel, fingerprint_of
from cardiodit.models.conditions import Conditions
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.training.harness.sampler import seed_for
from cardiodit.training.harness.state import Average, Network, Part, Tensors
from cardiodit.training.settings import TGCASettings

CONVOLVED = 3  # axes


class Steered(torch.nn.Module):
    """The base, frozen and in eval mode whatever is asked of the whole, and its adapter.

    Args:
        base: its last `freed` blocks and its head are trained, too.
        adapter: is trained.
    """

    def __init__(self, base: DiTTransformerModel, adapter: TGCAAdapterModel, freed: int = 0) -> None:
        super().__init__()
        if not 0 <= freed <= len(base.transformer_blocks):
            raise CardioDiTError(
                f"adapter.finetune_last_n_blocks={freed}: the base has {len(base.transformer_blocks)} blocks."
            )
        self.base, self.adapter = base.eval().requires_grad_(False), adapter
        for module in freed_modules(base, freed):
            module.requires_grad_(True)

    def train(self, mode: bool = True) -> "Steered":
        """Dropout in the base would make another model of it."""
        super().train(mode)
        self.base.eval()
        return self

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        condition: torch.Tensor | None = None,
    ) -> Any:
        controls = None
        if condition is not None:
            tokens = self.adapter.embed(condition, self.base, self.base.grid_of(hidden_states.shape[2:]))
            controls = self.adapter(tokens, self.base.embed_time(hidden_states, timestep))
        return self.base(hidden_states, timestep, class_labels, return_dict, block_controls=controls)


def freed_modules(base: DiTTransformerModel, freed: int) -> list[torch.nn.Module]:
    """The last blocks and the head; none for 0."""
    blocks = list(base.transformer_blocks)[-freed:] if freed else []
    return [*blocks, base.modulation_out, base.proj_out] if freed else []


class AdapterBeside:
    """An adapter's part of a checkpoint: its config tells which transformer was written beside it.

    Args:
        part: the adapter's.
        transformer: name of the transformer's part, which is written before.
    """

    def __init__(self, part: Network | Average, transformer: str) -> None:
        self.part, self.transformer, self.name = part, transformer, part.name

    def gather(self) -> Tensors:
        return self.part.gather()

    def write(self, tensors: Tensors, folder: Path) -> None:
        beside = open_transformer(str(folder / self.transformer))
        self.part.model.register_to_config(fingerprint=fingerprint_of(beside))
        self.part.write(tensors, folder)

    def load(self, folder: Path) -> None:
        self.part.load(folder)


def with_fingerprints(parts: Sequence[Network | Average]) -> list[Part]:
    """The same parts. Where the transformer is trained, too, each adapter keeps the fingerprint of its own."""
    names = {part.name for part in parts}
    beside = {part.name: part.name.replace("adapter", "transformer") for part in parts if "adapter" in part.name}
    return [
        AdapterBeside(part, beside[part.name]) if beside.get(part.name) in names else part  # of a frozen base: has it
        for part in parts
    ]


def conditions_of(settings: TGCASettings) -> Conditions:
    said = settings.conditions
    return Conditions(said.keys, said.labels, said.other_labels)


def new_adapter(
    settings: TGCASettings,
    base: DiTTransformerModel,
    voxels_per_latent: Sequence[int],
    fingerprint: str | None = None,
) -> TGCAAdapterModel:
    """As the config says, for this base, whose fingerprint it keeps."""
    said, conditions = settings.adapter, conditions_of(settings)
    labels = conditions.labels
    voxels_a_token = [patch * voxels for patch, voxels in zip(base.patch_size, voxels_per_latent, strict=True)]
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    return TGCAAdapterModel(
        hidden_size=base.config.num_attention_heads * base.config.attention_head_dim,
        num_layers=base.config.num_layers,
        num_axes=len(base.axis_names),
        condition_channels=conditions.channels,
        condition_keys=list(conditions.keys),
        condition_labels=None if labels is None else [list(found) for found in labels],
        inject_layers=list(said.inject_layers) if isinstance(said.inject_layers, tuple) else said.inject_layers,
        channels=said.channels,
        strides=said.strides or halvings(voxels_a_token[-CONVOLVED:], len(said.channels) - 1),
        normalise_control=said.normalise_control,
        fingerprint=fingerprint,
        other_labels=conditions.other_labels,
    )


def halvings(voxels_a_token: Sequence[int], levels: int) -> tuple[tuple[int, ...], ...]:
    """Strides of the levels, so that along each axis a voxel becomes as large as a token, as far as halving goes."""
    times = [min(levels, int(math.log2(voxels))) for voxels in voxels_a_token]
    return tuple(tuple(2 if level < count else 1 for count in times) for level in range(levels))
