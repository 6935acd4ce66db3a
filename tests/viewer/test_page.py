"""The page holds the voxels as a browser will show them, and no trace of their folder."""

import base64
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import left_ventricle, right_ventricle
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.orientation import CT_DIRECTION
from cardiodit.imaging.pictures import strip_of
from cardiodit.imaging.volume import Volume
from cardiodit.viewer import Shown, write_viewer
from cardiodit.viewer.page import edges_of

GEOMETRY = Geometry((1.5, 2.0, 8.0), frame_time=0.05, in_scanner=True)
SHAPE = (12, 10, 3, 4)


def contents(path: Path) -> dict[str, Any]:
    found = re.search(r'<script id="contents" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def unpacked(text: str, volume: dict[str, Any], frames: int) -> np.ndarray:
    voxels = np.frombuffer(gzip.decompress(base64.b64decode(text)), np.uint8)
    return voxels.reshape(frames, volume["slices"], volume["rows"], volume["columns"])


def cine(seed: int = 0, shape: tuple[int, ...] = SHAPE, geometry: Geometry = GEOMETRY) -> Volume:
    return Volume(np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16), geometry)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A cine and its label map in a folder that names a patient."""
    folder = tmp_path / "patient-Mueller"
    folder.mkdir()
    volume = cine()
    write_nifti(folder / "heart.nii.gz", volume.voxels, GEOMETRY)
    write_nifti(folder / "labels.nii.gz", (volume.voxels // 300).astype(np.uint8), GEOMETRY)
    return folder / "heart.nii.gz", folder / "labels.nii.gz"


def test_pictures_have_the_orientation_and_grey_values_of_our_sheets(tmp_path: Path) -> None:
    volume = cine()
    masks = (volume.voxels > 700).astype(np.uint8)
    write_viewer(tmp_path / "view.html", [Shown("heart", volume, masks, window=(100, 900))])
    shown = contents(tmp_path / "view.html")["volumes"][0]
    levels, labels = unpacked(shown["levels"], shown, 4), unpacked(shown["labels"], shown, 4)
    for t in range(4):
        sheet = strip_of(volume.voxels[..., t], None, (100, 900))
        assert np.abs(np.concatenate(list(levels[t]), axis=1).astype(int) - sheet).max() <= 1
    assert np.array_equal(labels[2, 1], np.rot90(masks[:, :, 1, 2]))
    assert (shown["width"], shown["height"]) == (12 * 1.5, 10 * 2.0)
    assert (shown["low"], shown["high"]) == (100, 900)


def test_levels_map_to_the_source_units_without_outliers(tmp_path: Path) -> None:
    volume = cine(shape=(40, 40, 2, 4))
    volume.voxels[0, 0, 0, 0] = 32000
    write_viewer(tmp_path / "view.html", [Shown("heart", volume)])
    shown = contents(tmp_path / "view.html")["volumes"][0]
    assert -1 <= shown["low"] <= 5 and 995 <= shown["high"] <= 1000
    levels = unpacked(shown["levels"], shown, 4).astype(float)
    values = shown["low"] + levels / 255 * (shown["high"] - shown["low"])
    truth = np.clip(np.flip(volume.voxels, 1).T, shown["low"], shown["high"])
    assert np.abs(values - truth).max() <= (shown["high"] - shown["low"]) / 255 / 2 + 1e-6


def test_the_beat_lasts_as_long_as_the_file_says(tmp_path: Path) -> None:
    unknown, known = cine(geometry=Geometry()), cine(1)
    write_viewer(tmp_path / "view.html", [Shown("a", unknown), Shown("b", known)])
    assert contents(tmp_path / "view.html")["beat"] == pytest.approx(0.2)
    write_viewer(tmp_path / "view.html", [Shown("a", unknown)])
    page = contents(tmp_path / "view.html")
    assert page["beat"] is None
    assert (page["volumes"][0]["width"], page["volumes"][0]["height"]) == (12, 10)


def test_a_volume_without_time_and_one_with_broken_voxels(tmp_path: Path) -> None:
    chest = np.linspace(-1000, 400, 12 * 10 * 3).reshape(12, 10, 3)
    chest[0, 0, 0], chest[11, 9, 2] = np.nan, np.inf
    labels = np.arange(360).reshape(12, 10, 3) % 8
    write_viewer(tmp_path / "view.html", [Shown("chest", Volume(chest, GEOMETRY), labels)])
    page = contents(tmp_path / "view.html")
    levels = unpacked(page["volumes"][0]["levels"], page["volumes"][0], 1)
    assert levels[0, 0, -1, 0] == 0 and levels[0, -1, 0, -1] == 255
    assert len(page["colours"]) == 8 and page["legend"] == {}


def rotated(degrees: float) -> tuple[tuple[float, float, float], ...]:
    """Columns turned about the patient's axis from foot to head; the second one points up to the head."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return ((-c, 0.0, s), (s, 0.0, c), (0.0, 1.0, 0.0))


