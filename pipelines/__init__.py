"""Pipelines, one file per system."""

from cardiodit.pipelines.output import VolumePipelineOutput
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTControlPipeline, CardioDiTPipeline
from cardiodit.pipelines.pipeline_medlord import MedLoRDControlPipeline, MedLoRDPipeline
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.pipelines.pipeline_voldit import VolDiTControlPipeline, VolDiTPipeline

__all__ = [
    "CardioDiTControlPipeline",
    "CardioDiTPipeline",
    "MedLoRDControlPipeline",
    "MedLoRDPipeline",
    "PRDiTPipeline",
    "VolDiTControlPipeline",
    "VolDiTPipeline",
    "VolumePipelineOutput",
]
