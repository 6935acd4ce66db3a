from collections.abc import Callable

import pytest
import torch

from cardiodit import CardioDiTError, VQModel3D, VQModel4D
from cardiodit.latents import identity_of_vae
from cardiodit.latents.volume_encoder import encode_volume


def volume(*shape: int) -> torch.Tensor:
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def quantised(vae: VQModel4D | VQModel3D, x: torch.Tensor) -> torch.Tensor:
    return vae.quantize(vae.encode(x[None]).latents).latents[0]


def test_latents_are_the_quantised_code_of_every_slice(vae: VQModel4D) -> None:
    x = volume(5, 32, 32, 8)
    latents = encode_volume(vae, x)
    assert latents.shape == (8, 5, 8, 8, 2) and latents.dtype == torch.float32
    torch.testing.assert_close(latents, quantised(vae, x), atol=1e-6, rtol=0)
    codes = latents.movedim(0, -1).reshape(-1, 8)
    assert (torch.cdist(codes, vae.quantizer.weight).min(dim=1).values < 1e-3).all()


def test_a_volume_in_nifti_order(make_vae: Callable[..., VQModel3D]) -> None:
    vae, x = make_vae(VQModel3D), volume(32, 24, 16)
    latents = encode_volume(vae, x)
    assert latents.shape == (8, 8, 6, 4)
    torch.testing.assert_close(latents, quantised(vae, x), atol=1e-6, rtol=0)


def test_the_number_of_slices_at_once_changes_nothing(vae: VQModel4D) -> None:
    x = volume(5, 32, 32, 8)
    torch.testing.assert_close(encode_volume(vae, x, 1), encode_volume(vae, x, 3), atol=1e-6, rtol=0)


def test_the_codebook_stands_still(vae: VQModel4D) -> None:
    before = identity_of_vae(vae)
    encode_volume(vae, volume(2, 32, 32, 8))
    assert identity_of_vae(vae) == before


def test_half_precision_gives_float32_codes(vae: VQModel4D) -> None:
    x = volume(2, 32, 32, 8)
    exact, coarse = encode_volume(vae, x), encode_volume(vae, x, dtype=torch.bfloat16)
    assert coarse.dtype == torch.float32
    assert (exact == coarse).all(dim=0).float().mean() > 0.7  # the others lie between two codes


def test_what_the_model_cannot_encode_is_refused(vae: VQModel4D, make_vae: Callable) -> None:
    with pytest.raises(CardioDiTError, match="is 3D, and a VQModel4D encodes cines"):
        encode_volume(vae, volume(32, 32, 8))
    with pytest.raises(CardioDiTError, match="is a cine, and a VQModel3D encodes volumes"):
        encode_volume(make_vae(VQModel3D), volume(4, 32, 32, 8))
    with pytest.raises(CardioDiTError, match="not numbers"):
        encode_volume(vae, volume(4, 32, 32, 8) * torch.nan)
