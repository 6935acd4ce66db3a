"""Names of models: those bundled with the package, local folders, and repositories on the Hub."""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError

PHANTOM_MODEL = "cardiodit-phantom"  # generates beating phantoms of four groups
PHANTOM_SEGMENTER = "phantom-segmenter"  # segments them
BUNDLED = (PHANTOM_MODEL, PHANTOM_SEGMENTER)
INDEX = "model_index.json"  # of a pipeline folder
PIPELINE = "pipeline"  # where a finished training run keeps its pipeline
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"


def bundled_model(name: str) -> Path:
    """Return the folder of a model that is bundled with the package."""
    if (CHECKPOINTS / name).is_dir():
        return CHECKPOINTS / name
    raise CardioDiTError(f"The bundled model {name} is missing from the package. Install cardiodit again.")


def find_model(name: str | Path) -> str | Path:
    """Resolve the name of a bundled model to its folder, unless a local folder has that name."""
    is_bundled = str(name) in BUNDLED and not Path(name).exists()
    return bundled_model(str(name)) if is_bundled else name


def find_pipeline(name: str | Path) -> str | Path:
    """Return the folder of a bundled model or of a training run's pipeline, or the name itself; check local folders."""
    model = find_model(name)
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
