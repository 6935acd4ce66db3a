"""A frozen denoiser with the mask adapter that is trained on it: TGCA, or a ControlNet."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.hub.load import open_transformer
from cardiodit.models.adapter_tgca import TGCAAdapterModel, fingerprint_of
from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
from cardiodit.models.loading import bounded_model
from cardiodit.models.transformer_dit import DiTTransformerModel
from cardiodit.models.unet_medlord import MedLoRDUNetModel
from cardiodit.training.adapter_data import conditions_of
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.harness.state import Average, Checkpointable, Network, Tensors
from cardiodit.training.settings import ControlNetSettings, TGCASettings

CONVOLVED_AXES = 3


class Steered(torch.nn.Module):
    """A frozen base with its adapter. The base always stays in eval mode, since its dropout would change it.

    Args:
        base: the transformer or U-Net.
        adapter: the adapter to train.
        freed: number of last blocks of a transformer that are trained too, with its output head.
    """

    def __init__(self, base: Any, adapter: Any, freed: int = 0) -> None:
        super().__init__()
        if freed and not 0 <= freed <= len(base.transformer_blocks):
            raise CardioDiTError(
                f"adapter.finetune_last_n_blocks={freed}: the base has {len(base.transformer_blocks)} blocks."
            )
        self.base, self.adapter = base.eval().requires_grad_(False), adapter
        if freed:
            for module in (*list(base.transformer_blocks)[-freed:], base.modulation_out, base.proj_out):
                module.requires_grad_(True)

    def train(self, mode: bool = True) -> "Steered":
        super().train(mode)
        self.base.eval()
        return self

    def enable_gradient_checkpointing(self) -> None:
        for model in (self.base, self.adapter):
            if model._supports_gradient_checkpointing:
                model.enable_gradient_checkpointing()

    def compile_repeated_blocks(self, **settings: Any) -> None:
        self.base.compile_repeated_blocks(**settings)

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        condition: torch.Tensor | None = None,
        conditions: torch.Tensor | None = None,
    ) -> Any:
        inputs = {"class_labels": class_labels, "conditions": conditions}
        arguments: dict[str, Any] = {name: value for name, value in inputs.items() if value is not None}
        if condition is not None:
            embedded = self.adapter.embed(condition, self.base, self.base.grid_of(hidden_states.shape[2:]))
            arguments |= self.adapter.control(embedded, self.base, hidden_states, timestep)
        return self.base(hidden_states, timestep, return_dict=return_dict, **arguments)


class AdapterOfTrainedBase:
    """An adapter in a checkpoint whose config names the transformer in the same checkpoint by its fingerprint.

    Args:
        part: the adapter.
        transformer: name of the transformer in the checkpoint, which is written first.
    """

    def __init__(self, part: Network | Average, transformer: str) -> None:
        self.part, self.transformer, self.name = part, transformer, part.name

    def gather(self) -> Tensors:
        return self.part.gather()

    def write(self, tensors: Tensors, folder: Path) -> None:
        base = open_transformer(str(folder / self.transformer))
        self.part.model.register_to_config(fingerprint=fingerprint_of(base))
        self.part.write(tensors, folder)

    def load(self, folder: Path) -> None:
        self.part.load(folder)


def with_fingerprints(parts: Sequence[Network | Average]) -> list[Checkpointable]:
    """Return the parts so that each adapter is saved with the fingerprint of its base, if the base is trained too."""
    names = {part.name for part in parts}
    bases = {part.name: part.name.replace("adapter", "transformer") for part in parts if "adapter" in part.name}
    return [AdapterOfTrainedBase(part, bases[part.name]) if bases.get(part.name) in names else part for part in parts]


def new_adapter(
    settings: TGCASettings,
    base: DiTTransformerModel,
    voxels_per_latent: Sequence[int],
    fingerprint: str | None = None,
) -> TGCAAdapterModel:
    """Make the configured adapter for a base, whose fingerprint it keeps."""
    conditions, section = conditions_of(settings), dict(settings.adapter)
    section.pop("finetune_last_n_blocks")
    voxels_a_token = [patch * voxels for patch, voxels in zip(base.patch_size, voxels_per_latent, strict=True)]
    section["strides"] = section["strides"] or halvings(voxels_a_token[-CONVOLVED_AXES:], len(section["channels"]) - 1)
    if isinstance(section["inject_layers"], tuple):
        section["inject_layers"] = list(section["inject_layers"])
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    with bounded_model():
        return TGCAAdapterModel(
            hidden_size=base.config.num_attention_heads * base.config.attention_head_dim,
            num_layers=base.config.num_layers,
            num_axes=len(base.axis_names),
            condition_channels=conditions.channels,
            condition_keys=list(conditions.keys),
            condition_labels=None if conditions.labels is None else [list(labels) for labels in conditions.labels],
            other_labels=conditions.other_labels,
            fingerprint=fingerprint,
            **section,
        )


def new_controlnet(
    settings: ControlNetSettings,
    base: MedLoRDUNetModel,
    voxels_per_latent: Sequence[int],
    fingerprint: str | None = None,
) -> MedLoRDControlNetModel:
    """Make the configured ControlNet for a base, whose fingerprint it keeps."""
    conditions, section, shape = conditions_of(settings), dict(settings.controlnet), base.config
    factor = voxels_per_latent[0]
    levels = round(math.log2(factor / section["initial_stride"])) + 1
    if section["condition_widths"] is None:
        section["condition_widths"] = [32 * 2**level for level in range(levels)]
    given = section["initial_stride"] * 2 ** (len(section["condition_widths"]) - 1)
    if set(voxels_per_latent) != {given}:
        raise CardioDiTError(
            f"controlnet.initial_stride {section['initial_stride']} and {len(section['condition_widths'])} "
            f"condition_widths divide masks by {given}, but the autoencoder divides volumes by {factor}. Give "
            f"{levels} condition_widths, or omit the key."
        )
    torch.manual_seed(generator_for(seed_for(settings.training.seed, "weights"), 0).initial_seed())
    names = ("in_channels", "block_out_channels", "layers_per_block", "attention_levels", "attention_head_dim")
    return MedLoRDControlNetModel(
        **{name: shape[name] for name in (*names, "norm_num_groups")},
        condition_channels=conditions.channels,
        condition_keys=list(conditions.keys),
        condition_labels=None if conditions.labels is None else [list(labels) for labels in conditions.labels],
        other_labels=conditions.other_labels,
        fingerprint=fingerprint,
        **section,
    )


def halvings(voxels_a_token: Sequence[int], levels: int) -> tuple[tuple[int, ...], ...]:
    """Return the strides of the levels: each axis is halved until a voxel has a token's size, once a level at most."""
    times = [min(levels, int(math.log2(voxels))) for voxels in voxels_a_token]
    return tuple(tuple(2 if level < count else 1 for count in times) for level in range(levels))
