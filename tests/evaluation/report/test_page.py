"""The page is written atomically, needs no network, matches its report and is small enough for a browser."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cardiodit._util.html import templates
from cardiodit.energy import Energy
from cardiodit.energy.electricity import choose_electricity, footprint_of
from cardiodit.energy.meter import EnergyPart
from cardiodit.energy.records import mean_of_samples
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.report.page import TEMPLATE, title_and_unit, write_page
from cardiodit.evaluation.report.players import MOST_FRAMES, MOST_TILES, evenly_spaced, mosaic

Media = dict[str, Callable[[], np.ndarray]]
HOSTILE = """</script><img src="http://evil.example/x" onerror='alert(1)'>{{contents}} & \u2028"""


def contents(path: Path) -> dict[str, Any]:
    match = re.search(r'<script id="contents" type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    assert match
    return json.loads(match[1])


def test_the_page_tells_what_samples_and_evaluation_cost(report: dict[str, Any], media: Media, tmp_path: Path) -> None:
    """36 g a volume, as a published study found, are 3,300 km of driving for 10,000 of them."""
    record = footprint_of(Energy((EnergyPart("gpu", 0.1, 0.09, 0.11, "counter"),)), choose_electricity("360")).to_dict()
    sets = {
        **report["sets"],
        "synthetic": {**report["sets"]["synthetic"], "energy": mean_of_samples([{"energy": record}])},
    }
    own = footprint_of(Energy((EnergyPart("cpu", 0.02, 0.01, 0.04, "CPU time"),)), choose_electricity("FRA"))
    write_page({**report, "sets": sets}, media, tmp_path / "with.html", own)
    text = (tmp_path / "with.html").read_text()
    assert "Generating a volume took 0.1 kWh on average, 36 g CO2-equivalent" in text
    assert "10,000 volumes: 360 kg CO2-equivalent, 3,300 km by car" in text
    assert "This evaluation took about 0.02 kWh" in text and "56 g/kWh (France" in text
    write_page(report, media, tmp_path / "without.html")  # of an earlier version
    assert 'id="energy"' not in (tmp_path / "without.html").read_text()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("lv_ef_percent", ("LV EF", "%")),
        ("lv_peak_ejection_ml_s", ("LV peak ejection", "mL/s")),
        ("rv_peak_filling_edv_s", ("RV peak filling", "EDV/s")),
        ("slice_dice", ("slice dice", "")),
        ("ml", ("ml", "")),  # a unit alone is a name
    ],
)
def test_names_of_numbers_become_titles_with_units(name: str, expected: tuple[str, str]) -> None:
    assert title_and_unit(name) == expected


def test_the_page_needs_no_network_and_holds_every_part(report: dict[str, Any], media: Media, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.html"
    write_page(report, media, path)
    text = path.read_text()
    assert not re.search(r"://|\bsrc=|@import|url\(|<link(?! rel=\"icon\" href=\"data:,\")|\bon\w+=", text)
    assert "{{" not in text and [each.name for each in path.parent.iterdir()] == ["report.html"]
    for kind in ("metrics", "distributions", "curves"):
        assert all(each["title"] in text for each in report[kind])
    assert all(volume["id"] in text for volume in report["volumes"])
    parts = ("summary", "metrics", "distributions", "curves", "samples", "volumes", "protocol")
    order = [text.index(f'id="{part}"') for part in parts]
    assert order == sorted(order)
    for text_of_protocol in ("ab" * 32, "cd" * 32, "0f" * 32, "4.5 × 4.5 × 16.67", "cardiodit-evaluation/1"):
        assert text_of_protocol in text
    assert 'role="alert"' not in text


def test_the_same_report_makes_the_same_page(report: dict[str, Any], media: Media, tmp_path: Path) -> None:
    for name in "ab":
        write_page(report, media, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_no_text_of_the_report_becomes_markup(report: dict[str, Any], media: Media, tmp_path: Path) -> None:
    name = report["volumes"][0]["id"]
    media[HOSTILE] = media.pop(name)
    report["problems"] = [{"set": HOSTILE, "file": HOSTILE, "problem": HOSTILE}]
    path = tmp_path / "report.html"
    write_page(hostile(report, {name: HOSTILE}), media, path)
    text = path.read_text()
    assert "<img" not in text and text.count("</script>") == 2 and "alert(1)" in text
    assert "onerror='" not in text and "[object" not in text
    assert len(re.findall(r"\{\{contents\}\}", text)) > 20  # text like any other


def hostile(entry: Any, names: dict[str, str]) -> Any:
    """Replace every text that may come from a person or a file."""
    chosen = {"title", "unit", "method", "notes", "group", "note", "left_out", "better", "content"}
    if isinstance(entry, list):
        return [hostile(each, names) for each in entry]
    if not isinstance(entry, dict):
        return names.get(entry, entry) if isinstance(entry, str) else entry
    changed = {key: hostile(value, names) for key, value in entry.items()}
    for key in chosen & changed.keys():
        if isinstance(changed[key], str | list):
            changed[key] = [HOSTILE] if isinstance(changed[key], list) else HOSTILE
    return changed


def test_problems_are_shown_first(report: dict[str, Any], tmp_path: Path) -> None:
    report["problems"] = [
        {"set": "synthetic", "file": "cut.nii.gz", "problem": "It ends early."},
        {"set": "real", "file": None, "problem": "Two copies."},
    ]
    write_page(report, {}, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "2 problems in the input" in text and "cut.nii.gz (synthetic)</b>: It ends early." in text
    assert "the whole set (real)" in text and text.index('role="alert"') < text.index('id="metrics"')


def test_volumes_play_from_the_farthest_to_the_nearest(report: dict[str, Any], media: Media, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(report, media, path)
    text = path.read_text()
    figures = re.findall(r'aria-label="Moving picture of the (?:sample|real volume) ([^"]+)"', text)
    assert figures == [
        f"{name}.nii.gz"
        for name in ("real-00", "real-01", "synthetic-08", "synthetic-07", "synthetic-00", "synthetic-01")
    ]
    held = contents(path)
    assert held["seconds"] == pytest.approx(0.9)
    assert [len(volume["slices"]) for volume in held["volumes"]] == [6] * 6
    for name, volume in zip(figures, held["volumes"], strict=True):
        assert np.abs(tiles(volume) - levels(media[name]())).mean() < 3  # of 255; JPEG
        assert volume["aspect"] == 1


def tiles(volume: dict[str, Any]) -> np.ndarray:
    """`(frames, slices, rows, columns)` out of the mosaic."""
    jpeg = base64.b64decode(volume["picture"].removeprefix("data:image/jpeg;base64,"))
    sheet = np.asarray(Image.open(io.BytesIO(jpeg))).astype(float)
    rows, columns, across = volume["rows"], volume["columns"], volume["across"]
    found = [
        sheet[i // across * rows :, i % across * columns :][:rows, :columns]
        for i in range(len(volume["frames"]) * len(volume["slices"]))
    ]
    return np.stack(found).reshape(len(volume["frames"]), len(volume["slices"]), rows, columns)


def levels(voxels: np.ndarray) -> np.ndarray:
    return np.flip((voxels + 1) * 127.5, 1).T  # (T, D, W, H)


def test_a_large_cine_keeps_its_ends_and_its_size() -> None:
    cine = np.random.default_rng([0]).uniform(-1, 1, (192, 160, 16, 40)).astype(np.float32)
    held = mosaic("noise", cine, 900_000)
    assert len(base64.b64decode(held.jpeg)) <= 900_000
    assert (held.frames[0], held.frames[-1], len(held.frames)) == (0, 39, MOST_FRAMES)
    assert (held.slices[0], held.slices[-1]) == (0, 15) and len(held.slices) * len(held.frames) <= MOST_TILES
    assert held.columns / held.rows == pytest.approx(192 / 160, abs=0.02)
    chest = mosaic("chest", cine[..., 0], 10_000_000)
    assert chest.slices == list(range(16)) and chest.frames == [0] and (chest.columns, chest.rows) == (128, 107)
    assert evenly_spaced(5, 5) == [0, 1, 2, 3, 4] and evenly_spaced(9, 3) == [0, 4, 8] and evenly_spaced(7, 1) == [0]


def test_voxels_without_a_value_are_black() -> None:
    broken = np.zeros((16, 16, 1))
    broken[:8], broken[8:] = np.nan, np.inf
    held = mosaic("broken", broken, 100_000)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(held.jpeg))))
    assert picture[:, :6].max() < 10 and picture[:, 10:].min() > 245


def test_a_thousand_volumes_fit_into_a_page(report: dict[str, Any], tmp_path: Path) -> None:
    random = np.random.default_rng([1])
    names = [f"{kind}/patient-{i:04}_session-1/image.nii.gz" for kind in ("real", "synthetic") for i in range(1000)]
    numbers = {f"number_{i}": 0.0 for i in range(40)}
    report["volumes"] = [
        {
            "id": name,
            "set": name.split("/")[0],
            "content": f"{i:064x}",
            "numbers": {key: float(random.normal(100, 30)) for key in numbers},
            "plausible": {f"a_rule_with_a_long_name_{r}": bool(random.random() < 0.8) for r in range(7)},
            "typicality": float(random.gamma(2)),
        }
        for i, name in enumerate(names)
    ]
    values = random.normal(100, 20, 1000).tolist()
    report["distributions"] = [
        {**report["distributions"][0], "name": key, "title": key, "real": values, "synthetic": values}
        for key in numbers
    ]
    rows = random.normal(100, 20, (1000, 30)).tolist()
    report["curves"] = [{**report["curves"][0], "real": rows, "synthetic": rows}] * 2
    noise = random.uniform(-1, 1, (128, 128, 4, 16)).astype(np.float32)
    media = {name: lambda: noise for name in (*names[:2], *names[1000:1008])}
    write_page(report, media, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 15_000_000


def test_a_report_of_still_volumes_has_neither_curves_nor_beats(report: dict[str, Any], tmp_path: Path) -> None:
    facts = {"count": 9, "size": [16, 12, 10], "spacing_mm": [2.0, 1.0, 3.0], "frame_time_s": None}
    report |= {"sets": {"real": facts, "synthetic": {**facts, "spacing_mm": None}}, "curves": []}
    report["protocol"] |= {"segmenter": None, "features": {}}
    for volume in report["volumes"]:
        volume |= {"plausible": None, "typicality": None}
    path = tmp_path / "report.html"
    write_page(report, {report["volumes"][9]["id"]: lambda: np.zeros((16, 12, 10))}, path)
    held = contents(path)
    assert held["seconds"] is None and held["volumes"][0]["aspect"] == pytest.approx(16 / 12, abs=1e-3)
    text = path.read_text()
    assert "No curves were measured" in text and "not judged" in text
    assert "Real: 16 × 12 × 10 voxels, 2.00 × 1.00 × 3.00 mm" in text and "Synthetic: 16 × 12 × 10 voxels<" in text


def test_errors_name_the_volume_and_nothing_is_written(report: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    with pytest.raises(CardioDiTError, match=r"cannot show 'elsewhere\.nii': the report has no volume"):
        write_page(report, {"elsewhere.nii": lambda: np.zeros((4, 4, 2))}, path)
    with pytest.raises(CardioDiTError, match=r"real-00.nii.gz: its shape is \(4, 4\), expected \(H, W, D\)"):
        write_page(report, {"real-00.nii.gz": lambda: np.zeros((4, 4))}, path)
    with pytest.raises(CardioDiTError, match="schema 'cardiodit-evaluation/2'; the page can show"):
        write_page({**report, "schema": "cardiodit-evaluation/2"}, {}, path)
    assert not list(tmp_path.iterdir())


def test_the_protocol_is_complete() -> None:
    settings = {"grid": [1.4, 1.4, None], "range": [-1.0, 1.0], "rows": [], "notes": ["a", {"b": True}], "empty": {}}
    protocol = templates(TEMPLATE.parent).get_template("tables.html.j2").module.protocol
    words = re.sub(r"(<[^>]+>)+", "|", protocol(settings))
    assert words == "|grid|1.4 × 1.4 × none|range|-1.0, 1.0|rows|none|notes|a|b|yes|empty|empty|"
