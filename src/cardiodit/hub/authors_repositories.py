"""Repositories of the authors on the Hub: found, converted on first use, and kept beside the Hub client's cache.

A converted model lies in HF_HOME/cardiodit/ORG--NAME/COMMIT/CHOICE and is opened from there, also offline.
"""

import hashlib
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cardiodit._util.atomic_io import atomic_file
from cardiodit._util.terminal import say
from cardiodit.convert import inferred_config as inferred
from cardiodit.convert.checkpoint import Checkpoint, read_checkpoint
from cardiodit.errors import CardioDiTError
from cardiodit.hub.client import download, list_files
from cardiodit.systems import PublicModel, System, load, public_models

SUFFIXES = (".pth", ".pt", ".ckpt")
# Which stage a file probably belongs to, by its name; "voldit_vqgan.pth" contains "dit", too, so the order matters.
ROLES = {
    "stage1": re.compile(r"vq|stage_?1|autoencoder"),
    "adapter": re.compile(r"tgca|adapter|control"),
    "diff": re.compile(r"dit|ldm|unet|diff|transformer|stage_?2"),
}
ADAPTERS = {"tgca": "tgca", "controlnet": "controlnet"}  # the converters' options by stage
STAGES = {"stage1": ("stage1",), "adapter": tuple(ADAPTERS), "diff": ("dit", "unet")}


@dataclass(frozen=True)
class Listing:
    """Files of a repository at a commit.

    Args:
        commit: the commit.
        sizes: size of each file in bytes, by name.
    """

    commit: str
    sizes: dict[str, int]


def converted_model(
    name: str, revision: str | None = None, is_controlled: bool = False, checkpoint: str | None = None
) -> Path:
    """Return the pipeline folder of a repository of the authors, converted from its checkpoints if necessary.

    Args:
        name: a repository that `cardiodit models` lists.
        revision: branch, tag or commit; default: the newest commit, or offline the one that was opened last.
        is_controlled: convert the adapter, too, by which masks steer the model.
        checkpoint: file of the denoiser, if the repository holds several.
    """
    from filelock import FileLock

    system, model = next((system, model) for system, model in public_models() if model.name == name)
    home = cache_home() / name.replace("/", "--")
    home.mkdir(parents=True, exist_ok=True)
    reference = home / "refs" / (revision or "main").replace("/", "--")
    choice = "-".join(["controlled" if is_controlled else "plain", *([_short(checkpoint)] if checkpoint else [])])
    try:
        listing = Listing(*list_files(name, revision))
    except CardioDiTError:
        known = reference.read_text().strip() if reference.is_file() else revision or ""
        if (folder := home / known / choice).is_dir() and known:
            return folder
        raise
    folder = home / listing.commit / choice
    with FileLock(home / "lock"):
        if not folder.is_dir():
            _convert(system, model, listing, folder, is_controlled, checkpoint)
        reference.parent.mkdir(exist_ok=True)
        with atomic_file(reference) as temporary:
            temporary.write_text(listing.commit)
    return folder


def cache_home() -> Path:
    """Return the folder of all converted models."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "cardiodit"


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def choose_files(
    name: str, sizes: dict[str, int], is_controlled: bool, checkpoint: str | None = None
) -> dict[str, str]:
    """Return the file of each stage; raise an error that lists the files if none or several could be meant."""
    files = [file for file in sizes if file.endswith(SUFFIXES)]
    found: dict[str, list[str]] = {role: [] for role in ROLES}
    for file in files:
        stem = Path(file).stem.lower()
        role = next((role for role, pattern in ROLES.items() if pattern.search(stem)), None)
        if role is not None:
            found[role].append(file)
    if checkpoint is not None:
        if checkpoint not in files:
            raise CardioDiTError(f"{name} has no file {checkpoint}; it has {_listed(files, sizes)}.")
        found["diff"] = [checkpoint]
    wanted = ["stage1", "diff", *(["adapter"] if is_controlled else [])]
    words = {"stage1": "VQ-GAN", "diff": "denoiser", "adapter": "adapter for masks"}
    for role in wanted:
        if len(found[role]) == 1:
            continue
        some = found[role] or files
        which = "several files could be" if found[role] else "no file is named like"
        hint = (
            "Name one with from_pretrained(..., checkpoint=FILE)."
            if role == "diff" and found[role]
            else "Convert the files that you mean with `cardiodit convert`."
        )
        raise CardioDiTError(f"In {name}, {which} the {words[role]}: {_listed(some, sizes) or 'none'}. {hint}")
    return {role: found[role][0] for role in wanted}


def _listed(files: list[str], sizes: dict[str, int]) -> str:
    return ", ".join(f"{file} ({sizes[file] / 2**20:.1f} MiB)" for file in files)


def _convert(
    system: System, model: PublicModel, listing: Listing, folder: Path, is_controlled: bool, chosen: str | None
) -> None:
    names = choose_files(model.name, listing.sizes, is_controlled, chosen)
    say(f"Converting {', '.join(names.values())} of {model.name} for the first use.")
    paths = {role: download(model.name, file, listing.commit) for role, file in names.items()}
    checkpoints = {role: read_checkpoint(path) for role, path in paths.items()}
    for role, checkpoint in checkpoints.items():
        if (stage := inferred.stage_of(checkpoint)) not in STAGES[role]:
            raise CardioDiTError(
                f"{names[role]} of {model.name} holds the weights of another network ({stage}) than its name suggests. "
                "Convert the files that you mean with `cardiodit convert`."
            )
    configs = infer_configs(checkpoints)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        options: dict[str, Any] = {}
        for role, path in paths.items():
            option = ADAPTERS[inferred.stage_of(checkpoints[role])] if role == "adapter" else role
            config = Path(place) / f"{option}.yaml"
            config.write_text(yaml.safe_dump(configs[role]))
            options |= {f"{option}_ckpt": path, f"{option}_cfg": config}
        assert system.converter is not None  # systems with authors' repositories have one
        load(system.converter)(
            **options, output_dir=folder, scale_factor=model.scale_factor or _estimated_scale(checkpoints["stage1"])
        )


def infer_configs(checkpoints: dict[str, Checkpoint]) -> dict[str, Any]:
    """Return the config of each stage's checkpoint in the authors' layout."""
    configs = {"stage1": inferred.stage1_config(checkpoints["stage1"])}
    is_unet = inferred.stage_of(checkpoints["diff"]) == "unet"
    configs["diff"] = (inferred.unet_config if is_unet else inferred.dit_config)(checkpoints["diff"])
    if "adapter" in checkpoints and is_unet:
        factor = 2 ** len(configs["stage1"]["model"]["params"]["num_channels"])
        configs["adapter"] = inferred.controlnet_config(checkpoints["adapter"], configs["diff"], factor)
    elif "adapter" in checkpoints:
        configs["adapter"] = inferred.tgca_config(checkpoints["adapter"])
    return configs


def _estimated_scale(stage1: Checkpoint) -> float:
    scale = float(f"{inferred.scale_of_codes(stage1):.4g}")
    say(
        f"The repository does not state the scale factor of the latents; {scale:g} was computed from the codebook. If "
        "you know the right one, use `cardiodit convert --scale_factor`."
    )
    return scale
