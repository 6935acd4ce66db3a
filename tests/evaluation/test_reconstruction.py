"""Reconstruction: numbers against their definitions, the report's files, and the command that writes them."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cardiodit import VQModel3D, VQModel4D
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.reconstruction import (
    Reconstruction,
    Report,
    check_preparation,
    judge,
    reconstruct,
    reconstruct_cohort,
)
from cardiodit.imaging import Geometry, Intensity, Preprocessing, prepare_case, read_manifest
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.volume import Volume

from ..conftest import copy_chests

STEPS = Preprocessing(size=(32, 32, None), frames=8)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort") / "hearts", num=2, size=(32, 32, 3, 8))


@pytest.fixture
def vae_folder(make_vae: Callable, tmp_path: Path) -> Path:
    make_vae(preprocessing=STEPS.to_dict()).save_pretrained(tmp_path / "vae")
    return tmp_path / "vae"


def test_a_reconstruction_is_that_of_the_model_at_any_batch_size(make_vae: Callable, manifest: Path) -> None:
    vae, prepared = make_vae().train(), prepare_case(read_manifest(manifest)[0], STEPS)
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    results = [reconstruct(vae, prepared, batch_size) for batch_size in (1, 2, 3)]
    assert vae.training and all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    vae.eval()
    with torch.no_grad():
        latents = vae.encode(prepared.tensor()[None]).latents
        expected = vae.decode(latents).sample.clamp(-1, 1)[0, 0].permute(1, 2, 0, 3).numpy()
        unquantised = vae.decode(latents, force_not_quantize=True).sample.clamp(-1, 1)[0, 0].permute(1, 2, 0, 3)
        codes = vae.quantize(latents).indices.flatten().numpy()
    for result in results:
        np.testing.assert_allclose(result.voxels, expected, atol=1e-5)
        np.testing.assert_allclose(result.unquantised, unquantised.numpy(), atol=1e-5)
        assert result.code_counts.tolist() == np.bincount(codes, minlength=64).tolist()
    assert results[0].voxels.shape == prepared.volume.voxels.shape


def test_the_numbers_of_a_volume() -> None:
    random = np.random.default_rng(0)
    image = random.uniform(-1, 1, (16, 16, 2, 3)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[7:9, 7:9, 0, 1] = 3
    voxels, unquantised = image + 0.2, image - 0.05
    voxels[7 - 3 : 9 + 3, 7:9, 0, 1] += 0.2
    quality = judge(1, "a", image, Reconstruction(voxels, unquantised, np.ones(4, int)), labels)
    near = 8 * 2 / image.size  # of all voxels, those with twice the error
    assert quality.l1 == pytest.approx(0.2 * (1 + near), rel=1e-5)
    assert quality.psnr == pytest.approx(10 * np.log10(4 / (0.04 * (1 + 3 * near))), rel=1e-5)
    assert quality.l1_unquantised == pytest.approx(0.05, rel=1e-4)
    assert quality.quantisation_share == pytest.approx(1 - 0.05 / quality.l1, rel=1e-4)
    # 2 × 2 voxels and all that can be reached from them in three steps within the plane: a diamond of 40 voxels.
    heart = 2 * 8 + 2 * (2 * 6 // 2 + 2 * 4 // 2 + 2 * 2 // 2)
    assert heart == 40 and quality.heart_l1 == pytest.approx((0.2 * heart + 0.2 * 16) / heart, rel=1e-5)
    perfect = judge(1, "a", image, Reconstruction(image, image, np.ones(4, int)))
    assert (perfect.l1, perfect.psnr, perfect.quantisation_share, perfect.heart_l1) == (0, np.inf, 0, None)
    assert perfect.ssim == pytest.approx(1)


class Brighter(VQModel4D):
    """A stand-in whose codes are its image, brighter by 0.1; without the codebook it is exact."""

    def encode(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(latents=x)

    def quantize(self, latents: torch.Tensor) -> Any:
        return SimpleNamespace(latents=latents + 0.1, indices=torch.zeros(7, dtype=torch.long))

    def decode(self, z: torch.Tensor, force_not_quantize: bool = False) -> Any:
        assert force_not_quantize
        return SimpleNamespace(sample=z)


def test_a_known_change_has_known_numbers(make_vae: Callable) -> None:
    voxels = np.random.default_rng(0).uniform(-0.8, 0.8, (16, 16, 3, 4)).astype(np.float32)
    steps = Preprocessing(intensity=Intensity(-1, 1), orient=False)
    prepared = steps(Volume(voxels, Geometry((1.0, 1.0, 1.0))))
    result = reconstruct(make_vae(Brighter), prepared, batch_size=2)
    quality = judge(1, "a", voxels, result)
    np.testing.assert_allclose(result.voxels, voxels + 0.1, atol=1e-6)
    assert quality.l1 == pytest.approx(0.1, rel=1e-5) and quality.psnr == pytest.approx(
        10 * np.log10(4 / 0.01), rel=1e-5
    )
    assert quality.l1_unquantised == 0 and quality.quantisation_share == 1
    assert result.code_counts[0] == 2 * 7 and result.code_counts.sum() == 2 * 7


def test_volumes_must_be_prepared_as_in_the_models_training(make_vae: Callable) -> None:
    vae = make_vae(preprocessing=STEPS.to_dict())
    assert check_preparation(vae, STEPS) is None
    typical = replace(STEPS, intensity=replace(STEPS.intensity, typical=(0.0, 900.0)))
    deeper = replace(STEPS, size=(32, 32, 9))  # it encodes slice by slice
    assert check_preparation(vae, typical) is None and check_preparation(vae, deeper) is None
    other = replace(STEPS, frames=16, intensity=Intensity("p1", "p99"))
    with pytest.raises(
        CardioDiTError, match=r"prepared volumes \(frames 8 there and 16 here; intensity .*leave --reconst"
    ):
        check_preparation(vae, other)
    note = check_preparation(make_vae(), STEPS)
    assert note is not None and "does not say how its training volumes were prepared" in note
    deep = make_vae(VQModel3D, preprocessing=Preprocessing(size=(32, 32, 16)).to_dict())
    with pytest.raises(CardioDiTError, match=r"size \[32, 32, 16\] there and \[32, 32, 8\] here"):
        check_preparation(deep, Preprocessing(size=(32, 32, 8)))


def test_the_codebook_over_the_cohort() -> None:
    assert Report([], np.array([5, 5, 5, 5, 0, 0, 0, 0]), STEPS).perplexity == pytest.approx(4)
    assert Report([], np.array([9, 0, 0]), STEPS).perplexity == pytest.approx(1)
    skewed = Report([], np.array([3, 1]), STEPS)
    assert skewed.perplexity == pytest.approx(np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25)))
    assert Report([], np.array([9, 0, 1]), STEPS).used_codes == 2


def test_the_command_writes_a_table_a_summary_and_pictures(
    manifest: Path, vae_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["reconstruct", "--ids", str(manifest), "--vae", str(vae_folder), "--output_dir", str(out)]) == 0
    rows = list(csv.DictReader((out / "reconstruction.csv").open()))
    assert [row["subject"] for row in rows] == [case.subject for case in read_manifest(manifest)]
    assert [row["file"] for row in rows] == [case.image.name for case in read_manifest(manifest)]
    summary = json.loads((out / "summary.json").read_text())
    for name in ("l1", "psnr", "ssim", "heart_l1", "heart_psnr", "l1_unquantised", "quantisation_share"):
        assert summary[name] == pytest.approx(np.mean([float(row[name]) for row in rows]), rel=1e-4)
    assert summary["volumes"] == summary["volumes_with_mask"] == 2
    assert summary["latent_vectors"] == 2 * 3 * 8 * 8 * 2
    assert summary["codes_used_share"] == summary["codes_used"] / 64 and summary["preprocessing"] == STEPS.to_dict()
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [
        "0001.gif",
        "0001.png",
        "0002.gif",
        "0002.png",
    ]
    gif = Image.open(out / "pictures" / "0001.gif")
    assert gif.n_frames == 8 and gif.size == (3 * 128, 2 * 128)
    printed = capsys.readouterr().out
    assert re.search(r"^phantom-0000\.nii\.gz +0\.", printed, re.MULTILINE)
    assert "pictures (0001 phantom-0000.nii.gz, 0002 phantom-0001.nii.gz)" in printed
    assert "mean of 2" in printed and f"PSNR {summary['psnr']:.1f} dB" in printed and "rule of thumb" in printed
    for path in (out / "reconstruction.csv", out / "summary.json"):
        assert str(manifest.parent) not in path.read_text() and "images/" not in path.read_text()


def test_pictures_show_the_original_and_the_difference(manifest: Path, make_vae: Callable, tmp_path: Path) -> None:
    case, vae = read_manifest(manifest)[0], make_vae()
    reconstruct_cohort(vae, [case], STEPS, tmp_path / "out")
    image = prepare_case(case, STEPS).volume.voxels
    sheet = np.asarray(Image.open(tmp_path / "out" / "pictures" / "0001.png"), dtype=float)
    assert sheet.shape == ((9 * 32 + 3 * 2) * 4, 3 * 32 * 4)
    drawn = reconstruct(vae, prepare_case(case, STEPS)).voxels
    for row, volume in ((0, image), (2, (drawn - image).clip(-0.5, 0.5))):  # untrained, the row between is all grey
        expected = np.rot90(volume[:, :, 0, 0])
        tile = sheet[128 * row : 128 * (row + 1), :128].reshape(32, 4, 32, 4).mean(axis=(1, 3))  # smoothed, enlarged
        assert np.corrcoef(tile.ravel(), expected.ravel())[0, 1] > 0.9, row


def test_a_row_without_a_subject_gets_a_number_instead_of_its_path(manifest: Path, make_vae: Callable, tmp_path: Path):
    cases = read_manifest(manifest)
    write_manifest(tmp_path / "bare.csv", [{"image": str(case.image)} for case in cases])
    report = reconstruct_cohort(make_vae(), read_manifest(tmp_path / "bare.csv"), STEPS, tmp_path / "out", pictured=0)
    assert [quality.subject for quality in report.volumes] == ["volume-1", "volume-2"]
    assert report.mean("heart_l1") is None and report.summary()["volumes_with_mask"] == 0
    assert "images" not in (tmp_path / "out" / "reconstruction.csv").read_text()


def test_volumes_of_ct(make_vae: Callable, tmp_path: Path) -> None:
    manifest = copy_chests(tmp_path / "chests", num=1, seed=0, size=(24, 24, 16))
    report = reconstruct_cohort(make_vae(VQModel3D), read_manifest(manifest), Preprocessing(), tmp_path / "out")
    assert report.code_counts.sum() == 6 * 6 * 4
    assert {path.name for path in (tmp_path / "out" / "pictures").iterdir()} == {
        "0001-original.png",
        "0001-reconstruction.png",
    }
    with pytest.raises(CardioDiTError, match=r"VQModel4D encodes a beating cine .* but the image is a volume"):
        reconstruct_cohort(make_vae(VQModel4D), read_manifest(manifest), Preprocessing(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_options_that_cannot_work_say_why_and_write_nothing(
    manifest: Path, vae_folder: Path, make_vae: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    make_vae().save_pretrained(tmp_path / "bare")
    odd = Preprocessing(size=(30, 32, None), frames=8)
    make_vae(preprocessing=odd.to_dict()).save_pretrained(tmp_path / "odd")
    for vae, more, message in [
        (vae_folder, ["--preset", "cine"], "Leave --preset out"),
        (tmp_path / "bare", [], "Give --preset: one of cine"),
        (tmp_path / "odd", [], "The height axis has size 30"),
        (vae_folder, ["--num", "0"], "--num 0: must be at least 1"),
        (tmp_path / "none", [], "none"),
    ]:
        arguments = ["reconstruct", "--ids", str(manifest), "--vae", str(vae), "--output_dir", str(tmp_path / "out")]
        assert main([*arguments, *more]) == 1
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_depth_and_number_of_volumes_can_be_given(manifest: Path, vae_folder: Path, tmp_path: Path) -> None:
    arguments = ["reconstruct", "--ids", str(manifest), "--vae", str(vae_folder), "--output_dir", str(tmp_path / "o")]
    assert main([*arguments, "--num", "1", "--depth", "2"]) == 0
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["volumes"] == 1 and summary["latent_vectors"] == 2 * 8 * 8 * 2
