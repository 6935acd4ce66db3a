"""LoRA adapters of a pipeline's denoiser: loading, saving and fusing, as in every diffusers pipeline."""

from os import PathLike
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils import USE_PEFT_BACKEND

from cardiodit._compat import fetch_state_dict, require
from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import refuse_pickles

Weights = dict[str, torch.Tensor]


class DenoiserLoraMixin(LoraBaseMixin):
    """LoRA for pipelines whose only component with adapters is the denoiser; reads and writes safetensors only."""

    _lora_loadable_modules = ["transformer"]
    denoiser_name = "transformer"

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: str | PathLike | Weights, **kwargs: Any
    ) -> Weights | tuple[Weights, dict | None]:
        """Return the weights of an adapter from a file, a folder, a Hub repository or a dictionary."""
        refuse_pickles(pretrained_model_name_or_path_or_dict, kwargs.get("weight_name"))
        wants_metadata = kwargs.pop("return_lora_metadata", False)
        where = {
            name: kwargs.pop(name, None)
            for name in ("cache_dir", "proxies", "local_files_only", "token", "revision", "subfolder", "weight_name")
        }
        require("Loading LoRA weights", _fetch_state_dict=fetch_state_dict)
        state_dict, metadata = fetch_state_dict(
            pretrained_model_name_or_path_or_dict=pretrained_model_name_or_path_or_dict,
            force_download=kwargs.pop("force_download", False),
            use_safetensors=True,
            user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
            allow_pickle=False,
            **where,
        )
        return (state_dict, metadata) if wants_metadata else state_dict

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike | Weights,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Add an adapter to the denoiser; several can be loaded under different names and mixed."""
        _check_peft()
        given = pretrained_model_name_or_path_or_dict
        options = {name: kwargs.pop(name) for name in ("low_cpu_mem_usage", "hotswap") if name in kwargs}
        source: Any = dict(given) if isinstance(given, dict) else given
        fetched: Any = self.lora_state_dict(source, return_lora_metadata=True, **kwargs)
        state_dict, metadata = fetched
        if unexpected := [name for name in state_dict if "lora" not in name]:
            raise CardioDiTError(f"These are not LoRA weights: {unexpected[0]!r} and {len(unexpected) - 1} others.")
        denoiser = getattr(self, self.denoiser_name)
        self.load_lora_into_transformer(
            state_dict, denoiser, adapter_name=adapter_name, metadata=metadata, _pipeline=self, **options
        )

    @classmethod
    def load_lora_into_transformer(
        cls, state_dict: Weights, transformer: Any, adapter_name: str | None = None, **kwargs: Any
    ) -> None:
        """Add an adapter to the pipeline's denoiser; diffusers' name, also where it is a U-Net."""
        names = {"prefix": cls.denoiser_name, "adapter_name": adapter_name}
        transformer.load_lora_adapter(state_dict, network_alphas=None, **names, **kwargs)

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | PathLike,
        transformer_lora_layers: Weights | None = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: Any = None,
        safe_serialization: bool = True,
        transformer_lora_adapter_metadata: dict | None = None,
        unet_lora_layers: Weights | None = None,
        unet_lora_adapter_metadata: dict | None = None,
    ) -> None:
        """Write an adapter as `pytorch_lora_weights.safetensors`, which `load_lora_weights` reads.

        Give the layers and the metadata of the pipeline's denoiser, its `transformer` or its `unet`. Pass
        `transformer.peft_config[name].to_dict()` as metadata: without it, loading assumes that alpha equals the
        rank, and an adapter that was trained with another alpha acts too strongly or too weakly.
        """
        given = {
            "transformer": (transformer_lora_layers, transformer_lora_adapter_metadata),
            "unet": (unet_lora_layers, unet_lora_adapter_metadata),
        }
        layers, metadata = given[cls.denoiser_name]
        if not layers:
            raise CardioDiTError(f"save_lora_weights requires {cls.denoiser_name}_lora_layers, the adapter's weights.")
        if not safe_serialization:
            raise CardioDiTError("Adapters are written as safetensors only; leave safe_serialization at True.")
        cls._save_lora_weights(
            save_directory=save_directory,
            lora_layers={cls.denoiser_name: layers},
            lora_metadata={cls.denoiser_name: metadata},
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=True,
        )

    def fuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        """Merge the adapters into the weights, so that sampling has no extra cost."""
        super().fuse_lora(components=components or [self.denoiser_name], **kwargs)

    def unfuse_lora(self, components: list[str] | None = None, **kwargs: Any) -> None:
        super().unfuse_lora(components=components or [self.denoiser_name], **kwargs)


def _check_peft() -> None:
    if not USE_PEFT_BACKEND:
        raise CardioDiTError("LoRA adapters require peft: pip install 'cardiodit[lora]'.")
