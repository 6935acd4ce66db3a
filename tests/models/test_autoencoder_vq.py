import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import VQVAE

from cardiodit import CardioDiTError, VQModel3D, VQModel4D
from cardiodit.models.autoencoder_vq import AxisTiles, run_tiled

LEVELS = {
    "two": {"channels": (8, 16)},
    "three": {"channels": (8, 16, 16), "num_res_channels": (4, 8, 8), "num_res_layers": 1},
    "anisotropic": {
        "channels": (8, 16),
        "downsample_parameters": [[2, 4, 1, 1], [[2, 2, 1], [4, 4, 1], 1, [1, 1, 0]]],
        "upsample_parameters": [[[2, 2, 1], [4, 4, 1], 1, [1, 1, 0], [0, 0, 0]], [2, 4, 1, 1, 0]],
    },
}


def with_widths(settings: dict) -> dict:
    return {"num_res_channels": settings["channels"], **settings}


def monai_twin(vae: VQModel4D) -> VQVAE:
    """MONAI's VQVAE, whose constructor refuses strides of an axis, with our weights."""
    config = vae.config
    twin = VQVAE(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=config.channels,
        num_res_channels=config.num_res_channels,
        num_res_layers=config.num_res_layers,
        downsample_parameters=vae.down,
        upsample_parameters=vae.up,
        num_embeddings=config.num_embeddings,
        embedding_dim=config.embedding_dim,
        decay=0.99,
    )
    state = vae.state_dict()
    codebook = "quantizer.quantizer"
    twin.load_state_dict(
        {k: v for k, v in state.items() if not k.startswith("quantizer.")}
        | {
            f"{codebook}.embedding.weight": state["quantizer.weight"],
            f"{codebook}.ema_w": state["quantizer.ema_sums"],
            f"{codebook}.ema_cluster_size": state["quantizer.ema_counts"],
        }
    )
    return twin.eval()


def test_published_size_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        vae = VQModel4D()
    assert sum(p.numel() for p in vae.parameters()) == 25_690_377
    assert sum(p.numel() for p in vae.parameters() if p.requires_grad) == 25_559_305
    with torch.device("meta"):
        voldit = VQModel3D(channels=(128, 256, 512), num_res_channels=(128, 256, 512), num_embeddings=4096)
    assert abs(sum(p.numel() for p in voldit.parameters()) / 1e6 - 95.57) < 0.01


@pytest.mark.parametrize("levels", ["two", "three"])
def test_it_matches_monai(make_vae, levels) -> None:
    vae = make_vae(**with_widths(LEVELS[levels]))
    twin = monai_twin(vae)
    image = torch.rand(2, 1, 16, 24, 8) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latents
        assert torch.allclose(latents, twin.encode(image), atol=1e-6)
        quantized = vae.quantize(latents)
        expected, loss = twin.quantize(twin.encode(image))
        assert torch.allclose(quantized.latents, expected, atol=1e-6)
        assert torch.allclose(quantized.commitment_loss, loss)
        assert torch.allclose(vae.decode(latents).sample, twin(image)[0], atol=1e-6)


def test_strides_of_each_axis(make_vae) -> None:
    vae = make_vae(**with_widths(LEVELS["anisotropic"]))
    assert vae.scale_factors == (4, 4, 2)
    image = torch.rand(1, 1, 16, 24, 8)
    latents = vae.encode(image).latents
    assert latents.shape == (1, 8, 4, 6, 4)
    assert vae.decode(latents).sample.shape == image.shape


def test_a_cine_is_encoded_slice_by_slice(make_vae) -> None:
    vae = make_vae()
    volume = torch.rand(2, 1, 3, 16, 16, 8) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(volume).latents
        assert latents.shape == (2, 8, 3, 4, 4, 2)
        for b in range(2):
            for d in range(3):
                alone = vae.encode(volume[b : b + 1, :, d]).latents
                assert torch.allclose(latents[b : b + 1, :, d], alone, atol=1e-6)
        decoded = vae.decode(latents).sample
        assert decoded.shape == volume.shape
        assert torch.allclose(decoded[1:, :, 2], vae.decode(latents[1:, :, 2]).sample, atol=1e-6)
        indices = vae.quantize(latents).indices
        assert indices.shape == (2, 3, 4, 4, 2)


