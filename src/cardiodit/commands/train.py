"""`cardiodit train`: run a training script on one device or several, and end with its sentence and exit code alone.

`accelerate launch` prints a traceback of its own after an error, and stops at once at Ctrl-C. This command leaves both
to the script.
"""

import argparse
import logging
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

from cardiodit.commands.subcommand import add_command, nearest
from cardiodit.errors import CardioDiTError

STAGES = {
    "vqgan": "stage 1: the VQ-GAN that encodes volumes",
    "dit": "stage 2: a diffusion transformer on its latents (CardioDiT, VolDiT)",
    "unet": "stage 2 of MedLoRD: a U-Net on its latents",
    "prdit": "PRDiT, on voxels: first the local denoiser, then the refiner",
    "tgca": "an adapter that follows masks",
    "controlnet": "an adapter of MedLoRD that follows masks",
    "masks": "a second decoder, by which a pipeline's samples come with their masks",
    "segmenter": "a network that labels hearts, to measure them",
    "copy_detector": "a network that recognizes copies of training patients, for cardiodit audit",
}


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "train",
        "Train a model. Without a STAGE, list the stages. `cardiodit train STAGE ...` does what `accelerate launch -m "
        "cardiodit.training.train_STAGE ...` does, but ends without its traceback after an error or Ctrl-C.",
        "cardiodit train vqgan --config cardiodit/vqgan_tiny.yaml --training_ids cohort/training.csv \\\n"
        "    --validation_ids cohort/validation.csv --output_dir runs --run_name vqgan\n"
        "  cardiodit train dit --help",
    )
    parser.add_argument(
        "--num_processes", type=int, help="number of processes on this machine; default: one per GPU, or one"
    )
    parser.add_argument(
        "--config_file", type=Path, metavar="YAML", help="config of accelerate, such as one of configs/accelerate"
    )
    parser.add_argument("stage", nargs="?", metavar="STAGE", help=f"one of {', '.join(STAGES)}")
    parser.add_argument(
        "options", nargs=argparse.REMAINDER, metavar="...", help="options of the stage: `cardiodit train STAGE --help`"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    if arguments.stage is None:
        print(list_of_stages())
        return 0
    stage = arguments.stage.removeprefix("train_")
    if stage not in STAGES:
        near = nearest(stage, STAGES)
        raise CardioDiTError(
            f"There is no stage {arguments.stage}{f'; did you mean {near}?' if near else '.'}\n{list_of_stages()}"
        )
    if {"-h", "--help"}.intersection(arguments.options):
        print(help_file(stage).read_text(), end="")
        return 0
    if arguments.num_processes is not None and arguments.num_processes < 1:
        raise CardioDiTError(f"--num_processes {arguments.num_processes}: must be at least 1.")
    if arguments.config_file is None and (arguments.num_processes or _count_devices()) == 1:
        return _run_here(stage, arguments.options)
    return _launch(stage, arguments)


def list_of_stages() -> str:
    """Return each stage with its module, which `accelerate launch -m` takes."""
    width = max(map(len, STAGES))
    lines = [
        f"  cardiodit train {name:<{width}}  cardiodit.training.train_{name:<{width}}  {text}"
        for name, text in STAGES.items()
    ]
    return "\n".join(["The stages, their modules (for `accelerate launch -m`), and what they train:", *lines])


def help_file(stage: str) -> Path:
    """Return the file that holds the `--help` of a stage, written by `training/harness/help_texts.py`."""
    return Path(__file__).parents[1] / "training" / "help" / f"{stage}.txt"


def _count_devices() -> int:
    import torch

    return max(1, torch.accelerator.device_count())


def _run_here(stage: str, options: list[str]) -> int:
    from cardiodit.training.harness.processes import run_script

    sys.argv = [f"cardiodit train {stage}", *options]
    run_script(import_module(f"cardiodit.training.train_{stage}").main)
    return 0


def _launch(stage: str, arguments: argparse.Namespace) -> int:
    """Start the processes with accelerate if there is a config of it, otherwise with torchrun; return the exit code."""
    from subprocess import CalledProcessError

    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # Scripts, unlike modules, do not import a folder named cardiodit in the current folder.
    script = [str(Path(import_module("cardiodit.training").__path__[0]) / f"train_{stage}.py"), *arguments.options]
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does, with a warning
    signal.signal(signal.SIGINT, _pass_on)
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they repeat the exit code of every process
    if arguments.config_file is None:
        count = ["--nproc_per_node", str(arguments.num_processes or _count_devices())]
        launch, parser, options = torchrun.run, torchrun.get_args_parser(), ["--standalone", *count, *script]
    else:
        count = ["--num_processes", str(arguments.num_processes)] if arguments.num_processes else []
        launch, parser = launch_command, launch_command_parser()
        options = ["--config_file", str(arguments.config_file), *count, *script]
    parsed = parser.parse_args(options)
    parsed.signals_to_handle = "SIGTERM,SIGHUP"  # otherwise torchrun kills processes that save for long after Ctrl-C
    try:
        launch(parsed)
    except CalledProcessError as error:
        return _exit_code(error.returncode)
    except ChildFailedError as error:
        return _exit_code(error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return _exit_code(-error.sigval)
    return 0


def _pass_on(number: int, _: FrameType | None) -> None:
    """Leave Ctrl-C to the processes, which save and end; torchrun's are not reached by the terminal."""
    import psutil  # accelerate requires it

    for process in psutil.Process().children():
        process.send_signal(number)


def _exit_code(code: int) -> int:
    """Return a process's exit code as a shell gives it: 128 and the number of the signal that killed it."""
    return code if code >= 0 else 128 - code
