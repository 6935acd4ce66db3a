"""Small models that every test can afford."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cardiodit import (
    CardioDiTPipeline,
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    VQModel3D,
    VQModel4D,
    make_scheduler,
)

torch.set_num_threads(2)


def randomise(model: torch.nn.Module, seed: int = 0, std: float = 0.05) -> torch.nn.Module:
    """Random trainable weights everywhere: a fresh DiT predicts zero whatever it is shown."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return model.eval()


@pytest.fixture
def make_dit() -> Callable[..., DiT4DTransformerModel]:
    def make(**settings: Any) -> DiT4DTransformerModel:
        small = {"sample_size": (2, 8, 8, 4), "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
        return randomise(DiT4DTransformerModel(**{**small, **settings}))

    return make


@pytest.fixture
def make_dit_3d() -> Callable[..., DiT3DTransformerModel]:
    def make(**settings: Any) -> DiT3DTransformerModel:
        small = {
            "sample_size": (8, 8, 4),
            "patch_size": (2, 2, 2),
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
        }
        return randomise(DiT3DTransformerModel(**{**small, **settings}))

    return make


@pytest.fixture
def make_vae() -> Callable[..., VQModel4D]:
    def make(cls: type = VQModel4D, **settings: Any) -> Any:
        small = {"channels": (8, 16), "num_res_channels": (8, 16), "num_embeddings": 64}
        torch.manual_seed(0)
        return cls(**{**small, **settings}).eval()

    return make


@pytest.fixture
def make_pipe(make_dit: Callable, make_vae: Callable) -> Callable[..., CardioDiTPipeline]:
    def make(solver: str = "dpm++", vae: dict | None = None, **settings: Any) -> CardioDiTPipeline:
        pipe = CardioDiTPipeline(make_vae(**(vae or {})), make_dit(**settings), make_scheduler(solver))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make


@pytest.fixture(params=[VQModel3D, VQModel4D])
def any_vae(request: pytest.FixtureRequest, make_vae: Callable) -> Any:
    return make_vae(request.param)
