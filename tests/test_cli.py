"""The command as a user runs it: what it prints, writes and returns."""

import argparse
import contextlib
import inspect
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import pytest
import torch

from cardiodit import __version__, training
from cardiodit._util import gpu
from cardiodit._util.memory import TILING
from cardiodit.cli import build_parser, main
from cardiodit.commands import sample, subcommand, train
from cardiodit.imaging.cohorts import FIELDS_OF_VIEW
from cardiodit.imaging.nifti import TIME_UNITS
from cardiodit.imaging.phantom import GROUPS
from cardiodit.imaging.preprocessing import PRESETS
from cardiodit.imaging.volume import AXES
from cardiodit.schedulers import SOLVERS
from cardiodit.schedulers.flow_scheduler import FLOW_SOLVERS
from cardiodit.schedulers.prdit_scheduler import NOISE_AND_IMAGE_SOLVERS
from cardiodit.training.harness.help_texts import help_of

from .prepared_python import python

GOLDEN = Path(__file__).parent / "fixtures" / "golden"
SAVED_MODEL = Path(__file__).parent / "fixtures" / "saved" / "cardiodit-0.1"
STAGES = {
    "--stage1_ckpt": GOLDEN / "cardiodit" / "vqgan_best_model.pth",
    "--stage1_cfg": GOLDEN / "cardiodit" / "vqgan.yaml",
    "--diff_ckpt": GOLDEN / "cardiodit_labels" / "dit_best_model.pth",
    "--diff_cfg": GOLDEN / "cardiodit_labels" / "dit.yaml",
}


def convert_arguments(output_dir: Path, *more: str, **replaced: Path) -> list[str]:
    files = {**STAGES, **{f"--{name}": path for name, path in replaced.items()}}
    arguments = [text for flag, path in files.items() for text in (flag, str(path))]
    return ["convert", "cardiodit", *arguments, "--output_dir", str(output_dir), *more]


CARDIODIT = str(Path(sys.executable).with_name("cardiodit"))


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([python(), CARDIODIT, *arguments], capture_output=True, text=True)


