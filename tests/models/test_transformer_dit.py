import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from cardiodit import CardioDiTError, DiT3DTransformerModel, DiT4DTransformerModel
from cardiodit.models.positions import kept_positions, sincos_positions
from cardiodit.models.transformer_dit import patchify, unpatchify


def test_patchify_orders_tokens_and_features_as_published() -> None:
    volume = torch.arange(2 * 3 * 2 * 4 * 4 * 4, dtype=torch.float32).view(2, 3, 2, 4, 4, 4)
    tokens = patchify(volume, (1, 2, 4, 2))
    assert tokens.shape == (2, 2 * 2 * 1 * 2, 3 * 1 * 2 * 4 * 2)
    # token (d, h, w, t) = (1, 0, 0, 1) is number 1·4 + 0 + 0 + 1, and holds (c, pz, ph, pw, pt)
    patch = volume[1, :, 1:2, 0:2, 0:4, 2:4]
    assert torch.equal(tokens[1, 5], patch.flatten())


def test_unpatchify_puts_channels_last_in_a_patch() -> None:
    volume = torch.randn(2, 3, 2, 4, 4, 4)
    patch, grid = (1, 2, 4, 2), (2, 2, 1, 2)
    tokens = patchify(volume, patch).unflatten(-1, (3, 16)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(tokens, grid, patch), volume)


@pytest.mark.parametrize(
    "layers, total", [(8, 87_390_208), (12, 129_903_616), (16, 172_417_024)], ids=["s4", "b4", "l4"]
)
def test_published_sizes_have_the_published_number_of_weights(layers: int, total: int) -> None:
    with torch.device("meta"):
        model = DiT4DTransformerModel(num_layers=layers)
    assert sum(p.numel() for p in model.parameters()) == total
    assert abs(total / 1e6 - {8: 87.39, 12: 129.90, 16: 172.42}[layers]) < 0.01


@pytest.mark.parametrize("layers, hidden, heads, patch, millions", [(6, 384, 6, 4, 17.68), (12, 768, 12, 2, 142.19)])
def test_voldit_sizes(layers: int, hidden: int, heads: int, patch: int, millions: float) -> None:
    """The published totals count the stored position table, 8 × 64 × 64 × 32 latents in p³ patches."""
    with torch.device("meta"):
        model = DiT3DTransformerModel(
            patch_size=(patch,) * 3,
            num_layers=layers,
            num_attention_heads=heads,
            attention_head_dim=hidden // heads,
        )
    table = 64 * 64 * 32 // patch**3 * hidden
    assert abs((sum(p.numel() for p in model.parameters()) + table) / 1e6 - millions) < 0.01


def test_a_fresh_model_predicts_zero() -> None:
    model = DiT4DTransformerModel(sample_size=(2, 8, 8, 4), num_layers=2, num_attention_heads=2, attention_head_dim=16)
    assert torch.equal(model(torch.randn(1, 8, 2, 8, 8, 4), 5).sample, torch.zeros(1, 8, 2, 8, 8, 4))


@pytest.mark.parametrize("size", [(2, 8, 8, 4), (5, 8, 8, 4), (1, 12, 4, 8), (3, 16, 8, 2)])
def test_the_grid_may_differ_from_the_trained_one(make_dit, size) -> None:
    model = make_dit()
    out = model(torch.randn(2, 8, *size), torch.tensor([0, 299])).sample
    assert out.shape == (2, 8, *size)
    assert out.isfinite().all() and out.std() > 0


def test_a_model_made_for_another_size_computes_the_same(make_dit) -> None:
    noisy = torch.randn(1, 8, 4, 8, 8, 4)
    assert torch.equal(make_dit()(noisy, 7).sample, make_dit(sample_size=(4, 8, 8, 4))(noisy, 7).sample)


