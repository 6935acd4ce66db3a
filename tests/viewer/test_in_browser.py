"""The viewer in a headless Chromium: it plays, reacts to its controls, and logs no errors."""

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

from cardiodit import VolumePipelineOutput
from cardiodit.evaluation.metrics.function import left_ventricle
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import read_labels, read_nifti
from cardiodit.imaging.orientation import CT_DIRECTION
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.volume import Volume
from cardiodit.viewer import Shown, write_viewer
from cardiodit.viewer.page import as_cell

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FOUND = {"chromium": BROWSER, "chromedriver": DRIVER, "selenium": find_spec("selenium")}
if MISSING := ", ".join(name for name, found in FOUND.items() if not found):
    warnings.warn(f"The viewer is not tested in a browser. Missing: {MISSING}.", stacklevel=1)
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"missing: {MISSING}")
STILL = {"name": "prefers-reduced-motion", "value": "reduce"}


class Page:
    """What a user can see and do."""

    def __init__(self, browser: Any, path: Path, still: bool = True) -> None:
        self.browser = browser
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [STILL] if still else []})
        browser.get(path.as_uri())
        self.wait(lambda: browser.execute_script("return document.body.dataset.ready") == "yes")

    def wait(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.browser.get_log("browser")
            time.sleep(0.02)

    def pictures(self) -> list[np.ndarray]:
        """Each canvas's pixels, `(rows, columns, RGB)`."""
        script = """return [...document.querySelectorAll("canvas")].map((shown) => {
            const copy = new OffscreenCanvas(shown.width, shown.height);
            const pen = copy.getContext("2d", { willReadFrequently: true });
            pen.drawImage(shown, 0, 0);
            return [copy.height, copy.width, [...pen.getImageData(0, 0, copy.width, copy.height).data]]; })"""
        drawn = self.browser.execute_script(script)
        return [np.array(values, np.uint8).reshape(rows, columns, 4)[..., :3] for rows, columns, values in drawn]

    def value(self, name: str) -> float:
        return float(self.browser.find_element("id", name).get_property("value"))

    def says(self, name: str) -> str:
        return self.browser.find_element("id", f"{name}-says").text

    def captions(self) -> list[str]:
        return [caption.text for caption in self.browser.find_elements("css selector", "figcaption .says")]

    def press(self, *keys: str) -> None:
        self.browser.find_element("tag name", "body").send_keys(*keys)

    def click(self, name: str) -> None:
        self.browser.find_element("id", name).click()

    def slide(self, name: str, value: float) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.browser.execute_script(script, self.browser.find_element("id", name), value)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> list[Shown]:
    folder = tmp_path_factory.mktemp("hearts")
    write_cohort(folder / "cohort", num=2, size=(64, 64, 8, 16))
    images, labels = (sorted((folder / "cohort" / kind).glob("*.nii.gz")) for kind in ("images", "labels"))
    return [Shown(i.name, read_nifti(i), read_labels(m).voxels) for i, m in zip(images, labels, strict=True)]


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens volumes; at the end, nothing was complained of and nothing was fetched but the file."""

    def show(*volumes: Shown, still: bool = True) -> Page:
        write_viewer(tmp_path / "view.html", volumes)
        return Page(browser, tmp_path / "view.html", still)

    browser.get_log("performance")
    yield show
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = {r["request"]["url"] for r in requests if r["documentURL"].startswith("file:")}
    assert {url for url in asked if not url.startswith("data:")} == {(tmp_path / "view.html").as_uri()}


def differ(before: list[np.ndarray], after: list[np.ndarray]) -> list[bool]:
    return [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]


def test_it_plays_by_itself_at_the_hearts_pace_and_stops(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    page = open_page(hearts[0], still=False)
    script = """const done = arguments[0], frame = document.getElementById("frame"), seen = [];
        const start = performance.now();
        requestAnimationFrame(function look(now) {
            if (seen.at(-1) !== frame.value) seen.push(frame.value);
            now - start < 1500 ? requestAnimationFrame(look) : done(seen.length - 1);
        });"""
    changes = page.browser.execute_async_script(script)
    frame_time = hearts[0].volume.geometry.frame_time
    assert frame_time and 0.25 * 1.5 / frame_time <= changes <= 1.1 * 1.5 / frame_time + 1
    page.click("play")
    shown = page.value("frame")
    time.sleep(0.3)
    assert page.value("frame") == shown
    assert page.browser.find_element("id", "play").text == "Play"


def test_the_pixels_are_the_volumes(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    volume = hearts[0].volume
    page = open_page(Shown("plain", volume, window=(0, 1000)))
    page.slide("frame", 5)
    page.slide("slice", 2)
    expected = np.clip(np.rot90(volume.voxels[:, :, 2, 5]) * 0.255, 0, 255)
    assert np.abs(page.pictures()[0][..., 1] - expected).max() <= 1
    assert page.captions() == ["slice 3/8 · frame 6/16 · W 1000 L 500"]
    assert page.says("frame") == f"6 of 16 · {round(5000 * volume.geometry.frame_time)} ms"


def test_slices_grey_and_masks_alter_the_picture(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    page = open_page(*hearts)
    first = page.pictures()
    page.slide("slice", 6)
    assert all(differ(first, page.pictures()))
    page.slide("slice", 3)
    assert not any(differ(first, page.pictures()))
    for name, value in (("window", 90), ("level", 60), ("opacity", 80)):
        before = page.pictures()
        page.slide(name, value)
        assert all(differ(before, page.pictures())), name
    page.click("reset")
    page.click("mask")
    grey = page.pictures()
    assert all((picture.max(axis=-1) == picture.min(axis=-1)).all() for picture in grey)
    page.click("mask")
    assert any((picture.max(axis=-1) > picture.min(axis=-1)).any() for picture in page.pictures())


def test_the_keyboard(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    from selenium.webdriver.common.keys import Keys

    page = open_page(hearts[0])
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_UP)
    assert (page.value("frame"), page.value("slice")) == (2, 4)
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert (page.value("frame"), page.value("slice")) == (15, 2)
    before = page.pictures()
    page.press("m")
    assert all(differ(before, page.pictures()))
    page.press("]")
    assert page.says("speed") == "1.5×"
    page.press("[", "[")
    assert page.says("speed") == "0.75×"
    page.press(" ")
    page.wait(lambda: page.value("frame") not in (15, 0))
    page.press(" ")
    stopped = page.value("frame")
    time.sleep(0.3)
    assert page.value("frame") == stopped
    page.browser.find_element("id", "play").send_keys(" ")  # a focused button is pressed once, not twice
    assert page.browser.find_element("id", "play").text == "Pause"
    page.browser.find_element("id", "play").send_keys(" ")


def test_dragging_and_the_wheel(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    page = open_page(hearts[0])
    canvas = page.browser.find_element("tag name", "canvas")
    before = page.pictures()
    ActionChains(page.browser).drag_and_drop_by_offset(canvas, -80, 20).perform()
    assert page.value("window") < 255 and page.value("level") > 128 and all(differ(before, page.pictures()))
    ActionChains(page.browser).scroll_from_origin(ScrollOrigin.from_element(canvas), 0, 100).perform()
    page.wait(lambda: page.value("slice") == 2)


def test_the_scale_bar_measures_the_picture(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    unknown = Shown("unknown", Volume(hearts[0].volume.voxels, Geometry()))
    page = open_page(*hearts, unknown)
    script = """return [...document.querySelectorAll(".picture")].map((picture) => {
        const bar = picture.querySelector(".scale"), width = picture.firstChild.getBoundingClientRect().width;
        return bar && [bar.textContent, bar.getBoundingClientRect().width / width]; })"""
    *bars, missing = page.browser.execute_script(script)
    for (text, share), shown in zip(bars, hearts):
        spacing = shown.volume.geometry.spacing
        assert spacing and share * 64 * spacing[0] == pytest.approx(float(text.removesuffix(" mm")), rel=0.02)
        assert 0.1 < share <= 0.36
    assert missing is None


def test_curves_follow_the_frame_and_lead_to_it(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = open_page(hearts[0], Shown("without", hearts[1].volume))
    function = left_ventricle(hearts[0].masks, hearts[0].volume.geometry)
    assert f"EF {function.ef:.0f} %" in page.browser.find_element("tag name", "figure").text
    page.slide("frame", function.es_frame)
    assert f"frame {function.es_frame + 1}/16 ES" in page.captions()[0] and "ES" not in page.captions()[1]
    now = page.browser.find_element("css selector", ".curves .now")
    assert now.get_attribute("d") == f"M{100 * function.es_frame / 16:g} 0V100"
    area = page.browser.find_element("class name", "curves")
    ActionChains(page.browser).move_to_element_with_offset(area, area.size["width"] // 4 + 3, 0).click().perform()
    assert page.value("frame") == 12
    assert page.browser.execute_script("return document.querySelectorAll('.curves').length") == 1


def test_letters_stand_at_the_edges(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    voxels = hearts[0].volume.voxels[..., 0]
    page = open_page(Shown("chest", Volume(voxels, Geometry((1, 1, 1), direction=CT_DIRECTION, in_scanner=True))))
    script = """const middle = (shown) => {
            const box = shown.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]; };
        const [x, y] = middle(document.querySelector("canvas"));
        return Object.fromEntries([...document.querySelectorAll(".picture > span:not(.scale)")].map((span) => {
            const [u, v] = middle(span); return [span.textContent, [Math.round(u - x), Math.round(v - y)]]; }))"""
    letters = page.browser.execute_script(script)
    assert letters["L"][0] > 100 and letters["R"][0] < -100 and letters["A"][1] < -100 and letters["P"][1] > 100
    assert abs(letters["L"][1]) <= 2 and abs(letters["A"][0]) <= 2


def test_the_viewer_and_a_picture_play_inside_a_notebook_cell(
    hearts: list[Shown], browser: Any, tmp_path: Path
) -> None:
    """A cell is a page in which both stand; the viewer cannot reach beyond its frame."""
    write_viewer(tmp_path / "view.html", hearts[:1])
    cell = as_cell((tmp_path / "view.html").read_bytes())
    voxels = hearts[0].volume.voxels.astype(np.float32)[None] / 500 - 1
    record = {"seed": 0, "index": 0, "class_label": "normal", "output_type": "np"}
    picture = VolumePipelineOutput(voxels, [record], hearts[0].volume.geometry)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><meta charset='utf-8'>{picture}{cell}")
    browser.get((tmp_path / "notebook.html").as_uri())
    shown = browser.find_element("tag name", "img")
    assert shown.get_property("naturalWidth") == 132 + 8 * 96 and "normal" in shown.get_attribute("alt")
    browser.switch_to.frame(browser.find_element("tag name", "iframe"))
    for _ in range(200):
        if browser.execute_script("return document.body.dataset.ready") == "yes":
            break
        time.sleep(0.02)
    assert browser.find_element("class name", "curves").is_displayed()
    browser.switch_to.default_content()
    assert browser.get_log("browser") == []


def test_volumes_of_other_lengths_stay_in_step(hearts: list[Shown], open_page: Callable[..., Page]) -> None:
    whole = hearts[0].volume
    half = Volume(whole.voxels[:, :, ::2, ::2], whole.geometry)
    still = Volume(whole.voxels[..., 0], Geometry())
    page = open_page(
        *(Shown(n, v, window=(0, 1000)) for n, v in (("whole", whole), ("half", half), ("still", still))), still=False
    )
    script = "return [...document.querySelectorAll('figcaption .says')].map((says) => says.textContent)"
    for _ in range(20):  # while it plays
        frames = [int(text.split("frame ")[1].split("/")[0]) - 1 for text in page.browser.execute_script(script)[:2]]
        assert frames[1] == frames[0] // 2
    page.press(" ")
    page.slide("frame", 9)
    page.slide("slice", 7)
    assert [caption.rsplit(" · ", 1)[0] for caption in page.captions()] == [
        "slice 8/8 · frame 10/16",
        "slice 4/4 · frame 5/8",
        "slice 8/8",
    ]
    assert page.says("window") == "1000"


@pytest.mark.parametrize("num", range(1, 9))
def test_up_to_eight_volumes_fit_without_scrolling(hearts: list[Shown], open_page: Callable[..., Page], num) -> None:
    wide = Geometry((3.0, 1.5, 10.0))
    page = open_page(*[Shown(f"volume {i}", Volume(hearts[i % 2].volume.voxels[..., 0], wide)) for i in range(num)])
    script = """const area = document.getElementById("panels");
        return [[...document.querySelectorAll("canvas")].map((c) => {
            const box = c.getBoundingClientRect(); return [box.width, box.height]; }),
            area.scrollHeight <= area.clientHeight && area.scrollWidth <= area.clientWidth,
            document.getElementById("playing").hidden, document.documentElement.scrollHeight <= innerHeight]"""
    sizes, panels_fit, is_playless, page_fits = page.browser.execute_script(script)
    assert len(sizes) == num and panels_fit and page_fits and is_playless
    for width, height in sizes:
        assert width / height == pytest.approx(2, abs=0.01) and width >= 200
