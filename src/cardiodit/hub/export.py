"""Export a pipeline folder together with its code, for users who have diffusers but not this package.

diffusers opens the folder with `trust_remote_code=True`. The pipeline's code is at the root, that of each of our
components beside its weights.
"""

import json
import shutil
from pathlib import Path

from cardiodit import __version__
from cardiodit._util.atomic_io import new_folder
from cardiodit._util.foreign_files import read_object
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundle import PACKAGE, bundle
from cardiodit.hub.registration import LIBRARY, own_components

INDEX = "model_index.json"
HEADING = "Generated from cardiodit {version} by `cardiodit export`; do not edit."
COMPONENTS = ("vae", "transformer", "unet", "adapter", "controlnet", "scheduler")


def export_with_code(model: Path, output_dir: Path) -> Path:
    """Copy a pipeline folder and add the code of its classes; return the new folder."""
    index_file = Path(model) / INDEX
    if not index_file.is_file():
        raise CardioDiTError(f"{model} contains no {INDEX}, so it is not a pipeline folder.")
    index = own_components(read_object(index_file), model)
    with new_folder(Path(output_dir)) as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
        index["_class_name"] = _write_code(folder, index["_class_name"])
        for component, entry in index.items():
            if isinstance(entry, list) and entry[0] == LIBRARY and not component.startswith("_"):
                index[component] = _write_code(folder / component, entry[1])
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    return Path(output_dir)


def _write_code(folder: Path, class_name: str) -> list[str]:
    """Write the file that defines a class and return [file, class], as diffusers looks it up."""
    import cardiodit

    module = getattr(cardiodit, class_name).__module__
    file = module.removeprefix(f"{PACKAGE}.").rsplit(".", 1)[-1]
    (folder / f"{file}.py").write_text(
        bundle(module, HEADING.format(version=__version__), COMPONENTS), encoding="utf-8"
    )
    return [file, class_name]
