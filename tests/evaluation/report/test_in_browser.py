"""The report's page in a headless Chromium: it plays, sorts, searches, and logs no errors."""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.evaluation.report.page import write_page
from cardiodit.imaging import Intensity, Preprocessing, prepare_case, read_manifest
from cardiodit.imaging.phantom import write_cohort

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FOUND = {"chromium": BROWSER, "chromedriver": DRIVER, "selenium": find_spec("selenium")}
if MISSING := ", ".join(name for name, found in FOUND.items() if not found):
    warnings.warn(f"The report's page is not tested in a browser. Missing: {MISSING}.", stacklevel=1)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing: {MISSING}")
STILL = {"name": "prefers-reduced-motion", "value": "reduce"}
PICTURES = """return [...document.querySelectorAll("canvas")].map((shown) => {
    const copy = new OffscreenCanvas(shown.width, shown.height);
    const pen = copy.getContext("2d", { willReadFrequently: true });
    pen.drawImage(shown, 0, 0);
    return [copy.height, copy.width, [...pen.getImageData(0, 0, copy.width, copy.height).data]]; })"""

Media = dict[str, Callable[[], np.ndarray]]


class Page:
    """Actions and observations of a reader."""

    def __init__(self, browser: Any, path: Path, still: bool, width: int) -> None:
        self.browser = browser
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [STILL] if still else []})
        browser.get(path.as_uri())
        self.wait(lambda: browser.execute_script("return document.body.dataset.ready") == "yes")

    def wait(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.02)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def pictures(self) -> list[np.ndarray]:
        """Return the grey levels of each canvas, `(rows, columns)`."""
        drawn = self.run(PICTURES)
        return [np.array(values).reshape(rows, columns, 4)[..., 0] for rows, columns, values in drawn]

    def frame(self) -> int:
        return int(self.run("return document.getElementById('frame').value"))

    def click(self, selector: str) -> None:
        self.run("arguments[0].click()", self.browser.find_element("css selector", selector))

    def enter(self, name: str, value: Any) -> None:
        script = """const field = document.getElementById(arguments[0]); field.value = arguments[1];
            field.dispatchEvent(new Event("input", { bubbles: true }))"""
        self.run(script, name, value)

    def column(self, number: int) -> list[str]:
        """Return a column's texts in the visible rows."""
        script = """return [...document.querySelectorAll(".volumes tbody tr:not([hidden])")]
            .map((row) => row.cells[arguments[0]].textContent)"""
        return self.run(script, number)


@pytest.fixture
def open_file(browser: Any) -> Iterator[Callable[..., Page]]:
    """Open pages; at the end, check that nothing was logged and only these files were fetched."""
    opened = set()

    def show(path: Path, still: bool = True, width: int = 1280) -> Page:
        opened.add(path.as_uri())
        return Page(browser, path, still, width)

    browser.get_log("performance")
    yield show
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")}
    assert {url for url in asked if not url.startswith("data:")} == opened


@pytest.fixture
def open_page(open_file: Callable[..., Page], tmp_path: Path) -> Callable[..., Page]:
    """Write a page and open it."""

    def show(report: dict[str, Any], media: Media, still: bool = True, width: int = 1280) -> Page:
        write_page(report, media, tmp_path / "report.html")
        return open_file(tmp_path / "report.html", still, width)

    return show


def test_a_page_of_a_whole_evaluation_plays_its_worst_and_its_best(
    open_file: Callable[..., Page], tmp_path: Path
) -> None:
    """Volumes have the names of the report, set and id."""
    for seed, name in enumerate(("real", "others")):
        write_cohort(tmp_path / name, 5, seed=seed, size=(32, 32, 4, 6))
    steps = Preprocessing(intensity=Intensity("p0.5", "p99.5"))
    (tmp_path / "steps.json").write_text(json.dumps(steps.to_dict()))
    sets = [tmp_path / name / "manifest.csv" for name in ("real", "others")]
    report = evaluate(EvaluationSettings(*sets, tmp_path / "out", preprocessing=str(tmp_path / "steps.json"))).report

    page = open_file(tmp_path / "out" / "report.html", still=False)

    samples = sorted((v for v in report["volumes"] if v["set"] == "synthetic"), key=lambda v: v["typicality"])
    names = [volume["id"] for volume in samples]
    shown = page.run(
        """return ["real", "farthest", "nearest"].map((kind) =>
            [...document.querySelectorAll(`.players-${kind} figcaption b`)].map((name) => name.textContent))"""
    )
    assert shown[1:] == [names[:2:-1], names[:2]] and all(name.startswith("synthetic/") for name in names)
    assert len(shown[0]) == 2 and all(name.startswith("real/") for name in shown[0])
    assert sorted(page.column(0)) == sorted(volume["id"] for volume in report["volumes"])
    page.run("document.getElementById('samples').scrollIntoView({ behavior: 'instant' })")
    page.wait(lambda: page.frame() > 0)
    page.click("#play")
    page.enter("frame", 2)
    page.enter("slice", 1)
    for name, picture in zip([name for kind in shown for name in kind], page.pictures(), strict=True):
        place, subject = name.split("/")
        (case,) = [case for case in read_manifest(sets[place == "synthetic"]) if case.row["subject"] == subject]
        truth = (np.rot90(prepare_case(case, steps).volume.voxels[:, :, 1, 2]) + 1) * 127.5
        assert np.abs(picture - truth).mean() < 4, name  # JPEG
    curves = page.run("return [...document.querySelectorAll('.curves figcaption')].map((text) => text.textContent)")
    assert len(curves) == 2 and all("Horizontal axis: % of the beat." in text for text in curves)


