"""The copy detector: golden values of the published network and loss, cines, and unusable sizes."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cardiodit.errors import CardioDiTError
from cardiodit.models.copy_detector import CopyDetector, nt_xent, scaled

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden" / "memorization"


def draws(text: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.RandomState(zlib.crc32(text.encode())).standard_normal(shape)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


@pytest.fixture(scope="module")
def published() -> CopyDetector:
    """The tiny published detector, with weights by the rule of the golden values."""
    table: dict[str, Any] = json.loads((GOLDEN / "case.json").read_text())["table"]
    weights = {
        key: torch.from_numpy(start + size * draws(f"detector/{key}", tuple(shape))).float()
        for key, (shape, start, size) in table.items()
        if not key.startswith("sup_layer")  # not used by the published code either
    }
    model = CopyDetector(size=(8, 32, 32), is_cine=False)
    model.load_state_dict(weights)
    return model.eval()


def close(found: torch.Tensor, golden: torch.Tensor) -> bool:
    return bool((found - golden).abs().max() <= 1e-5 * golden.abs().max())


def test_it_computes_what_the_published_network_computes(published: CopyDetector, expected: dict) -> None:
    inputs = scaled(expected["volume"][:, None])
    assert close(inputs, expected["scaled"])
    with torch.no_grad():
        hidden = published.encoder(inputs)
        assert close(torch.stack([hidden.mean(), hidden.std()]), expected["encoder_mean_and_std"])
        assert close(published.conv3D(hidden), expected["conv"])
        assert close(published(inputs), expected["embedding"])


def test_the_contrastive_loss_is_the_published_one(expected: dict) -> None:
    first = draws("ntxent/a", (6, 32))
    second = first + 1.5 * draws("ntxent/b", (6, 32))
    loss = nt_xent(torch.from_numpy(first).float(), torch.from_numpy(second).float())
    assert close(loss, expected["ntxent_loss"][0])


def test_published_sizes_have_as_many_weights() -> None:
    with torch.device("meta"):
        knee, heart = CopyDetector((32, 256, 256), is_cine=False), CopyDetector((64, 64, 64), is_cine=False)
    assert sum(p.numel() for p in knee.parameters()) == pytest.approx(120.3e6, rel=1e-3)
    assert sum(p.numel() for p in heart.parameters()) == pytest.approx(7.56e6, rel=1e-3)


def test_a_cine_has_one_embedding_for_each_slice_whatever_its_number_of_frames() -> None:
    model = CopyDetector(size=(8, 16, 16)).eval()
    cine = np.random.default_rng(0).uniform(-1, 1, (20, 24, 3, 11)).astype(np.float32)
    rows = model.embed(cine)
    assert rows.shape == (3, 32)
    assert np.allclose(model.embed(cine[:, :, 1:2]), rows[1:2], atol=1e-5)
    with pytest.raises(CardioDiTError, match="trained on cines and was given a volume"):
        model.embed(cine[..., 0])


def test_a_beat_is_a_cycle() -> None:
    """A shift by whole strides only moves the features: the padding does not mark the first frame."""
    model = CopyDetector(size=(8, 16, 16)).eval()
    slices = torch.rand(1, 1, 8, 16, 16) * 2 - 1
    with torch.no_grad():
        first, later = model.encoder(slices), model.encoder(slices.roll(2, dims=2))
    assert torch.allclose(first.roll(1, dims=2), later, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"), [({"size": (6, 16, 16)}, "powers of two"), ({"width": 8}, "multiple")]
)
def test_impossible_sizes_are_explained(settings: dict, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        CopyDetector(**settings)


def test_it_is_saved_and_opened(tmp_path: Path) -> None:
    model = CopyDetector(size=(4, 8, 8), width=16).eval()
    model.save_pretrained(tmp_path)
    opened = CopyDetector.from_pretrained(tmp_path).eval()
    cine = np.random.default_rng(0).uniform(-1, 1, (8, 8, 2, 4)).astype(np.float32)
    assert np.array_equal(model.embed(cine), opened.embed(cine))
