"""A heart whose picture is turned, though its header does not say so: found by its mask, recorded, undone on export."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.manifest import prepare_case, prepare_mask, read_manifest, reading_columns
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.preprocessing import Preprocessing

STEPS = Preprocessing()


@pytest.fixture
def turned(tmp_path: Path, patient: Callable) -> Path:
    """Two subjects: the picture of the second is turned by half a turn."""
    for number in (0, 1):
        heart, folder = patient(0), tmp_path / "export" / f"s{number}"
        folder.mkdir(parents=True)
        way = -1 if number else 1
        write_nifti(folder / "sax.nii.gz", heart.image[::way, ::way] + number, heart.geometry)
        write_nifti(folder / "sax_seg.nii.gz", heart.labels[::way, ::way], heart.geometry)
    rows = [f"s{n},export/s{n}/sax_seg.nii.gz,RV=1 MYO=2 LV=3" for n in (0, 1)]
    (tmp_path / "table.csv").write_text("\n".join(["subject,mask,mask_order", *rows]) + "\n")
    return tmp_path


def test_a_turned_heart_becomes_upright_and_is_written_back_as_it_was(turned: Path) -> None:
    out, table = turned / "out", str(turned / "table.csv")
    assert main(["prepare", "folder", str(turned / "export"), "--output_dir", str(out), "--table", table]) == 0
    first, second = read_manifest(out / "manifest.csv")
    assert (first.row["turn"], second.row["turn"]) == ("", "180")
    assert "turned by 180 degrees" in (out / "report.md").read_text()
    upright, found = (prepare_case(case, STEPS) for case in (first, second))
    np.testing.assert_allclose(found.volume.voxels, upright.volume.voxels, atol=1e-3)
    masks = [prepare_mask(case, prepared) for case, prepared in ((first, upright), (second, found))]
    assert masks[0] is not None and masks[1] is not None and np.array_equal(masks[0].voxels, masks[1].voxels)
    back, stored = found.inverse(), read_nifti(second.image)
    assert np.array_equal(back.voxels, stored.voxels) and back.geometry.is_close(stored.geometry)
    assert reading_columns(second) == {**reading_columns(first), "turn": "180"}  # another cache entry, another latent


def test_a_turn_that_is_none_is_an_error(turned: Path) -> None:
    image = turned / "export" / "s0" / "sax.nii.gz"
    (turned / "manifest.csv").write_text(f"image,turn\n{image},30\n")
    with pytest.raises(CardioDiTError, match="turn=30 of .* must be one of 0, 90, 180, 270 degrees"):
        prepare_case(read_manifest(turned / "manifest.csv")[0], STEPS)


def test_the_viewer_shows_it_upright(turned: Path, tmp_path: Path) -> None:
    files = [turned / "export" / f"s{n}" for n in (0, 1)]
    view = ["view", *(str(file / "sax.nii.gz") for file in files)]
    view += ["--mask", *(str(file / "sax_seg.nii.gz") for file in files), "--mask_order", "RV=1 MYO=2 LV=3"]
    view += ["--titles", "a", "b"]
    for name, more in (("upright", []), ("stored", ["--as_stored"])):
        assert main([*view, "--output", str(tmp_path / f"{name}.html"), *more]) == 0
    labels = {}
    for name in ("upright", "stored"):
        text = (tmp_path / f"{name}.html").read_text()
        labels[name] = [part.partition('"')[0] for part in text.split('"labels": "')[1:]] or [
            part.partition('"')[0] for part in text.split('"labels":"')[1:]
        ]
    assert len(labels["upright"]) == 2 and labels["upright"][0] == labels["upright"][1]
    assert labels["stored"][0] == labels["upright"][0] != labels["stored"][1]
