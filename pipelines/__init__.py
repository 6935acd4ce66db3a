"""One file a pipeline."""

from cardiodit.pipelines.output import VolumePipelineOutput
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline
from cardiodit.pipelines.pipeline_cardiodit_control import CardioDiTControlPipeline
from cardiodit.pipelines.pipeline_prdit import PRDiTPipeline
from cardiodit.pipelines.pipeline_voldit import VolDiTPipeline
from cardiodit.pipelines.pipeline_voldit_control import VolDiTControlPipeline

__all__ = [
    "CardioDiTControlPipeline",
    "CardioDiTPipeline",
    "PRDiTPipeline",
    "VolDiTControlPipeline",
    "VolDiTPipeline",
    "VolumePipelineOutput",
]
