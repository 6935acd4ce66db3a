"""PRDiT: generate 3D volumes from noise, voxel by voxel."""

from collections.abc import Sequence

from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_prdit import PROCESS, PRDiTTransformerModel
from cardiodit.pipelines.base_pipeline import VolumePipeline
from cardiodit.schedulers.prdit_scheduler import NoiseAndImageScheduler


class PRDiTPipeline(VolumePipeline):
    """Generates 3D volumes, such as CT, without an autoencoder.

    Args:
        transformer: denoiser of volumes `(B, 1, H, W, D)`; its config holds the geometry.
        scheduler: scheduler of the process between noise and image.
    """

    default_steps = 100

    def __init__(self, transformer: PRDiTTransformerModel, scheduler: NoiseAndImageScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def _check(self, guidance_scale: float, output_type: str, callback_inputs: Sequence[str]) -> None:
        super()._check(guidance_scale, output_type, callback_inputs)
        for key in PROCESS:
            given, learned = self.scheduler.config[key], self.transformer.config[key]
            if given != learned:
                raise CardioDiTError(
                    f"The scheduler's {key} is {given}, but the transformer was trained with {learned}: they do not "
                    "belong together."
                )
