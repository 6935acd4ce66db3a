"""The small models that come with the package, by their names."""

from pathlib import Path

from cardiodit.errors import CardioDiTError

PHANTOM_MODEL = "cardiodit-phantom"  # generates beating phantoms of four groups
PHANTOM_SEGMENTER = "phantom-segmenter"  # measures them
SHIPPED = (PHANTOM_MODEL, PHANTOM_SEGMENTER)
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


def shipped_model(name: str) -> Path:
    """The folder of a model that comes with the package."""
    if (CHECKPOINTS / name).is_dir():
        return CHECKPOINTS / name
    raise CardioDiTError(f"The model {name} should come with the package and is not there. Install cardiodit again.")


def find_model(name: str | Path) -> str | Path:
    """A shipped model's folder for its bare name, unless a folder here has that name; everything else as it is."""
    is_shipped = str(name) in SHIPPED and not Path(name).exists()
    return shipped_model(str(name)) if is_shipped else name
