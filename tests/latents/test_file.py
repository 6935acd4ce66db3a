"""Latent files, damaged ones too, and the identities in their headers."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.imaging import Geometry, Intensity, Preprocessing, Volume
from cardiodit.imaging.alignment import Beat
from cardiodit.imaging.orientation import StorageOrder
from cardiodit.latents import (
    LatentHeader,
    identity_of_source,
    identity_of_steps,
    identity_of_vae,
    read_header,
    read_latent,
    write_latent,
)
from cardiodit.latents.file import METADATA, SCHEMA, TENSOR, DamagedLatentError

GEOMETRY = Geometry((1.4, 1.4, 10.0), 0.03, in_scanner=True)
HEADER = LatentHeader("a" * 64, "b" * 64, "c" * 64, "float32", GEOMETRY, (8, 4, 8, 8, 2), 8)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(HEADER.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path: Path, latents: torch.Tensor) -> Path:
    write_latent(tmp_path / "one.safetensors", latents, HEADER)
    return tmp_path / "one.safetensors"


def test_a_written_file_is_read_back(path: Path, latents: torch.Tensor) -> None:
    header, tensor = read_latent(path)
    assert header == HEADER == read_header(path)
    assert torch.equal(tensor, latents) and tensor.dtype == torch.float32
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_same_latents_are_the_same_bytes(path: Path, latents: torch.Tensor) -> None:
    before = path.read_bytes()
    write_latent(path, latents.transpose(2, 3).contiguous().transpose(2, 3), HEADER)
    assert path.read_bytes() == before


def test_only_latents_that_fit_their_header_are_written(tmp_path: Path, latents: torch.Tensor) -> None:
    for wrong in (latents.half(), latents[:4]):
        with pytest.raises(CardioDiTError, match="Expected latents of shape"):
            write_latent(tmp_path / "one.safetensors", wrong, HEADER)
    assert not list(tmp_path.iterdir())


def test_every_truncation_is_noticed_in_the_header(path: Path) -> None:
    content = path.read_bytes()
    lengths = [0, 4, 8, 300, len(content) - 1, *random.Random(0).sample(range(len(content)), 20)]
    for length in lengths:
        path.write_bytes(content[:length])
        with pytest.raises(DamagedLatentError, match=r"one.safetensors is damaged or was cut short"):
            read_header(path)
    path.write_bytes(content + b"0")
    with pytest.raises(DamagedLatentError):
        read_header(path)


def test_other_files_are_not_latents(path: Path, latents: torch.Tensor) -> None:
    good = HEADER.to_dict()
    for metadata in (None, {METADATA: "{"}, {METADATA: json.dumps({**good, "geometry": {}})}):
        save_file({TENSOR: latents}, path, metadata)
        with pytest.raises(DamagedLatentError, match="not a latent file of cardiodit"):
            read_header(path)
    for tensors in ({"weights": latents}, {TENSOR: latents[0]}, {TENSOR: latents.half()}):
        save_file(tensors, path, {METADATA: json.dumps(good)})
        with pytest.raises(DamagedLatentError, match="is damaged"):
            read_header(path)


def test_a_newer_schema_is_not_damage(path: Path, latents: torch.Tensor) -> None:
    newer = json.dumps({"schema": SCHEMA + 1, "something": "else"})
    save_file({TENSOR: latents}, path, {METADATA: newer})
    with pytest.raises(CardioDiTError, match=f"newer version of cardiodit .schema {SCHEMA + 1}") as caught:
        read_header(path)
    assert not isinstance(caught.value, DamagedLatentError)


def test_unknown_geometry_stays_unknown(tmp_path: Path, latents: torch.Tensor) -> None:
    header = replace(HEADER, geometry=Geometry())
    write_latent(tmp_path / "one.safetensors", latents, header)
    assert read_header(tmp_path / "one.safetensors").geometry.spacing is None


def test_a_missing_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="none.safetensors does not exist") as error:
        read_header(tmp_path / "none.safetensors")
    assert isinstance(error.value, CardioDiTError) and not isinstance(error.value, DamagedLatentError)


# --- Identities ---

VOLUME = Volume(np.arange(120, dtype=np.int16).reshape(2, 3, 4, 5), Geometry((1.0, 1.0, 8.0), 0.03))


def test_a_model_keeps_its_identity_through_saving_and_scaling(any_vae: Any, tmp_path: Path) -> None:
    identity = identity_of_vae(any_vae)
    any_vae.register_to_config(scaling_factor=3.0)
    any_vae.save_pretrained(tmp_path)
    assert identity_of_vae(type(any_vae).from_pretrained(tmp_path)) == identity


def test_the_identity_does_not_depend_on_the_precision_of_loading(vae: VQModel4D, tmp_path: Path) -> None:
    vae.half().save_pretrained(tmp_path)
    opened = [VQModel4D.from_pretrained(tmp_path, torch_dtype=dtype) for dtype in (None, torch.float16)]
    assert len({identity_of_vae(model) for model in opened}) == 1


def test_a_changed_weight_code_or_setting_changes_the_identity(make_vae: Callable[..., VQModel4D]) -> None:
    identities = {identity_of_vae(make_vae()), identity_of_vae(make_vae(num_res_layers=1))}
    identities.add(identity_of_vae(make_vae(preprocessing=Preprocessing().to_dict())))
    for weight in ("encoder.blocks.0.conv.weight", "quantizer.weight"):
        changed = make_vae()
        changed.state_dict()[weight].flatten()[-1] += 1e-6
        identities.add(identity_of_vae(changed))
    assert len(identities) == 5


def test_the_identity_of_preprocessing_depends_on_what_it_does_to_voxels() -> None:
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


def test_the_identity_of_a_source_depends_on_voxels_and_geometry() -> None:
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
def test_a_changed_source_has_another_identity(volume: Volume, order: StorageOrder) -> None:
    assert identity_of_source(volume, order) != identity_of_source(VOLUME, StorageOrder())
    beats = [Beat((0, 1, 2, 3, frame)) for frame in (4, 5)]
    assert len({identity_of_source(VOLUME, StorageOrder(), beat) for beat in (None, *beats)}) == 3


# --- Damage ---


def test_every_flipped_byte_is_noticed_or_harmless(path: Path, latents: torch.Tensor) -> None:
    whole = path.read_bytes()
    places = [*range(0, 1500, 3), *range(1500, len(whole), 101)]
    noticed = 0
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            header, tensor = read_latent(path)
        except CardioDiTError as error:
            noticed += 1
            assert path.name in str(error)
        else:
            assert header == HEADER and torch.equal(tensor, latents), place
    assert noticed > 0.9 * len(places)


def test_a_file_of_an_older_version_has_no_checksum_and_is_read(path: Path, latents: torch.Tensor) -> None:
    save_file({TENSOR: latents}, path, {METADATA: json.dumps(HEADER.to_dict(), sort_keys=True)})
    header, tensor = read_latent(path)
    assert header == HEADER and torch.equal(tensor, latents)
