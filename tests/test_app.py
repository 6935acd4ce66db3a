"""`cardiodit app`: what it generates, and a real server in a real browser that takes no files."""

import json
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from cardiodit import app
from cardiodit.app import generate, make_server, shown, write_files
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError

MODEL = "cardiodit-phantom"
ROOT = Path(__file__).parents[1]
SPACE = ROOT / "examples" / "space"
NEEDED = {
    "gradio": find_spec("gradio"),
    "chromium": shutil.which("chromium"),
    "chromedriver": shutil.which("chromedriver"),
}
MISSING = ", ".join(name for name, found in NEEDED.items() if not found)


def test_a_heart_has_its_labels_its_function_and_its_files() -> None:
    made = generate(MODEL, "dilated", seed=3, steps=5)
    assert made.parts is not None and made.function is not None
    assert made.volume.voxels.shape == made.parts.shape == (64, 64, 8, 16) and set(np.unique(made.parts)) == {
        0,
        1,
        2,
        3,
    }
    assert f"EF {made.function.ef:.0f}%" in made.note
    page = shown(made, "dilated")
    assert page.startswith("<iframe sandbox=") and "dilated" in page and f"EF {made.function.ef:.0f}" not in page[:200]
    parts, heart = map(nibabel.load, sorted(write_files(made, 3), reverse=True))
    assert np.array_equal(parts.get_fdata(), made.parts) and np.allclose(heart.affine, parts.affine)


def test_the_heart_with_the_nearest_ejection_fraction_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "CANDIDATES", 2)
    low, high = (generate(MODEL, ef=ef, seed=1, steps=5) for ef in (15, 75))
    found = [float(number) for number in re.findall(r"(\d+)%", low.note.partition("hearts (")[2])]
    assert len(found) == len(set(found)) == 2 and low.note.partition("Nearest")[2] == high.note.partition("Nearest")[2]
    assert round(low.function.ef) == min(found) and round(high.function.ef) == max(found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [({"steps": 1000}, "steps=1000 must be from 5 to 50"), ({"seed": -1}, "seed=-1"), ({"label": "zebra"}, "zebra")],
)
def test_what_nobody_can_choose_on_the_page_is_refused(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(CardioDiTError, match=message):
        generate(MODEL, **asked)


def test_without_gradio_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["app"]) == 1
    assert 'pip install "cardiodit[app]"' in capsys.readouterr().err


@pytest.fixture
def address() -> Iterator[str]:
    """A server on loopback, in a thread of this process."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(make_server([MODEL]), host="127.0.0.1", port=port, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


@pytest.mark.skipif(bool(MISSING), reason=f"missing: {MISSING}")
def test_a_visitor_sees_a_heart_beat_and_downloads_it(address: str, browser: Any, tmp_path: Path) -> None:
    def every(selector: str) -> list[Any]:
        return browser.find_elements("css selector", selector)

    browser.get(address)
    (button,) = wait(lambda: [each for each in every("button") if each.text == "Generate"])
    assert every("input[type=file]") == []  # nothing takes a file
    button.click()
    (frame,) = wait(lambda: every("#viewer iframe"))
    links = wait(lambda: [link.get_attribute("href") for link in every("a[download]")])
    assert every("#note")[0].text.startswith("EF ")
    browser.switch_to.frame(frame)
    wait(lambda: browser.execute_script("return document.body.dataset.ready") == "yes")
    assert every("canvas") and "EDV" in every("body")[0].text  # the heart, and its volume curve
    heart = next(link for link in links if "heart-0" in link)
    urllib.request.urlretrieve(heart, tmp_path / "heart.nii.gz")
    assert nibabel.load(tmp_path / "heart.nii.gz").shape == (64, 64, 8, 16)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = [each["request"]["url"] for each in sent if each["documentURL"].startswith((address, "about:srcdoc"))]
    assert urls and all(url.startswith((address, "data:", "blob:", "about:")) for url in urls), [
        url for url in urls if address not in url
    ]


@pytest.mark.skipif(find_spec("gradio") is None, reason="missing: gradio")
@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/upload/", "/gradio_api/run/predict"])
def test_files_are_refused(address: str, path: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="patient.nii"\r\n\r\nJane\r\n--x--\r\n'
    request = urllib.request.Request(address + path, body, {"Content-Type": "multipart/form-data; boundary=x"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    assert refused.value.code == 403 and b"takes no files" in refused.value.read()


def test_the_space_serves_the_app_and_containers_run_without_root() -> None:
    assert "serve(make_server(models)" in (SPACE / "app.py").read_text()
    assert (SPACE / "requirements.txt").read_text() == "cardiodit[app]\n"
    lines = (SPACE / "Dockerfile").read_text().splitlines()
    user, entry = lines.index("USER user"), lines.index('ENTRYPOINT ["cardiodit"]')
    assert user < entry and not any(line.startswith("USER root") for line in lines)
    recipe = (SPACE / "cardiodit.def").read_text()
    for text in ("\n".join(lines), recipe):
        assert "HF_HUB_OFFLINE=1" in text and "source[app,train]" in text and "python:3.12-slim" in text
    assert 'exec cardiodit "$@"' in recipe
    assert app.WAITING > 0
