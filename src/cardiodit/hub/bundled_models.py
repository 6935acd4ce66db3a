"""Names of models: those bundled with the package, local folders, and repositories on the Hub."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError

PHANTOM_MODEL = "cardiodit-phantom"  # generates beating phantoms of four groups
PHANTOM_SEGMENTER = "phantom-segmenter"  # segments them
BUNDLED = (PHANTOM_MODEL, PHANTOM_SEGMENTER)
AUTHORS_REPOSITORIES = ("AICM-HD/voldit", "AICM-HD/medlord")  # converted when they are first opened
INDEX = "model_index.json"  # of a pipeline folder
PIPELINE = "pipeline"  # where a finished training run keeps its pipeline
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"


def bundled_model(name: str) -> Path:
    """Return the folder of a model that is bundled with the package."""
    if (CHECKPOINTS / name).is_dir():
        return CHECKPOINTS / name
    raise CardioDiTError(f"The bundled model {name} is missing from the package. Install cardiodit again.")


def find_model(name: str | Path, revision: str | None = None, **choice: Any) -> str | Path:
    """Resolve the name of a bundled model, or of a repository of the authors, to a folder.

    Local folders and other repositories keep their names.

    Args:
        revision: branch, tag or commit of the repository.
        choice: `is_controlled` and `checkpoint`, see `cardiodit.hub.authors_repositories.converted_model`.
    """
    if Path(name).exists():
        return name
    if str(name) in BUNDLED:
        return bundled_model(str(name))
    if str(name) in AUTHORS_REPOSITORIES:
        # Named, not imported: an exported pipeline carries this file, but not the converters.
        return import_module("cardiodit.hub.authors_repositories").converted_model(str(name), revision, **choice)
    return name


def find_pipeline(name: str | Path, revision: str | None = None, **choice: Any) -> str | Path:
    """Return the folder of a bundled model or of a training run's pipeline, or the name itself; check local folders.

    The arguments are those of `find_model`.
    """
    model = find_model(name, revision, **choice)
    if Path(model).is_dir():
        model = pipeline_of_run(Path(model))
    check_is_pipeline_folder(model)
    return model


def pipeline_of_run(folder: Path) -> Path:
    """Return `runs/dit/pipeline` for the folder `runs/dit` of a finished training run, otherwise the folder itself."""
    inside = folder / PIPELINE
    is_run = (inside / INDEX).is_file() and not (folder / INDEX).is_file()
    return inside if is_run else folder


def check_is_pipeline_folder(name: str | Path) -> None:
    """Raise an error that explains what a local folder contains, unless it is a pipeline folder."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(HUB_NAME, str(name)):
            raise CardioDiTError(f"There is no folder {name}, and a model on the Hub has a name of the form org/name.")
        return
    if (folder / INDEX).is_file():
        return
    hint = "pipe.save_pretrained(...), training and `cardiodit convert` create pipeline folders."
    if (folder / "run.json").is_file():
        hint = (
            f"It is a training run, and only finished runs of a denoiser have a {PIPELINE}. `cardiodit sample {folder} "
            "--checkpoints FIRST LAST STEP` samples its checkpoints."
        )
    elif (folder / "config.json").is_file():
        hint = "It looks like a single model: open it with that model's own from_pretrained."
    elif any(folder.glob("*.pt*")):
        hint = "It looks like an authors' checkpoint: create a pipeline folder from it with `cardiodit convert`."
    raise CardioDiTError(f"{folder} contains no {INDEX}, so it is not a pipeline folder. {hint}")
