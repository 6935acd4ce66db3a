"""Generate 4D cardiac cine MRI and 3D CT natively with diffusers.

Public names are imported on first use (PEP 562), so `import cardiodit` and `cardiodit --help` load neither torch nor
diffusers.
"""

import importlib
import logging
from typing import TYPE_CHECKING, Any

from cardiodit.errors import CardioDiTError
from cardiodit.hub.registration import register_with_diffusers

if TYPE_CHECKING:
    from cardiodit._util.memory import estimate_memory
    from cardiodit.evaluation.evaluate import evaluate
    from cardiodit.evaluation.segmenters import open_segmenter
    from cardiodit.imaging import PRESETS, Geometry, Intensity, Preprocessing, Volume, read_manifest
    from cardiodit.imaging.gaps import Gaps
    from cardiodit.latents.dataset import LatentCohort as LatentDataset
    from cardiodit.models.adapter_tgca import TGCAAdapterModel
    from cardiodit.models.autoencoder_vq import VQModel3D, VQModel4D
    from cardiodit.models.controlnet_medlord import MedLoRDControlNetModel
    from cardiodit.models.copy_detector import CopyDetector
    from cardiodit.models.segmenter import HeartSegmenter
    from cardiodit.models.transformer_dit import DiT3DTransformerModel, DiT4DTransformerModel
    from cardiodit.models.transformer_prdit import PRDiTTransformerModel
    from cardiodit.models.unet_medlord import MedLoRDUNetModel
    from cardiodit.pipelines import (
        CardioDiTControlPipeline,
        CardioDiTPipeline,
        MedLoRDControlPipeline,
        MedLoRDPipeline,
        PRDiTPipeline,
        VolDiTControlPipeline,
        VolDiTPipeline,
        VolumePipelineOutput,
    )
    from cardiodit.pipelines.completion import complete
    from cardiodit.pipelines.load import open_pipeline
    from cardiodit.privacy.audit import audit
    from cardiodit.schedulers import FlowScheduler, NoiseAndImageScheduler, change_solver, make_scheduler

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "CardioDiTControlPipeline",
    "CardioDiTError",
    "CardioDiTPipeline",
    "CopyDetector",
    "DiT3DTransformerModel",
    "DiT4DTransformerModel",
    "FlowScheduler",
    "Gaps",
    "Geometry",
    "HeartSegmenter",
    "Intensity",
    "LatentDataset",
    "MedLoRDControlNetModel",
    "MedLoRDControlPipeline",
    "MedLoRDPipeline",
    "MedLoRDUNetModel",
    "NoiseAndImageScheduler",
    "PRDiTPipeline",
    "PRDiTTransformerModel",
    "Preprocessing",
    "TGCAAdapterModel",
    "VQModel3D",
    "VQModel4D",
    "VolDiTControlPipeline",
    "VolDiTPipeline",
    "Volume",
    "VolumePipelineOutput",
    "audit",
    "change_solver",
    "complete",
    "estimate_memory",
    "evaluate",
    "make_scheduler",
    "open_pipeline",
    "open_segmenter",
    "read_manifest",
]

# Classes that saved folders name; diffusers finds them as its own.
_SAVED_CLASSES = {
    "CardioDiTControlPipeline": "cardiodit.pipelines",
    "CardioDiTPipeline": "cardiodit.pipelines",
    "CopyDetector": "cardiodit.models.copy_detector",
    "DiT3DTransformerModel": "cardiodit.models.transformer_dit",
    "DiT4DTransformerModel": "cardiodit.models.transformer_dit",
    "FlowScheduler": "cardiodit.schedulers",
    "HeartSegmenter": "cardiodit.models.segmenter",
    "MedLoRDControlNetModel": "cardiodit.models.controlnet_medlord",
    "MedLoRDControlPipeline": "cardiodit.pipelines",
    "MedLoRDPipeline": "cardiodit.pipelines",
    "MedLoRDUNetModel": "cardiodit.models.unet_medlord",
    "NoiseAndImageScheduler": "cardiodit.schedulers",
    "PRDiTPipeline": "cardiodit.pipelines",
    "PRDiTTransformerModel": "cardiodit.models.transformer_prdit",
    "TGCAAdapterModel": "cardiodit.models.adapter_tgca",
    "VQModel3D": "cardiodit.models.autoencoder_vq",
    "VQModel4D": "cardiodit.models.autoencoder_vq",
    "VolDiTControlPipeline": "cardiodit.pipelines",
    "VolDiTPipeline": "cardiodit.pipelines",
}
_LAZY = {
    **_SAVED_CLASSES,
    "Gaps": "cardiodit.imaging.gaps",
    "Geometry": "cardiodit.imaging",
    "Intensity": "cardiodit.imaging",
    "LatentDataset": "cardiodit.latents.dataset:LatentCohort",
    "PRESETS": "cardiodit.imaging",
    "Preprocessing": "cardiodit.imaging",
    "Volume": "cardiodit.imaging",
    "VolumePipelineOutput": "cardiodit.pipelines",
    "audit": "cardiodit.privacy.audit",
    "change_solver": "cardiodit.schedulers",
    "complete": "cardiodit.pipelines.completion",
    "estimate_memory": "cardiodit._util.memory",
    "evaluate": "cardiodit.evaluation.evaluate",
    "make_scheduler": "cardiodit.schedulers",
    "open_pipeline": "cardiodit.pipelines.load",
    "open_segmenter": "cardiodit.evaluation.segmenters",
    "read_manifest": "cardiodit.imaging",
}
_SUBPACKAGES = ("imaging", "latents", "models", "pipelines", "schedulers")  # `cardiodit.imaging` needs no import


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, original_name = _LAZY[name].partition(":")
    value = getattr(importlib.import_module(module), original_name or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBPACKAGES})


# diffusers imports torchao if it is installed, which then warns about kernels that nothing here uses.
logging.getLogger("torchao").setLevel(logging.ERROR)
register_with_diffusers(_SAVED_CLASSES)
