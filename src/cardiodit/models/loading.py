"""Strict loading of model folders, and the base class of our denoisers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, get_origin

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin
from diffusers.utils import CONFIG_NAME
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook

from cardiodit._compat import (
    ADAPTER_SCALES,
    ContextParallelInput,
    ContextParallelOutput,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
    require,
)
from cardiodit._util.foreign_files import check_file, physical_memory, read_object
from cardiodit._util.typed_yaml import Reader, field_types, settings_of
from cardiodit.errors import CardioDiTError, reason_of

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MOST_WEIGHTS = 50_000  # tensors; the largest published model has a hundredth
POSITIVE = (
    *("patch_size", "sample_size", "in_channels", "out_channels", "channels", "num_attention_heads"),
    *("attention_head_dim", "num_embeddings", "embedding_dim", "solver_order"),
)
ALIGNMENT = 64  # bytes, as in torch's own allocations
GPU_ONLY_BACKENDS = ("_native_cudnn", "_native_efficient")  # torch kernels that diffusers also offers without a GPU


class ConfigWithoutOrigin(ConfigMixin):
    """A config that does not save the path it was loaded from, because paths can identify patients."""

    def to_json_string(self) -> str:
        """Return the text of the config file."""
        values = json.loads(super().to_json_string())
        origin = Path(values.get("_name_or_path") or "")
        if origin.is_absolute() or origin.exists():
            values.pop("_name_or_path", None)
        return json.dumps(values, indent=2, sort_keys=True) + "\n"


class StrictModelMixin(ModelMixin, ConfigWithoutOrigin):
    """A diffusers model whose `from_pretrained` rejects weights that do not match its config.

    diffusers itself only warns about missing weights and continues with random ones.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | PathLike, **kwargs: Any) -> Any:
        return_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True  # never fall back to pickles
        folder = str(Path(pretrained_model_name_or_path, kwargs.get("subfolder") or ""))
        is_local = Path(pretrained_model_name_or_path).is_dir()
        most, size = _check_model_folder(Path(folder), cls) if is_local else (MOST_WEIGHTS, None)
        try:
            with bounded_model(most, size, str(Path(folder, CONFIG_NAME))):
                model, info = super().from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
        except Exception as error:
            raise _explain(error, cls.__name__, folder) from error
        _check_loading_info(info, cls.__name__, folder)
        _align(model)
        return (model, info) if return_info else model


class DenoiserMixin(StrictModelMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """Base class of our denoisers: attention backends, LoRA adapters, caches and strict loading."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Older versions of diffusers look up by class name how an adapter's scale is distributed over its blocks.
        if ADAPTER_SCALES is not None:
            ADAPTER_SCALES.setdefault(cls.__name__, lambda _, scales: scales)

    def enable_cache(self, config: Any) -> None:
        """Enable one of diffusers' caches, which reuse results of earlier sampling steps."""
        require(
            "Caching between sampling steps",
            TransformerBlockRegistry=TransformerBlockRegistry,
            TransformerBlockMetadata=TransformerBlockMetadata,
        )
        super().enable_cache(config)

    def enable_parallelism(self, *, config: Any, cp_plan: Any = None) -> None:
        """Split the tokens of each volume over several GPUs."""
        require(
            "Context parallelism",
            ContextParallelInput=ContextParallelInput,
            ContextParallelOutput=ContextParallelOutput,
        )
        super().enable_parallelism(config=config, cp_plan=cp_plan)

    def set_attention_backend(self, backend: str) -> None:
        """Select diffusers' attention kernels; reject GPU kernels here rather than at the first forward pass."""
        if backend.lower() in GPU_ONLY_BACKENDS and not torch.cuda.is_available():
            raise CardioDiTError(
                f"The attention backend {backend!r} needs a CUDA GPU, and none was found. Use 'native'."
            )
        super().set_attention_backend(backend)

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """Load an adapter from a folder, file, Hub repository or dictionary, never from a pickle."""
        refuse_pickles(pretrained_model_name_or_path_or_dict, kwargs.get("weight_name"))
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, **{**kwargs, "use_safetensors": True})