def test_slicing_runs_one_slice_at_a_time_with_the_same_result(make_vae) -> None:
    vae = make_vae()
    seen: list[int] = []
    vae.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    volume = torch.rand(2, 1, 3, 16, 16, 8)
    with torch.no_grad():
        latents = vae.encode(volume).latents
        whole = vae.decode(latents).sample
        vae.enable_slicing()
        assert torch.allclose(vae.encode(volume).latents, latents, atol=1e-6)
        assert torch.allclose(vae.decode(latents).sample, whole, atol=1e-6)
    assert seen == [6] + [1] * 6


@pytest.mark.parametrize("levels", LEVELS)
def test_tiling_at_the_default_overlap_is_exact_and_at_a_quarter_close(make_vae, levels, record_property) -> None:
    """Differences as a share of the range of the untiled result; the promise is 1e-3."""
    vae = make_vae(**with_widths(LEVELS[levels]))
    height, width, _ = vae.scale_factors
    image = torch.rand(1, 1, 64 * height, 48 * width, 8) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(image).latents
        sample = vae.decode(latents).sample
        vae.enable_tiling()
        for name, tiled, untiled in [
            ("encode", vae.encode(image).latents, latents),
            ("decode", vae.decode(latents).sample, sample),
        ]:
            difference = float((tiled - untiled).abs().max() / (untiled.max() - untiled.min()))
            record_property(name, difference)
            print(f"{levels} levels, {name}: {difference:.1e} of the range")
            assert difference < 1e-3
    vae.disable_tiling()
    with torch.no_grad():
        assert torch.equal(vae.decode(latents).sample, sample)


def test_a_volume_is_tiled_along_its_depth_too(make_vae) -> None:
    vae = make_vae(VQModel3D, **with_widths(LEVELS["three"]))
    sizes = []
    latents = torch.randn(1, vae.config.embedding_dim, 8, 8, 60)
    with torch.no_grad():
        sample = vae.decode(latents).sample
        vae.enable_tiling()
        vae.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
        difference = (vae.decode(latents).sample - sample).abs().max() / (sample.max() - sample.min())
    assert sizes == [(8, 8, 40)] * 2
    assert difference < 1e-3
    with pytest.raises(CardioDiTError, match="has no depth axis"):
        make_vae().enable_tiling(tile_sample_min_depth=64)


@torch.no_grad()
def test_a_volume_that_is_cut_along_three_axes_at_once_has_no_seams(make_vae) -> None:
    """Eight tiles meet in a corner; as at the default sizes they overlap by 16 latents."""
    vae, latents = make_vae(VQModel3D, **with_widths(LEVELS["three"])), torch.randn(1, 8, 20, 20, 20)
    sample = vae.decode(latents).sample
    sizes = []
    tile = {f"tile_sample_min_{axis}": 144 for axis in vae.axis_names}
    vae.enable_tiling(**tile, **{f"tile_sample_stride_{axis}": 16 for axis in vae.axis_names})
    vae.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    difference = (vae.decode(latents).sample - sample).abs().max() / (sample.max() - sample.min())
    assert sizes == [(18, 18, 18)] * 8 and vae.scale_factors == (8, 8, 8)
    assert difference < 1e-3


def test_tiling_bounds_the_tiles(make_vae) -> None:
    vae = make_vae()
    sizes = []
    vae.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    vae.enable_tiling(tile_sample_min_height=64, tile_sample_min_width=32, tile_sample_stride_width=16)
    with torch.no_grad():
        vae.encode(torch.rand(1, 1, 96, 80, 8))
    assert set(sizes) == {(64, 32, 8)}
    with pytest.raises(CardioDiTError, match="tile_sample_stride_height=64 must be smaller"):
        vae.enable_tiling(tile_sample_min_height=64, tile_sample_stride_height=64)


