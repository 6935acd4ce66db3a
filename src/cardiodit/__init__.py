"""Generate 4D cardiac cine MRI and 3D CT the way everybody generates images with diffusers."""

import logging

__version__ = "0.1.0.dev0"

# diffusers imports torchao where there is one, which then warns of kernels that nothing here uses.
logging.getLogger("torchao").setLevel(logging.ERROR)

from cardiodit._util.memory import estimate_memory
from cardiodit.errors import CardioDiTError
from cardiodit.hub import register_with_diffusers
from cardiodit.models import DiT3DTransformerModel, DiT4DTransformerModel, VQModel3D, VQModel4D
from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.pipelines import (
    CardioDiTControlPipeline,
    CardioDiTPipeline,
    PRDiTPipeline,
    VolDiTControlPipeline,
    VolDiTPipeline,
)
from cardiodit.schedulers import NoiseAndImageScheduler, change_solver, make_scheduler

register_with_diffusers(
    *(CardioDiTPipeline, CardioDiTControlPipeline, PRDiTPipeline, VolDiTPipeline, VolDiTControlPipeline),
    *(DiT3DTransformerModel, DiT4DTransformerModel, PRDiTTransformerModel, TGCAAdapterModel, VQModel3D, VQModel4D),
    NoiseAndImageScheduler,
)

__all__ = [
    "CardioDiTControlPipeline",
    "CardioDiTError",
    "CardioDiTPipeline",
    "DiT3DTransformerModel",
    "DiT4DTransformerModel",
    "NoiseAndImageScheduler",
    "PRDiTPipeline",
    "PRDiTTransformerModel",
    "TGCAAdapterModel",
    "VQModel3D",
    "VQModel4D",
    "VolDiTControlPipeline",
    "VolDiTPipeline",
    "change_solver",
    "estimate_memory",
    "make_scheduler",
]
