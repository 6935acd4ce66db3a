"""The first thing that a newcomer runs: hearts on the screen, from a checkout and from an installed wheel."""

import json
import os
import re
import shutil
import subprocess
import sys
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
    assert "Denoising: 100%" in shown.err
    assert str(out / "hearts.html") in shown.out.strip().splitlines()[-1]
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {
        *(f"samples/seed0-0000{i}{ending}" for i in (0, 1) for ending in (".nii.gz", ".gif")),
        *(f"parts/seed0-0000{i}.nii.gz" for i in (0, 1)),
        *("samples/samples.jsonl", "sheet-1-dilated.png", "sheet-2-hypertrophic.png", "hearts.gif", "hearts.html"),
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


def test_it_runs_from_a_wheel_without_the_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"  # a build leaves its traces where it is done
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info", "tests"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index", "--no-deps"]
    install = [*pip, "--no-build-isolation", "--no-compile", "--target", str(tmp_path / "installed"), str(source)]
    done = subprocess.run(install, capture_output=True, text=True)  # makes a wheel of the checkout, and installs that
    assert done.returncode == 0, done.stderr
    names = {path.relative_to(tmp_path / "installed").as_posix() for path in (tmp_path / "installed").rglob("*")}
    assert {"cardiodit/checkpoints/cardiodit-phantom/README.md", "cardiodit/hub/model_card.md"} <= names
    call = (
        "import sys, cardiodit; from cardiodit.cli import main; print(cardiodit.__file__); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", call, "demo", "--output_dir", "out", "--num_samples", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(str(tmp_path / "installed"))
    assert (tmp_path / "out" / "hearts.html").is_file()
