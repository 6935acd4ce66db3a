"""Opens a model from wherever it lies: its own folder, a pipeline's, a training run's, or the Hub."""

import json
import re
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import find_model
from cardiodit.models import DiT3DTransformerModel, DiT4DTransformerModel, VQModel3D, VQModel4D
from cardiodit.models.transformer_prdit import PRDiTTransformerModel

CONFIG = "config.json"
HUB_NAME = r"[\w-][\w.-]*/[\w.-]+"
MODELS: dict[str, dict[str, Any]] = {
    "vae": {"VQModel4D": VQModel4D, "VQModel3D": VQModel3D},
    "transformer": {
        "DiT4DTransformerModel": DiT4DTransformerModel,
        "DiT3DTransformerModel": DiT3DTransformerModel,
    },
    "voxel transformer": {"PRDiTTransformerModel": PRDiTTransformerModel},
}
FOLDERS = {"vae": "vae", "transformer": "transformer", "voxel transformer": "transformer"}  # in a pipeline's folder


def open_vae(name: str | Path, **kwargs: Any) -> VQModel4D | VQModel3D:
    """The VQ model of a folder or of a repository on the Hub; what else is given goes to `from_pretrained`."""
    return _open(name, "vae", kwargs)


def open_transformer(name: str | Path, **kwargs: Any) -> DiT4DTransformerModel | DiT3DTransformerModel:
    """The transformer of a folder or of a repository on the Hub; what else is given goes to `from_pretrained`."""
    return _open(name, "transformer", kwargs)


def open_voxel_transformer(name: str | Path, **kwargs: Any) -> PRDiTTransformerModel:
    """PRDiT's transformer of a folder or of a repository on the Hub; the rest goes to `from_pretrained`."""
    return _open(name, "voxel transformer", kwargs)


def open_informed(name: str | Path) -> VQModel4D | VQModel3D | PRDiTTransformerModel:
    """The model that knows how training volumes were prepared: the VQ model, or PRDiT's transformer, which has none."""
    try:
        return open_vae(name)
    except CardioDiTError as error:
        try:
            return open_voxel_transformer(name)
        except CardioDiTError:
            raise error from None


def folder_of(name: str | Path, component: str) -> Path:
    """Where in a folder the component lies: at its top, in `vae` or `transformer`, or below a training run's `best`."""
    folder = Path(name)
    if not folder.is_dir():
        raise CardioDiTError(f"{name} is not a folder.")
    inside = FOLDERS[component]
    places = [folder, folder / inside, folder / "best" / inside]
    found = {place: _class_of(place) for place in places if (place / CONFIG).is_file()}
    for place, class_name in found.items():
        if class_name in MODELS[component]:
            return place
    others = "".join(f" {place / CONFIG} is that of a {class_name}." for place, class_name in found.items())
    raise CardioDiTError(
        f"{name} holds no {component}: looked for the {CONFIG} of a {' or '.join(MODELS[component])} in "
        f"{', '.join(map(str, places))}.{others}{_of_voxels(folder) if component == 'vae' else ''}"
    )


def _of_voxels(folder: Path) -> str:
    """That a folder's model has no autoencoder by design."""
    for place in (folder / "transformer", folder / "best" / "transformer"):
        if (place / CONFIG).is_file() and _class_of(place) in MODELS["voxel transformer"]:
            return " It holds PRDiT, which denoises voxels and needs no autoencoder, nor latents."
    return ""


def _open(name: str | Path, component: str, kwargs: dict[str, Any]) -> Any:
    name = find_model(name)
    if Path(name).exists():
        folder = folder_of(name, component)
        return MODELS[component][_class_of(folder)].from_pretrained(folder, **kwargs).eval()
    if not re.fullmatch(HUB_NAME, str(name)):
        raise CardioDiTError(f"There is no folder {name}, and a model on the Hub has a name of the form org/name.")
    subfolder, class_name = _on_hub(str(name), component, kwargs)
    return MODELS[component][class_name].from_pretrained(str(name), subfolder=subfolder, **kwargs).eval()


def _class_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("_class_name"))
    except (ValueError, AttributeError) as error:
        raise CardioDiTError(f"{folder / CONFIG} is no config of a model: {error}. Copy the folder again.") from error


def _on_hub(name: str, component: str, kwargs: dict[str, Any]) -> tuple[str | None, str]:
    """The component's subfolder, None at the root, and the name of its class."""
    reasons = []
    for subfolder in (FOLDERS[component], None):
        where = "/".join(filter(None, (name, subfolder, CONFIG)))
        try:
            class_name = str(VQModel4D.load_config(name, subfolder=subfolder, **kwargs).get("_class_name"))
        except OSError as error:
            reasons.append(f"{where}: {str(error).strip().splitlines()[0]}")
            continue
        if class_name in MODELS[component]:
            return subfolder, class_name
        reasons.append(f"{where}: that of a {class_name}")
    raise CardioDiTError(
        f"There is no folder {name}, and on the Hub no {component} was found: looked for the {CONFIG} of a "
        f"{' or '.join(MODELS[component])}. {'; '.join(reasons)}"
    )
