"""VolDiT with masks: 3D volumes whose structures lie where masks have them."""

from diffusers import SchedulerMixin

from cardiodit.models.adapter_tgca import TGCAAdapterModel
from cardiodit.models.autoencoder_vq import VQModel3D
from cardiodit.models.transformer_dit import DiT3DTransformerModel
from cardiodit.pipelines.mask_control import MaskControlMixin
from cardiodit.pipelines.pipeline_voldit import VolDiTPipeline


class VolDiTControlPipeline(MaskControlMixin, VolDiTPipeline):
    """Generates 3D volumes whose structures lie where masks have them.

    Args:
        vae, transformer, scheduler: as of `VolDiTPipeline`.
        adapter: steers the transformer that it was trained on.
    """

    model_cpu_offload_seq = "adapter->transformer->vae"

    def __init__(
        self,
        vae: VQModel3D,
        transformer: DiT3DTransformerModel,
        scheduler: SchedulerMixin,
        adapter: TGCAAdapterModel,
    ) -> None:
        super(VolDiTPipeline, self).__init__()
        self._register(vae=vae, transformer=transformer, scheduler=scheduler, adapter=adapter)
        self._check_adapter()
