"""What docs/evaluation.md promises: its keys are the report's, its code runs, its commands parse."""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cardiodit.cli import build_parser
from cardiodit.evaluation.evaluate import EvaluationSettings, evaluate
from cardiodit.evaluation.report import SCHEMA
from cardiodit.imaging import Intensity, Preprocessing, prepare_case, read_manifest, read_nifti, write_nifti
from cardiodit.imaging.phantom import write_cohort

from ..prepared_python import python

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
OF_SAMPLES = {"made_by"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("documented")
    for seed, name in enumerate(("real", "others")):
        write_cohort(root / name, 4, seed=seed, size=(32, 32, 4, 9))
    return root


@pytest.fixture(scope="module")
def headers(root: Path) -> list[tuple[Any, float]]:
    """Voxel size and frame time of each real file."""
    found = [read_nifti(case.image).geometry for case in read_manifest(root / "real" / "manifest.csv")]
    return [(geometry.spacing, geometry.frame_time) for geometry in found]


@pytest.fixture(scope="module")
def report(root: Path) -> dict[str, Any]:
    """Of phantoms and of samples, one of them damaged, with the page's own segmenter."""
    steps = Preprocessing(intensity=Intensity("p0.5", "p99.5"))
    (root / "samples").mkdir()
    for i, case in enumerate(read_manifest(root / "others" / "manifest.csv")):
        volume = prepare_case(case, steps).volume
        write_nifti(root / "samples" / f"{i}.nii.gz", volume.voxels, volume.geometry)
        line = {"file": f"{i}.nii.gz", "units": None, "model": "perfect", "preprocessing": steps.to_dict()}
        with (root / "samples" / "samples.jsonl").open("a") as records:
            records.write(json.dumps(line) + "\n")
    (root / "samples" / "3.nii.gz").write_bytes(b"damaged")
    (root / "documented_segmenter.py").write_text(next(block for block in blocks("python") if "mask_order" in block))
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(root))
        request = EvaluationSettings(root / "real" / "manifest.csv", root / "samples", root / "out")
        evaluate(EvaluationSettings(**{**vars(request), "segmenter": "documented_segmenter:segment"}))
    return json.loads((root / "out" / "report.json").read_text())


def test_the_keys_of_the_table_are_those_of_a_report(report: dict[str, Any]) -> None:
    rows = re.findall(r"^\| (`.*?) \| .* \|$", PAGE[PAGE.index("## report.json") :], re.MULTILINE)
    documented = [key for row in rows for key in re.findall(r"`([^`]+)`", row)]
    found = set(paths(report, set(documented)))
    assert len(documented) == len(set(documented)) and found == set(documented)
    assert f"The schema is `{SCHEMA}`" in PAGE


def paths(value: Any, documented: set[str], path: str = "") -> Iterator[str]:
    """Of every entry that is documented, or has nothing below it that could be."""
    if path in documented or (path and not isinstance(value, dict | list)):
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, documented, f"{path}.{key}" if path else key)
    else:
        for item in value:
            yield from paths(item, documented, f"{path}[]")


def test_what_the_table_says_lies_in_its_entries_does(report: dict[str, Any]) -> None:
    for prefix, entries in (
        ("| `sets.real`, `sets.synthetic` | ", [report["sets"]["synthetic"]]),
        ("| `metrics[].floor` | ", [metric["floor"] for metric in report["metrics"]]),
        ("| `metrics[].shrunk` | ", [metric["shrunk"] for metric in report["metrics"]]),
    ):
        row = next(line for line in PAGE.splitlines() if line.startswith(prefix)).removeprefix(prefix)
        held = {key for entry in entries if entry for key in entry}
        assert held and held == set(re.findall(r"`(\w+)`", row)), prefix
    assert OF_SAMPLES & set(report["sets"]["real"]) == set()


def test_each_volume_has_its_own_geometry_and_the_critic_is_in_the_protocol(
    report: dict[str, Any], headers: list[tuple[Any, float]]
) -> None:
    assert report["protocol"]["critic"] is False
    real = [volume for volume in report["volumes"] if volume["set"] == "real"]
    for volume, (spacing, frame_time) in zip(real, headers, strict=True):
        assert volume["spacing_mm"] == pytest.approx(spacing) and volume["frame_time_s"] == pytest.approx(frame_time)
    assert len({volume["frame_time_s"] for volume in real}) > 1
    (similarity,) = [metric for metric in report["metrics"] if metric["name"] == "ms_ssim"]
    assert similarity["floor"]["volumes"] is None  # no set was cut for it
    assert all(curve["is_one_beat"] for curve in report["curves"]) and "frame_time_s" not in report["curves"][0]


def test_code_runs_as_written() -> None:
    (code,) = [block for block in blocks("python") if "print(" in block]
    done = subprocess.run([python(), "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 and ", floor " in done.stdout


def test_commands_parse() -> None:
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    commands = re.findall(r"^(?:\w+=\S+ )?cardiodit (.*)$", text, re.MULTILINE)
    assert len(commands) >= 4
    for command in commands:
        assert build_parser().parse_args(shlex.split(command)).run
