"""Masks beside latents, each through `encode_cohort`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit import CardioDiTError, VQModel4D
from cardiodit.imaging import (
    Geometry,
    Preprocessing,
    prepare_case,
    prepare_mask,
    read_manifest,
    read_nifti,
    write_nifti,
)
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_labels
from cardiodit.latents import encode_cohort
from cardiodit.latents.masks import read_mask

from .test_encoder import rows_of

MNMS, ACDC = "LV=1 MYO=2 RV=3", "RV=1 MYO=2 LV=3"


def encode(manifest: Path, vae: VQModel4D, folder: Path) -> tuple[list[dict[str, str]], str]:
    """The rows of the latents' manifest, and what was said."""
    said: list[str] = []
    encode_cohort(manifest, vae, folder, report=said.append, condition_keys=["mask"])
    return rows_of(folder / "manifest.csv"), "\n".join(said)


def masks_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file beside the latents."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "masks").iterdir()}


def rewrite(manifest: Path, change: Any, **columns: str) -> Path:
    """Changes the first row's mask, and its columns; returns the mask's path."""
    rows = rows_of(manifest)
    path = manifest.parent / rows[0]["mask"]
    mask = read_nifti(path)
    write_nifti(path, change(mask.voxels), mask.geometry)
    write_manifest(manifest, [{**rows[0], **columns}, *rows[1:]])
    return path


def test_masks_are_prepared_as_their_images(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    rows, said = encode(phantoms, vae, tmp_path / "out")
    assert "become those of ACDC" not in said
    steps = Preprocessing.from_dict(vae.config.preprocessing)
    for row, case in zip(rows, read_manifest(phantoms), strict=True):
        expected = prepare_mask(case, prepare_case(case, steps))
        assert expected is not None
        written = read_labels(tmp_path / "out" / row["mask"])
        assert np.array_equal(written.voxels, expected.voxels) and set(np.unique(written.voxels)) == {0, 1, 2, 3}
        assert written.geometry.is_close(expected.geometry)


def test_masks_are_kept_made_anew_and_tidied(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows, _ = encode(own_phantoms, vae, out)
    before = masks_in(out)
    assert encode(own_phantoms, vae, out)[0] == rows and masks_in(out) == before  # nothing was written again

    first = out / rows[0]["mask"]
    first.write_bytes(first.read_bytes()[:-100])
    (out / "masks" / f".tmp-0123abcd-{first.name}").write_bytes(b"half of one")
    assert f"Removed .tmp-0123abcd-{first.name}" in encode(own_phantoms, vae, out)[1]
    assert {name: content for name, (content, _) in masks_in(out).items()} == {n: c for n, (c, _) in before.items()}

    rewrite(own_phantoms, lambda voxels: voxels[::-1])
    changed, _ = encode(own_phantoms, vae, out)
    assert changed[0]["mask"] != rows[0]["mask"] and changed[1] == rows[1]
    assert changed[0]["latent"] == rows[0]["latent"]
    assert not np.array_equal(read_mask(out / changed[0]["mask"]), read_mask(first))


def test_hearts_of_two_cohorts_get_one_order(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    """M&Ms calls the left ventricle 1, ACDC the right one: side by side they would teach that both are the same."""
    expected, _ = encode(own_phantoms, vae, tmp_path / "acdc")
    rewrite(own_phantoms, np.array([0, 3, 2, 1], np.uint8).__getitem__, mask_order=MNMS)
    rows, said = encode(own_phantoms, vae, tmp_path / "mixed")
    assert f"Labels {MNMS}, of 1 of 2 masks, become those of ACDC, {ACDC}." in said
    assert [row["mask_order"] for row in rows] == [ACDC, ACDC]
    for row, other in zip(rows, expected, strict=True):
        assert np.array_equal(read_mask(tmp_path / "mixed" / row["mask"]), read_mask(tmp_path / "acdc" / other["mask"]))
    rewrite(own_phantoms, np.asarray, mask_order="")
    with pytest.raises(CardioDiTError, match="mask_order is empty in 1 of 2 rows"):
        encode(own_phantoms, vae, tmp_path / "silent")


def only_two_frames(voxels: np.ndarray) -> np.ndarray:
    """As ACDC and M&Ms have them: end-diastole and end-systole."""
    return np.where(np.isin(np.arange(voxels.shape[3]), [0, 3]), voxels, 0).astype(np.uint8)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda voxels: voxels * np.float32(0.5), "holds values that are not labels, such as 0.5"),
        (lambda voxels: voxels.astype(np.int16) * 100, "holds labels from 0 to 300; labels must be 0 to 255"),
        (lambda voxels: voxels[..., 0], "its image (32, 32, 4, 8): a cine needs a mask of every frame"),
        (lambda voxels: voxels[:16], "The mask's grid (16, 32, 3, 8)"),
        (only_two_frames, "has labels in 2 of its 8 frames. Steering needs them in every frame"),
        (lambda voxels: voxels + np.uint8(1), "4 is not in the order 'LV=1"),
    ],
)
def test_masks_that_cannot_be_used(own_phantoms: Path, vae: VQModel4D, tmp_path: Path, change, message: str) -> None:
    order = MNMS if "order" in message else ACDC
    rewrite(own_phantoms, change, mask_order=order)
    with pytest.raises(CardioDiTError) as caught:
        encode(own_phantoms, vae, tmp_path / "out")
    assert message in str(caught.value) and "phantom-0000" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_mask_that_lies_elsewhere(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    path = own_phantoms.parent / rows_of(own_phantoms)[0]["mask"]
    write_nifti(path, read_nifti(path).voxels, Geometry((3.0, 3.0, 9.0), 0.03))
    with pytest.raises(CardioDiTError, match=r"The mask's grid .* is not that of its image"):
        encode(own_phantoms, vae, tmp_path / "out")