@pytest.mark.parametrize(
    "geometry, expected",
    [
        (Geometry((1, 1, 1), direction=CT_DIRECTION, in_scanner=True), "L R A P"),
        (Geometry((1, 1, 1), in_scanner=True), "R L A P"),
        (Geometry((1, 1, 1), direction=rotated(0), in_scanner=True), "L R H F"),
        (Geometry((1, 1, 1), direction=rotated(35), in_scanner=True), "LA RP H F"),
        (Geometry((1, 1, 1), direction=rotated(60), in_scanner=True), "AL PR H F"),
        (Geometry((1, 1, 1), direction=rotated(15), in_scanner=True), "L R H F"),
        (Geometry((1, 1, 1), direction=CT_DIRECTION), None),  # a cine that was only turned
        (Geometry(), None),
    ],
)
def test_letters_name_the_patients_directions_where_they_are_known(geometry: Geometry, expected: str | None) -> None:
    edges = edges_of(cine(geometry=geometry))
    assert edges == (expected and dict(zip(("right", "left", "top", "bottom"), expected.split())))


def test_a_sampled_ct_has_letters(tmp_path: Path) -> None:
    chest = Volume(np.zeros((4, 4, 3)), Geometry((1, 1, 1), direction=CT_DIRECTION))
    assert edges_of(chest) == {"right": "L", "left": "R", "top": "A", "bottom": "P"}


def hearts(volume: Volume) -> np.ndarray:
    """Label maps whose ventricles have a different size in every frame."""
    labels = np.zeros(volume.voxels.shape, np.uint8)
    for t, (left, right) in enumerate(zip((6, 2, 4, 5), (3, 4, 2, 3))):
        labels[1:9, 1:9, :, t] = 2
        labels[2 : 2 + left, 2:4, :, t] = 3
        labels[9:, :right, :, t] = 1
    return labels


def test_volume_curves_and_ejection_fraction_are_those_of_the_evaluation(tmp_path: Path) -> None:
    volume = cine()
    labels = hearts(volume)
    write_viewer(tmp_path / "view.html", [Shown("heart", volume, labels), Shown("none", volume)])
    shown, without = contents(tmp_path / "view.html")["volumes"]
    left, right = (of(labels, GEOMETRY) for of in (left_ventricle, right_ventricle))
    curves = [curve["ml"] for curve in shown["function"]["curves"]]
    assert curves == [pytest.approx(each.volumes_ml, abs=0.01) for each in (left, right)]
    assert (shown["function"]["ED"], shown["function"]["ES"]) == (left.ed_frame, left.es_frame) == (0, 1)
    assert shown["function"]["text"] == f"EF {left.ef:.0f} % · EDV {left.edv:.0f} mL · ESV {left.esv:.0f} mL"
    assert without["function"] is None and shown["isInMm"]


def test_frames_without_labels_are_not_empty_hearts(tmp_path: Path) -> None:
    """As in ACDC, where end-diastole and end-systole alone are labelled."""
    volume = cine()
    labels = hearts(volume)
    labels[..., 1] = labels[..., 3] = 0

    def function(masks: np.ndarray, geometry: Geometry = GEOMETRY) -> dict[str, Any] | None:
        shown = Shown("heart", cine(geometry=geometry), masks)
        write_viewer(tmp_path / "view.html", [shown])
        return contents(tmp_path / "view.html")["volumes"][0]["function"]

    found = function(labels)
    assert found is not None and [ml is None for ml in found["curves"][0]["ml"]] == [False, True, False, True]
    assert (found["ED"], found["ES"]) == (0, 2) and found["text"].startswith("EF 33 %")
    labels[..., 2] = 0
    assert function(labels) is None  # a single frame does not eject
    assert function(hearts(volume), Geometry()) is None  # no mL without a voxel size
    assert function(hearts(volume)[..., 0]) is None
    assert function(np.where(hearts(volume) == 3, 7, 0)) is None  # labels of something else


