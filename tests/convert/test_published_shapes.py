"""Models of other shapes than the golden ones, against plain code for the published networks."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from monai.networks.layers.vector_quantizer import EMAQuantizer, VectorQuantizer
from monai.networks.nets import VQVAE
from monai.networks.nets.vqvae import Decoder, Encoder
from torch import Tensor, nn

from cardiodit.convert import load_transformer, load_vq_model
from cardiodit.errors import CardioDiTError
from cardiodit.models import DiT3DTransformerModel, DiT4DTransformerModel, VQModel3D, VQModel4D


def save(folder: Path, config: dict[str, Any], **entries: Any) -> tuple[Path, Path]:
    torch.save(entries, folder / "best_model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "best_model.pth", folder / "config.yaml"


def assert_matches(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


# --- The transformer, in loops ---


def cells(params: dict[str, Any]) -> list[tuple[int, ...]]:
    """The tokens' places in the grid, the last axis fastest."""
    return list(product(*(range(s // p) for s, p in zip(params["input_size"], params["patch_size"], strict=True))))


def window(cell: tuple[int, ...], params: dict[str, Any]) -> tuple[slice, ...]:
    return tuple(slice(c * p, (c + 1) * p) for c, p in zip(cell, params["patch_size"], strict=True))


def positions(params: dict[str, Any]) -> Tensor:
    axes, hidden = len(params["input_size"]), params["hidden_size"]
    dim = 2 * math.ceil(hidden / (2 * axes))
    table = []
    for cell in cells(params):
        row: list[float] = []
        for place in cell:
            angles = [place * 10000 ** (-2 * i / dim) for i in range(dim // 2)]
            row += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
        table.append(row[:hidden])
    return torch.tensor(table)[None]


def random_weights(params: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state dict in the authors' layout."""
    hidden, mlp = params["hidden_size"], int(params["hidden_size"] * params["mlp_ratio"])
    patch, channels = params["patch_size"], params["in_channels"]
    out = math.prod(patch) * channels * (2 if params["learn_sigma"] else 1)
    linears = {
        "x_embedder.proj": (hidden, channels * math.prod(patch)),
        "t_embedder.mlp.0": (hidden, 256),
        "t_embedder.mlp.2": (hidden, hidden),
        "final_layer.linear": (out, hidden),
        "final_layer.adaLN_modulation.1": (2 * hidden, hidden),
    }
    for block in range(params["depth"]):
        linears |= {
            f"blocks.{block}.attn.qkv": (3 * hidden, hidden),
            f"blocks.{block}.attn.proj": (hidden, hidden),
            f"blocks.{block}.mlp.fc1": (mlp, hidden),
            f"blocks.{block}.mlp.fc2": (hidden, mlp),
            f"blocks.{block}.adaLN_modulation.1": (6 * hidden, hidden),
        }
    generator = torch.Generator().manual_seed(seed)
    weights = {"pos_embed": positions(params)}
    for name, (rows, columns) in linears.items():
        weights[f"{name}.weight"] = torch.randn(rows, columns, generator=generator) / columns**0.5
        weights[f"{name}.bias"] = 0.1 * torch.randn(rows, generator=generator)
    rows = params["num_classes"] + (params["class_dropout_prob"] > 0)
    if len(patch) == 3:  # VolDiT: a convolution embeds the patches, and the label table is always there
        shape = (hidden, channels, *patch)
        weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].reshape(shape)
    if len(patch) == 3 or params["num_classes"]:
        table = torch.randn(rows, hidden, generator=generator)
        weights["y_embedder.embedding_table.weight"] = table
    return weights


def linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ weights[f"{name}.weight"].flatten(1).T + weights[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attention(weights: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    width = x.shape[-1] // heads
    qkv = linear(weights, f"{name}.qkv", x).reshape(len(x), 3, heads, width)
    rows = []
    for head in range(heads):
        q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
        rows.append((q @ k.T / width**0.5).softmax(-1) @ v)
    return linear(weights, f"{name}.proj", torch.cat(rows, -1))


def silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def published_transformer(
    weights: dict[str, Tensor], params: dict[str, Any], x: Tensor, timestep: int, label: int | None
) -> Tensor:
    """One sample (C, *size)."""
    angles = torch.tensor([timestep * 10000 ** (-i / 128) for i in range(128)])
    time = silu(linear(weights, "t_embedder.mlp.0", torch.cat([angles.cos(), angles.sin()])))
    condition = linear(weights, "t_embedder.mlp.2", time)
    if label is not None:
        condition = condition + weights["y_embedder.embedding_table.weight"][label]
    condition = silu(condition)

    patches = torch.stack([x[:, *window(cell, params)].flatten() for cell in cells(params)])
    tokens = linear(weights, "x_embedder.proj", patches) + weights["pos_embed"][0]
    for block in range(params["depth"]):
        name = f"blocks.{block}"
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = linear(
            weights, f"{name}.adaLN_modulation.1", condition
        ).chunk(6)
        attended = layer_norm(tokens) * (1 + scale_a) + shift_a
        tokens = tokens + gate_a * attention(weights, f"{name}.attn", attended, params["num_heads"])
        wide = linear(weights, f"{name}.mlp.fc1", layer_norm(tokens) * (1 + scale_m) + shift_m)
        tokens = tokens + gate_m * linear(weights, f"{name}.mlp.fc2", gelu(wide))
    shift, scale = linear(weights, "final_layer.adaLN_modulation.1", condition).chunk(2)
    predicted = linear(weights, "final_layer.linear", layer_norm(tokens) * (1 + scale) + shift)

    channels = params["in_channels"] * (2 if params["learn_sigma"] else 1)
    result = torch.zeros(channels, *params["input_size"])
    for cell, features in zip(cells(params), predicted, strict=True):
        result[:, *window(cell, params)] = features.reshape(*params["patch_size"], channels).movedim(-1, 0)
    return result


SMALL = {
    "in_channels": 3,
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 4.0,
    "num_classes": 0,
    "class_dropout_prob": 0.0,
    "learn_sigma": False,
}
SHAPES: list[dict[str, Any]] = [
    {"input_size": [4, 6, 8, 3], "patch_size": [2, 3, 4, 1]},
    {"input_size": [3, 4, 8, 4], "patch_size": [1, 4, 2, 2], "mlp_ratio": 2.5, "num_heads": 6, "depth": 3},
    {"input_size": [5, 4, 4, 2], "patch_size": [1, 2, 2, 2], "hidden_size": 36, "learn_sigma": True},
    {"input_size": [2, 4, 4, 2], "patch_size": [1, 2, 2, 1], "num_classes": 3},
    {"input_size": [2, 4, 4, 2], "patch_size": [2, 4, 2, 1], "num_classes": 2, "class_dropout_prob": 0.2},
    {"input_size": [4, 8, 6], "patch_size": [2, 2, 2], "hidden_size": 64},
    {"input_size": [4, 8, 6], "patch_size": [1, 4, 2], "class_dropout_prob": 0.1},
    {"input_size": [4, 4, 4], "patch_size": [2, 2, 2], "num_classes": 2},
]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_transformer(tmp_path: Path, shape: dict[str, Any]) -> None:
    params = {**SMALL, **shape}
    weights = random_weights(params)
    files = save(tmp_path, {"dit": {"params": params, "scheduler": {}}}, model=weights)
    kind = DiT3DTransformerModel if len(params["input_size"]) == 3 else DiT4DTransformerModel
    model = load_transformer(*files, kind=kind)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, params["in_channels"], *params["input_size"], generator=generator)
    timesteps = [0, 271]
    labels = [1, params["num_classes"] - 1] if params["num_classes"] else [None, None]
    ours = model(x, torch.tensor(timesteps), None if labels[0] is None else torch.tensor(labels)).sample
    for sample, one, timestep, label in zip(ours, x, timesteps, labels, strict=True):
        assert_matches(sample, published_transformer(weights, params, one, timestep, label))


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    params = {**SMALL, **SHAPES[0]}
    weights = {name: value.half() for name, value in random_weights(params).items()}
    weights["pos_embed"] = positions(params)
    model = load_transformer(*save(tmp_path, {"dit": {"params": params}}, model=weights))
    assert model.dtype == torch.float32
    assert torch.equal(model.proj_out.weight, weights["final_layer.linear.weight"].float())


def test_a_label_table_that_the_config_does_not_know(tmp_path: Path) -> None:
    params = {**SMALL, **SHAPES[3]}
    files = save(tmp_path, {"dit": {"params": {**params, "num_classes": 0}}}, model=random_weights(params))
    with pytest.raises(CardioDiTError, match=r"unexpected: y_embedder.embedding_table.weight"):
        load_transformer(*files)


# --- The VQ-GAN ---


class PublishedVQ(nn.Module):
    """MONAI's parts put together; its VQVAE itself refuses entries with one number for each axis."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        shared = {
            "spatial_dims": 3,
            "channels": params["num_channels"],
            "num_res_channels": params["num_res_channels"],
            "num_res_layers": params["num_res_layers"],
            "dropout": 0.0,
            "act": "RELU",
        }
        dim = params["embedding_dim"]
        down, up = params["downsample_parameters"], params["upsample_parameters"]
        self.encoder = Encoder(
            in_channels=params["in_channels"], out_channels=dim, downsample_parameters=down, **shared
        )
        self.decoder = Decoder(
            in_channels=dim,
            out_channels=params["out_channels"],
            upsample_parameters=up,
            output_act=None,
            **shared,
        )
        self.quantizer = VectorQuantizer(EMAQuantizer(3, params["num_embeddings"], dim))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        latents = self.encoder(x)
        loss, quantized = self.quantizer(latents)
        return latents, self.decoder(quantized), loss


VQ_PARAMS = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "num_channels": [4, 8, 12],
    "num_res_channels": [6, 8, 10],
    "num_res_layers": 2,
    "num_embeddings": 32,
    "embedding_dim": 5,
}
BOTH = {"down": [2, 4, 1, 1], "up": [2, 4, 1, 1, 0]}
PLANE = {
    "down": [[2, 2, 1], [4, 4, 1], 1, [1, 1, 0]],
    "up": [[2, 2, 1], [4, 4, 1], 1, [1, 1, 0], [0, 0, 0]],
}


@pytest.mark.parametrize("kind", [VQModel4D, VQModel3D])
@pytest.mark.parametrize("levels", [[BOTH, BOTH, PLANE], [PLANE, PLANE, PLANE], [BOTH, PLANE, BOTH]])
@torch.no_grad()
def test_vq_model_with_asymmetric_levels(tmp_path: Path, kind: Any, levels: list[dict[str, Any]]) -> None:
    params = {
        **VQ_PARAMS,
        "downsample_parameters": [level["down"] for level in levels],
        "upsample_parameters": [level["up"] for level in reversed(levels)],
    }
    torch.manual_seed(0)
    reference = PublishedVQ(params).eval()
    files = save(tmp_path, {"stage1": {"params": params}}, model=reference.state_dict())
    model = load_vq_model(*files, kind=kind)
    x = torch.randn(2, 1, 16, 24, 8)
    latents, reconstruction, loss = reference(x)
    assert_matches(model.encode(x).latents, latents)
    assert_matches(model(x).sample, reconstruction)
    assert_matches(model.quantize(latents).commitment_loss, loss)


@torch.no_grad()
def test_vq_model_with_one_entry_for_all_levels(tmp_path: Path) -> None:
    params = {
        **VQ_PARAMS,
        "num_res_channels": 6,
        "downsample_parameters": BOTH["down"],
        "upsample_parameters": BOTH["up"],
    }
    torch.manual_seed(0)
    names = {"channels" if name == "num_channels" else name: value for name, value in params.items()}
    reference = VQVAE(**names, decay=0.99).eval()
    files = save(tmp_path, {"model": {"params": params}}, model=reference.state_dict())
    x = torch.randn(1, 1, 16, 8, 8)
    assert_matches(load_vq_model(*files)(x).sample, reference(x)[0])


@torch.no_grad()
def test_vq_model_continues_training_as_published(tmp_path: Path) -> None:
    params = {**VQ_PARAMS, "downsample_parameters": BOTH["down"], "upsample_parameters": BOTH["up"]}
    names = {"channels" if name == "num_channels" else name: value for name, value in params.items()}
    torch.manual_seed(0)
    reference = VQVAE(**names, decay=0.9, epsilon=1e-3, commitment_cost=0.5).train()
    config = {"stage1": {"params": {**params, "decay": 0.9, "epsilon": "1e-3", "commitment_cost": 0.5}}}
    model = load_vq_model(*save(tmp_path, config, model=reference.state_dict())).train()
    for _ in range(3):
        x = torch.randn(1, 1, 16, 16, 16)
        assert_matches(model(x).sample, reference(x)[0])
        assert_matches(model.quantizer.weight, reference.quantizer.quantizer.embedding.weight)