def test_gradient_checkpointing_changes_no_gradient(make_vae) -> None:
    gradients = []
    for checkpointing in (False, True):
        vae = make_vae().train()
        if checkpointing:
            vae.enable_gradient_checkpointing()
        image = torch.rand(1, 1, 16, 16, 8, generator=torch.Generator().manual_seed(0))
        out = vae(image)
        (F.l1_loss(out.sample, image) + out.commit_loss).backward()
        gradients.append([p.grad for p in vae.parameters() if p.requires_grad])
    assert all(g is not None for g in gradients[0])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients))


def test_residual_units_compile_as_one_graph(any_vae) -> None:
    size = (1, 1, 16, 16, 8)
    sample, gradients = torch.randn(size, generator=torch.Generator().manual_seed(0)), []
    for is_compiled in (False, True):
        if is_compiled:
            any_vae.compile_repeated_blocks(fullgraph=True, backend="eager")
        any_vae.zero_grad()
        any_vae(sample).sample.square().mean().backward()
        gradients.append([p.grad.clone() for p in any_vae.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0])
    torch.compiler.reset()


def test_training_learns_a_picture_and_moves_the_codebook(make_vae) -> None:
    vae = make_vae().train()
    image = torch.linspace(-1, 1, 16).view(1, 1, 16, 1, 1).expand(2, 1, 16, 16, 8).contiguous()
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    before = vae.quantizer.weight.clone()
    losses = []
    for _ in range(30):
        out = vae(image)
        loss = F.l1_loss(out.sample, image) + out.commit_loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert not torch.equal(before, vae.quantizer.weight)


def test_decoding_quantises_by_default(make_vae) -> None:
    vae = make_vae()
    latents = torch.randn(1, 8, 4, 4, 2)
    with torch.no_grad():
        codes = vae.quantize(latents).latents
        assert torch.equal(vae.decode(latents).sample, vae.decode(codes, force_not_quantize=True).sample)
        assert not torch.equal(vae.decode(latents).sample, vae.decode(latents, force_not_quantize=True).sample)
        assert vae.decode(latents, force_not_quantize=True).commit_loss is None
        _, loss = vae.decode(latents, return_dict=False)
    assert loss > 0


def test_the_codebook_stays_in_float32_when_the_model_is_cast(make_vae, tmp_path) -> None:
    vae = make_vae()
    vae.save_pretrained(tmp_path)
    for half in (make_vae().half(), VQModel4D.from_pretrained(tmp_path, torch_dtype=torch.float16)):
        assert half.quantizer.weight.dtype == torch.float32
        assert half.encoder.blocks[0].conv.weight.dtype == torch.float16
        z = torch.randn(1, 8, 4, 4, 2)
        assert torch.equal(half.quantize(z).indices, vae.quantize(z).indices)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 1, 18, 16, 8), "height axis has size 18.*multiple of 4"),
        ((1, 1, 16, 16, 6), "frames axis has size 6.*multiple of 4"),
        ((1, 1, 2, 16, 18, 8), "width axis has size 18"),
        ((1, 16, 16, 8), r"slices \(B, C, H, W, T\) or volumes \(B, C, D, H, W, T\) with 1 channel, got 4 axes"),
    ],
)
def test_unsupported_sizes_are_refused(make_vae, shape, message) -> None:
    with pytest.raises(CardioDiTError, match=message):
        make_vae().encode(torch.zeros(shape))


def test_unsupported_latents_are_refused(make_vae) -> None:
    with pytest.raises(CardioDiTError, match="got 4 axes"):
        make_vae().decode(torch.zeros(1, 8, 4, 4))
    with pytest.raises(CardioDiTError, match=r"takes latents \(B, 8, .spatial\), got \(1, 4, 4, 4, 2\)"):
        make_vae().decode(torch.zeros(1, 4, 4, 4, 2))


