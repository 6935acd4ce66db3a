"""A pipeline folder for people who have diffusers and not this package: its code travels with its weights.

diffusers opens it with `trust_remote_code=True`. The file of the pipeline lies at the root, that of each of our
components beside its weights.
"""

import json
import shutil
from pathlib import Path

from cardiodit import __version__
from cardiodit._util.atomic_io import new_folder
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundle import PACKAGE, bundle
from cardiodit.hub.registration import LIBRARY

INDEX = "model_index.json"
HEADING = "Made of cardiodit {version} by `cardiodit export`; do not edit."
COMPONENTS = ("vae", "transformer", "adapter", "scheduler")


def export_with_code(model: Path, output_dir: Path) -> Path:
    """Copies a pipeline folder and puts the code of its classes into it."""
    index_file = Path(model) / INDEX
    if not index_file.is_file():
        raise CardioDiTError(f"{model} holds no {INDEX}, so it is no pipeline folder.")
    index = json.loads(index_file.read_text())
    with new_folder(Path(output_dir)) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        index["_class_name"] = _put_code(folder, index["_class_name"])
        for component, entry in index.items():
            if isinstance(entry, list) and entry[0] == LIBRARY and not component.startswith("_"):
                index[component] = _put_code(folder / component, entry[1])
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return Path(output_dir)


def _put_code(folder: Path, class_name: str) -> list[str]:
    """Writes the file that defines a class and returns [file, class], as diffusers looks it up."""
    import cardiodit

    module = getattr(cardiodit, class_name).__module__
    file = module.removeprefix(f"{PACKAGE}.").rsplit(".", 1)[-1]
    (folder / f"{file}.py").write_text(
        bundle(module, HEADING.format(version=__version__), COMPONENTS), encoding="utf-8"
    )
    return [file, class_name]
