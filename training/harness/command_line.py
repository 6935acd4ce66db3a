"""Command line of a training stage: a config file, options that override its keys, and paths of data and results."""

import argparse
import json
import os
import tempfile
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import yaml

from cardiodit._util.terminal import quiet_variables
from cardiodit._util.typed_yaml import Reader, field_types, options_of, read_yaml
from cardiodit.energy.electricity import add_place
from cardiodit.errors import DEBUG, QUIET, CardioDiTError

Settings = TypeVar("Settings")
# Configs that come with the package, beside `training` in a checkout and in an installed package.
SHIPPED = Path(__file__).parents[2] / "configs"

Translate = Callable[[Path, dict[str, Any]], dict[str, Any] | None]


@dataclass(frozen=True)
class Request(Generic[Settings]):
    """A parsed command line.

    Args:
        settings: typed settings with all defaults.
        given: the keys that the config file and the command line give, as plain YAML values.
        options: all other options.
    """

    settings: Settings
    given: dict[str, Any]
    options: argparse.Namespace

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.options.output_dir) / self.options.run_name


def read_command_line(
    argv: Sequence[str] | None,
    kind: type[Settings],
    description: str,
    example: str,
    translate: Translate | None,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    can_tune: bool = True,
) -> Request[Settings]:
    """Read options and config.

    Args:
        translate: converts a config in the authors' layout to ours, if there is one.
        add_options: adds the script's own options.
        can_tune: whether the script has `--init_from`.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--config YAML] --training_ids CSV --validation_ids CSV --output_dir DIR --run_name NAME ...",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_run_options(parser, translate is not None, can_tune)
    add_options(parser)
    flags = _add_config_keys(parser, kind)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        raise CardioDiTError(_unknown_option(unknown[0], parser))
    os.environ.update(quiet_variables(options.quiet))
    if options.estimate:
        options.output_dir = Path(tempfile.mkdtemp(prefix="cardiodit-estimate-"))
        options.push_to_hub = False
    given = _config(options.config, translate)
    overrides = {key: getattr(options, key) for key in flags if getattr(options, key) is not None}
    for key, text in overrides.items():
        _put(given, key, _yaml_value(text))
    if options.estimate:
        _put(given, "training.report_to", "none")
    names = [options.config.name if options.config else "the config"]
    if overrides:
        names.append("the command line")
    return Request(Reader(" and ".join(names)).section(kind, given, ""), given, options)


def _add_run_options(parser: argparse.ArgumentParser, reads_authors: bool, can_tune: bool) -> None:
    layouts = "YAML with the keys below" + (
        ", or a config of the published code of CardioDiT, VolDiT or MedLoRD" if reads_authors else ""
    )
    parser.add_argument("--config", type=Path, help=layouts)
    parser.add_argument("--training_ids", type=Path, required=True, help="manifest (CSV) of the training data")
    parser.add_argument("--validation_ids", type=Path, required=True, help="manifest (CSV) of the validation data")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder of all runs, each in a folder of its own"
    )
    parser.add_argument(
        "--run_name",
        required=True,
        help="name of this run's folder in --output_dir; the name of an earlier run resumes it",
    )
    parser.add_argument(
        "--resume_from_checkpoint",
        default="latest",
        metavar="WHERE",
        help='"latest" (default) resumes from the newest intact checkpoint of the run, if there is one; "never" fails '
        "if the run already exists; or the path of a checkpoint",
    )
    if can_tune:
        parser.add_argument(
            "--init_from",
            metavar="MODEL",
            help="fine-tune this model: a training run, a pipeline or model folder, or org/name on the Hub",
        )
    parser.add_argument("--cpu", action="store_true", help="train on the CPU even if there is a GPU")
    parser.add_argument(
        "--estimate",
        action="store_true",
        help="take a few steps, forecast the time and energy of the whole run on this machine, and save nothing",
    )
    parser.add_argument(
        "--estimate_device",
        metavar="NAME",
        help="with --estimate: also forecast them on a device of the table of `cardiodit energy forecast`, such as "
        "a100-80, from counted operations",
    )
    add_place(parser.add_argument_group("energy", "measured, and recorded in run.json"))
    parser.add_argument(QUIET, action="store_true", help="no progress bar and no notes: only warnings and errors")
    parser.add_argument(
        DEBUG, action="store_true", help="show other packages' warnings and, if training fails, the traceback"
    )


def _add_config_keys(parser: argparse.ArgumentParser, kind: type) -> list[str]:
    """Add an option for every key: those of `training` under their own names, the others dotted."""
    group = parser.add_argument_group(
        "keys of the config",
        "each can be set in the YAML file or here, which takes precedence. V is written as in YAML: 4, null, '[2, 2]'\n"
        "(what stands before a dot is a section of the file; --seed and all keys after it belong to `training`)",
    )
    keys = []
    for leaf in leaves(kind):
        shown = "" if leaf.default is None else f" ({_shown(leaf.default)})"
        metavar = "|".join(leaf.choices) or ("true|false" if leaf.is_switch else "V")
        alone: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.is_switch else {}  # --use_ema means true
        text = f"{leaf.help}{shown}".replace("%", "%%")
        group.add_argument(f"--{_flag(leaf.name)}", dest=leaf.name, metavar=metavar, help=text, **alone)
        keys.append(leaf.name)
    return keys


def _flag(key: str) -> str:
    return key.removeprefix("training.")


def _shown(default: Any) -> str:
    return yaml.safe_dump(json.loads(json.dumps(default)), default_flow_style=True).removesuffix("...\n").strip()


def _unknown_option(given: str, parser: argparse.ArgumentParser) -> str:
    name = given.partition("=")[0]
    known = [text for action in parser._actions for text in action.option_strings]
    close = get_close_matches(name, known, n=1)
    return f"There is no option {name}{f'; did you mean {close[0]}?' if close else '; --help lists them all.'}"


def _config(path: Path | None, translate: Translate | None) -> dict[str, Any]:
    if path is None:
        return {}
    path = find_config(path)
    raw = read_yaml(path)
    translated = None if translate is None else translate(path, raw)
    return raw if translated is None else translated


def find_config(path: Path) -> Path:
    """Return the path of a file, or of a config that comes with the package, such as `cardiodit/dit_ds8_b4.yaml`."""
    if path.is_file():
        return path
    inside = SHIPPED.joinpath(*path.parts[path.parts[:1] == ("configs",) :])
    if inside.is_file():
        return inside
    files = [file.relative_to(SHIPPED) for file in sorted(SHIPPED.glob("*/*.yaml"))]
    known = ", ".join(str(file) for file in files if file.parts[0] != "accelerate" and file.stem != "facts")
    raise CardioDiTError(f"There is no config {path}. The package contains {known}.")


def _yaml_value(text: str) -> Any:
    """Parse an option's text as YAML: numbers, true and false, null, [lists]."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        held = config.get(section)
        config[section] = dict(held) if isinstance(held, dict) else {}
        config = config[section]
    config[name] = value


@dataclass(frozen=True)
class Leaf:
    """A key of a config class.

    Args:
        name: dotted name.
        default, help: default and help text of its field.
        choices: allowed values, if the type lists them.
        is_switch: true or false.
    """

    name: str
    default: Any
    help: str
    choices: tuple[str, ...]
    is_switch: bool


def leaves(kind: type, at: str = "") -> list[Leaf]:
    """Return all keys of a config class and its sections."""
    found: list[Leaf] = []
    types, known = field_types(kind), {f.name: f for f in fields(kind)}
    for alternative in getattr(kind, "alternatives", {}).values():
        types = field_types(alternative) | types
        known |= {f.name: f for f in fields(alternative) if f.name not in known}
    for f in known.values():
        name, options = f"{at}{f.name}", options_of(types[f.name])
        sections = [o for o in options if is_dataclass(o)]
        choices = [str(c) for o in options if typing.get_origin(o) is Literal for c in typing.get_args(o)]
        if sections:
            found += leaves(typing.cast(type, sections[0]), f"{name}.")
        else:
            found.append(Leaf(name, f.default, f.metadata.get("help", ""), tuple(choices), bool in options))
    return found