def test_tiling_and_slicing_together_on_a_volume(make_vae) -> None:
    vae, volume = make_vae(), torch.rand(2, 1, 3, 96, 80, 8) * 2 - 1
    with torch.no_grad():
        latents = vae.encode(volume).latents
        sample = vae.decode(latents).sample
        vae.enable_slicing()
        vae.enable_tiling(tile_sample_min_height=88, tile_sample_min_width=88, tile_sample_stride_height=16)
        assert torch.allclose(vae.encode(volume).latents, latents, atol=1e-5)
        assert torch.allclose(vae.decode(latents).sample, sample, atol=1e-5)


def test_inconsistent_levels_are_refused(make_vae) -> None:
    with pytest.raises(CardioDiTError, match="as many numbers as channels"):
        make_vae(num_res_channels=(8,))
    with pytest.raises(CardioDiTError, match="Expected 4 numbers for each of the 2 levels"):
        make_vae(downsample_parameters=[[2, 4, 1, 1]])
    with pytest.raises(CardioDiTError, match="takes volumes"):
        make_vae(VQModel3D).encode(torch.zeros(1, 1, 2, 16, 16, 8))


# --- Tiles ---


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 40, 41])
@pytest.mark.parametrize("tile, stride", [(8, 4), (8, 6), (8, 1), (10, 9)])
@pytest.mark.parametrize("margin", [0, 2, 9])
@pytest.mark.parametrize("scale", [1, 4])
def test_windows_cover_every_sample(length: int, tile: int, stride: int, margin: int, scale: int) -> None:
    axis = AxisTiles(tile, stride, margin)
    total = torch.zeros(length * scale)
    for start in axis.starts(length):
        window = axis.window(start, length, scale)
        assert start >= 0 and start * scale + len(window) <= length * scale
        total[start * scale : start * scale + len(window)] += window
    assert total.min() > 0.1


def test_all_tiles_are_as_large_as_the_first() -> None:
    assert AxisTiles(40, 24, 9).starts(64) == [0, 24]
    assert AxisTiles(40, 24, 9).starts(70) == [0, 24, 30]
    assert AxisTiles(40, 24, 9).starts(40) == [0]


@pytest.mark.parametrize("size", [(24, 24), (30, 17), (8, 40)])
def test_a_convolution_is_exact_where_the_overlap_covers_its_reach(size: tuple[int, int]) -> None:
    kernel = torch.randn(1, 1, 5, 5, 1)

    def blur(x: torch.Tensor) -> torch.Tensor:
        return F.conv3d(x, kernel, padding=(2, 2, 0))

    x = torch.randn(1, 1, *size, 3)
    tiles = AxisTiles(tile=12, stride=7, margin=2)
    assert torch.allclose(run_tiled(blur, x, (tiles, tiles), (1, 1), (1, 1)), blur(x), atol=1e-5)


def test_a_volume_is_exact_along_all_axes() -> None:
    kernel = torch.randn(2, 1, 3, 3, 3)

    def enlarged(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(F.conv3d(x, kernel, padding=1), scale_factor=2)

    x, tiles = torch.randn(2, 1, 13, 8, 21), AxisTiles(tile=8, stride=5, margin=1)
    tiled = run_tiled(enlarged, x, (tiles, tiles, tiles), (1, 1, 1), (2, 2, 2))
    assert torch.allclose(tiled, enlarged(x), atol=1e-5)


def test_without_enough_overlap_the_seams_are_blended_not_cut() -> None:
    """A constant offset that grows from tile to tile turns into a ramp, never into a jump."""
    calls = iter(range(100))

    def numbered(x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, float(next(calls)))

    out = run_tiled(numbered, torch.zeros(1, 1, 8, 36, 1), (AxisTiles(8, 4, 0), AxisTiles(12, 6, 0)), (1, 1), (1, 1))
    assert out.diff(dim=3).abs().max() < 0.26
    assert out[0, 0, 0, 0, 0] == 0 and out[0, 0, 0, -1, 0] == 4
