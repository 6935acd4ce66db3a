"""PRDiT: from noise to a 3D volume, voxel by voxel."""

from cardiodit.models.transformer_prdit import PRDiTTransformerModel
from cardiodit.pipelines.volumes import VolumePipeline
from cardiodit.schedulers.noise_and_image import NoiseAndImageScheduler


class PRDiTPipeline(VolumePipeline):
    """Generates 3D volumes, such as CT, without an autoencoder.

    Args:
        transformer: denoises volumes `(B, 1, H, W, D)`; its config holds the geometry.
        scheduler: the process between noise and image.
    """

    default_steps = 100

    def __init__(self, transformer: PRDiTTransformerModel, scheduler: NoiseAndImageScheduler) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)
