import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cardiodit import CardioDiTError
from cardiodit.imaging import Geometry
from cardiodit.latents import LatentHeader, read_header, read_latent, write_latent
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


def test_what_is_written_is_read(path: Path, latents: torch.Tensor) -> None:
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
        with pytest.raises(CardioDiTError, match="were expected, got"):
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


def test_other_files_are_no_latents(path: Path, latents: torch.Tensor) -> None:
    good = HEADER.to_dict()
    for metadata in (None, {METADATA: "{"}, {METADATA: json.dumps({**good, "geometry": {}})}):
        save_file({TENSOR: latents}, path, metadata)
        with pytest.raises(DamagedLatentError, match="no latent file of ours"):
            read_header(path)
    for tensors in ({"weights": latents}, {TENSOR: latents[0]}, {TENSOR: latents.half()}):
        save_file(tensors, path, {METADATA: json.dumps(good)})
        with pytest.raises(DamagedLatentError, match="is damaged"):
            read_header(path)


def test_a_newer_schema_is_not_taken_for_damage(path: Path, latents: torch.Tensor) -> None:
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
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none.safetensors")
