"""Segmenters of every kind, made of small files: their labels, grids and identities."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cardiodit.convert.checkpoint import convert_weights
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features.weights import hash_of_weights
from cardiodit.evaluation.metrics.function import LV, MYO, RV
from cardiodit.evaluation.segmenters import Grid, Segmenter, open_segmenter, segment_planes
from cardiodit.imaging import Geometry
from cardiodit.imaging.label_order import parse_order
from cardiodit.imaging.masks import reorder
from cardiodit.imaging.phantom.heart import draw_heart
from cardiodit.imaging.phantom.scene import Phantom, render
from cardiodit.models.segmenter import HeartSegmenter, dice

MNMS = "LV=1 MYO=2 RV=3"
GEOMETRY = Geometry((2.0, 2.0, 10.0), 0.05)


def small(**settings: Any) -> HeartSegmenter:
    torch.manual_seed(0)
    return HeartSegmenter(channels=(4, 4, 4, 4), **settings).eval()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng([0]).uniform(-1, 1, shape).astype(np.float32)


def drawn(spacing: tuple[float, float, float], size: tuple[int, int, int, int]) -> tuple[np.ndarray, Phantom]:
    random = np.random.default_rng([4242, 0])
    phantom = render(draw_heart("normal", random), size, random, spacing)
    low, high = np.percentile(phantom.image, (0.5, 99.5))
    return np.clip((phantom.image - low) / (high - low) * 2 - 1, -1, 1).astype(np.float32), phantom


# Orders of labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64])
def test_labels_are_mapped_to_our_order(dtype: type) -> None:
    theirs: np.ndarray = np.arange(4).astype(dtype)
    assert reorder(theirs, MNMS).tolist() == [0, LV, MYO, RV]
    assert reorder(theirs, "RV=1 MYO=2 LV=3").tolist() == [0, 1, 2, 3]
    assert reorder(np.array([0, 205, 500, 600]), "MYO=205 LV=500 RV=600").tolist() == [0, MYO, LV, RV]
    assert reorder(theirs, MNMS).dtype == np.uint8


def test_unknown_labels_are_named() -> None:
    with pytest.raises(CardioDiTError, match=r"hold 0, 1, 4, 7, and 4, 7 are not"):
        reorder(np.array([0, 1, 4, 7]), MNMS)
    with pytest.raises(CardioDiTError, match=r"1\.5 is not"):
        reorder(np.array([0, 1.5]), MNMS)
    with pytest.raises(CardioDiTError, match="-1 is not"):
        reorder(np.array([-1, 1]), MNMS)


@pytest.mark.parametrize("order", ["", "RV=1 MYO=2", "RV=1 MYO=1 LV=3", "RV=0 MYO=1 LV=2", "RV=1 MYO=2 LV=3 LV=4"])
def test_an_order_names_three_parts(order: str) -> None:
    with pytest.raises(CardioDiTError, match="order"):
        parse_order(order)


# Our own networks


def test_a_folders_segmenter_gives_the_labels_of_its_model(tmp_path: Path) -> None:
    model, cine = small(), noise(16, 20, 3, 5)
    model.save_pretrained(tmp_path / "mine")
    segmenter = open_segmenter(tmp_path / "mine")
    assert (segmenter.segment(cine, GEOMETRY) == model.segment(cine)).all()
    assert segmenter.identity == hash_of_weights(model)
    assert segmenter.grid == Grid() and segmenter.note == ""
    model.save_pretrained(tmp_path / "run" / "best" / "segmenter")
    assert open_segmenter(tmp_path / "run").identity == segmenter.identity


def test_other_weights_have_another_hash() -> None:
    first, second = small(), small()
    assert hash_of_weights(first) == hash_of_weights(second)
    with torch.no_grad():
        next(second.parameters()).view(-1)[0] += 1e-6
    assert hash_of_weights(first) != hash_of_weights(second)


def test_the_bundled_segmenter_labels_phantoms_at_any_voxel_size() -> None:
    segmenter = open_segmenter("phantom-segmenter")
    assert "phantoms" in segmenter.note and len(segmenter.identity) == 64
    for spacing, size in (((2.25, 2.25, 12.5), (64, 64, 8, 4)), ((1.5, 1.5, 12.5), (96, 100, 8, 2))):
        cine, phantom = drawn(spacing, size)
        labels = segmenter.segment(cine, phantom.geometry)
        assert labels.shape == cine.shape and labels.dtype == np.uint8
        assert min(dice(labels, phantom.labels).values()) > 0.88


def test_a_segmenter_with_a_spacing_needs_the_voxel_size(tmp_path: Path) -> None:
    small(spacing=(2.0, 2.0, 10.0)).save_pretrained(tmp_path / "mine")
    with pytest.raises(CardioDiTError, match="voxel size"):
        open_segmenter(tmp_path / "mine").segment(noise(16, 16, 2, 4), Geometry())


# Resampling to a network's grid and back


def bright(cine: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Label bright voxels."""
    return np.where(cine > 0, 1, 0)


