"""A second decoder, by which every sample comes with its mask."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cardiodit import CardioDiTPipeline, DiT4DTransformerModel, VQModel4D, make_scheduler
from cardiodit.cli import main
from cardiodit.imaging.nifti import read_nifti
from cardiodit.latents import identity_of_vae
from cardiodit.training import train_masks
from cardiodit.training.train_masks import CONDITIONS, label_map, with_mask_head

from .conftest import Cohorts, arguments_of, lines_of

CONFIG = {
    "channels": 16,
    "training": {
        "max_train_steps": 16,
        "validation_steps": 16,
        "checkpointing_steps": 16,
        "learning_rate": 5e-3,
        "report_to": "none",
    },
}


@pytest.fixture(scope="module")
def base(cohorts: Cohorts, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Path, Path]]:
    """An untrained pipeline on the shared VQ model, and latents with masks."""
    folder = tmp_path_factory.mktemp("masks")
    vae = VQModel4D.from_pretrained(cohorts.vae)
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4}
    transformer = DiT4DTransformerModel(sample_size=(4, 8, 8, 2), patch_size=(1, 2, 2, 2), **small)
    CardioDiTPipeline(vae, transformer, make_scheduler("dpm++")).save_pretrained(folder / "base")
    for name, images in zip(("training", "validation"), cohorts.images, strict=True):
        command = ["encode", "--ids", str(images), "--vae", str(folder / "base"), "--output_dir", str(folder / name)]
        assert main([*command, "--condition_keys", "mask"]) == 0
    return folder / "base", (folder / "training" / "manifest.csv", folder / "validation" / "manifest.csv")


def train(folder: Path, name: str, base: tuple[Path, tuple[Path, Path]], **changes: object) -> Path:
    config = {**CONFIG, "training": {**CONFIG["training"], **changes}}
    train_masks.main(arguments_of(folder, name, config, base[1], "--base", str(base[0])))
    return folder / name


def test_samples_come_with_masks_and_the_rest_of_the_model_stays(base: tuple, tmp_path: Path) -> None:
    run = train(tmp_path, "run", base)
    assert lines_of(run, "validation_dice_lv")[16] > 0.4
    pipe, before = (CardioDiTPipeline.from_pretrained(folder) for folder in (run / "pipeline", base[0]))
    for one in (pipe, before):
        one.set_progress_bar_config(disable=True)
    assert identity_of_vae(pipe.vae) == identity_of_vae(before.vae)
    out, old = (one(num_samples=2, seed=3, num_inference_steps=2) for one in (pipe, before))
    assert torch.equal(out.volumes, old.volumes) and old.masks is None
    assert out.masks.shape == out.volumes.shape and out.masks.dtype == np.uint8
    assert np.array_equal(out[1].masks[0], out.masks[1])
    card = (run / "pipeline" / "README.md").read_text()
    assert "decoded with every sample: right ventricle 1" in card


def test_masks_are_written_beside_their_samples_and_named_in_the_records(base: tuple, tmp_path: Path) -> None:
    pipe = CardioDiTPipeline.from_pretrained(base[0])
    pipe.vae = with_mask_head(pipe.vae, 16, seed=0)
    pipe.save_pretrained(tmp_path / "model")
    command = ["sample", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out"), "--num_inference_steps", "1"]
    assert main([*command, "--num_samples", "2"]) == 0
    records = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    for record in records:
        image, mask = (read_nifti(tmp_path / "out" / record[key]) for key in ("file", "mask"))
        assert image.voxels.shape == mask.voxels.shape and mask.geometry.is_close(image.geometry)
    assert main([*command, "--num_samples", "2"]) == 0  # resumes: a folder of masks is no other file
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_a_resumed_run_ends_in_the_same_decoder(base: tuple, tmp_path: Path) -> None:
    every = {"checkpointing_steps": 2, "validation_steps": 2, "lr_scheduler": "constant"}
    train(tmp_path, "parts", base, max_train_steps=2, **every)
    resumed, whole = (train(tmp_path, name, base, max_train_steps=4, **every) for name in ("parts", "whole"))
    assert lines_of(resumed)[4] == lines_of(whole)[4]


def test_label_maps_are_those_of_the_channels(make_vae: Callable) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (3, 4, 2, 5)).astype(np.uint8)
    channels = torch.from_numpy(CONDITIONS.channels_of({"mask": mask}))
    assert np.array_equal(label_map(channels).numpy(), mask)
    with pytest.raises(ValueError, match="decodes no masks"):
        make_vae().decode_masks(torch.zeros(1, 8, 4, 4, 4))


def test_masks_follow_the_axes_of_the_volume(make_vae: Callable, make_dit: Callable) -> None:
    """A decoder whose only label depends on a latent channel gives that channel, enlarged, in the order of files."""
    vae = with_mask_head(make_vae(), 16, seed=0)
    pipe = CardioDiTPipeline(vae, make_dit(), make_scheduler("dpm++"))
    latents = torch.randn(1, 8, 2, 8, 8, 4)
    masks = pipe._masks_of(latents, 1)
    expected = torch.stack(
        [vae.decode_masks(pipe.vae.unscale_latents(latents)[:, :, d]).argmax(1)[0] for d in range(2)]
    )
    assert np.array_equal(masks[0], expected.permute(1, 2, 0, 3).numpy())
