"""Names of models: those bundled with the package, local folders, and repositories on the Hub."""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError

PHANTOM_MODEL = "cardiodit-phantom"  # generates beating phantoms of four groups
PHANTOM_SEGMENTER = "phantom-segmenter"  # segments them
BUNDLED = (PHANTOM_MODEL, PHANTOM_SEGMENTER)
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


def check_is_pipeline_folder(name: str | Path) -> None:
    """Raise an error that explains what a local folder contains, unless it is a pipeline folder."""
    folder = Path(name)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(HUB_NAME, str(name)):
            raise CardioDiTError(f"There is no folder {name}, and a model on the Hub has a name of the form org/name.")
        return
    if (folder / "model_index.json").is_file():
        return
    hint = "pipe.save_pretrained(...), training and `cardiodit convert` create pipeline folders."
    if (folder / "config.json").is_file():
        hint = "It looks like a single model: open it with that model's own from_pretrained."
    elif any(folder.glob("*.pt*")):
        hint = "It looks like an authors' checkpoint: create a pipeline folder from it with `cardiodit convert`."
    raise CardioDiTError(f"{folder} contains no model_index.json, so it is not a pipeline folder. {hint}")
