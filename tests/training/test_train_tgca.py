"""The adapter's training: the base stays as it is, masks are left out as often as configured, and runs go on."""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
    VolDiTControlPipeline,
    VolDiTPipeline,
    VQModel3D,
    VQModel4D,
    make_scheduler,
)
from cardiodit._util.randomness import generator_for
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Intensity, Preprocessing, write_nifti
from cardiodit.latents import LatentCohort, encode_cohort, identity_of_steps, read_mask
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.models.conditions import Conditions, as_model_sees
from cardiodit.training import adapter_data, train_tgca
from cardiodit.training.adapter_data import CohortMasks, drop_masks, labelled_samples, own_preprocessing
from cardiodit.training.adapter_model import Steered, halvings, new_adapter
from cardiodit.training.harness.schedule import seed_for
from cardiodit.training.settings import ConditionSettings, TGCASettings

from ..conftest import copy_chests, randomise
from .conftest import STEPS, Cohorts, arguments_of, lines_of, merged

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
    assert torch.equal(pipe(mask, conditioning_scale=0.0, **settings).volumes, unsteered)
    late = pipe(mask, control_guidance_start=1.0, **settings)
    assert torch.equal(late.volumes, unsteered)
    assert late.records[0]["control_guidance_start"] == 1.0
    with pytest.raises(CardioDiTError, match="7, which is not a label"):
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


