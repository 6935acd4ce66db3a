"""The first thing that a newcomer runs: hearts on the screen, from a checkout and from an installed wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from cardiodit.cli import main
from cardiodit.demo import Heart, print_function
from cardiodit.evaluation.metrics.function import Function

ROOT = Path(__file__).parents[1]
LABELS = ("dilated", "hypertrophic", "infarct", "normal")


def test_two_hearts_in_every_form(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    assert main(["demo", "--output_dir", str(out), "--num_samples", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("Energy: ") and "%|" not in shown.err  # no bars in a log
    assert str(out / "hearts.html") in shown.out.strip().splitlines()[-1]
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        *(f"samples/seed0-0000{i}{ending}" for i in (0, 1) for ending in (".nii.gz", ".gif")),
        *(f"parts/seed0-0000{i}.nii.gz" for i in (0, 1)),
        *("samples/samples.jsonl", "sheet-1-dilated.png", "sheet-2-hypertrophic.png", "hearts.gif", "hearts.html"),
        "energy.jsonl",
    }
    heart, parts = (nibabel.load(out / folder / "seed0-00000.nii.gz") for folder in ("samples", "parts"))
    assert heart.shape == parts.shape == (64, 64, 8, 16)
    assert np.allclose(heart.affine, parts.affine) and heart.header.get_zooms() == parts.header.get_zooms()
    records = [json.loads(line) for line in (out / "samples" / "samples.jsonl").read_text().splitlines()]
    assert [record["class_label"] for record in records] == list(LABELS[:2])
    assert all(record["energy_kwh"] > 0 for record in records)
    with Image.open(out / "hearts.gif") as gif:
        assert gif.n_frames == 16
    page = (out / "hearts.html").read_text()
    assert "dilated" in page and str(tmp_path) not in page

    # The table says what is in the label maps.
    told = re.search(r"^dilated +(\d+) +(\d+) +(\d+)$", shown.out, re.MULTILINE)
    assert told is not None
    pool = (np.asarray(parts.dataobj) == 3).sum(axis=(0, 1, 2)) * np.prod(heart.header.get_zooms()[:3]) / 1000
    assert int(told[1]) == pytest.approx(pool.max(), abs=1) and int(told[2]) == pytest.approx(pool.min(), abs=1)

    assert main(["demo", "--output_dir", str(out)]) == 1
    assert "is not an empty folder" in capsys.readouterr().err
    assert main(["demo", "--output_dir", str(tmp_path / "none"), "--num_samples", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err


def test_the_table_can_be_read(capsys: pytest.CaptureFixture) -> None:
    empty = np.zeros((1, 1, 1, 1))
    print_function([Heart("hypertrophic", empty, empty, Function((104.6, 30.2)))])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["hypertrophic", "105", "30", "71"]


def tracked_files() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.splitlines() if os.path.lexists(ROOT / name)]


def package_files() -> dict[str, bytes]:
    """Every tracked file of the package by its path in `cardiodit/`, with links resolved."""
    package = ROOT / "src" / "cardiodit"
    folders = {"": "src/cardiodit", **{link.name: link.name for link in package.iterdir() if link.is_symlink()}}
    assert set(folders) == {"", "pipelines", "training", "configs", "checkpoints"}
    files = {}
    for name in tracked_files():
        for target, source in folders.items():
            if name.startswith(f"{source}/") and (ROOT / name).is_file():
                files[(Path(target) / name.removeprefix(f"{source}/")).as_posix()] = (ROOT / name).read_bytes()
    assert {"py.typed", "hub/model_card.md", "checkpoints/cardiodit-phantom/README.md"} <= set(files)
    return files


def without_network() -> list[str]:
    """The command that runs another one without a network, as a container does, if this machine has and allows it."""
    command = ["unshare", "--net"]
    is_allowed = shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0
    return command if is_allowed else []


def build_sdist(folder: Path) -> Path:
    """Build an sdist from a copy of the tracked files, in which links stay links."""
    for name in tracked_files():
        if not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    assert (folder / "src" / "cardiodit" / "pipelines").is_symlink()
    built = subprocess.run([sys.executable, "setup.py", "-q", "sdist"], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (archive,) = (folder / "dist").iterdir()
    return archive


def files_in_sdist(archive: Path) -> dict[str, bytes]:
    """Contents by path below the sdist's own folder; fails on anything but regular files and folders."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if not member.isdir()]
        assert [member.name for member in members if not member.isreg()] == []
        return {member.name.partition("/")[2]: tar.extractfile(member).read() for member in members}


def test_it_runs_from_a_wheel_built_from_the_sdist_without_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    expected = package_files()
    archive = build_sdist(tmp_path / "source")
    packed = files_in_sdist(archive)
    inside = "src/cardiodit/"
    assert {name.removeprefix(inside): data for name, data in packed.items() if name.startswith(inside)} == expected
    for name in ("README.md", "LICENSE", "pyproject.toml", "setup.py"):
        assert packed[name] == (ROOT / name).read_bytes()

    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    install = [*pip, "--no-build-isolation", "--no-compile", "--target", str(tmp_path / "installed"), str(archive)]
    done = subprocess.run(install, capture_output=True, text=True)  # builds a wheel from the sdist and installs it
    assert done.returncode == 0, done.stderr
    installed = tmp_path / "installed" / "cardiodit"
    assert not any(path.is_symlink() for path in installed.rglob("*"))
    held = [path for path in installed.rglob("*") if path.is_file()]
    assert {path.relative_to(installed).as_posix(): path.read_bytes() for path in held} == expected
    call = (
        "import sys, cardiodit; from cardiodit.cli import main; print(cardiodit.__file__); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [*without_network(), sys.executable, "-c", call, "demo", "--output_dir", "out", "--num_samples", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path / "installed"))
    assert (tmp_path / "out" / "hearts.html").is_file()
