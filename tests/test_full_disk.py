"""A disk that is full: every command ends in one sentence, leaves no half-written file, and continues with room."""

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from accelerate.state import AcceleratorState

from cardiodit._util.atomic_io import append_line
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Preprocessing
from cardiodit.training import train_dit, train_vqgan
from cardiodit.training.harness.processes import run_script

FIXTURES = Path(__file__).parent / "fixtures"
SHORT = ("--cpu", "--max_train_steps", "1", "--validation_steps", "1", "--dataloader_num_workers", "0")


@contextmanager
def room_for(most: int) -> Iterator[None]:
    """Let no file grow beyond some bytes: writing then fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(FIXTURES / "saved", tmp_path_factory.mktemp("disk") / "saved"))
    (folder / "small.json").write_text(json.dumps(Preprocessing(size=(16, 16, 2), frames=4).to_dict()))
    return folder


def script(stage: object, *arguments: object) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run_script(lambda: stage.main([str(argument) for argument in arguments]))  # type: ignore[attr-defined]
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return 0


def stage_arguments(saved: Path, output: Path, config: str, data: str, *more: object) -> tuple[object, ...]:
    settings = yaml.safe_load((saved / "run-0.1" / config).read_text())
    settings["training"] = {**settings["training"], "report_to": "none", "preview_samples": 0}
    if data == "images":
        del settings["training"]["preview_samples"]
    file = output.parent / config
    file.write_text(yaml.safe_dump(settings))
    ids = [saved / "run-0.1" / data / split / "manifest.csv" for split in ("training", "validation")]
    named = ("--output_dir", output, "--run_name", "run")
    return ("--config", file, "--training_ids", ids[0], "--validation_ids", ids[1], *named, *SHORT, *more)


AUTHORS = (
    *("--stage1_ckpt", str(FIXTURES / "golden/cardiodit/vqgan_best_model.pth")),
    *("--stage1_cfg", str(FIXTURES / "golden/cardiodit/vqgan.yaml")),
    *("--diff_ckpt", str(FIXTURES / "golden/cardiodit_labels/dit_best_model.pth")),
    *("--diff_cfg", str(FIXTURES / "golden/cardiodit_labels/dit.yaml"), "--scale_factor", "1"),
)
CHANGED = {"card": "cardiodit-0.1", "scale-factor": "run-0.1"}  # folders that commands add to
INCOMPLETE = {"card": 1}  # an exit code that says that facts are missing
# Each command with the size in bytes beyond which no file may grow: some files fit, a later one does not.
COMMANDS: dict[str, tuple[int, Callable[[Path, Path], int]]] = {
    "phantom": (
        2000,
        lambda saved, out: main(["phantom", "--output_dir", str(out), "--num", "2", "--size", "16", "16", "4", "4"]),
    ),
    "sample": (
        500,
        lambda saved, out: main(
            ["sample", str(saved / "cardiodit-0.1"), "--output_dir", str(out), "--num_inference_steps", "1"]
        ),
    ),
    "encode": (
        1500,
        lambda saved, out: main(
            [
                *("encode", "--ids", str(saved / "run-0.1/images/validation/manifest.csv"), "--device", "cpu"),
                *("--vae", str(saved / "run-0.1/runs/vqgan"), "--output_dir", str(out), "--condition_keys", "mask"),
            ]
        ),
    ),
    "prepare": (
        1000,
        lambda saved, out: main(
            [
                *("prepare", "folder", str(saved / "run-0.1/images/training/images")),
                *("--output_dir", str(out), "--min_slices", "1"),
            ]
        ),
    ),
    "export": (4000, lambda saved, out: main(["export", str(saved / "cardiodit-0.1"), "--output_dir", str(out)])),
    "view": (
        2000,
        lambda saved, out: main(
            [
                *("view", str(saved / "run-0.1/images/training/images/phantom-0000.nii.gz")),
                *("--output", str(out / "view.html")),
            ]
        ),
    ),
    "reconstruct": (
        1500,
        lambda saved, out: main(
            [
                *("reconstruct", "--ids", str(saved / "run-0.1/images/validation/manifest.csv"), "--device", "cpu"),
                *("--vae", str(saved / "run-0.1/runs/vqgan"), "--output_dir", str(out)),
            ]
        ),
    ),
    "evaluate": (
        3000,
        lambda saved, out: main(
            [
                *(
                    "evaluate",
                    "--real",
                    str(saved / "run-0.1/images/training/manifest.csv"),
                    "--preprocessing",
                    str(saved / "small.json"),
                ),
                *("--synthetic", str(saved / "run-0.1/images/validation/manifest.csv"), "--output_dir", str(out)),
            ]
        ),
    ),
    "convert": (4000, lambda saved, out: main(["convert", "cardiodit", *AUTHORS, "--output_dir", str(out)])),
    "card": (1000, lambda saved, out: main(["card", str(out)])),
    "scale-factor": (
        100,
        lambda saved, out: main(
            [
                *("scale-factor", "--latents", str(out / "latents/training/manifest.csv")),
                *("--vae", str(out / "runs/vqgan"), "--limit", "3"),
            ]
        ),
    ),
    "train_dit": (
        6000,
        lambda saved, out: script(
            train_dit, *stage_arguments(saved, out, "dit.yaml", "latents", "--vae", saved / "run-0.1/runs/vqgan")
        ),
    ),
    "train_vqgan": (
        6000,
        lambda saved, out: script(train_vqgan, *stage_arguments(saved, out, "vqgan.yaml", "images")),
    ),
}


def files_in(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_ends_in_a_sentence_and_the_command_continues_with_room(
    name: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    most, run = COMMANDS[name]
    output = tmp_path / "output"
    if name in CHANGED:
        shutil.copytree(saved / CHANGED[name], output)
    before = files_in(output)
    with room_for(most):
        code = run(saved, output)
    said = capsys.readouterr().err
    assert code == 1 and "The disk is full" in said and "Traceback" not in said, said
    left = files_in(output)
    assert not [file for file in left if ".tmp-" in file], left
    assert {file: left.get(file) for file in before} == before
    assert run(saved, output) in (0, INCOMPLETE.get(name, 0)), capsys.readouterr().err
    assert files_in(output) != before


def test_a_line_that_does_not_fit_is_not_left_in_half(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_line(path, "first")
    with room_for(10), pytest.raises(CardioDiTError, match="The disk is full, so .*samples.jsonl was not written"):
        append_line(path, "a line that is longer")
    assert path.read_text() == "first\n"
    append_line(path, "second")
    assert path.read_text() == "first\nsecond\n"
