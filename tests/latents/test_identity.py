from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import VQModel4D
from cardiodit.imaging import Geometry, Intensity, Preprocessing, Volume
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.latents import identity_of_source, identity_of_steps, identity_of_vae

VOLUME = Volume(np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5), Geometry((1.0, 1.0, 8.0), 0.03))


def test_a_model_keeps_its_identity_through_saving_and_scaling(any_vae: Any, tmp_path: Path) -> None:
    identity = identity_of_vae(any_vae)
    any_vae.register_to_config(scaling_factor=3.0)
    any_vae.save_pretrained(tmp_path)
    assert identity_of_vae(type(any_vae).from_pretrained(tmp_path)) == identity


def test_it_does_not_depend_on_the_precision_in_which_half_weights_are_opened(vae: VQModel4D, tmp_path: Path) -> None:
    vae.half().save_pretrained(tmp_path)
    opened = [VQModel4D.from_pretrained(tmp_path, torch_dtype=dtype) for dtype in (None, torch.float16)]
    assert len({identity_of_vae(model) for model in opened}) == 1


def test_another_weight_code_or_setting_is_another_model(make_vae: Callable[..., VQModel4D]) -> None:
    identities = {identity_of_vae(make_vae()), identity_of_vae(make_vae(num_res_layers=1))}
    identities.add(identity_of_vae(make_vae(preprocessing=Preprocessing().to_dict())))
    for weight in ("encoder.blocks.0.conv.weight", "quantizer.weight"):
        changed = make_vae()
        changed.state_dict()[weight].flatten()[-1] += 1e-6
        identities.add(identity_of_vae(changed))
    assert len(identities) == 5


def test_preprocessing_by_what_it_does_to_voxels() -> None:
    steps = Preprocessing((1, 1, None), (32, 32, 4), 8, intensity=Intensity("p1", "p99"))
    identity = identity_of_steps(steps)
    assert identity_of_steps(Preprocessing.from_dict(steps.to_dict())) == identity
    assert identity_of_steps(replace(steps, spacing=(1.0, 1.0, None))) == identity
    assert identity_of_steps(replace(steps, intensity=Intensity("p1", "p99", typical=(0, 900)))) == identity
    others = [
        {"size": (32, 32, 5)},
        {"frames": None},
        {"orient": False},
        {"cycle": "repeat"},
        {"intensity": Intensity("p1")},
    ]
    assert len({identity, *(identity_of_steps(replace(steps, **other)) for other in others)}) == 1 + len(others)


def test_a_source_by_its_voxels_and_where_they_lie() -> None:
    order = StorageOrder(first_frame=1, first_frame_from="manifest")
    identity = identity_of_source(VOLUME, order)
    fortran = replace(VOLUME, voxels=np.asfortranarray(VOLUME.voxels))
    assert identity_of_source(fortran, replace(order, first_frame_from="mask")) == identity


@pytest.mark.parametrize(
    "volume, order",
    [
        (replace(VOLUME, voxels=VOLUME.voxels + 1), StorageOrder()),
        (replace(VOLUME, voxels=VOLUME.voxels.astype(np.float32)), StorageOrder()),
        (replace(VOLUME, voxels=VOLUME.voxels.reshape(2, 3, 5, 4)), StorageOrder()),
        (replace(VOLUME, geometry=VOLUME.geometry.with_frame_time(0.04)), StorageOrder()),
        (VOLUME, StorageOrder(first_frame=1)),
        (VOLUME, StorageOrder(flips=(2,))),
    ],
)
def test_another_source(volume: Volume, order: StorageOrder) -> None:
    assert identity_of_source(volume, order) != identity_of_source(VOLUME, StorageOrder())