@pytest.mark.parametrize(
    "size, axis, length, patch",
    [((2, 10, 8, 4), "height", 10, 4), ((2, 8, 6, 4), "width", 6, 4), ((2, 8, 8, 3), "frames", 3, 2)],
)
def test_an_axis_that_the_patch_does_not_divide_is_named(make_dit, size, axis, length, patch) -> None:
    with pytest.raises(CardioDiTError, match=f"{axis} axis has size {length}.*patch size {patch}"):
        make_dit()(torch.randn(1, 8, *size), 0)


def test_the_default_size_is_the_published_one_and_goes_on_record() -> None:
    with torch.device("meta"):
        cine, volume = DiT4DTransformerModel(), DiT3DTransformerModel()
    assert (cine.config.sample_size, cine.config.patch_size) == ((6, 64, 64, 8), (1, 4, 4, 2))
    assert (volume.config.sample_size, volume.config.patch_size) == ((64, 64, 32), (4, 4, 4))


def test_a_config_that_the_patch_does_not_divide_fails_when_it_is_made() -> None:
    with pytest.raises(CardioDiTError, match="width axis has size 62"):
        DiT4DTransformerModel(sample_size=(6, 64, 62, 8))


def test_settings_that_contradict_each_other(make_dit) -> None:
    with pytest.raises(CardioDiTError, match="class_names has 1 names for num_classes=2 labels"):
        make_dit(num_classes=2, class_names=["normal"])
    with pytest.raises(CardioDiTError, match="prediction_type='velocity' is not one of v_prediction, epsilon, sample"):
        make_dit(prediction_type="velocity")
    with pytest.raises(CardioDiTError, match="takes latents of 8 channels, got 4"):
        make_dit()(torch.randn(1, 4, 2, 8, 8, 4), 0)


def test_missing_axes_are_named(make_dit, make_dit_3d) -> None:
    with pytest.raises(CardioDiTError, match="expects .batch, channel, depth, height, width, frames., got 5 axes"):
        make_dit()(torch.randn(1, 8, 8, 8, 4), 0)
    with pytest.raises(CardioDiTError, match=r"patch_size=\(1, 4, 4, 2\) has 4 numbers.*3 axes"):
        DiT3DTransformerModel(patch_size=(1, 4, 4, 2))


def test_time_and_labels_steer_and_samples_of_a_batch_do_not_mix(make_dit) -> None:
    model = make_dit(num_classes=3, class_dropout_prob=0.1)
    noisy = torch.randn(1, 8, 2, 8, 8, 4).repeat(3, 1, 1, 1, 1, 1)
    times, labels = torch.tensor([10, 10, 200]), torch.tensor([0, 2, 0])
    together = model(noisy, times, labels).sample
    apart = torch.cat([model(n[None], t, label[None]).sample for n, t, label in zip(noisy, times, labels)])
    assert torch.allclose(together, apart, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_labels(make_dit) -> None:
    noisy = torch.randn(1, 8, 2, 8, 8, 4)
    with pytest.raises(CardioDiTError, match="trained without labels"):
        make_dit()(noisy, 0, class_labels=torch.tensor([0]))
    assert make_dit().null_label is None
    assert make_dit(num_classes=4).null_label is None
    model = make_dit(num_classes=4, class_dropout_prob=0.1)
    assert model.null_label == 4
    assert not torch.equal(model(noisy, 0, torch.tensor([4])).sample, model(noisy, 0).sample)


def test_learn_sigma_doubles_the_channels(make_dit) -> None:
    assert make_dit(learn_sigma=True)(torch.randn(2, 8, 2, 8, 8, 4), 3).sample.shape == (2, 16, 2, 8, 8, 4)


def test_tuple_output(make_dit) -> None:
    noisy = torch.randn(1, 8, 2, 8, 8, 4)
    model = make_dit()
    (sample,) = model(noisy, 3, return_dict=False)
    assert torch.equal(sample, model(noisy, 3).sample)


@pytest.mark.parametrize("axes", [3, 4])
def test_gradient_checkpointing_changes_no_gradient(make_dit, make_dit_3d, axes) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_dit() if axes == 4 else make_dit_3d()
        if checkpointing:
            model.enable_gradient_checkpointing()
        noisy = torch.randn(1, 8, *model.config.sample_size, generator=torch.Generator().manual_seed(0))
        F.mse_loss(model.train()(noisy, 5).sample, torch.zeros_like(noisy)).backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 20
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients))


