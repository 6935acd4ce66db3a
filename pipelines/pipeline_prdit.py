"""PRDiT: generate 3D volumes from noise, voxel by voxel."""

from collections.abc import Sequence

from diffusers import SchedulerMixin

from cardiodit.errors import CardioDiTError
from cardiodit.models.transformer_prdit import PROCESS, PRDiTTransformerModel
from cardiodit.pipelines.base_pipeline import VolumePipeline


class PRDiTPipeline(VolumePipeline):
    """Generates 3D volumes, such as CT, without an autoencoder.

    Args:
        transformer: denoiser of volumes `(B, 1, H, W, D)`; its config holds the geometry.
        scheduler: scheduler of the process that the transformer was trained for.
    """

    default_steps = 100

    def __init__(self, transformer: PRDiTTransformerModel, scheduler: SchedulerMixin) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    def _check(self, guidance_scale: float, output_type: str, callback_inputs: Sequence[str]) -> None:
        super()._check(guidance_scale, output_type, callback_inputs)
        for key in PROCESS:
            given, learned = self.scheduler.config.get(key), self.transformer.config[key]
            if given not in (None, learned):
                raise CardioDiTError(
                    f"The scheduler's {key} is {given}, but the transformer was trained with {learned}: they do not "
                    "belong together."
                )
