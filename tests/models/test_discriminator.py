from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks.nets import PatchDiscriminator as Reference

from cardiodit.errors import CardioDiTError
from cardiodit.models.discriminator import PatchDiscriminator

SMALL = {"num_channels": 4, "num_layers_d": 2}
SETTINGS: list[dict[str, Any]] = [
    {},
    {"kernel_size": 4, "norm": "INSTANCE", "last_conv_kernel_size": 1},
    {"norm": ("GROUP", {"num_groups": 2}), "activation": "RELU", "bias": True, "out_channels": 2},
]


def image() -> torch.Tensor:
    return torch.randn(2, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", SETTINGS)
def test_same_names_and_outputs_as_monai(settings: dict[str, Any]) -> None:
    ours = PatchDiscriminator(**SMALL, **settings)
    theirs = Reference(
        **{
            "spatial_dims": 3,
            "in_channels": 1,
            "channels": 4,
            "num_layers_d": 2,
            "kernel_size": 3,
            **settings,
        }
    )
    theirs.load_state_dict(ours.state_dict())
    for ours_out, theirs_out in zip(ours.eval()(image()), theirs.eval()(image()), strict=True):
        assert torch.equal(ours_out, theirs_out)


def test_published_size() -> None:
    assert sum(p.numel() for p in PatchDiscriminator().parameters()) == 4_662_273


@pytest.mark.parametrize("settings", SETTINGS)
def test_saves_and_loads(tmp_path: Path, settings: dict[str, Any]) -> None:
    model = PatchDiscriminator(**SMALL, **settings)
    model(image())  # moves the running statistics of batch normalisation
    model.eval().save_pretrained(tmp_path)
    loaded = PatchDiscriminator.from_pretrained(tmp_path)
    assert torch.equal(loaded(image())[-1], model(image())[-1])
    assert (tmp_path / "diffusion_pytorch_model.safetensors").exists()


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    PatchDiscriminator(**SMALL).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"num_channels": 4', '"num_channels": 8'))
    with pytest.raises(CardioDiTError):
        PatchDiscriminator.from_pretrained(tmp_path)