def test_half_precision_stays_close(make_dit) -> None:
    model, noisy = make_dit(), torch.randn(1, 8, 2, 8, 8, 4)
    expected = model(noisy, 9).sample
    half = model.to(torch.bfloat16)(noisy.bfloat16(), 9).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_three_axes_keep_the_nifti_order(make_dit_3d) -> None:
    model = make_dit_3d()
    assert model(torch.randn(2, 8, 8, 4, 6), 1).sample.shape == (2, 8, 8, 4, 6)
    with pytest.raises(CardioDiTError, match="depth axis has size 3"):
        model(torch.randn(1, 8, 8, 8, 3), 1)


# --- Positions ---


def closed_form(grid: tuple[int, ...], dim: int) -> torch.Tensor:
    """Feature by feature in float64, from the definition."""
    width = 2 * math.ceil(dim / (2 * len(grid)))
    rows = []
    for cell in itertools.product(*(range(length) for length in grid)):
        row = []
        for position in cell:
            angles = [position * 10000 ** (-2 * i / width) for i in range(width // 2)]
            row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        rows.append(row[:dim])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(
    "grid, dim", [((6, 4, 5, 3), 64), ((4, 5, 6), 48), ((4, 5, 6), 64), ((7,), 16), ((2, 3, 2, 2), 20)]
)
def test_positions_follow_the_definition(grid: tuple[int, ...], dim: int) -> None:
    assert (sincos_positions(grid, dim).double() - closed_form(grid, dim)).abs().max() < 1e-6


def test_a_longer_axis_keeps_the_positions_of_the_shorter_one() -> None:
    short = sincos_positions((2, 3, 3, 2), 32).view(2, 3, 3, 2, 32)
    long = sincos_positions((5, 3, 4, 2), 32).view(5, 3, 4, 2, 32)
    assert torch.equal(long[:2, :, :3], short)


def test_every_token_has_its_own_position() -> None:
    positions = sincos_positions((6, 16, 16, 4), 768)
    assert len(torch.unique((positions * 1e4).round(), dim=0)) == 6 * 16 * 16 * 4


def test_positions_are_made_once_for_each_grid(make_dit: Callable) -> None:
    """They are kept with values only: not what a trace of shapes makes, and usable in training after inference."""
    made = []

    def make(*arguments: Any) -> torch.Tensor:
        made.append(arguments[0])
        return sincos_positions(*arguments)

    like = torch.zeros(1, 6, 8)
    with torch.inference_mode():
        first = kept_positions(make, (1, 2, 3), 8, like)
    assert kept_positions(make, (1, 2, 3), 8, like) is first and not first.is_inference()
    kept_positions(make, (3, 2, 1), 8, like)
    with FakeTensorMode():
        assert type(kept_positions(make, (1, 2, 3), 8, torch.zeros(1, 6, 8))) is not torch.Tensor
    assert made == [(1, 2, 3), (3, 2, 1), (1, 2, 3)]
    assert torch.equal(kept_positions(make, (1, 2, 3), 8, like), sincos_positions((1, 2, 3), 8))


def test_attention_has_a_dropout_of_its_own_on_request(make_dit: Callable[..., DiT4DTransformerModel]) -> None:
    """By default, as published, that of the other layers; 0 allows cuDNN's attention and keeps theirs."""
    for settings, expected in [({}, 0.1), ({"attention_dropout": 0.0}, 0.0), ({"attention_dropout": 0.3}, 0.3)]:
        block = make_dit(dropout=0.1, **settings).transformer_blocks[0]
        assert block.attn.dropout == expected
        assert {module.p for module in block.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
