"""One volume, measured with stand-ins whose answers are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import VQModel4D
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.evaluators import MASKS, SEGMENTER, Evaluators
from cardiodit.evaluation.measure import content_of, measure
from cardiodit.evaluation.metrics.timing import QUANTITIES
from cardiodit.evaluation.segmenters import Grid, Segmenter
from cardiodit.evaluation.volume_sets import TRAINING, Item, open_real
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.volume import Volume

ORDER = "RV=1 MYO=2 LV=3"
AS_STORED = Preprocessing(intensity=Intensity(-1, 1), orient=False)
NOTHING = Evaluators({})


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Item:
    return open_real(write_cohort(tmp_path_factory.mktemp("hearts") / "c", num=1, size=(48, 48, 6, 10))).items[0]


def bright(cine: np.ndarray, geometry: Geometry) -> np.ndarray:
    return np.where(cine > 0.5, 3, 0)


def segmenter(network: Callable[[np.ndarray, Geometry], np.ndarray] = bright) -> Segmenter:
    return Segmenter("own:find", "", ORDER, Grid(), network)


def test_a_repeated_beat_has_all_numbers_but_those_of_a_whole_one(phantom: Item) -> None:
    whole = measure(phantom, Preprocessing(frames=10), NOTHING, MASKS)
    repeated = measure(phantom, Preprocessing(frames=13, cycle="repeat"), NOTHING, MASKS)
    missing = {name for name in whole.numbers if name not in repeated.numbers}
    rates = {f"{side}_peak_{name}" for side in ("lv", "rv") for name in ("ejection_ml_s", "filling_ml_s")}
    rates |= {f"{side}_peak_{name}" for side in ("lv", "rv") for name in ("ejection_edv_s", "filling_edv_s")}
    timing = {quantity.name for quantity in QUANTITIES}
    assert missing == {*rates, *timing, "frame_gap", "label_gap", "heart_rate_bpm"} and "cycle_gap" in timing
    assert set(repeated.plausible) == set(whole.plausible) - {"cycle_gap"} and all(repeated.plausible.values())
    for name in ("lv_edv_ml", "lv_esv_ml", "rv_ef_percent", "lv_mass_g", "wall_thickening_percent", "lv_body_share"):
        assert repeated.numbers[name] == whole.numbers[name]
    assert len(repeated.curves["lv_volume_ml"]) == 13


@pytest.mark.parametrize(("share", "is_whole"), [("0.82", False), ("1.03", True), ("", True)])
def test_a_part_of_a_beat_has_no_rates(phantom: Item, share: str, is_whole: bool) -> None:
    """Prospective gating leaves the end of diastole out: a gap is not a jump, and its rate is unknown."""
    assert phantom.case is not None
    case = replace(phantom.case, row={**phantom.case.row, "beat_share": share})
    found = measure(replace(phantom, case=case), Preprocessing(frames=10), NOTHING, MASKS)
    for name in ("lv_peak_filling_ml_s", "rv_peak_ejection_edv_s", "frame_gap", "cycle_gap"):
        assert (name in found.numbers) == is_whole
    assert found.numbers["lv_ef_percent"] == measure(phantom, Preprocessing(), NOTHING, MASKS).numbers["lv_ef_percent"]


def test_end_diastole_and_end_systole_alone_have_volumes_and_no_curve(phantom: Item, tmp_path: Path) -> None:
    assert phantom.case is not None
    mask = phantom.case.path("mask")
    assert mask is not None
    labels, end_systole = read_labels(mask), int(phantom.case.row["es_frame"])
    whole = measure(phantom, Preprocessing(), NOTHING, MASKS).numbers
    row = {"image": str(phantom.image), "mask_order": ORDER, "slices": "base to apex", "ed_frame": 0}
    for name, t in (("ed_mask", 0), ("es_mask", end_systole)):
        write_nifti(tmp_path / f"{name}.nii.gz", labels.voxels[..., t], labels.geometry)
        row[name] = str(tmp_path / f"{name}.nii.gz")
    write_manifest(tmp_path / "m.csv", [row])
    sparse = open_real(tmp_path / "m.csv").items[0]
    found = measure(sparse, Preprocessing(frames=7), NOTHING, MASKS)  # resampled, the frame itself is gone
    assert found.plausible is None and not found.curves
    names = {f"{side}_{name}" for side in ("lv", "rv") for name in ("edv_ml", "esv_ml", "sv_ml", "ef_percent")}
    names |= {"lv_mass_g", "wall_thickening_percent"}
    assert {name: value for name, value in found.numbers.items() if name in whole and name in names} == pytest.approx(
        {name: whole[name] for name in names}
    )
    names |= {"rv_direction_deg", "lv_taper", "ring_leak_share", "rv_ring_leak_share"}
    whole_beat = {"heart_rate_bpm", "farthest_frame_percent"}
    of_images = {n for n in whole if n.startswith(("frame_", "slice_", "voxel_"))} - {"slice_dice"}
    assert set(found.numbers) - names == of_images | whole_beat
    assert found.numbers["rv_direction_deg"] == pytest.approx(whole["rv_direction_deg"])


def test_only_the_features_of_training_volumes_are_measured(phantom: Item) -> None:
    assert measure(replace(phantom, set=TRAINING), Preprocessing(), NOTHING, None).numbers == {}


def test_manifests_of_bodies_index_the_volumes(phantom: Item) -> None:
    assert phantom.case is not None
    case = replace(phantom.case, row={**phantom.case.row, "height": "180", "weight": "80"})
    found = measure(replace(phantom, case=case), Preprocessing(), NOTHING, MASKS).numbers
    assert found["lv_edv_index_ml_m2"] == pytest.approx(found["lv_edv_ml"] / 2)
    assert 50 < found["heart_rate_bpm"] < 90  # of the phantom's frame time


def test_a_copy_is_one_at_any_frame_time() -> None:
    voxels = np.random.default_rng(0).uniform(-1, 1, (4, 4, 2, 3)).astype(np.float32)
    first, second = (Volume(voxels, Geometry((1.0, 1.0, mm), mm / 100)) for mm in (5.0, 8.0))
    assert content_of(first) == content_of(second)
    assert content_of(first) != content_of(Volume(voxels.reshape(4, 4, 3, 2), first.geometry))
    changed = voxels.copy()
    changed[0, 0, 0, 0] += 1e-6
    assert content_of(first) != content_of(Volume(changed, first.geometry))


def written(folder: Path, cine: np.ndarray) -> Item:
    write_nifti(folder / "image.nii.gz", cine, Geometry((5.0, 5.0, 10.0), 0.1))
    write_manifest(folder / "m.csv", [{"image": "image.nii.gz"}])
    return open_real(folder / "m.csv").items[0]


def test_whatever_foreign_code_raises_is_a_sentence_about_the_volume(tmp_path: Path) -> None:
    def lose(cine: np.ndarray, geometry: Geometry) -> np.ndarray:
        return cine[..., [99]]

    def features(voxels: np.ndarray, spacing: object) -> np.ndarray:
        raise KeyError("stem")

    item = written(tmp_path, np.random.default_rng(0).uniform(-1, 1, (8, 8, 2, 4)).astype(np.float32))
    broken = Evaluators({}, segmenter(lose))
    with pytest.raises(CardioDiTError, match=r"The segmenter own:find failed: IndexError: index 99 is out of bounds"):
        measure(item, AS_STORED, broken, SEGMENTER)
    network: Any = SimpleNamespace(name="own:net", features=features)
    with pytest.raises(CardioDiTError, match=r"The feature network own:net failed: KeyError: 'stem'"):
        measure(item, AS_STORED, Evaluators({"spatial": network}), None)


class Eraser(VQModel4D):
    """A stand-in whose reconstructions are dark in the third row of voxels."""

    def encode(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(latents=x)

    def quantize(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(latents=latents, indices=torch.zeros(1, dtype=torch.long))

    def decode(self, z: torch.Tensor, force_not_quantize: bool = False) -> Any:
        image = z.clone()
        image[:, :, 2] = -1
        return SimpleNamespace(sample=image)


def test_what_a_known_reconstruction_costs(tmp_path: Path, make_vae: Callable) -> None:
    cine = np.full((16, 16, 2, 4), -1, np.float32)
    for t, rows in enumerate((4, 3, 2, 3)):  # of 4 voxels in 2 slices, a quarter of a mL each
        cine[1 : 1 + rows, 4:8, :, t] = 0.9
    item = written(tmp_path, cine)
    numbers = measure(item, AS_STORED, Evaluators({}, segmenter(), make_vae(Eraser)), SEGMENTER).numbers
    assert (numbers["lv_edv_ml"], numbers["lv_esv_ml"], numbers["lv_ef_percent"]) == pytest.approx((8, 4, 50))
    assert numbers["reconstruction_lv_edv_shift_ml"] == pytest.approx(-2)
    assert numbers["reconstruction_lv_ef_shift_percent"] == pytest.approx(100 * (6 - 2) / 6 - 50)
    assert numbers["reconstruction_lv_ef_error_percent"] == numbers["reconstruction_lv_ef_shift_percent"]
    lost = 4 * 4 * 2 / cine.size  # of all voxels: the third row in each frame
    assert numbers["reconstruction_l1"] == pytest.approx(1.9 * lost, rel=1e-5)
    assert numbers["reconstruction_psnr"] == pytest.approx(10 * np.log10(4 / (1.9**2 * lost)), rel=1e-5)
    bare = measure(item, AS_STORED, Evaluators({}, None, make_vae(Eraser)), None).numbers
    assert {name for name in bare if name.startswith("reconstruction")} == {
        "reconstruction_l1",
        "reconstruction_psnr",
        "reconstruction_ssim",
    }
