"""Open a single model from its own folder, a pipeline folder, a training run or the Hub."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from cardiodit._util.foreign_files import read_object
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import HUB_NAME, PIPELINE, find_model
from cardiodit.models.autoencoder_vq import VQModel3D, VQModel4D
from cardiodit.models.transformer_dit import DiT3DTransformerModel, DiT4DTransformerModel
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.systems import System, all_systems, load

CONFIG = "config.json"


def open_vae(name: str | Path, **kwargs: Any) -> VQModel4D | VQModel3D:
    """Open the VQ model of a folder or a Hub repository; `kwargs` go to `from_pretrained`."""
    return _open(name, "vae", _components("vae"), kwargs)


def open_transformer(name: str | Path, **kwargs: Any) -> DiT4DTransformerModel | DiT3DTransformerModel:
    """Open the transformer of a latent diffusion model; `kwargs` go to `from_pretrained`."""
    return _open(name, "transformer", _denoisers(_is_latent), kwargs)


def open_voxel_transformer(name: str | Path, **kwargs: Any) -> PRDiTTransformerModel:
    """Open the transformer of a diffusion model on voxels; `kwargs` go to `from_pretrained`."""
    return _open(name, "voxel transformer", _denoisers(_is_on_voxels), kwargs)


def open_geometry_source(name: str | Path) -> VQModel4D | VQModel3D | PRDiTTransformerModel:
    """Open the model whose config holds preprocessing and geometry: the VQ model or, without one, the denoiser."""
    try:
        return open_vae(name)
    except CardioDiTError as error:
        try:
            return open_voxel_transformer(name)
        except CardioDiTError:
            raise error from None


def folder_of(name: str | Path, component: str = "vae") -> Path:
    """Return where in a local folder a component, "vae" or "transformer", lies."""
    classes = _components("vae") if component == "vae" else _denoisers(_is_latent)
    return _folder_of(Path(name), component, classes)


def _is_latent(system: System) -> bool:
    return system.autoencoder is not None


def _is_on_voxels(system: System) -> bool:
    return system.autoencoder is None


# Where a component lies in a pipeline folder, and its classes by their names.
Classes = dict[str, tuple[str, type[ModelMixin]]]


def _components(component: str) -> Classes:
    references = {system.components[component]: system.autoencoder for system in all_systems() if system.autoencoder}
    return {name: (component, load(reference)) for name, reference in references.items()}


def _denoisers(accepts: Callable[[System], bool]) -> Classes:
    systems = [system for system in all_systems() if accepts(system)]
    return {system.components[system.component]: (system.component, load(system.denoiser)) for system in systems}


def _open(name: str | Path, what: str, classes: Classes, kwargs: dict[str, Any]) -> Any:
    name = find_model(name)
    if Path(name).exists():
        folder = _folder_of(Path(name), what, classes)
        return classes[_class_of(folder)][1].from_pretrained(folder, **kwargs).eval()
    if not re.fullmatch(HUB_NAME, str(name)):
        raise CardioDiTError(f"There is no folder {name}, and a model on the Hub has a name of the form org/name.")
    subfolder, class_name = _find_on_hub(str(name), what, classes, kwargs)
    return classes[class_name][1].from_pretrained(str(name), subfolder=subfolder, **kwargs).eval()


def _folder_of(folder: Path, what: str, classes: Classes) -> Path:
    """Find a component at the top of a folder, in its own subfolder, or in a training run's `best` or `pipeline`."""
    if not folder.is_dir():
        raise CardioDiTError(f"{folder} is not a folder.")
    inside = [component for component, _ in classes.values()]
    parents = (folder, folder / "best", folder / PIPELINE)
    places = dict.fromkeys([folder, *(parent / name for parent in parents for name in inside)])
    found = {place: _class_of(place) for place in places if (place / CONFIG).is_file()}
    for place, class_name in found.items():
        if class_name in classes:
            return place
    others = "".join(f" {place / CONFIG} belongs to a {class_name}." for place, class_name in found.items())
    hint = _explain_missing_vae(folder) if what == "vae" else ""
    raise CardioDiTError(
        f"{folder} contains no {what}: looked for the {CONFIG} of a {' or '.join(classes)} in "
        f"{', '.join(map(str, places))}.{others}{hint}"
    )


def _explain_missing_vae(folder: Path) -> str:
    """Name the system of a folder whose model has no autoencoder by design."""
    for system in filter(_is_on_voxels, all_systems()):
        for place in (folder / system.component, folder / "best" / system.component):
            if (place / CONFIG).is_file() and _class_of(place) == system.components[system.component]:
                return f" It contains {system.title}, which denoises voxels and needs neither autoencoder nor latents."
    return ""


def _class_of(folder: Path) -> str:
    return str(
        read_object(folder / CONFIG, advice="It is not a model config; copy the folder again.").get("_class_name")
    )


def _find_on_hub(name: str, what: str, classes: Classes, kwargs: dict[str, Any]) -> tuple[str | None, str]:
    """Return the component's subfolder (None at the root) and the name of its class."""
    reasons = []
    for subfolder in (*dict.fromkeys(component for component, _ in classes.values()), None):
        where = "/".join(filter(None, (name, subfolder, CONFIG)))
        try:
            class_name = str(VQModel4D.load_config(name, subfolder=subfolder, **kwargs).get("_class_name"))
        except OSError as error:
            reasons.append(f"{where}: {str(error).strip().splitlines()[0]}")
            continue
        if class_name in classes:
            return subfolder, class_name
        reasons.append(f"{where}: belongs to a {class_name}")
    raise CardioDiTError(
        f"There is no folder {name}, and no {what} was found on the Hub: looked for the {CONFIG} of a "
        f"{' or '.join(classes)}. {'; '.join(reasons)}"
    )
