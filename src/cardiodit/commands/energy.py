"""`cardiodit energy`: forecast what generating volumes costs, compare scenarios, and add up what was measured."""

import argparse
from pathlib import Path
from typing import Any

from cardiodit._util.terminal import say
from cardiodit.commands.subcommand import Parser, add_command
from cardiodit.energy.electricity import add_place
from cardiodit.errors import CardioDiTError

COUNTRIES = ("NOR", "SWE", "FRA", "DEU", "GBR", "USA", "CHN", "POL", "IND", "ZAF")
STEPS, SIZES, WIDTHS, DEVICES = (10, 25, 50, 100, 300), (0.5, 1.0, 2.0), (0.5, 1.0, 2.0), (1, 4, 8)
DEVICE_HELP = (
    "device of the table: h200, h200-nvl, h100, h100-pcie, h100-nvl, b200, a100-80, a100-40, a100-80-pcie, "
    "a100-40-pcie, v100, v100-pcie, a40, a10, a10g, l40s, l40, l4, t4, rtx5090, rtx4090, rtx3090 or cpu (%(default)s)"
)


def add(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "energy",
        "Forecast the energy and CO2 of generating volumes, compare scenarios, and add up what was measured.",
        "cardiodit energy forecast my-model --samples 10000 --device a100-80 --country DEU\n"
        "  cardiodit energy scenarios my-model --output_dir scenarios --evaluation evaluation/report.json\n"
        "  cardiodit energy total runs samples evaluation",
    )
    kinds = parser.add_subparsers(title="what to do", metavar="WHAT", required=True, parser_class=Parser)
    _add_forecast(kinds)
    _add_scenarios(kinds)
    total = add_command(
        kinds,
        "total",
        "Add up the energy that training runs and commands recorded in folders and everything below them.",
        "cardiodit energy total runs samples evaluation",
    )
    total.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    total.set_defaults(run=run_total)


def _add_forecast(kinds: argparse._SubParsersAction) -> None:
    parser = add_command(
        kinds,
        "forecast",
        "Forecast time, energy, CO2 and kilometres by car of generating volumes, from counted operations and a table "
        "of devices. Nothing is generated. The range is half to double; `cardiodit sample --estimate` measures a "
        "trial on this machine and is closer.",
        "cardiodit energy forecast my-model --samples 10000 --device a100-80 --country DEU",
    )
    parser.add_argument("model", help="pipeline folder, or org/name on the Hub")
    parser.add_argument("--samples", type=int, default=1, help="number of volumes (%(default)s)")
    parser.add_argument("--device", default="a100-80", help=DEVICE_HELP)
    parser.add_argument("--devices", type=int, default=1, help="number of devices (%(default)s)")
    parser.add_argument("--num_inference_steps", type=int, help="number of denoising steps; default: the model's")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="as in `cardiodit sample` (%(default)s)")
    parser.add_argument(
        "--condition_guidance_scale", type=float, default=1.0, help="as in `cardiodit sample` (%(default)s)"
    )
    for axis in ("depth", "height", "width", "frames"):
        parser.add_argument(f"--{axis}", type=int, help="size in voxels; default: as trained")
    add_place(parser.add_argument_group("electricity"))
    parser.set_defaults(run=run_forecast)


def _add_scenarios(kinds: argparse._SubParsersAction) -> None:
    parser = add_command(
        kinds,
        "scenarios",
        "Compare what generating volumes costs with other steps, sizes, widths of the denoiser, numbers of devices and "
        "countries, as the published study does: grams of CO2 a volume, and kilometres by car of 10,000. Prints "
        "tables, and writes scenarios.csv with all combinations, scenarios.html and scenarios.png.",
        "cardiodit energy scenarios my-model --output_dir scenarios --country DEU --evaluation evaluation/report.json",
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="pipeline folders, or org/name on the Hub")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write to")
    parser.add_argument("--device", default="a100-80", help=DEVICE_HELP)
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="numbers of steps (10 25 50 100 300)")
    parser.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=SIZES,
        help="factors of height and width, and of the depth of 3D volumes (0.5 1 2)",
    )
    parser.add_argument(
        "--widths", type=float, nargs="+", default=WIDTHS, help="factors of the denoiser's width (0.5 1 2)"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=DEVICES, help="numbers of devices (1 4 8)")
    parser.add_argument("--countries", nargs="+", default=COUNTRIES, help=f"countries ({' '.join(COUNTRIES)})")
    parser.add_argument("--guidance_scale", type=float, default=1.0, help="as in `cardiodit sample` (%(default)s)")
    parser.add_argument(
        "--evaluation",
        type=Path,
        nargs="+",
        default=[],
        metavar="REPORT",
        help="report.json of `cardiodit evaluate`, of these models with some numbers of steps: shows the Fréchet "
        "distance next to the grams, and the grams of each model at an equal distance",
    )
    parser.add_argument(
        "--frechet", type=float, help="that distance; default: the smallest one that all evaluated models reach"
    )
    add_place(parser.add_argument_group("electricity"))
    parser.set_defaults(run=run_scenarios)


