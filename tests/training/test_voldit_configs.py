"""The published VolDiT and MedLoRD models, as the package's configs build them; and every config of the package."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import (
    DiT3DTransformerModel,
    MedLoRDControlNetModel,
    MedLoRDUNetModel,
    TGCAAdapterModel,
    VQModel3D,
)
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.models.discriminator import PatchDiscriminator
from cardiodit.training import (
    train_controlnet,
    train_copy_detector,
    train_dit,
    train_prdit,
    train_segmenter,
    train_tgca,
    train_unet,
    train_vqgan,
)
from cardiodit.training.adapter_model import halvings
from cardiodit.training.harness.command_line import SHIPPED, Request, read_command_line
from cardiodit.training.settings import (
    ControlNetSettings,
    CopyDetectorSettings,
    DiTSettings,
    PRDiTSettings,
    SegmenterSettings,
    TGCASettings,
    UNetSettings,
    VQGANSettings,
    build_preprocessing,
)

PLACES = ["--training_ids", "a.csv", "--validation_ids", "b.csv", "--output_dir", "o", "--run_name", "r"]
# Parameters in millions as the authors state them, for patches of 4 and of 2; they count the table of positions, too.
MILLIONS = {"xs": (17.68, 22.84), "s": (33.64, 38.80), "b": (131.87, 142.19), "l": (581.55, 597.03)}
STAGES = {
    "vqgan": (VQGANSettings, train_vqgan, []),
    "dit": (DiTSettings, train_dit, ["--vae", "v"]),
    "tgca": (TGCASettings, train_tgca, ["--base", "b"]),
    "segmenter": (SegmenterSettings, train_segmenter, []),
    "copy": (CopyDetectorSettings, train_copy_detector, []),
    "medlord": (UNetSettings, train_unet, ["--vae", "v"]),
    "controlnet": (ControlNetSettings, train_controlnet, ["--base", "b"]),
    "prdit": (PRDiTSettings, train_prdit, []),
}


def read(name: str) -> Request:
    is_prdit = Path(name).parent.name == "prdit"
    kind, script, more = STAGES["prdit" if is_prdit else Path(name).stem.split("_")[0]]
    add_options = getattr(script, "add_options", lambda parser: None)
    return read_command_line(["--config", name, *PLACES, *more], kind, "d", "e", lambda path, raw: None, add_options)


@pytest.mark.parametrize(
    "name",
    sorted(
        str(f.relative_to(SHIPPED))
        for f in SHIPPED.glob("*/*.yaml")
        if f.parent.name != "accelerate" and f.stem != "facts"
    ),
)
def test_every_shipped_config_is_understood(name: str) -> None:
    assert read(name).settings.training.learning_rate > 0


@pytest.mark.parametrize("size", MILLIONS)
@pytest.mark.parametrize("patch", [4, 2])
def test_the_published_transformers(size: str, patch: int) -> None:
    settings = read(f"voldit/dit_ds8_{size}{patch}.yaml").settings
    said = settings.model
    with torch.device("meta"):
        model = DiT3DTransformerModel(
            sample_size=said.sample_size,
            patch_size=said.patch_size,
            num_layers=said.num_layers,
            num_attention_heads=said.num_attention_heads,
            attention_head_dim=said.attention_head_dim,
        )
    expected = MILLIONS[size][0 if patch == 4 else 1]
    positions = math.prod(model.grid_of(said.sample_size)) * said.num_attention_heads * said.attention_head_dim
    counted = sum(p.numel() for p in model.parameters()) + positions
    assert counted / 1e6 == pytest.approx(expected, abs=0.005)
    training = settings.training
    assert (training.learning_rate, training.weight_decay, training.lr_gamma) == (1e-4, 0.01, 0.999)
    assert (training.num_train_epochs, training.train_batch_size, training.ema_decay) == (1000, 2, 0.9999)


def test_the_published_autoencoder() -> None:
    settings = read("voldit/vqgan_ds8.yaml").settings
    said = settings.model
    with torch.device("meta"):
        model = VQModel3D(
            said.in_channels, said.out_channels, said.channels, said.num_res_channels, said.num_res_layers
        )
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(95.57, rel=0.0015)
    assert tuple(model.scale_factors) == (8, 8, 8)
    assert (said.num_embeddings, said.embedding_dim) == (4096, 8)
    assert build_preprocessing(settings.data.preprocessing) == PRESETS["voldit-tgca"]


@pytest.mark.parametrize(("hidden", "layers", "millions"), [(384, 12, 1.77), (768, 12, 3.10), (1152, 24, 4.42)])
def test_the_published_adapters(hidden: int, layers: int, millions: float) -> None:
    said = read("voldit/tgca_ds8.yaml").settings.adapter
    with torch.device("meta"):
        adapter = TGCAAdapterModel(hidden, layers, channels=said.channels, strides=halvings((32, 32, 32), 4))
    assert sum(p.numel() for p in adapter.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)


# Parameters of MedLoRD's U-Nets in millions, learning rate, batch, epochs, timesteps, decay of the average.
UNETS = {
    "medlord": (166.62, 1e-4, 4, 5000, 300, 0.999),
    "medlord_1000": (166.62, 1e-4, 8, 5000, 1000, 0.999),
    "medlord_3level_300": (215.38, 5e-5, 2, 4000, 300, 0.999),
    "medlord_3level_1000": (215.38, 5e-5, 4, 5000, 300, 0.9999),
    "medlord_wide": (368.26, 5e-5, 4, 5000, 1000, 0.9999),
}


def millions(model: torch.nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def given(section: Any) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}


@pytest.mark.parametrize("name", UNETS)
def test_the_published_unets(name: str) -> None:
    """The authors count a projection in every attention layer that is never applied, and that ours does not have."""
    settings = read(f"medlord/{name}.yaml").settings
    with torch.device("meta"):
        model = MedLoRDUNetModel(**given(settings.model))
    widths = [module.to_q.in_features for module in model.modules() if hasattr(module, "to_q")]
    count, rate, batch, epochs, steps, decay = UNETS[name]
    assert millions(model) + sum(width * (width + 1) for width in widths) / 1e6 == pytest.approx(count, abs=0.005)
    training = settings.training
    assert (training.learning_rate, training.weight_decay, training.lr_gamma) == (rate, 0.01, 0.9995)
    assert (training.train_batch_size, training.num_train_epochs, training.ema_decay) == (batch, epochs, decay)
    assert settings.diffusion.num_train_timesteps == steps


@pytest.mark.parametrize(("ratio", "expected"), [(0.5, 21.91), (1.0, 86.11)])
def test_the_published_controlnet(ratio: float, expected: float) -> None:
    settings = read("medlord/controlnet.yaml").settings
    assert settings.controlnet.width_ratio == 0.5 and settings.conditions.key_dropout_prob == 0.1
    assert settings.training.learning_rate == 7.5e-5 and settings.training.ema_decay == 0.999
    with torch.device("meta"):
        model = MedLoRDControlNetModel(width_ratio=ratio, condition_channels=1)
    assert millions(model) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("name", "expected", "factor", "codes"), [("ds4_new", 22.15, 4, 16384), ("ds8_new", 95.67, 8, 16384)]
)
def test_the_published_autoencoders_of_medlord(name: str, expected: float, factor: int, codes: int) -> None:
    settings = read(f"medlord/vqgan_{name}.yaml").settings
    with torch.device("meta"):
        model, critic = VQModel3D(**given(settings.model)), PatchDiscriminator(**given(settings.discriminator))
    assert millions(model) == pytest.approx(expected, rel=0.0015)
    assert millions(critic) == pytest.approx(11.05, abs=0.01)
    assert tuple(model.scale_factors) == (factor,) * 3 and settings.model.num_embeddings == codes
    assert read("medlord/vqgan_ds4_small.yaml").settings.model.num_embeddings == 8192