def test_from_the_authors_files_to_hearts_on_disk(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model, samples = tmp_path / "model", tmp_path / "samples"
    geometry = ["--scale_factor", "1.5", "--spacing", "1.5", "1.5", "10", "--frame_time", "0.03"]
    assert main(convert_arguments(model, *geometry)) == 0
    assert "cardiodit sample" in capsys.readouterr().out
    sampled = run(
        *["sample", str(model), "--output_dir", str(samples), "--num_samples", "3", "--batch_size", "2", "--seed", "4"],
        *["--num_inference_steps", "2", "--solver", "ddim", "--class_label", "2", "--guidance_scale", "1.5"],
    )
    assert sampled.returncode == 0, sampled.stderr
    written = [samples / f"seed4-0000{i}.nii.gz" for i in range(3)]
    assert sampled.stdout.split() == [str(path) for path in written]
    assert nibabel.load(written[2]).header.get_zooms() == pytest.approx((1.5, 1.5, 10, 0.03))
    records = [json.loads(line) for line in (samples / "samples.jsonl").read_text().splitlines()]
    assert [(r["index"], r["class_label"], r["solver"]) for r in records] == [(i, 2, "DDIMScheduler") for i in range(3)]


def test_an_estimate_samples_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = SAVED_MODEL
    arguments = ["sample", str(model), "--output_dir", str(tmp_path / "s"), "--num_samples", "8", "--estimate"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert re.search(r"8 samples on cpu: about [\d.]+ GiB .* and [\d.]+ s .* Nothing was sampled", printed)
    assert not (tmp_path / "s").exists()


def test_it_runs_as_a_module_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["cardiodit", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cardiodit", run_name="__main__", alter_sys=True)
    assert not ended.value.code
    assert capsys.readouterr().out.strip() == f"cardiodit {__version__}"


def subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield subparser
                yield from subcommands(subparser)


@pytest.mark.parametrize("parser", list(subcommands(build_parser())), ids=lambda parser: parser.prog)
def test_every_command_shows_an_example_that_parses(parser: argparse.ArgumentParser) -> None:
    text = parser.format_help().split("example:\n")[1].split("\n\n")[0]
    for example in map(str.split, text.replace("\\\n", " ").strip().splitlines()):
        assert " ".join(example).startswith(parser.prog)
        if "--help" not in example:
            assert build_parser().parse_args(example[1:]).run


def show_every_help() -> None:
    """Runs in a process that has imported nothing yet."""
    parser = build_parser()
    for command in (parser, *subcommands(parser)):
        command.format_help()
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(["train", "dit", "--help"]) == 0
    assert shown.getvalue().startswith("usage: cardiodit train dit ")
    heavy = {"torch", "diffusers", "monai", "nibabel", "scipy", "yaml", "accelerate", "huggingface_hub", "numpy", "PIL"}
    print(sorted(heavy.intersection(sys.modules)))


def test_help_loads_no_heavy_package() -> None:
    functions = (subcommands, show_every_help)
    lines = ["import argparse, contextlib, io, sys", "from collections.abc import Iterator"]
    lines += ["from cardiodit.cli import build_parser, main"]
    code = "\n".join([*lines, *map(inspect.getsource, functions), "show_every_help()"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_choices_in_the_help_are_those_of_the_package() -> None:
    assert tuple(PRESETS) == subcommand.PRESETS
    assert tuple(FIELDS_OF_VIEW) == subcommand.CT_PRESETS
    assert tuple(TIME_UNITS) == subcommand.TIME_UNITS
    assert tuple(GROUPS) == subcommand.PHANTOM_GROUPS
    assert tuple(SOLVERS) == sample.SOLVERS
    assert tuple(NOISE_AND_IMAGE_SOLVERS) == sample.PRDIT_SOLVERS
    assert tuple(FLOW_SOLVERS) == sample.FLOW_SOLVERS
    assert tuple(AXES) == subcommand.AXES
    assert tuple(TILING) == subcommand.TILING


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("smaple my-model", "there is no 'smaple'; did you mean sample?"),
        ("frobnicate", "there is no 'frobnicate'; choose from demo, phantom, prepare"),
        (
            "sample m --outputdir x",
            "required: --output_dir. There is no option --outputdir; did you mean --output_dir?",
        ),
        ("sample m --output_dir x --steps=5", "error: There is no option --steps; did you mean --num_inference_steps?"),
        ("sample m --output_dir x --zebra 5", "error: There is no option --zebra\n"),
        ("sample m --output_dir x --solver unpic", "argument --solver: there is no 'unpic'; did you mean unipc?"),
        ("convert cardidit", "there is no 'cardidit'; did you mean cardiodit?"),
    ],
)
def test_a_slip_of_the_keyboard_gets_a_suggestion(capsys, arguments: str, message: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_train_names_the_stages_and_their_modules(capsys) -> None:
    assert main(["train"]) == 0
    scripts = {path.stem for path in Path(training.__path__[0]).glob("train_*.py")}
    assert set(re.findall(r"cardiodit\.training\.(\w+)", capsys.readouterr().out)) == scripts
    assert {f"train_{stage}" for stage in train.STAGES} == scripts
    assert main(["train", "train_dti"]) == 1
    assert "There is no stage train_dti; did you mean dit?" in capsys.readouterr().err


@pytest.mark.parametrize("stage", train.STAGES)
def test_the_stored_help_of_a_stage_is_that_of_its_parser(stage: str) -> None:
    stored = train.help_file(stage).read_text()
    assert stored.split() == help_of(stage).split(), "`make help-texts` writes the stored texts again"


def test_every_device_option_means_the_same_default() -> None:
    for parser in subcommands(build_parser()):
        if parser.prog.startswith("cardiodit energy"):  # where it is one of a table, and nothing runs on it
            continue
        for action in parser._actions:
            if "--device" in action.option_strings:
                assert action.default is None and "default: " in action.help and "GPU" in action.help, parser.prog
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    assert subcommand.device_or_default(None) == found.type and subcommand.device_or_default("cpu") == "cpu"


def interrupt(*arguments: str, when: Callable[[], bool]) -> subprocess.CompletedProcess:
    """Press Ctrl-C, which all processes of a terminal receive, as soon as something is so."""
    command = [python(), CARDIODIT, *arguments]
    caught: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen(command, **caught)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, printed)


def test_ctrl_c_ends_sampling_with_the_command_to_continue(tmp_path: Path) -> None:
    arguments = ["sample", str(SAVED_MODEL), "--output_dir", str(tmp_path / "s"), "--num_samples", "1000"]
    done = interrupt(*arguments, when=(tmp_path / "s" / "seed0-00000.nii.gz").exists)
    assert done.returncode == 130 and "Traceback" not in done.stdout
    continued = f"stopped by Ctrl-C. The same command continues where it stopped:\n  cardiodit {' '.join(arguments)}"
    assert continued in done.stdout


def test_ctrl_c_ends_workers_without_a_word_of_theirs(tmp_path: Path) -> None:
    size = ["--num", "4000", "--size", "16", "16", "2", "4", "--workers", "2"]
    written = lambda: any(tmp_path.glob(".tmp-*-p/images/*"))  # noqa: E731
    done = interrupt("phantom", "--output_dir", str(tmp_path / "p"), *size, when=written)
    assert done.returncode == 130 and "Traceback" not in done.stdout and "stopped by Ctrl-C." in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "model"
    assert main(convert_arguments(folder, "--scale_factor", "1")) == 0
    return folder


def edited(path: Path, old: str, new: str, folder: Path) -> Path:
    text = path.read_text()
    assert old in text
    (folder / path.name).write_text(text.replace(old, new))
    return folder / path.name


def truncated(path: Path, folder: Path) -> Path:
    (folder / path.name).write_bytes(path.read_bytes()[:-2000])
    return folder / path.name


@pytest.mark.parametrize(
    "replace, more, message",
    [
        (lambda d: {}, [], "does not hold the scale factor, so it must be given"),
        (lambda d: {"diff_ckpt": d / "no.pth"}, ["--scale_factor", "1"], "no.pth does not exist"),
        (lambda d: {"diff_ckpt": truncated(STAGES["--diff_ckpt"], d)}, ["--scale_factor", "1"], "damaged or cut short"),
        (
            lambda d: {"diff_cfg": edited(STAGES["--diff_cfg"], "hidden_size", "hiden_size", d)},
            ["--scale_factor", "1"],
            "dit.params.hiden_size is not a known key.*hidden_size",
        ),
        (
            lambda d: {"diff_cfg": edited(STAGES["--diff_cfg"], "depth: 3", "depth: three", d)},
            ["--scale_factor", "1"],
            "dit.params.depth must be.*'three'",
        ),
        (
            lambda d: {"diff_cfg": edited(STAGES["--diff_cfg"], "depth: 3", "depth: 4", d)},
            ["--scale_factor", "1"],
            "missing: .*blocks.3",
        ),
        (lambda d: {}, ["--scale_factor", "1", "--spacing", "1", "1", "-1"], "three positive numbers"),
        (lambda d: {}, ["--scale_factor", "1", "--frame_time", "30"], "must be in seconds.*0.03"),
        (lambda d: {"stage1_cfg": STAGES["--diff_cfg"]}, ["--scale_factor", "1"], "configs swapped"),
    ],
)
def test_a_conversion_that_cannot_work_says_why_and_leaves_nothing(
    tmp_path: Path, capsys, replace, more, message
) -> None:
    inputs, output = tmp_path / "in", tmp_path / "out"
    inputs.mkdir()
    assert main(convert_arguments(output / "model", *more, **replace(inputs))) == 1
    error = capsys.readouterr().err
    assert error.startswith("cardiodit: error: ") and len(error.strip().splitlines()) == 1
    assert re.search(message, error), error
    assert not output.exists() or not any(output.iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.docx").touch()
    assert main(convert_arguments(tmp_path, "--scale_factor", "1")) == 1
    assert "contains thesis.docx" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num_inference_steps", "301"], "300 steps"),
        (["--class_label", "4"], "no class label 4 in this model; choose 0 to 3"),
        (["--height", "33"], "height=33 cannot be generated"),
        (["--num_samples", "0"], "--num_samples 0: must be at least 1"),
        (["--eta", "1"], "has no eta"),
    ],
)
def test_sampling_that_cannot_work_says_why_and_writes_nothing(
    model: Path, tmp_path: Path, capsys, arguments, message
) -> None:
    assert main(["sample", str(model), "--output_dir", str(tmp_path / "s"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_samples_that_exist_are_noticed_before_anything_is_generated(model: Path, tmp_path: Path, capsys) -> None:
    def sample(*more: str) -> int:
        return main(["sample", str(model), "--output_dir", str(tmp_path / "s"), "--num_inference_steps", "1", *more])

    assert sample("--first_sample", "2") == 0
    capsys.readouterr()
    assert sample("--num_samples", "3", "--eta", "0.5", "--solver", "ddim") == 1
    shown = capsys.readouterr()
    assert "seed0-00002.nii.gz: solver was" in shown.err and not shown.out
    assert sample("--num_samples", "3") == 0
    assert [Path(line).name for line in capsys.readouterr().out.split()] == ["seed0-00000.nii.gz", "seed0-00001.nii.gz"]


def test_half_precision_prints_no_warning(model: Path, tmp_path: Path) -> None:
    done = run(
        "sample", str(model), "--output_dir", str(tmp_path / "s"), "--dtype", "bfloat16", "--num_inference_steps", "1"
    )
    assert done.returncode == 0 and "torch_dtype" not in done.stderr and "float32" not in done.stderr, done.stderr


def test_a_model_is_sampled_in_the_precision_of_its_training(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU; here one is pretended. The time embedding stays in float32, as whenever a pipeline is opened so."""
    trained = shutil.copytree(model, tmp_path / "trained")
    config = trained / "transformer" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "training_precision": "bfloat16"}))
    asked, opened = [], []
    monkeypatch.setattr(gpu, "default_dtype", lambda precision, device: asked.append(precision) or "bfloat16")
    monkeypatch.setattr(sample, "_sample", lambda pipe, *_: opened.append(pipe) or 1)
    for more in ([], ["--dtype", "float32"]):
        assert main(["sample", str(trained), "--output_dir", str(tmp_path / "s"), *more]) == 0
    assert asked == ["bfloat16"]
    assert [pipe.transformer.dtype for pipe in opened] == [torch.bfloat16, torch.float32]
    assert opened[0].transformer.time_embed.linear_1.weight.dtype == torch.float32


def test_all_commands_have_one_default_device() -> None:
    for file in Path(subcommand.__file__).parent.glob("*.py"):
        assert "cuda.is_available" not in file.read_text(), f"{file.name}: use device_or_default or join_processes"


def test_no_such_model(tmp_path: Path, capsys) -> None:
    assert main(["sample", str(tmp_path), "--output_dir", str(tmp_path / "s")]) == 1
    assert "no model_index.json" in capsys.readouterr().err


def test_an_unforeseen_error_ends_a_command_with_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def write_cohort(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("cardiodit.imaging.phantom.write_cohort", write_cohort)
    assert main(["phantom", "--output_dir", "none"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cardiodit: error: Something unexpected went wrong (ZeroDivisionError: division by zero).")
    assert "with --debug" in error and "Traceback" not in error
    for arguments in (["--debug", "phantom"], ["phantom", "--debug"]):
        assert main([*arguments, "--output_dir", "none"]) == 1
        assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_does_not_exist(device: str, tmp_path: Path, capsys) -> None:
    assert main(["sample", "cardiodit-phantom", "--output_dir", str(tmp_path / "s"), "--device", device]) == 1
    assert f"--device {device}: this machine has no such device" in capsys.readouterr().err