def run_forecast(arguments: argparse.Namespace) -> None:
    from cardiodit.energy.electricity import (
        choose_electricity,
        footprint_of,
        format_duration,
        format_grams,
        format_number,
    )
    from cardiodit.energy.forecast import find_device, forecast_work
    from cardiodit.pipelines.estimate import sampling_work

    device = find_device(arguments.device)
    used = choose_electricity(arguments.country, arguments.pue, arguments.months)
    _check_positive(arguments, "samples", "devices")
    names = ("num_inference_steps", "guidance_scale", "condition_guidance_scale", "depth", "height", "width", "frames")
    pipe = _open(arguments.model)
    work = sampling_work(pipe, **{name: getattr(arguments, name) for name in names}) * arguments.samples
    forecast = forecast_work(work, device, arguments.devices)
    footprint = footprint_of(forecast.energy, used)
    count = f"{arguments.devices} × " if arguments.devices > 1 else ""
    print(
        f"{arguments.samples:,} volumes, {format_number(work.tflop)} TFLOP, on {count}{device.title}: "
        f"about {format_duration(forecast.seconds)}, {footprint}.\n"
        f"A volume: {format_grams(footprint.grams[0] / arguments.samples)}. Forecast: {forecast.energy.method}."
    )


def run_scenarios(arguments: argparse.Namespace) -> None:
    from cardiodit.energy import scenarios
    from cardiodit.energy.electricity import choose_electricity
    from cardiodit.energy.forecast import find_device

    device = find_device(arguments.device)
    _check_positive(arguments, "steps", "sizes", "widths", "devices")
    default = choose_electricity(arguments.country, arguments.pue, arguments.months)
    places = scenarios.places_of(arguments.countries, default)
    evaluations = [scenarios.read_evaluation(path) for path in arguments.evaluation]
    found = {}
    for name in arguments.models:
        pipe, title = _open(name), Path(name).name
        choices = _choices(pipe, arguments, places, [e.steps for e in evaluations if e.model == title])
        found[title] = scenarios.all_scenarios(title, choices, device, evaluations)
    if unknown := sorted({each.model for each in evaluations} - set(found)):
        raise CardioDiTError(
            f"--evaluation: the samples come from {', '.join(unknown)}, which is not among {', '.join(found)}."
        )
    equal = scenarios.equal_quality_table([s for each in found.values() for s in each], arguments.frechet)
    if equal:
        print(scenarios.in_words(equal["title"], equal["rows"]), end="\n\n")
    for title, each in found.items():
        for axis, rows in scenarios.tables(each, default.months):
            print(scenarios.in_words(f"{title}: {axis}", rows), end="\n\n")
    about = [
        f"Forecast on {device.title} from counted operations; nothing was generated or measured for it.",
        f"Unless another country is named: {default.source}.",
    ]
    written = scenarios.write_scenarios(arguments.output_dir, found, about, default.months, arguments.frechet)
    say(f"Wrote {', '.join(map(str, written))}.")


def run_total(arguments: argparse.Namespace) -> None:
    from cardiodit.energy.records import total_of

    for line in total_of(arguments.folders):
        print(line)


def _choices(pipe: Any, arguments: argparse.Namespace, places: Any, evaluated: list[int]) -> Any:
    """Return the values along each axis; widths that the denoiser cannot have are left out."""
    from cardiodit.energy.scenarios import Choices
    from cardiodit.pipelines.estimate import scaled_costs

    limit = pipe.scheduler.config.num_train_timesteps
    costs = {}
    for width in dict.fromkeys((1.0, *arguments.widths)):
        try:
            costs[width] = scaled_costs(pipe, (1.0, *arguments.sizes), width)
        except (CardioDiTError, ValueError) as error:
            if width == 1.0:
                raise
            print(f"A denoiser {width:g} times as wide is left out: {error}")
    steps = [n for n in dict.fromkeys((pipe.default_steps, *evaluated, *arguments.steps)) if n <= limit]
    passes = getattr(pipe.scheduler, "order", 1) * (1 + (arguments.guidance_scale != 1.0))
    return Choices(steps, costs, list(dict.fromkeys((1, *arguments.devices))), places, passes)


def _check_positive(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        given = getattr(arguments, name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if not value > 0:
                raise CardioDiTError(f"--{name} {value}: must be above 0.")


def _open(model: str) -> Any:
    from cardiodit.pipelines.load import open_pipeline

    return open_pipeline(model)