def test_cines_are_resampled_to_the_declared_grid_and_labels_back() -> None:
    seen: dict[str, object] = {}

    def network(cine: np.ndarray, geometry: Geometry) -> np.ndarray:
        seen.update(shape=cine.shape, spacing=geometry.spacing)
        return bright(cine, geometry)

    segmenter = Segmenter("x", "", MNMS, Grid((1.0, 1.0, 10.0), (48, 48, None)), network)
    cine = np.full((30, 30, 4, 2), -1.0, np.float32)
    cine[10:20, 12:18, 1:3, 0] = 1
    labels = segmenter.segment(cine, GEOMETRY)
    assert seen == {"shape": (48, 48, 4, 2), "spacing": (1.0, 1.0, 10.0)}
    assert (labels == np.where(cine > 0, LV, 0)).all()


def test_voxels_outside_the_networks_grid_are_background() -> None:
    segmenter = Segmenter("x", "", MNMS, Grid(size=(10, 10, None)), lambda cine, _: np.ones(cine.shape))
    labels = segmenter.segment(noise(20, 20, 2, 2), GEOMETRY)
    assert (labels[5:15, 5:15] == LV).all() and labels.sum() == LV * 10 * 10 * 2 * 2


def test_labels_of_another_shape_are_refused() -> None:
    segmenter = Segmenter("x", "", MNMS, Grid(), lambda cine, _: cine[..., 0])
    with pytest.raises(CardioDiTError, match="returned labels of the shape"):
        segmenter.segment(noise(8, 8, 2, 3), GEOMETRY)
    with pytest.raises(CardioDiTError, match="shape"):
        segmenter.segment(noise(8, 8, 2), GEOMETRY)


# External networks

