"""`cardiodit doctor`: check this machine and measure it."""

import argparse
from pathlib import Path

from cardiodit.commands.subcommand import DEVICE_HELP, add_command, device_or_default


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "doctor",
        "Check the installation and measure this machine: versions, device, attention kernel, a training step of each "
        "stage with its share of the GPU's peak, sampling and decoding, bf16 compared with float32, resuming to the "
        "bit, several GPUs, and whether energy can be measured. Takes about five minutes on a GPU, at the published "
        "sizes; on a CPU small networks are measured. Attach doctor.json to an issue.",
        "cardiodit doctor --output_dir doctor",
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path(), help="folder for doctor.json (default: the current folder)"
    )
    parser.add_argument("--device", help=DEVICE_HELP)
    parser.add_argument("--small", action="store_true", help="measure small networks on a GPU, too")
    parser.add_argument("--rounds", type=int, default=5, help="timed repetitions of each step (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from cardiodit.doctor import PUBLISHED, SMALL, examine, write_findings

    device = device_or_default(arguments.device)
    sizes = PUBLISHED if device.startswith("cuda") and not arguments.small else SMALL
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    findings = []
    for finding in examine(device, sizes, arguments.rounds):
        findings.append(finding)
        print(f"{finding.status:7}{finding.check:25}{finding.result}", flush=True)
        write_findings(findings, arguments.output_dir / "doctor.json")  # each time, in case the next check crashes
    failed = sum(finding.status == "failed" for finding in findings)
    print(f"\n{arguments.output_dir / 'doctor.json'} holds all numbers; attach it to an issue.")
    if failed:
        print(f"{failed} of {len(findings)} checks failed.")
    return 1 if failed else 0