def test_the_page_needs_no_network_and_names_no_folder(files: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    image, labels = files
    output = tmp_path / "new" / "hearts.html"
    names = ["--titles", "first", "second", "--mask_order", "RV=1 MYO=2 LV=3"]
    assert main(["view", str(image), str(image), "--mask", str(labels), "-", *names, "--output", str(output)]) == 0
    assert f"Wrote {output}" in capsys.readouterr().out
    text = output.read_text()
    assert "://" not in text and "src=" not in text and "@import" not in text and "url(" not in text
    assert "patient-Mueller" not in text and str(tmp_path) not in text
    assert "<title>first, second</title>" in text
    page = contents(output)
    assert [volume["title"] for volume in page["volumes"]] == ["first", "second"]
    assert page["volumes"][1]["labels"] is None
    assert page["legend"] == {"1": "RV", "2": "myocardium", "3": "LV"}
    assert [path.name for path in output.parent.iterdir()] == ["hearts.html"]


def test_labels_have_names_only_in_a_known_order(files: tuple[Path, Path], tmp_path: Path) -> None:
    """In M&Ms, label 1 is the left ventricle: it was named the right one."""
    image, labels = files
    output = tmp_path / "view.html"
    command = ["view", str(image), "--mask", str(labels), "--output", str(output)]
    assert main(command) == 0
    unnamed = contents(output)
    assert unnamed["legend"] == {}
    assert main([*command, "--mask_order", "LV=1 MYO=2 RV=3"]) == 0
    named = contents(output)
    assert named["legend"] == {"1": "RV", "2": "myocardium", "3": "LV"}
    stored, ours = (unpacked(page["volumes"][0]["labels"], page["volumes"][0], 4) for page in (unnamed, named))
    assert np.array_equal(np.array([0, 3, 2, 1])[stored], ours)


def test_a_label_order_that_does_not_fit_names_the_mask(files: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    image, labels = files
    command = ["view", str(image), "--mask", str(labels), "--output", str(tmp_path / "view.html"), "--mask_order"]
    assert main([*command, "LV=1 MYO=2 RV=4"]) == 1
    assert f"{labels}: The label maps hold 0, 1, 2, 3, and 3 is not in the order" in capsys.readouterr().err
    assert main([*command, "LV"]) == 1


def test_equal_file_names_get_numbers(files: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    image, _ = files
    command = ["view", str(image), str(image), "--output", str(tmp_path / "view.html")]
    assert main(command) == 0
    titles = [volume["title"] for volume in contents(tmp_path / "view.html")["volumes"]]
    assert titles == ["heart.nii.gz (1 of 2)", "heart.nii.gz (2 of 2)"]
    assert main([*command, "--titles", "one"]) == 1
    assert "--titles gives 1, but there are 2 volumes" in capsys.readouterr().err


def test_the_same_volumes_make_the_same_page(files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["view", str(files[0]), "--output_dir", str(tmp_path / name)]) == 0
    assert (tmp_path / "a" / "view.html").read_bytes() == (tmp_path / "b" / "view.html").read_bytes()


def test_a_title_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    title = '</script><b title="x">&.nii'
    write_viewer(tmp_path / "view.html", [Shown(title, cine())] * 5)
    text = (tmp_path / "view.html").read_text()
    assert "<b title" not in text and text.count("</script>") == 2
    assert "and 2 more</title>" in text
    assert contents(tmp_path / "view.html")["volumes"][0]["title"] == title


def test_a_page_too_large_for_a_browser_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match=r"the limit is 0\.0\d? MB.*fewer volumes"):
        write_viewer(tmp_path / "view.html", [Shown("heart", cine(shape=(64, 64, 4, 4)))], limit=40_000)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "masks, window, message",
    [
        (np.zeros((12, 10, 2), np.uint8), None, r"heart: the mask has the shape \(12, 10, 2\), its volume"),
        (np.full(SHAPE, 0.5), None, "mask of heart has values from 0.5 to 0.5, expected whole numbers from 0 to 255"),
        (np.full(SHAPE, -1), None, "Is it a label map"),
        (None, (3.0, 3.0), "heart: the window from 3 to 3 is empty"),
    ],
)
def test_a_bad_mask_or_window_is_an_error(tmp_path: Path, masks: Any, window: Any, message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        write_viewer(tmp_path / "view.html", [Shown("heart", cine(), masks, window)])
    assert not list(tmp_path.iterdir())


def test_an_error_if_there_is_nothing_to_show(tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="no volume to show"):
        write_viewer(tmp_path / "view.html", [])
    empty = Volume(np.full((4, 4, 2), np.nan), GEOMETRY)
    with pytest.raises(CardioDiTError, match="scan has no finite values"):
        write_viewer(tmp_path / "view.html", [Shown("scan", empty)])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["HEART", "--output", "heart.nii.gz"], "must end in .html"),
        (["HEART", "HEART", "--mask", "LABELS", "--output", "v.html"], "--mask names 1, but there are 2 volumes"),
        (["missing.nii.gz", "--output", "v.html"], "missing.nii.gz does not exist"),
        (["HEART", "--mask", "ELSEWHERE", "--output", "v.html"], "lies elsewhere in space than"),
    ],
)
def test_the_command_says_what_is_wrong_and_writes_nothing(
    files: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch, arguments, message
) -> None:
    elsewhere = tmp_path / "elsewhere.nii.gz"
    moved = Geometry((1.5, 2.0, 8.0), frame_time=0.05, origin=(50.0, 0.0, 0.0), in_scanner=True)
    write_nifti(elsewhere, np.zeros(SHAPE, np.uint8), moved)
    monkeypatch.chdir(tmp_path)
    known = {"HEART": files[0], "LABELS": files[1], "ELSEWHERE": elsewhere}
    assert main(["view", *(str(known.get(a, a)) for a in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"patient-Mueller", "elsewhere.nii.gz"}