@contextmanager
def bounded_model(
    most_weights: int = MOST_WEIGHTS, most_bytes: int | None = None, config: str = "The config"
) -> Iterator[None]:
    """Stop a model that a config describes as absurdly large while it is built, before its weights are filled.

    Args:
        most_weights: most weights (tensors) that it may have.
        most_bytes: most bytes that they may have; default: the machine's memory.
        config: name of the config in the error.
    """
    most_bytes = physical_memory() if most_bytes is None else most_bytes
    count = size = 0

    def check(module: torch.nn.Module, name: str, weight: torch.nn.Parameter | None) -> None:
        nonlocal count, size
        if weight is not None:
            count += 1
            size += weight.numel() * weight.element_size()
        if count > most_weights or size > most_bytes:
            raise CardioDiTError(
                f"{config} describes a model of more than {most_weights} tensors or {most_bytes} bytes: more than its "
                "weights have, or than this machine can hold. Correct it."
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()


def check_model_files(folder: Path) -> None:
    """Raise an error if a config or weight file directly in a folder is a pipe, a device, or no JSON object."""
    for path in sorted(folder.glob("*.json")):
        read_object(path)
    for path in sorted(folder.glob("*.safetensors")):
        check_file(path)


def _check_model_folder(folder: Path, kind: type) -> tuple[int, int | None]:
    """Check a local folder before a model is built; return the limits for `bounded_model`, as its files tell them."""
    check_model_files(folder)
    if (folder / CONFIG_NAME).is_file():
        config = read_object(folder / CONFIG_NAME)
        check_config(config, kind, str(folder / CONFIG_NAME))
    counts, length = [], 0
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as weights:
                counts.append(len(weights.keys()))
        except Exception as error:
            raise _explain(error, kind.__name__, str(folder)) from error
        length += path.stat().st_size
    # With room for a config that describes a few weights more: what is missing is then listed by name.
    return (4 * sum(counts) + 1000, 8 * length + 2**28) if counts else (MOST_WEIGHTS, None)


def check_config(config: dict[str, Any], kind: type, file: str) -> None:
    """Raise an error if a value of a model's config does not have the type of the constructor's argument."""
    if config.get("quantization_config") is not None:
        raise CardioDiTError(f"{file} asks for quantised weights (quantization_config), which our models are not.")
    settings = type(settings_of(kind))
    known = field_types(settings)
    _ConfigReader(file).section(settings, {key: value for key, value in config.items() if key in known}, "")


class _ConfigReader(Reader):
    """Reads the config of a saved model, where only some numbers must be positive."""

    def match(self, kind: Any, value: Any, at: str) -> Any:
        is_count = get_origin(kind) is Annotated and at not in POSITIVE
        return super().match(int if is_count else kind, value, at)


def refuse_pickles(*names: Any) -> None:
    """Raise if a name is that of a pickle file, which diffusers would open as an adapter."""
    for name in names:
        path = Path(name) if isinstance(name, str | PathLike) else None
        if path is not None and path.suffix in PICKLE_SUFFIXES:
            raise CardioDiTError(
                f"{path} may contain pickled code, so it was not opened. Adapters are only read from safetensors files."
            )


def _align(model: torch.nn.Module) -> None:
    """Copy weights that are not aligned in memory as torch would allocate them.

    On some processors the order of summation depends on the alignment, so a loaded model would differ in its last
    bits from the same model built in this process.
    """
    for weight in (*model.parameters(), *model.buffers()):
        is_plain = type(weight.data) is torch.Tensor and weight.device.type == "cpu"
        if is_plain and weight.layout == torch.strided and weight.data_ptr() % ALIGNMENT:
            weight.data = weight.data.clone()


def _explain(error: Exception, model: str, folder: str) -> Exception:
    """Describe damaged files and mismatched shapes in plain words; return errors of the system unchanged."""
    text = str(error)
    if isinstance(error, CardioDiTError):
        return error
    if isinstance(error, SafetensorError) or "Unable to load weights" in text:
        return CardioDiTError(f"The weights in {folder} are damaged or cut short. Copy or download the folder again.")
    if "expected shape" in text or "size mismatch" in text:
        return _mismatch(folder, model, text.split(". If")[0])
    if isinstance(error, OSError):  # a missing file, or an error of the Hub
        return error
    return CardioDiTError(f"{folder} cannot be opened as a {model}: {reason_of(error)}. Save or copy the folder again.")


def _check_loading_info(info: dict[str, list], model: str, folder: str) -> None:
    problems = [
        f"{label}: {', '.join(sorted(map(str, info[key]))[:8])}{' …' if len(info[key]) > 8 else ''}"
        for key, label in [
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "wrong shape"),
        ]
        if info.get(key)
    ]
    if problems:
        raise _mismatch(folder, model, "; ".join(problems))


def _mismatch(folder: str, model: str, problem: str) -> CardioDiTError:
    return CardioDiTError(
        f"The weights in {folder} do not fit the config.json next to them ({model}). {problem}. "
        "Weights and config must come from the same model."
    )