CHANNELS = {"0": "background", "1": "lv_pool", "2": "myocardium", "3": "rv_pool"}
NETWORK = {
    "_target_": "UNet",
    "spatial_dims": 2,
    "in_channels": 1,
    "out_channels": 4,
    "channels": [2, 2, 2, 2, 2],
    "strides": [2, 2, 2, 2],
    "num_res_units": 1,
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "ventricular_short_axis_3label"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    metadata = {"network_data_format": {"outputs": {"pred": {"channel_def": CHANNELS}}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (folder / "configs" / "inference.json").write_text(json.dumps({"network_def": NETWORK, "device": "$1/0"}))
    return folder


def plane_network() -> torch.nn.Module:
    from monai.networks.nets.unet import UNet

    torch.manual_seed(1)
    return UNet(**{name: value for name, value in NETWORK.items() if name != "_target_"}).eval()


def test_a_bundles_labels_are_mapped_to_our_order(bundle: Path) -> None:
    network, cine = plane_network(), noise(256, 256, 1, 2)
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    with pytest.raises(CardioDiTError, match=r"convert weights \S+model\.pt --output \S+model\.safetensors"):
        open_segmenter(bundle)
    convert_weights(bundle / "models" / "model.pt", bundle / "models" / "model.safetensors")
    segmenter = open_segmenter(bundle)
    assert segmenter.labels == MNMS and segmenter.identity == hash_of_weights(network)
    image = (cine - cine.min()) / (cine.max() - cine.min())
    with torch.no_grad():
        logits = network(torch.from_numpy(image[:, :, 0]).permute(2, 0, 1)[:, None])
    expected = reorder(logits.argmax(dim=1).permute(1, 2, 0).numpy(), MNMS)  # (H, W, T)
    assert len(np.unique(expected)) > 1
    assert (segmenter.segment(cine, GEOMETRY)[:, :, 0] == expected).all()


class Bright(torch.nn.Module):
    """Label voxels by brightness: 1 from a third, 2 from a half, 3 from two thirds of the range."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = torch.nn.Parameter(torch.tensor([0.33, 0.5, 0.67]))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        part = (planes >= self.edges.view(1, 3, 1, 1)).sum(dim=1)
        return torch.stack([part == 0, part == 1, part == 2, part == 3], dim=1).float()


def by_brightness(cine: np.ndarray) -> np.ndarray:
    share = (cine - cine.min()) / (cine.max() - cine.min())
    return np.digitize(share, [0.33, 0.5, 0.67])


@pytest.mark.parametrize("plane", [(40, 36), (300, 33)])
def test_planes_of_any_size_keep_their_place(plane: tuple[int, int]) -> None:
    cine = noise(*plane, 3, 2)
    assert (segment_planes(Bright(), cine, "cpu") == by_brightness(cine)).all()


def test_damaged_bundles_are_explained(bundle: Path) -> None:
    save_file({"a": torch.ones(1)}, bundle / "models" / "model.safetensors")
    with pytest.raises(CardioDiTError, match="cannot be loaded"):
        open_segmenter(bundle)
    (bundle / "configs" / "metadata.json").write_text("{")
    with pytest.raises(CardioDiTError, match="JSON"):
        open_segmenter(bundle)


CINEMA = """
import torch

class ConvUNetR(torch.nn.Module):
    requested = {}

    @classmethod
    def from_finetuned(cls, repo_id, model_filename, config_filename):
        cls.requested.update(repo_id=repo_id, model=model_filename, config=config_filename)
        return cls()

    def forward(self, images):
        image = images["sax"]
        assert image.shape == (1, 1, 192, 192, 16) and 0 <= image.min() and image.max() <= 1
        return {"sax": torch.cat([torch.full_like(image, 0.5), image, -image, -image], dim=1)}
"""


def test_cinema_gets_its_own_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for its package, whose network takes 192 × 192 × 16 voxels."""
    (tmp_path / "cinema.py").write_text(CINEMA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cinema", raising=False)
    segmenter = open_segmenter("cinema:mnms:2")
    import cinema

    assert cinema.ConvUNetR.requested == {
        "repo_id": "mathpluscode/CineMA",
        "model": "finetuned/segmentation/mnms_sax/mnms_sax_2.safetensors",
        "config": "finetuned/segmentation/mnms_sax/config.yaml",
    }
    cine = np.full((64, 64, 8, 2), -1.0, np.float32)
    cine[20:40, 24:44, 2:5] = 1
    labels = segmenter.segment(cine, Geometry((2.0, 2.0, 10.0)))
    assert (labels == np.where(cine > 0, RV, 0)).all()
    with pytest.raises(CardioDiTError, match="at most 16 slices"):
        segmenter.segment(noise(16, 16, 20, 1), Geometry((2.0, 2.0, 10.0)))


def test_a_function_is_a_segmenter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def find(cine, geometry):\n    return (cine > 0).astype(int)\n\nfind.mask_order = 'LV=1 MYO=2 RV=3'\n"
    (tmp_path / "my_segmenter_of_tests.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    segmenter, cine = open_segmenter("my_segmenter_of_tests:find"), noise(8, 8, 2, 3)
    assert (segmenter.segment(cine, Geometry()) == np.where(cine > 0, LV, 0)).all()
    assert len(segmenter.identity) == 64
    from_file = open_segmenter(f"{tmp_path}/my_segmenter_of_tests.py:find")
    assert from_file.identity == segmenter.identity and from_file.name == "my_segmenter_of_tests.py:find"
    with pytest.raises(CardioDiTError, match="has no lose"):
        open_segmenter("my_segmenter_of_tests:lose")
    with pytest.raises(CardioDiTError, match=r"cannot be imported .* PYTHONPATH and the current folder"):
        open_segmenter("no_such_module_here:find")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that is not on Python's path; changes of the path are reverted after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return tmp_path


def test_a_function_must_declare_its_label_order(here: Path) -> None:
    (here / "silent_segmenter.py").write_text("def find(cine, geometry):\n    return (cine > 0).astype(int)\n")
    with pytest.raises(CardioDiTError, match=r'for example: find\.mask_order = "RV=1 MYO=2 LV=3"'):
        open_segmenter("silent_segmenter:find")
    (here / "vague_segmenter.py").write_text("def find(cine, geometry):\n    pass\n\nfind.mask_order = 'LV=1'\n")
    with pytest.raises(CardioDiTError, match="must name three numbers above 0"):
        open_segmenter("vague_segmenter:find")


def test_a_function_is_found_in_the_current_folder_and_identified_by_its_source(here: Path) -> None:
    order = "find.mask_order = 'LV=1 MYO=2 RV=3'\n"
    identities = []
    for limit in ("0", "0.25"):
        (here / "own_parts.py").write_text(
            f"def find(cine, geometry):\n    return (cine > {limit}).astype(int)\n{order}"
        )
        (here / "own_entry.py").write_text("from own_parts import find\n")
        identities.append(open_segmenter("own_entry:find").identity)
        for name in ("own_parts", "own_entry"):
            del sys.modules[name]
    assert len(set(identities)) == 2  # although the named module itself is the same


def test_the_error_explains_what_is_not_a_segmenter(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="no segmenter nothing"):
        open_segmenter("nothing")
    with pytest.raises(CardioDiTError, match="contains no segmenter"):
        open_segmenter(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "VQModel4D"}')
    with pytest.raises(CardioDiTError, match="VQModel4D"):
        open_segmenter(tmp_path)
