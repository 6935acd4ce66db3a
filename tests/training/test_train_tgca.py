"""The adapter's training: the base stays as it is, masks are left out as often as configured, and runs go on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from cardiodit import (
    CardioDiTControlPipeline,
    CardioDiTPipeline,
    DiT4DTransformerModel,
    TGCAAdapterModel,
    VQModel4D,
    make_scheduler,
)
from cardiodit.errors import CardioDiTError
from cardiodit.latents import encode_cohort
from cardiodit.latents.masks import read_mask
from cardiodit.training import train_tgca
from cardiodit.training.conditioned import leave_out
from cardiodit.training.settings import ConditionSettings, TGCASettings
from cardiodit.training.steered import Steered, halvings, new_adapter

from .conftest import Cohorts, arguments_of, lines_of, merged

TGCA: dict[str, Any] = {
    "label_column": "label",
    "conditions": {"keys": ["mask"], "labels": [[1, 2, 3]]},
    "adapter": {"channels": [4, 8, 8]},
    "training": {
        "train_batch_size": 2,
        "max_train_steps": 6,
        "learning_rate": 1e-2,
        "checkpointing_steps": 3,
        "validation_steps": 6,
        "dataloader_num_workers": 0,
        "report_to": "none",
    },
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="session")
def steerable(cohorts: Cohorts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """A base pipeline, and manifests of latents with masks."""
    folder = tmp_path_factory.mktemp("steerable")
    vae = VQModel4D.from_pretrained(cohorts.vae)
    for manifest in cohorts.images:
        encode_cohort(manifest, vae, folder / manifest.parent.name, report=lambda _: None, condition_keys=["mask"])
    torch.manual_seed(0)
    transformer = DiT4DTransformerModel(
        sample_size=(4, 8, 8, 2),
        patch_size=(1, 2, 2, 2),
        in_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        num_classes=4,
        class_dropout_prob=0.1,
        class_names=["dilated", "hypertrophic", "infarct", "normal"],
        dropout=0.2,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    CardioDiTPipeline(vae, transformer, make_scheduler()).save_pretrained(folder / "base")
    return folder / "base", tuple(folder / m.parent.name / "manifest.csv" for m in cohorts.images)


@pytest.fixture
def train_an_adapter(steerable: Any, tmp_path: Path) -> Callable[..., Path]:
    base, manifests = steerable

    def train(name: str = "run", *more: str, **changes: Any) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)
        train_tgca.main(arguments_of(tmp_path, name, merged(TGCA, changes), manifests, "--base", str(base), *more))
        return tmp_path / name

    return train


def test_masks_lie_beside_the_latents_as_the_images_were_prepared(steerable: Any, cohorts: Cohorts) -> None:
    manifest = steerable[1][0]
    rows = [line.split(",") for line in manifest.read_text().splitlines()]
    column = rows[0].index("mask")
    assert len({row[column] for row in rows[1:]}) == 8
    for row in rows[1:]:
        mask = read_mask(manifest.parent / row[column])
        assert mask.shape == (32, 32, 4, 8) and set(np.unique(mask)) == {0, 1, 2, 3}
        assert b"phantom" not in (manifest.parent / row[column]).read_bytes()


def test_the_base_is_the_same_to_the_bit_and_the_pipeline_is_steered(
    train_an_adapter: Callable[..., Path], steerable: Any
) -> None:
    run = train_an_adapter()
    assert all(np.isfinite(loss) for loss in lines_of(run).values())
    before = load_file(steerable[0] / "transformer" / WEIGHTS)
    after = load_file(run / "pipeline" / "transformer" / WEIGHTS)
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipe, plain = (
        CardioDiTControlPipeline.from_pretrained(run / "pipeline"),
        CardioDiTPipeline.from_pretrained(steerable[0]),
    )
    mask = np.zeros((32, 32, 4, 8), np.uint8)
    mask[8:20, 8:20] = 3
    settings: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "class_labels": "normal", "output_type": "latent"}
    unsteered = plain(**settings).volumes
    assert (pipe(mask, **settings).volumes - unsteered).abs().max() > 1e-4  # six steps do not teach much
    assert torch.allclose(pipe(mask, conditioning_scale=0.0, **settings).volumes, unsteered, atol=1e-5)
    late = pipe(mask, control_guidance_start=1.0, **settings)
    assert torch.equal(late.volumes, unsteered)
    assert late.records[0]["control_guidance_start"] == 1.0
    with pytest.raises(CardioDiTError, match="7, which is no label"):
        pipe(np.full_like(mask, 7), **settings)
    with pytest.raises(CardioDiTError, match="32"):
        pipe(mask[:15], height=32, **settings)


def test_a_run_goes_on_to_the_bit(train_an_adapter: Callable[..., Path]) -> None:
    whole = train_an_adapter("whole")
    train_an_adapter("parts", "--max_train_steps", "3")
    parts = train_an_adapter("parts")
    for name in ("adapter", "adapter_ema"):
        first, second = (load_file(run / "checkpoint-6" / name / WEIGHTS) for run in (whole, parts))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_freed_blocks_are_trained_and_no_others(train_an_adapter: Callable[..., Path], steerable: Any) -> None:
    run = train_an_adapter(adapter={"finetune_last_n_blocks": 1})
    before = load_file(steerable[0] / "transformer" / WEIGHTS)
    after = load_file(run / "pipeline" / "transformer" / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(n.startswith(("transformer_blocks.1.", "modulation_out.", "proj_out.")) for n in changed)
    CardioDiTControlPipeline.from_pretrained(run / "pipeline")  # its fingerprint is that of the freed base


def test_the_base_has_no_dropout_while_the_adapter_trains(steerable: Any) -> None:
    pipe = CardioDiTPipeline.from_pretrained(steerable[0])
    settings = TGCASettings()
    model = Steered(pipe.transformer, new_adapter(settings, pipe.transformer, pipe.voxels_a_latent)).train()
    assert model.adapter.training and not model.base.training
    noisy, time = torch.randn(2, 4, 4, 8, 8, 2), torch.tensor([10, 200])
    expected = pipe.transformer(noisy, time).sample
    assert torch.equal(model(noisy, time).sample, expected)
    mask = torch.rand(2, 1, 4, 32, 32, 8).round()
    assert torch.equal(model(noisy, time, condition=mask).sample, expected)  # an adapter begins as nothing
    model(noisy, time, condition=mask).sample.square().mean().backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert model.adapter.condition_embed.conv_out.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("channels, each", [(1, 0.0), (3, 0.1)])
def test_masks_are_left_out_as_often_as_configured(channels: int, each: float) -> None:
    settings = ConditionSettings(dropout_prob=0.2, channel_dropout_prob=each)
    condition = torch.ones(channels, 2, 2, 2)
    left = torch.stack([leave_out(condition, settings, torch.Generator().manual_seed(i)) for i in range(4000)])
    there = left.flatten(2).amax(dim=2)  # (N, K)
    nothing = (there.sum(dim=1) == 0).float().mean()
    assert nothing == pytest.approx(0.2 + 0.8 * each**channels * (channels > 1), abs=0.02)
    if channels > 1:
        assert there.mean() == pytest.approx(0.8 * 0.9, abs=0.02)


def test_patches_are_left_out_for_all_channels_alike() -> None:
    settings = ConditionSettings(dropout_prob=0, channel_dropout_prob=0, patch_dropout_prob=0.25, patch_dropout_size=4)
    left = leave_out(torch.ones(2, 10, 40, 40), settings, torch.Generator().manual_seed(1))
    assert torch.equal(left[0], left[1])
    assert left.mean() == pytest.approx(0.75, abs=0.1)
    assert left[0, :4, :4, :4].unique().numel() == 1


def test_masks_shrink_to_tokens() -> None:
    assert halvings((8, 8, 16), 4) == ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 2))
    assert halvings((32, 32, 32), 4) == ((2, 2, 2),) * 4  # as published


def test_what_is_wrong_with_masks_is_listed(
    train_an_adapter: Callable[..., Path], cohorts: Cohorts, steerable: Any, tmp_path: Path
) -> None:
    with pytest.raises(CardioDiTError, match=r"phantom-0000 has no organ(.|\n)*condition_keys"):
        train_an_adapter("a", conditions={"keys": ["organ"], "labels": [[1]]})
    with pytest.raises(CardioDiTError, match=r"holds 3, which is no label"):
        train_an_adapter("b", conditions={"keys": ["mask"], "labels": [[1, 2]]})
    vae = VQModel4D.from_pretrained(cohorts.vae)
    with pytest.raises(CardioDiTError, match=r"names no mask"):
        encode_cohort(cohorts.images[1], vae, tmp_path / "l", report=lambda _: None, condition_keys=["organ"])


def test_what_differs_between_masks_comes_through_before_training() -> None:
    """Nine layers by PyTorch's own draw let 0.0004 of it through, and an adapter learned nothing."""
    torch.manual_seed(0)
    embed = TGCAAdapterModel(num_axes=3, hidden_size=32, num_layers=1).condition_embed
    masks = torch.zeros(2, 1, 32, 32, 32)
    masks[0, :, 8:24, 8:24, 8:24] = 1
    with torch.no_grad():
        features = embed.conv_in(masks)
        for conv in embed.blocks:
            features = conv(torch.nn.functional.silu(features))
        assert (features[0] - features[1]).abs().mean() > 0.1 * features.abs().mean()
        assert embed(masks).abs().max() == 0  # an adapter that begins changes nothing