def test_a_self_conditioned_base_takes_no_adapter(
    steerable: Any, train_an_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    base, _ = steerable
    transformer = DiT4DTransformerModel.from_pretrained(base / "transformer")
    estimating = DiT4DTransformerModel(**{**transformer.config, "self_conditioning": True})
    CardioDiTPipeline(VQModel4D.from_pretrained(base / "vae"), estimating, make_scheduler()).save_pretrained(
        tmp_path / "x"
    )
    with pytest.raises(CardioDiTError, match="cannot be trained on a self-conditioned base"):
        train_an_adapter("estimating", "--base", str(tmp_path / "x"))


def test_freed_blocks_are_trained_and_no_others(train_an_adapter: Callable[..., Path], steerable: Any) -> None:
    run = train_an_adapter(adapter={"finetune_last_n_blocks": 1})
    before = load_file(steerable[0] / "transformer" / WEIGHTS)
    after = load_file(run / "pipeline" / "transformer" / WEIGHTS)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(n.startswith(("transformer_blocks.1.", "modulation_out.", "proj_out.")) for n in changed)
    CardioDiTControlPipeline.from_pretrained(run / "pipeline")  # its fingerprint is that of the freed base
    for folder, ending in [("checkpoint-6", ""), ("checkpoint-6", "_ema"), ("best", "")]:
        beside = DiT4DTransformerModel.from_pretrained(run / folder / f"transformer{ending}")
        assert fingerprint_in(run / folder / f"adapter{ending}") == fingerprint_of(beside)
    resumed = train_an_adapter("run", "--max_train_steps", "7", adapter={"finetune_last_n_blocks": 1})
    assert (resumed / "checkpoint-7").is_dir()


def test_the_base_has_no_dropout_while_the_adapter_trains(steerable: Any) -> None:
    pipe = CardioDiTPipeline.from_pretrained(steerable[0])
    settings = TGCASettings()
    model = Steered(pipe.transformer, new_adapter(settings, pipe.transformer, pipe.voxels_per_latent)).train()
    assert model.adapter.training and not model.base.training
    noisy, time = torch.randn(2, 4, 4, 8, 8, 2), torch.tensor([10, 200])
    expected = pipe.transformer(noisy, time).sample
    assert torch.equal(model(noisy, time).sample, expected)
    mask = torch.rand(2, 1, 4, 32, 32, 8).round()
    assert torch.equal(model(noisy, time, condition=mask).sample, expected)  # an adapter begins as nothing
    model(noisy, time, condition=mask).sample.square().mean().backward()
    assert all(p.grad is None for p in model.base.parameters())
    assert model.adapter.condition_embed.conv_out.weight.grad.abs().sum() > 0


def test_the_published_weights_are_the_averaged_ones(train_an_adapter: Callable[..., Path]) -> None:
    run = train_an_adapter()
    published = load_file(run / "pipeline" / "adapter" / WEIGHTS)  # of the last step, the only one that was judged
    averaged, last = (load_file(run / "checkpoint-6" / name / WEIGHTS) for name in ("adapter_ema", "adapter"))
    assert all(torch.equal(published[name], averaged[name]) for name in published)
    assert any(not torch.equal(published[name], last[name]) for name in published)


def test_an_adapter_is_put_on_its_own_base_only(train_an_adapter: Callable[..., Path], steerable: Any) -> None:
    run = train_an_adapter()
    base = CardioDiTPipeline.from_pretrained(steerable[0])
    own = fingerprint_of(base.transformer)
    for place in ("checkpoint-3/adapter", "checkpoint-6/adapter_ema", "best/adapter", "pipeline/adapter"):
        assert fingerprint_in(run / place) == own
    other = randomise(DiT4DTransformerModel.from_config(base.transformer.config), seed=1)
    adapter = TGCAAdapterModel.from_pretrained(run / "best" / "adapter")
    with pytest.raises(CardioDiTError, match="another transformer"):
        CardioDiTControlPipeline(base.vae, other, base.scheduler, adapter)
    exchanged = shutil.copytree(run / "pipeline", run.parent / "exchanged")
    other.save_pretrained(exchanged / "transformer")
    with pytest.raises(CardioDiTError, match="another transformer"):
        CardioDiTControlPipeline.from_pretrained(exchanged)


def test_a_run_does_not_go_on_with_another_base(
    train_an_adapter: Callable[..., Path], steerable: Any, tmp_path: Path
) -> None:
    run = train_an_adapter("run", training={"max_train_steps": 1})
    changed = shutil.copytree(steerable[0], tmp_path / "base")
    transformer = DiT4DTransformerModel.from_pretrained(changed / "transformer")
    randomise(transformer, seed=1).save_pretrained(changed / "transformer")
    with pytest.raises(CardioDiTError, match=r"started with other settings or data:\n  - base_fingerprint has changed"):
        train_an_adapter(run.name, "--base", str(changed), training={"max_train_steps": 2})


def fingerprint_in(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["fingerprint"]


def test_the_pipeline_prepares_masks_as_those_of_the_latents_were(
    cohorts: Cohorts, steerable: Any, tmp_path: Path
) -> None:
    """`encode --depth 2`: by the VQ model's own preprocessing, masks would get 4 slices when they steer."""
    vae = VQModel4D.from_pretrained(cohorts.vae)
    for manifest in cohorts.images:
        folder = tmp_path / manifest.parent.name
        encode_cohort(manifest, vae, folder, depth=2, report=lambda _: None, condition_keys=["mask"])
    manifests = (tmp_path / "training" / "manifest.csv", tmp_path / "validation" / "manifest.csv")
    config = merged(TGCA, {"training": {"max_train_steps": 1}})
    train_tgca.main(arguments_of(tmp_path, "run", config, manifests, "--base", str(steerable[0])))
    pipe = CardioDiTControlPipeline.from_pretrained(tmp_path / "run" / "pipeline")
    saved = pipe.vae.config.preprocessing
    assert saved == {**STEPS.to_dict(), "size": [32, 32, 2]}
    assert pipe.geometry.spacing == LatentCohort.open(manifests[0]).spacing is not None
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["preprocessing"] == saved


def test_the_preprocessing_of_latents(make_vae: Callable[..., Any]) -> None:
    vae = make_vae(preprocessing=replace(STEPS, intensity=Intensity("p0.5", "p99.5", typical=(0, 900))).to_dict())
    resized = replace(STEPS, fit="resize")

    def cohort(steps: Preprocessing, is_kept: bool = True) -> Any:
        return SimpleNamespace(preprocessing=identity_of_steps(steps), steps=steps if is_kept else None)

    assert own_preprocessing([cohort(STEPS, False)] * 2, vae) is None  # its own
    found = own_preprocessing([cohort(resized)] * 2, vae)
    assert found is not None and found.fit == "resize" and found.intensity.typical == (0, 900)
    other = replace(STEPS, intensity=Intensity(-1000, 1000))
    found = own_preprocessing([cohort(other)] * 2, vae)
    assert found is not None and found.intensity.units == (-1000, 1000)
    with pytest.raises(CardioDiTError, match="prepared in different ways"):
        own_preprocessing([cohort(STEPS), cohort(resized)], vae)
    with pytest.raises(CardioDiTError, match="do not record how they were prepared"):
        own_preprocessing([cohort(resized, False)] * 2, vae)


def test_a_run_does_not_go_on_with_other_masks(
    train_an_adapter: Callable[..., Path], steerable: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(steerable[1][0].parent, tmp_path / "latents")
    manifests = (folder / "manifest.csv", steerable[1][1])

    def train(steps: int) -> None:
        config = merged(TGCA, {"training": {"max_train_steps": steps}})
        train_tgca.main(arguments_of(tmp_path, "run", config, manifests, "--base", str(steerable[0])))

    train(1)
    mask = sorted((folder / "masks").iterdir())[0]
    write_nifti(mask, np.ascontiguousarray(read_mask(mask)[::-1]), Geometry((4.5, 4.5, 25.0)))
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(CardioDiTError, match=r"training_masks has changed\nUse the same to resume it.*--run_name\.$"):
        train(2)


def test_without_a_column_the_base_is_trained_under_its_null_label(
    train_an_adapter: Callable[..., Path], steerable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[int] = []
    forward = Steered.forward

    def watch(self: Steered, noisy: Any, time: Any, class_labels: Any = None, **rest: Any) -> Any:
        labels.extend(class_labels.tolist())
        return forward(self, noisy, time, class_labels, **rest)

    monkeypatch.setattr(Steered, "forward", watch)
    train_an_adapter("null", label_column=None, training={"max_train_steps": 2})
    assert len(labels) == 2 * 2 + 2 * 4 * 4 and set(labels) == {4}  # two steps; four noise levels of 2 × 4 hearts
    labels.clear()
    train_an_adapter("own", training={"max_train_steps": 2})
    assert {0, 1, 2, 3} <= set(labels)
    base = CardioDiTPipeline.from_pretrained(steerable[0]).transformer
    cohort = LatentCohort.open(steerable[1][0])
    needing = DiT4DTransformerModel.from_config(base.config, class_dropout_prob=0.0)
    with pytest.raises(CardioDiTError, match="without label dropout, so it always needs a label"):
        labelled_samples(cohort, None, None, needing)
    unlabelled = DiT4DTransformerModel.from_config(base.config, num_classes=0, class_names=None)
    assert labelled_samples(cohort, None, None, unlabelled).labels is None
    with pytest.raises(CardioDiTError, match="the base has no named labels"):
        labelled_samples(cohort, None, "label", unlabelled)


def test_masks_are_left_out_once_in_training_and_never_in_validation(
    train_an_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[bool, list[bool]] = {True: [], False: []}
    embed = TGCAAdapterModel.embed

    def watch(self: TGCAAdapterModel, condition: torch.Tensor, *rest: Any) -> torch.Tensor:
        seen[self.training] += (condition.flatten(1).amax(dim=1) == 0).tolist()
        return embed(self, condition, *rest)

    monkeypatch.setattr(TGCAAdapterModel, "embed", watch)
    conditions = {"keys": ["mask"], "labels": [[1, 2, 3]], "dropout_prob": 0.5, "channel_dropout_prob": 0.0}
    train_an_adapter(conditions=conditions)
    settings = ConditionSettings(dropout_prob=0.5, channel_dropout_prob=0.0)
    drawn = [generator_for(seed_for(0, "conditions"), visit) for visit in range(12)]
    expected = [not drop_masks(torch.ones(3, 1, 1, 1), settings, generator).any() for generator in drawn]
    assert seen[True] == expected and 0 < sum(expected) < 12
    assert len(seen[False]) == 32 and not any(seen[False])  # of validation and of training volumes


def test_blocks_are_compiled_where_the_config_says_so(
    train_an_adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(DiT4DTransformerModel, "compile_repeated_blocks", lambda self, **how: asked.append(how))
    train_an_adapter("plain", training={"max_train_steps": 1})
    assert asked == []
    train_an_adapter("compiled", training={"max_train_steps": 1, "compile": True})
    assert asked == [{"fullgraph": True}]


def test_the_help_promises_no_more_than_there_is(
    train_an_adapter: Callable[..., Path], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        train_tgca.main(["--help"])
    said = capsys.readouterr().out
    assert "YAML with the keys below" in said and "authors" not in said.split("normalise_control")[0]
    assert "--init_from" not in said
    with pytest.raises(CardioDiTError, match="no option --init_from"):
        train_an_adapter("tuned", "--init_from", "runs/tgca")


def test_a_base_of_volumes_is_the_same_to_the_bit(tmp_path: Path, make_vae: Callable, make_dit_3d: Callable) -> None:
    """VolDiT in small, on chests."""
    steps = Preprocessing(size=(32, 32, 16), intensity=Intensity(-1000, 1000), orient=False)
    vae = make_vae(VQModel3D, preprocessing=steps.to_dict())
    for seed, name in enumerate(("training", "validation")):
        images = copy_chests(tmp_path / name, num=1, seed=seed, size=(32, 32, 32))
        encode_cohort(images, vae, tmp_path / "latents" / name, report=lambda _: None, condition_keys=["mask"])
    VolDiTPipeline(vae, make_dit_3d(dropout=0.2), make_scheduler()).save_pretrained(tmp_path / "base")
    manifests = (tmp_path / "latents/training/manifest.csv", tmp_path / "latents/validation/manifest.csv")
    config = merged(TGCA, {"label_column": None, "conditions": {"labels": [[2, 5]]}})
    with pytest.raises(CardioDiTError, match=r"which are not labels of the adapter: its labels are 2, 5"):
        train_tgca.main(arguments_of(tmp_path, "strict", config, manifests, "--base", str(tmp_path / "base")))
    config = merged(config, {"conditions": {"labels": None}})
    AcceleratorState._reset_state(reset_partial_state=True)
    train_tgca.main(arguments_of(tmp_path, "run", config, manifests, "--base", str(tmp_path / "base")))
    before, after = (load_file(tmp_path / place / "transformer" / WEIGHTS) for place in ("base", "run/pipeline"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    pipe, plain = (
        VolDiTControlPipeline.from_pretrained(tmp_path / "run" / "pipeline"),
        VolDiTPipeline.from_pretrained(tmp_path / "base"),
    )
    mask = np.zeros((32, 32, 16), np.uint8)
    mask[8:20, 8:20] = 2
    settings: dict[str, Any] = {"num_inference_steps": 2, "seed": 3, "output_type": "latent"}
    unsteered = plain(**settings).volumes
    assert (pipe(mask, **settings).volumes - unsteered).abs().max() > 1e-4
    assert torch.equal(pipe(mask, conditioning_scale=0.0, **settings).volumes, unsteered)
    assert torch.equal(pipe(mask, control_guidance_start=1.0, **settings).volumes, unsteered)


@pytest.mark.parametrize("channels, each", [(1, 0.0), (3, 0.1)])
def test_masks_are_left_out_as_often_as_configured(channels: int, each: float) -> None:
    settings = ConditionSettings(dropout_prob=0.2, channel_dropout_prob=each)
    condition = torch.ones(channels, 2, 2, 2)
    left = torch.stack([drop_masks(condition, settings, torch.Generator().manual_seed(i)) for i in range(4000)])
    there = left.flatten(2).amax(dim=2)  # (N, K)
    nothing = (there.sum(dim=1) == 0).float().mean()
    assert nothing == pytest.approx(0.2 + 0.8 * each**channels * (channels > 1), abs=0.02)
    if channels > 1:
        assert there.mean() == pytest.approx(0.8 * 0.9, abs=0.02)


def test_patches_are_left_out_for_all_channels_alike() -> None:
    settings = ConditionSettings(dropout_prob=0, channel_dropout_prob=0, patch_dropout_prob=0.25, patch_dropout_size=4)
    left = drop_masks(torch.ones(2, 10, 40, 40), settings, torch.Generator().manual_seed(1))
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
    with pytest.raises(CardioDiTError, match=r"holds 3, which is not a label"):
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


def test_labels_that_are_not_listed_become_background_where_asked(
    train_an_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    only_cavities = {"keys": ["mask"], "labels": [[1, 3]]}
    with pytest.raises(CardioDiTError, match=r"holds 2, which is not a label(.|\n)*conditions.other_labels background"):
        train_an_adapter("strict", conditions=only_cavities)
    run = train_an_adapter("lax", conditions={**only_cavities, "other_labels": "background"})
    pipe = CardioDiTControlPipeline.from_pretrained(run / "pipeline")
    mask = np.full((32, 32, 4, 8), 2, np.uint8)
    settings: dict[str, Any] = {"num_inference_steps": 1, "seed": 3, "class_labels": "normal", "output_type": "latent"}
    assert torch.equal(pipe(mask, **settings).volumes, pipe(mask * 0, **settings).volumes)


def test_masks_are_read_once_and_loaded_as_whole_numbers(steerable: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their files are needed no more, and what is kept is shared with the data loader's workers."""
    _, manifests = steerable
    cohort = LatentCohort.open(manifests[0])
    conditions = Conditions(("mask",), ((1, 2, 3),))
    size = tuple(n * f for n, f in zip(cohort.size, (1, 4, 4, 4)))
    masks = CohortMasks(cohort.cases, conditions, size)
    expected = as_model_sees(conditions.channels_of({"mask": read_mask(cohort.cases[0].path("mask"))}))
    monkeypatch.setattr(adapter_data, "read_mask", None)  # would fail if it were called again
    found = pickle.loads(pickle.dumps(masks))[0]
    assert found.dtype == torch.uint8 and torch.equal(found.float(), expected)
    assert sum(packed.numel() for packed, _ in masks._kept) < 0.2 * len(masks) * found.numel()


def test_no_step_waits_for_the_device(train_an_adapter: Callable[..., Path], waits_of: Callable) -> None:
    assert waits_of(train_an_adapter) == []
