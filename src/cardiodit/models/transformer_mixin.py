"""What all our transformers have of diffusers: a choice of attention kernels, adapters, caches, strict loading."""

from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.cache_utils import CacheMixin

from cardiodit._compat import (
    ADAPTER_SCALES,
    ContextParallelInput,
    ContextParallelOutput,
    TransformerBlockMetadata,
    TransformerBlockRegistry,
    require,
)
from cardiodit.errors import CardioDiTError
from cardiodit.models.loading import StrictModelMixin, refuse_pickles

GPU_ONLY_BACKENDS = ("_native_cudnn", "_native_efficient")  # of torch's own


class TransformerMixin(StrictModelMixin, AttentionMixin, PeftAdapterMixin, CacheMixin):
    """A base class that says early what cannot be done, and opens no pickle."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Older versions of diffusers look up by a class's name how an adapter's strength is spread over its blocks.
        if ADAPTER_SCALES is not None:
            ADAPTER_SCALES.setdefault(cls.__name__, lambda _, strengths: strengths)

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
        """diffusers' choice of attention kernels; those of torch that need a GPU say so here, not at the first call."""
        if backend.lower() in GPU_ONLY_BACKENDS and not torch.cuda.is_available():
            raise CardioDiTError(
                f"The attention backend {backend!r} needs a CUDA GPU, and there is none. Use 'native'."
            )
        super().set_attention_backend(backend)

    def load_lora_adapter(self, pretrained_model_name_or_path_or_dict: Any, **kwargs: Any) -> None:
        """An adapter from a folder, a file, the Hub or a dictionary; from safetensors only, where diffusers would also
        open pickles."""
        refuse_pickles(pretrained_model_name_or_path_or_dict, kwargs.get("weight_name"))
        super().load_lora_adapter(pretrained_model_name_or_path_or_dict, **{**kwargs, "use_safetensors": True})
