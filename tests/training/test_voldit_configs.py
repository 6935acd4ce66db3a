"""The published VolDiT models, as the package's configs build them; and every config of the package is one."""

import math
from pathlib import Path

import pytest
import torch

from cardiodit import DiT3DTransformerModel, TGCAAdapterModel, VQModel3D
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.training import train_dit, train_prdit, train_segmenter, train_tgca, train_vqgan
from cardiodit.training.adapter_model import halvings
from cardiodit.training.harness.command_line import SHIPPED, Request, read_command_line
from cardiodit.training.settings import (
    DiTSettings,
    PRDiTSettings,
    SegmenterSettings,
    TGCASettings,
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
