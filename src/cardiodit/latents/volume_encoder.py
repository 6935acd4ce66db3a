"""One volume to its latents."""

import torch

from cardiodit.errors import CardioDiTError
from cardiodit.models import VQModel3D, VQModel4D
from cardiodit.models.autoencoder_vq import slices_of, stack_slices


@torch.inference_mode()
def encode_volume(
    vae: VQModel4D | VQModel3D, volume: torch.Tensor, batch_size: int = 1, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Quantised latents in float32 on the CPU, not multiplied by the scaling factor.

    Args:
        vae: in eval mode, so that its codebook stands still; computes where it lies.
        volume: `(1, D, H, W, T)` for a VQModel4D, `(1, H, W, D)` for a VQModel3D.
        batch_size: slices at once; the result is the same.
        dtype: precision of the VQ model's arithmetic; its weights and its codes stay float32.
    """
    is_cine = volume.ndim == 5
    if is_cine != isinstance(vae, VQModel4D):
        kind, other = ("is a cine", "volumes") if is_cine else ("is 3D", "cines")
        raise CardioDiTError(f"The image {kind}, and a {type(vae).__name__} encodes {other}.")
    items = slices_of(volume[None]) if is_cine else volume[None]
    codes = torch.cat([_codes(vae, batch, dtype) for batch in items.split(batch_size)])
    return (stack_slices(codes, volume.shape[1]) if is_cine else codes)[0].contiguous()


def _codes(vae: VQModel4D | VQModel3D, batch: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The codes themselves, looked up: a quantiser's straight-through output is one rounding away from them."""
    with torch.autocast(vae.device.type, dtype, enabled=dtype != torch.float32):
        encoded = vae.encode(batch.to(vae.device)).latents
    if not torch.isfinite(encoded).all():
        raise CardioDiTError(
            f"The VQ model produced values that are not numbers (in {dtype}). Encode in float32; if that does not "
            "help, its weights are broken."
        )
    return vae.quantizer.embed(vae.quantize(encoded.float()).indices).float().cpu()
