"""Styles of phantoms: what each adds, and that the plain one adds nothing."""

import csv
from pathlib import Path

import numpy as np
import pytest

from cardiodit import CardioDiTError
from cardiodit.cli import main
from cardiodit.evaluation.metrics.plausibility import CLOSED, plausibility
from cardiodit.imaging.phantom import VENDORS, Phantom, Style, draw_heart, render
from cardiodit.imaging.phantom.scene import LV, MYOCARDIUM

SIZE, SPACING = (48, 48, 8, 8), (3.0, 3.0, 12.5)


def phantom_of(
    style: Style | None = None, group: str = "infarct", spacing: tuple | None = SPACING, size: tuple = SIZE
) -> Phantom:
    random = np.random.default_rng(4)
    return render(draw_heart(group, random), size, random, spacing, style)


@pytest.fixture(scope="module")
def plain() -> Phantom:
    return phantom_of()


def test_the_plain_style_is_no_style(plain: Phantom) -> None:
    styled = phantom_of(Style())
    assert np.array_equal(styled.image, plain.image) and styled.volumes == plain.volumes


@pytest.mark.parametrize("vendor", [name for name in VENDORS if name != "plain"])
def test_a_vendor_shows_the_same_heart_with_another_contrast(plain: Phantom, vendor: str) -> None:
    other = phantom_of(Style(vendor))
    assert np.array_equal(other.labels, plain.labels) and other.volumes == plain.volumes

    def contrast(phantom: Phantom) -> float:
        image = phantom.image.astype(float)
        return image[phantom.labels == LV].mean() / image[phantom.labels == MYOCARDIUM].mean()

    assert abs(contrast(other) / contrast(plain) - 1) > 0.05
    scanner = VENDORS[vendor]
    assert phantom_of(Style(vendor), spacing=None).geometry.spacing[0] == pytest.approx(3.0 * scanner.spacing)


def test_a_moving_valve_plane_leaves_the_apex_still_and_shows_the_atrium(plain: Phantom) -> None:
    moving = phantom_of(Style(base=True, valve_motion=True), "normal")
    still = phantom_of(Style(base=True), "normal")
    systole = int(np.argmin(moving.volumes["lv"]))

    def last(phantom: Phantom, frame: int) -> int:
        return int(np.flatnonzero((phantom.labels[..., frame] > 0).any(axis=(0, 1))).max())

    assert last(moving, 0) == last(moving, systole) and last(still, systole) < last(still, 0)
    assert moving.labels[:, :, 0, 0].any() and not moving.labels[:, :, 0, systole].any()
    # Blood of the atrium lies where the ventricle was.
    ventricle = moving.labels[:, :, 0, 0] == LV
    assert moving.image[:, :, 0, systole][ventricle].mean() > 0.8 * moving.image[:, :, 0, 0][ventricle].mean()


@pytest.mark.parametrize(
    "style", [Style(base=True, valve_motion=True), Style(rhythm="irregular"), Style(rhythm="premature")]
)
def test_volumes_are_exact_in_every_style(style: Style) -> None:
    phantom = phantom_of(style, spacing=(3.0, 3.0, 4.0), size=(48, 48, 26, 4))
    counted = (phantom.labels == LV).sum((0, 1, 2)) * 36 / 1000
    assert np.abs(counted / np.array(phantom.volumes["lv"]) - 1).max() < 0.04


def test_the_outflow_tract_opens_the_basal_ring(plain: Phantom) -> None:
    opened = phantom_of(Style(base=True))
    muscle = [(phantom.labels[:, :, 0, 0] == MYOCARDIUM).sum() for phantom in (plain, opened)]
    assert muscle[1] < 0.95 * muscle[0]
    assert np.array_equal(opened.labels[:, :, 2:], plain.labels[:, :, 2:])


def test_trabeculae_and_scars_show_where_they_are(plain: Phantom) -> None:
    rough, scarred = phantom_of(Style(trabeculae=1.0)), phantom_of(Style(scar_signal=0.5))
    assert np.array_equal(rough.labels, plain.labels)
    darker = (rough.image < 0.85 * plain.image) & (plain.labels == LV)
    assert darker.sum() > 0.02 * (plain.labels == LV).sum()
    ring = plain.labels[:, :, 3] == MYOCARDIUM
    ratio = np.where(ring, scarred.image[:, :, 3] / np.maximum(plain.image[:, :, 3], 1), np.nan)
    dark = [np.argwhere(ratio[..., t] < 0.7).mean(axis=0) for t in (0, 3)]
    assert np.nanpercentile(ratio[..., 0], 90) > 0.95 and np.linalg.norm(dark[0] - dark[1]) < 2.5  # voxels: it stays


@pytest.mark.parametrize(("rhythm", "closes"), [("sinus", True), ("premature", False)])
def test_a_premature_beat_does_not_close(rhythm: str, closes: bool) -> None:
    phantom = phantom_of(Style(rhythm=rhythm), "normal")
    found = {each.name: each.is_plausible for each in plausibility(phantom.labels, phantom.geometry, True)}
    assert found[CLOSED] is closes


def test_irregular_slices_are_out_of_step(plain: Phantom) -> None:
    irregular = phantom_of(Style(rhythm="irregular"))

    def smallest(phantom: Phantom) -> list[int]:
        return [(phantom.labels[:, :, d] == LV).sum(axis=(0, 1)).argmin() for d in range(4)]

    assert len(set(smallest(plain))) == 1 < len(set(smallest(irregular)))


def test_the_command_states_the_style_in_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["phantom", "--num", "1", "--size", "32", "32", "3", "2"]
    styled = [*command, "--output_dir", str(tmp_path / "styled"), "--vendor", "grey", "--fat", "0", "--base"]
    assert main(styled) == 0 and main([*command, "--output_dir", str(tmp_path / "plain")]) == 0
    with (tmp_path / "styled" / "manifest.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["vendor"], row["fat"], row["base"]) == ("grey", "0.0", "True") and "rhythm" not in row
    assert "vendor" not in (tmp_path / "plain" / "manifest.csv").read_text()
    assert main([*command[:3], "--kind", "chest", "--output_dir", str(tmp_path / "c"), "--vendor", "grey"]) == 1
    assert "--vendor is for hearts" in capsys.readouterr().err
    with pytest.raises(CardioDiTError, match="no vendor 'other'; choose one of plain, bright, grey, coarse"):
        Style("other")
