"""CardioDiT with masks: cine volumes in which the heart moves as a segmentation does."""

from diffusers import SchedulerMixin

from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.autoencoder_vq import VQModel4D
from cardiodit.models.transformer_dit import DiT4DTransformerModel
from cardiodit.pipelines.mask_control import MaskControlMixin
from cardiodit.pipelines.pipeline_cardiodit import CardioDiTPipeline


class CardioDiTControlPipeline(MaskControlMixin, CardioDiTPipeline):
    """Generates cine volumes in which the heart moves as a segmentation does.

    Args:
        vae, transformer, scheduler: as of `CardioDiTPipeline`.
        adapter: steers the transformer that it was trained on.
    """

    model_cpu_offload_seq = "adapter->transformer->vae"

    def __init__(
        self,
        vae: VQModel4D,
        transformer: DiT4DTransformerModel,
        scheduler: SchedulerMixin,
        adapter: TGCAAdapterModel,
    ) -> None:
        super(CardioDiTPipeline, self).__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler, adapter=adapter)
        self._check_adapter()