def test_the_pixels_are_the_volumes(report: dict[str, Any], media: Media, open_page: Callable[..., Page]) -> None:
    page = open_page(report, media)
    shown = page.run("return [...document.querySelectorAll('figcaption b')].map((name) => name.textContent)")
    assert len(shown) == len(media)
    for frame, slice_ in ((0, 0), (7, 4)):
        page.enter("frame", frame)
        page.enter("slice", slice_)
        for name, picture in zip(shown, page.pictures(), strict=True):
            truth = (np.rot90(media[name]()[:, :, slice_, frame]) + 1) * 127.5
            assert np.abs(picture - truth).mean() < 4, name  # JPEG
    places = page.run("return [...document.querySelectorAll('.place')].map((place) => place.textContent)")
    assert places == ["slice 5/6 · frame 8/10"] * len(media)


def test_it_plays_pauses_and_respects_reduced_motion(
    report: dict[str, Any], media: Media, open_page: Callable[..., Page]
) -> None:
    page = open_page(report, media, still=False)
    page.run("document.getElementById('samples').scrollIntoView({ behavior: 'instant' })")
    seen: set[int] = set()
    page.wait(lambda: len(seen.add(page.frame()) or seen) >= 5)  # type: ignore[func-returns-value]
    assert page.run("return document.getElementById('play').textContent") == "Pause"
    page.click("#play")
    stopped, still = page.frame(), page.pictures()
    time.sleep(0.3)
    assert page.frame() == stopped
    assert all(np.array_equal(a, b) for a, b in zip(still, page.pictures(), strict=True))
    page = open_page(report, media, still=True)
    assert page.run("return document.getElementById('play').textContent") == "Play" and page.frame() == 0
    page.click("#play")
    page.wait(lambda: page.frame() > 0)


def test_the_table_sorts_numbers_as_numbers(report: dict[str, Any], open_page: Callable[..., Page]) -> None:
    values = [3.0, -20.0, 100.0, None, 1e-7, 9.0]
    for volume, value in zip(report["volumes"], values):
        volume["numbers"] = {"lv_edv_ml": value}
    report["volumes"] = report["volumes"][:6]
    page = open_page(report, {})
    page.click(".volumes th:nth-child(5) button")
    assert page.column(4) == ["−20.00", "1.000e−07", "3.000", "9.000", "100.0", "–"]
    page.click(".volumes th:nth-child(5) button")
    assert page.column(4) == ["100.0", "9.000", "3.000", "1.000e−07", "−20.00", "–"]
    sorts = page.run("return [...document.querySelectorAll('[aria-sort]')].map((head) => head.ariaSort)")
    assert sorts == ["descending"]
    page.click(".volumes th:nth-child(1) button")
    assert page.column(0) == [f"real-{i:02}.nii.gz" for i in range(6)]


def test_the_table_can_be_searched(report: dict[str, Any], open_page: Callable[..., Page]) -> None:
    page = open_page(report, {})
    assert len(page.column(0)) == 18
    page.enter("filter", "synthetic -03")
    assert page.column(0) == ["synthetic-03.nii.gz"]
    assert page.run("return document.getElementById('filter-says').textContent") == "1 of 18"
    page.enter("filter", "")
    assert len(page.column(0)) == 18


def test_hostile_names_stay_text(report: dict[str, Any], media: Media, open_page: Callable[..., Page]) -> None:
    name = "</script><img src=http://evil.example onerror=\"document.title='broken'\">"
    media[name] = media.pop(report["volumes"][9]["id"])
    report["volumes"][9]["id"] = name
    report["problems"] = [{"set": "real", "file": name, "problem": name}]
    title = report["metrics"][0]["title"] = "<svg onload=\"document.title='broken'\">"
    page = open_page(report, media)
    assert page.column(0)[9] == name and page.browser.title == "9 synthetic volumes compared with 9 real volumes"
    assert page.run("return document.querySelector('.metrics .title').textContent") == title
    assert page.run("return document.querySelectorAll('img').length") == 0


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_the_page_never_scrolls_sideways(
    report: dict[str, Any], media: Media, open_page: Callable[..., Page], width: int
) -> None:
    report["problems"] = [{"set": "real", "file": "x" * 200, "problem": "y" * 200}]
    report["volumes"][0]["id"] = "z" * 200
    del media["real-00.nii.gz"]
    page = open_page(report, media, width=width)
    assert page.run("return document.documentElement.scrollWidth") <= width
    # Every picture says in words what it shows, and every control has a name.
    assert page.run("return document.querySelectorAll('svg:not([aria-label]):not([aria-hidden])').length") == 0
    assert page.run("return [...document.querySelectorAll('input')].every((field) => field.labels.length === 1)")
    assert page.run("return [...document.querySelectorAll('th')].every((head) => head.scope)")


def test_volumes_without_a_beat_play_through_their_slices(
    report: dict[str, Any], open_page: Callable[..., Page]
) -> None:
    chest = np.linspace(-1, 1, 16 * 12 * 10).reshape(10, 16, 12).transpose(1, 2, 0)
    page = open_page(report, {"synthetic-00.nii.gz": lambda: chest})
    assert page.run("return document.getElementById('framing').hidden")
    page.enter("slice", 9)
    assert page.pictures()[0].mean() > 230
    page.click("#play")
    page.wait(lambda: page.pictures()[0].mean() < 200)
    page = open_page(report, {})
    assert page.run("return document.querySelector('#samples .controls').hidden")


def test_on_paper_the_methods_are_open(report: dict[str, Any], open_page: Callable[..., Page]) -> None:
    page = open_page(report, {})
    script = "return document.querySelectorAll('details[open]').length"
    assert page.run(script) == 0
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(script) == len(report["metrics"])
    page.run("dispatchEvent(new Event('afterprint'))")
    assert page.run(script) == 0
