"""Energy: our meter beside CodeCarbon's on the same load, and the published study's axes with our systems.

    pip install --target /tmp/codecarbon codecarbon   # nowhere else: this package does not need it
    python benchmarks/energy.py compare --codecarbon /tmp/codecarbon
    python benchmarks/energy.py study

`compare` generates volumes with the bundled model in this process, and keeps two worker processes busy meanwhile; both
meters run around it. Without CodeCarbon the load is compared with the kernel's own account of it only. `study` counts
operations and multiplies; nothing is trained or generated.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from measuring import machine

from cardiodit import (
    CardioDiTPipeline,
    DiT3DTransformerModel,
    DiT4DTransformerModel,
    MedLoRDPipeline,
    MedLoRDUNetModel,
    PRDiTPipeline,
    PRDiTTransformerModel,
    VolDiTPipeline,
    VQModel3D,
    VQModel4D,
    make_scheduler,
)
from cardiodit.energy import EnergyMeter, scenarios, two_digits
from cardiodit.energy.electricity import (
    GRAMS_A_KILOMETRE,
    MANY,
    Footprint,
    choose_electricity,
    format_grams,
    format_kilometres,
)
from cardiodit.energy.forecast import find_device, forecast_work
from cardiodit.energy.meter import core_watts
from cardiodit.hub.bundled_models import PHANTOM_MODEL
from cardiodit.pipelines.estimate import scaled_costs
from cardiodit.schedulers import NoiseAndImageScheduler

BUSY = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: sum(range(10000))\n"
ROOT = Path(__file__).parents[1]
ITERATIONS = 150_000  # of the study's training, with one volume each
FORWARDS = 3  # a training step costs as much as three forward passes
MEDLORD_VAE = yaml.safe_load((ROOT / "configs/medlord/vqgan_ds8_new.yaml").read_text())["model"]
VARIED, PLACES = "MedLoRD", ("ISL", "SWE", "FRA", "DEU", "USA", "CHN", "POL", "IND", "TKM")
STUDY = {"2D": ("1.1 kg", "10 km", "17 kg", "160 km"), "3D": ("9.7 kg", "90 km", "360 kg", "3,345 km")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    compare = commands.add_parser("compare", help="our meter beside CodeCarbon's")
    compare.add_argument("--seconds", type=float, default=60.0, help="CPU time of each worker process (%(default)s)")
    compare.add_argument("--volumes", type=int, default=20, help="volumes that this process generates (%(default)s)")
    compare.add_argument("--codecarbon", type=Path, metavar="FOLDER", help="where CodeCarbon is installed")
    compare.add_argument(
        "--same_watts",
        action="store_true",
        help="let CodeCarbon watch this process at our watts a core, not the machine",
    )
    compare.set_defaults(run=run_compare)
    study = commands.add_parser("study", help="the study's axes with our systems")
    study.add_argument("--device", default="a100-80", help="device of the table (%(default)s)")
    study.set_defaults(run=run_study)
    arguments = parser.parse_args()
    arguments.run(arguments)


def run_compare(arguments: argparse.Namespace) -> None:
    pipe = CardioDiTPipeline.from_pretrained(PHANTOM_MODEL)
    pipe.set_progress_bar_config(disable=True)
    tracker = _tracker(arguments.codecarbon, arguments.same_watts)
    meter, before, started = EnergyMeter("cuda" if torch.cuda.is_available() else "cpu"), _kernel_seconds(), time.time()
    if torch.cuda.is_available():
        pipe.to("cuda")
    if tracker is not None:
        tracker.start()
    workers = [subprocess.Popen([sys.executable, "-c", BUSY.format(seconds=arguments.seconds)]) for _ in range(2)]
    for seed in range(arguments.volumes):
        pipe(seed=seed)
    for worker in workers:
        worker.wait()
    if tracker is not None:
        tracker.stop()
    energy, seconds = meter.read(), time.time() - started
    print(f"{machine()}; {arguments.volumes} volumes beside 2 workers of {arguments.seconds:g} s, {seconds:.0f} s")
    print(f"ours: {two_digits(energy.kwh):g} kWh ({two_digits(energy.low):g} to {two_digits(energy.high):g})")
    for part in energy.parts:
        print(f"  {part.name}: {'unknown' if part.kwh is None else f'{two_digits(part.kwh):g} kWh'}, {part.how}")
    if before is not None:
        busy = (_kernel_seconds() or 0.0) - before
        print(f"kernel's account of this control group: {busy:.1f} core seconds, {two_digits(busy * 10 / 3.6e6):g} kWh")
    if tracker is None:
        print("CodeCarbon is not installed: see the first lines of this script.")
        return
    print(f"CodeCarbon: {tracker._total_energy.kWh:.3g} kWh")
    for name, part in (("cpu", tracker._total_cpu_energy), ("gpu", tracker._total_gpu_energy)):
        print(f"  {name}: {part.kWh:.3g} kWh, {part.kWh * 3.6e6 / seconds:.1f} W")
    print(f"  memory: {tracker._total_ram_energy.kWh:.3g} kWh")
    print(f"  how: {[type(part).__name__ for part in tracker._hardware]}, {tracker._conf.get('cpu_model')}")
    print(f"ratio, ours to CodeCarbon's: {energy.kwh / tracker._total_energy.kWh:.2f}")


def _tracker(folder: Path | None, same_watts: bool) -> Any:
    sys.path += [] if folder is None else [str(folder)]  # last: it brings versions of its own of much that is here
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return None
    ours = {
        "tracking_mode": "process",
        "force_cpu_power": core_watts() * (os.cpu_count() or 1),
        "force_mode_cpu_load": True,
    }
    quiet = {"country_iso_code": "DEU", "measure_power_secs": 1, "save_to_file": False, "log_level": "error"}
    return OfflineEmissionsTracker(**quiet, **(ours if same_watts else {"tracking_mode": "machine"}))


def _kernel_seconds() -> float | None:
    """Return the core seconds that Linux has counted for this control group; None without one."""
    for path in (Path("/sys/fs/cgroup/cpu.stat"), Path("/sys/fs/cgroup/cpuacct/cpuacct.usage")):
        if path.is_file():
            text = path.read_text().split()
            return float(text[1]) / 1e6 if text[0] == "usage_usec" else float(text[0]) / 1e9
    return None


def run_study(arguments: argparse.Namespace) -> None:
    """Print the study's axes: training and sampling of our published systems, then one of them with each choice."""
    device, place = find_device(arguments.device), choose_electricity("WLD", 1.58)
    print(f"{device.title}, {place.source}\n")
    print("| | training, 150,000 steps | by car | 10,000 volumes | by car | a volume |\n|---|---|---|---|---|---|")
    for name, (training, training_km, samples, samples_km) in STUDY.items():
        each = format_grams(float(samples.split()[0]) * 1000 / MANY, "")
        print(f"| study, {name} | {training} | {training_km} | {samples} | {samples_km} | {each} |")
    for title, pipe in published().items():
        (cost,) = scaled_costs(pipe, (1.0,))
        step = Footprint(forecast_work(cost.step * FORWARDS, device).energy, place).grams[0]
        for steps in dict.fromkeys((pipe.default_steps, 300)):
            one = Footprint(forecast_work(cost.step * steps + cost.decoding, device).energy, place).grams[0]
            print(
                f"| {title}, {cost.size}, {steps} steps | {format_grams(ITERATIONS * step, '')} | "
                f"{format_kilometres(ITERATIONS * step / GRAMS_A_KILOMETRE)} | {format_grams(MANY * one, '')} | "
                f"{format_kilometres(MANY * one / GRAMS_A_KILOMETRE)} | {format_grams(one, '')} |"
            )
        print(f"<!-- {title}: {cost.step.tflop:.3g} TFLOP a step, {cost.decoding.tflop:.3g} to decode -->")

    print(f"\n{VARIED}, one choice at a time\n")
    print("| | | CO2-equivalent a volume | 10,000 volumes | by car |\n|---|---|---|---|---|")
    pipe = published()[VARIED]
    costs = {width: scaled_costs(pipe, (1.0, 0.5, 2.0) if width == 1.0 else (1.0,), width) for width in (1.0, 0.5, 2.0)}
    places = scenarios.places_of(PLACES, place)
    choices = scenarios.Choices((300, 25, 50, 100, 1000), costs, (1, 8), places)
    for title, rows in scenarios.tables(scenarios.all_scenarios(VARIED, choices, device)):
        for choice, *cells in rows:
            print(f"| {title} | {choice} | {' | '.join(cells[:3])} |")


def published() -> dict[str, Any]:
    """Return pipelines of the published sizes with random weights."""
    return {
        "CardioDiT": CardioDiTPipeline(VQModel4D(), DiT4DTransformerModel(), make_scheduler()),
        "VolDiT": VolDiTPipeline(VQModel3D(), DiT3DTransformerModel(), make_scheduler()),
        "PRDiT": PRDiTPipeline(PRDiTTransformerModel(), NoiseAndImageScheduler()),
        "MedLoRD": MedLoRDPipeline(VQModel3D(**MEDLORD_VAE), MedLoRDUNetModel(), make_scheduler()),
    }


if __name__ == "__main__":
    main()
