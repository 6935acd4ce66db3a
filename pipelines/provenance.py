"""Where a model came from and how a sample was made, for the record."""

import hashlib
import re
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from cardiodit.errors import CardioDiTError

Generators = torch.Generator | list[torch.Generator] | None
WEIGHED = ("transformer", "vae", "adapter")  # components whose weights make a revision


def check_is_pipeline_folder(name: str | Path) -> None:
    """A local folder must be a pipeline folder; says what it seems to be instead. org/name may be on the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", str(name)):
            raise CardioDiTError(f"There is no folder {name}, and a model on the Hub has a name of the form org/name.")
        return
    if (folder / "model_index.json").is_file():
        return
    hint = "A pipeline folder is made by pipe.save_pretrained(...), by training or by `cardiodit convert`."
    if (folder / "config.json").is_file():
        hint = "It looks like a single model: open it with that model's own from_pretrained."
    elif any(folder.glob("*.pt*")):
        hint = (
            "It looks like an authors' checkpoint: make a pipeline folder of it with `cardiodit convert cardiodit`, "
            "`voldit` or `prdit`."
        )
    raise CardioDiTError(f"{folder} holds no model_index.json, so it is no pipeline folder. {hint}")


def revision_of(pipe: DiffusionPipeline) -> str | None:
    """The Hub commit a pipeline was loaded from, or a hash of the weight files of a local folder; None in memory."""
    components = [pipe.components[name] for name in WEIGHED if name in pipe.components]
    folders = [str(getattr(component.config, "_name_or_path", "")) for component in components]
    if not all(folders):
        return None
    commits = [re.search(r"snapshots/([0-9a-f]{40})", Path(folder).as_posix()) for folder in folders]
    if all(commits) and len(found := {commit[1] for commit in commits if commit}) == 1:
        return found.pop()
    files = sorted(file for folder in folders for file in Path(folder).glob("*.safetensors"))
    return _hash_of(tuple((file, file.stat().st_mtime_ns) for file in files)) if files else None


@lru_cache(maxsize=8)
def _hash_of(files: tuple[tuple[Path, int], ...]) -> str:
    """Of the contents; the modification times only make a rewritten file be read again."""
    digest = hashlib.sha256()
    for path, _ in files:
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def describe_model(pipe: Any) -> dict[str, Any]:
    """Name, revision, solver, precision, and how training volumes were prepared.

    Of a local model only the folder's name: paths can tell of patients.
    """
    name = str(pipe.config.get("_name_or_path") or "in memory")
    return {
        "model": Path(name).resolve().name if Path(name).is_dir() else name,
        "revision": revision_of(pipe),
        "solver": solver_of(pipe.scheduler),
        "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
        "device": pipe._execution_device.type,
        "cardiodit": _package_version(),
        "preprocessing": pipe.facts.get("preprocessing"),
    }


def solver_of(scheduler: Any) -> str:
    """The scheduler's class, and which of its solvers where the class does not tell."""
    name, solver = type(scheduler).__name__, scheduler.config.get("solver")
    return f"{name} ({solver})" if solver else name


def _package_version() -> str | None:
    try:
        return version("cardiodit")
    except PackageNotFoundError:
        return None


def make_records(
    run: dict[str, Any],
    seed: int | None,
    first_sample: int,
    generator: Generators,
    labels: list[int | str | None],
) -> list[dict[str, Any]]:
    """One record a sample, ready for JSON: its seed and index, or its generator's seed, and what the run shares."""
    records = []
    for i, label in enumerate(labels):
        own = generator[i] if isinstance(generator, list) else generator
        generator_seed = None if own is None else own.initial_seed()
        origin = {"seed": seed, "index": first_sample + i, "generator_seed": generator_seed, "class_label": label}
        records.append({**origin, **run})
    return records
