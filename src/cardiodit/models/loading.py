"""Strict loading, shared by all our models: safetensors only, and every weight accounted for."""

import json
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from safetensors import SafetensorError

from cardiodit.errors import CardioDiTError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
ALIGNMENT = 64  # bytes, as torch's own allocations


class ConfigWithoutOrigin(ConfigMixin):
    """A config that forgets on disk from which folder it was opened: paths can tell of patients."""

    def to_json_string(self) -> str:
        """The config's file."""
        values = json.loads(super().to_json_string())
        origin = Path(values.get("_name_or_path") or "")
        if origin.is_absolute() or origin.exists():
            values.pop("_name_or_path", None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


class StrictModelMixin(ModelMixin, ConfigWithoutOrigin):
    """A diffusers model whose `from_pretrained` refuses weights that do not belong to its config.

    diffusers only warns when names differ and then runs with random weights in their place.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Any:
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True  # never fall back to pickles
        where = _describe(pretrained_model_name_or_path, kwargs.get("subfolder"))
        try:
            model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except Exception as error:
            raise _explain(error, cls.__name__, where) from error
        _refuse_strangers(info, cls.__name__, where)
        _align(model)
        return (model, info) if wants_info else model


def _align(model: torch.nn.Module) -> None:
    """Weights begin where torch would lay them, not where they lie in their file.

    On some processors the order of sums depends on it, and a model that was loaded would differ in its last bits from
    the same one that was made here.
    """
    for weight in (*model.parameters(), *model.buffers()):
        plain = type(weight.data) is torch.Tensor and weight.device.type == "cpu"
        if plain and weight.layout == torch.strided and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def refuse_pickles(*names: Any) -> None:
    """diffusers opens an adapter's file as a pickle when its name is not one of a safetensors file."""
    for name in names:
        path = Path(name) if isinstance(name, str | PathLike) else None
        if path is not None and path.suffix in PICKLES:
            raise CardioDiTError(f"{path} may hold pickled code and is not opened; adapters are read from safetensors.")


def _describe(path: str | PathLike, subfolder: str | None) -> str:
    return str(Path(path, subfolder)) if subfolder else str(path)


def _explain(error: Exception, model: str, where: str) -> Exception:
    """Damaged files and foreign shapes in a sentence; every other error as it came."""
    text = str(error)
    if isinstance(error, SafetensorError) or "Unable to load weights" in text:
        return CardioDiTError(f"The weights in {where} are damaged or cut short. Copy or download the folder again.")
    if "expected shape" in text or "size mismatch" in text:
        return CardioDiTError(
            f"The weights in {where} do not fit the config.json beside them ({model}): {text.split('. If')[0]}. "
            "Weights and config must come from the same model."
        )
    return error


def _refuse_strangers(info: dict[str, list], model: str, where: str) -> None:
    problems = [
        f"{label}: {', '.join(sorted(map(str, info[key]))[:8])}{' …' if len(info[key]) > 8 else ''}"
        for key, label in [
            ("missing_keys", "missing"),
            ("unexpected_keys", "not known to the model"),
            ("mismatched_keys", "of another shape"),
        ]
        if info.get(key)
    ]
    if problems:
        raise CardioDiTError(
            f"The weights in {where} do not fit the config.json beside them ({model}). "
            f"{'; '.join(problems)}. Weights and config must come from the same model."
        )
