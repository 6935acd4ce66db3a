"""One file a pipeline."""

from cardiodit.pipelines.output import VolumePipelineOutput
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline

__all__ = ["CardioDiTPipeline", "VolumePipelineOutput"]
