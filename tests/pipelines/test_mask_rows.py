"""Conditional sampling from a table: every mask is looked at first, and volumes lie where their masks do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from cardiodit import CardioDiTControlPipeline, DiT4DTransformerModel, TGCAAdapterModel, VQModel4D, make_scheduler
from cardiodit.cli import main
from cardiodit.errors import CardioDiTError
from cardiodit.imaging import Geometry, Intensity, Preprocessing
from cardiodit.imaging.nifti import write_nifti
from cardiodit.models.conditions import Conditions, as_model_sees
from cardiodit.models.fingerprint import fingerprint_of, is_same
from cardiodit.pipelines.mask_rows import MaskRows

STEPS = Preprocessing(size=(16, 16, 2), frames=4, intensity=Intensity("minimum", "maximum"))
WHERE = Geometry.of_affine(np.array([[0, -2.0, 0, 31], [1.5, 0, 0, -7], [0, 0, 8, 5], [0, 0, 0, 1.0]]), frame_time=0.05)
CONDITIONS = Conditions(("heart",), ((1, 2, 3),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A steered model that nobody trained."""
    torch.manual_seed(0)
    vae = VQModel4D(
        channels=(8, 8),
        num_res_channels=(8, 8),
        num_res_layers=1,
        num_embeddings=32,
        embedding_dim=4,
        preprocessing=STEPS.to_dict(),
        spacing=(2.0, 1.5, 8.0),
    )
    base = DiT4DTransformerModel((2, 4, 4, 1), (1, 2, 2, 1), 4, 2, 2, 16)
    adapter = TGCAAdapterModel(32, 2, 4, 3, ["heart"], [[1, 2, 3]], None, (4, 8, 8), ((2, 2, 2), (2, 2, 2)))
    for parameter in [*base.parameters(), *adapter.parameters()]:
        torch.nn.init.normal_(parameter, std=0.2)
    adapter.register_to_config(fingerprint=fingerprint_of(base))
    folder = tmp_path_factory.mktemp("steered") / "model"
    CardioDiTControlPipeline(vae, base, make_scheduler(), adapter).save_pretrained(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes masks `(20, 18, 2, 4)` and a table of them."""

    def write(count: int = 2, most: int = 3, **columns: Any) -> Path:
        for i in range(count):
            mask = np.zeros((20, 18, 2, 4), np.uint8)
            mask[4 + i : 12, 5:11] = most
            write_nifti(tmp_path / f"mask{i}.nii.gz", mask, WHERE)
        names = ["heart", *columns]
        rows = [",".join([f"mask{i}.nii.gz", *(values[i] for values in columns.values())]) for i in range(count)]
        (tmp_path / "masks.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
        return tmp_path / "masks.csv"

    return write


def sample(model: Path, table: Path, output: Path, *more: str) -> int:
    arguments = ["sample", str(model), "--masks", str(table), "--output_dir", str(output)]
    return main([*arguments, "--num_inference_steps", "2", *more])


def test_a_row_is_a_volume_that_lies_where_its_mask_does(
    model: Path, table: Callable[..., Path], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    assert sample(model, table(), output) == 0
    volumes = [nibabel.load(output / f"seed0-0000{i}.nii.gz") for i in range(2)]
    for volume in volumes:
        assert volume.shape == (16, 16, 2, 4)
        assert volume.header.get_zooms()[:3] == pytest.approx((2.0, 1.5, 8.0))
        # Cut from 20 × 18 around the middle: the first voxel is the mask's third, second.
        assert volume.affine[:3, 3] == pytest.approx(WHERE.affine[:3] @ [2, 1, 0, 1], abs=1e-4)
    records = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert len({record["masks"] for record in records}) == 2
    assert "mask0" not in (output / "samples.jsonl").read_text()


def test_it_goes_on_and_notices_other_masks(
    model: Path, table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "out"
    assert sample(model, table(), output, "--num_samples", "1") == 0
    before = (output / "seed0-00000.nii.gz").read_bytes()
    assert sample(model, table(), output) == 0
    assert (output / "seed0-00000.nii.gz").read_bytes() == before
    assert sample(model, table(most=2), output) == 1
    assert "masks was sha256:" in capsys.readouterr().err
    assert sample(model, table(), output, "--conditioning_scale", "0.5") == 1
    assert sample(model, table(), output, "--num_samples", "3") == 1
    assert "has 2 rows, too few" in capsys.readouterr().err


def test_nothing_is_generated_while_a_mask_is_wrong(
    model: Path, table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_nifti(tmp_path / "other.nii.gz", np.zeros((20, 18, 2, 4), np.int16), Geometry((1.0, 1.0, 1.0), 0.05))
    write_nifti(tmp_path / "small.nii.gz", np.zeros((4, 18, 2, 4), np.int16), WHERE)
    path = table(3, image=["other.nii.gz", "small.nii.gz", ""])
    (tmp_path / "mask2.nii.gz").unlink()
    assert sample(model, path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "row 1: the masks lie elsewhere in space than the reference image" in told
    assert "row 2: the masks have the shape (20, 18, 2, 4), the reference image (4, 18, 2, 4)" in told
    assert "row 3:" in told and "mask2" in told and "nothing was generated" in told
    assert not (tmp_path / "out").exists()
    assert sample(model, table(most=9), tmp_path / "out") == 1
    assert "9, which is no label" in capsys.readouterr().err


def test_masks_and_an_adapter_come_together(
    model: Path, table: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    assert main(["sample", str(model), "--output_dir", str(tmp_path / "out")]) == 1
    assert "is steered by masks (heart)" in capsys.readouterr().err
    pipe = CardioDiTControlPipeline.from_pretrained(model)
    with pytest.raises(CardioDiTError, match="From 0.6 to 0.2|from 0.6 to 0.2"):
        pipe(np.zeros((16, 16, 2, 4)), control_guidance_start=0.6, control_guidance_end=0.2)
    with pytest.raises(CardioDiTError, match="liver is not known"):
        pipe({"heart": np.zeros((16, 16, 2, 4)), "liver": np.zeros((16, 16, 2, 4))})
    with pytest.raises(CardioDiTError, match="2 masks were given for 3 samples"):
        pipe([np.zeros((16, 16, 2, 4))] * 2, num_samples=3)
    with pytest.raises(CardioDiTError, match=r"\(H, W, D, T\) was expected"):
        pipe(np.zeros((16, 16, 2)))


@torch.no_grad()
def test_steering_is_what_the_adapter_adds_while_it_may(model: Path) -> None:
    pipe = CardioDiTControlPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    mask = np.zeros((16, 16, 2, 4), np.uint8)
    mask[4:9, 4:9] = 3
    settings: dict[str, Any] = {"seed": 1, "num_inference_steps": 4, "output_type": "latent"}
    free, full = (pipe(mask, conditioning_scale=s, **settings).volumes for s in (0.0, 1.0))
    half = pipe(mask, control_guidance_end=0.5, **settings).volumes
    guided = pipe(mask, condition_guidance_scale=2.0, **settings).volumes
    assert len({round(float(v.square().sum()), 3) for v in (free, full, half, guided)}) == 4
    # Guidance towards masks: full + (g − 1)(full − prediction for empty masks), at one step.
    latents, time = torch.randn(1, 4, 2, 4, 4, 1), torch.tensor(100)
    condition = as_model_sees(pipe.adapter.conditions.channels_of({"heart": mask}))[None]
    pipe._guidance_scale = 1.0
    pipe._control = pipe._make_control(condition, 1.0, (0, 4), 3.0)
    controls, empty = (pipe._control.at(latents, time.expand(1), 0, nothing) for nothing in (False, True))
    steered, unsteered = (pipe.transformer(latents, time, block_controls=c).sample for c in (controls, empty))
    assert torch.allclose(pipe._predict(latents, time, None, 0), steered + 2 * (steered - unsteered), atol=1e-5)
    assert pipe._control.at(latents, time, 4) is None
    # Gate and scale act.
    assert torch.allclose(
        pipe.adapter(pipe._control.tokens, torch.zeros(1, 32), 2.0)[0],
        2 * pipe.adapter(pipe._control.tokens, torch.zeros(1, 32))[0],
    )


def test_labels_become_channels_and_other_values_are_errors() -> None:
    mask = np.arange(4).reshape(2, 2, 1, 1)
    channels = CONDITIONS.channels_of({"heart": mask})
    assert channels.shape == (3, 2, 2, 1, 1) and (channels.sum(axis=0) == (mask > 0)).all()
    assert (channels[2] == (mask == 3)).all()
    with pytest.raises(CardioDiTError, match="heart is missing"):
        CONDITIONS.channels_of({})
    assert Conditions(("a", "b")).channels_of({"a": mask * 1.0, "b": mask * 2.0}).max() == 6


def test_a_fingerprint_bears_rounding_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    first = fingerprint_of(model)
    assert is_same(first, fingerprint_of(torch.nn.Sequential(*model)))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.to(torch.bfloat16)
    assert is_same(first, fingerprint_of(model))
    model.float().load_state_dict({n: v + 0.05 * v.abs().mean() * torch.randn_like(v) for n, v in weights.items()})
    assert not is_same(first, fingerprint_of(model))


def test_a_table_without_preprocessing_takes_masks_as_they_are(table: Callable[..., Path]) -> None:
    masks, geometry = MaskRows(table(), CONDITIONS, None)[1]
    assert masks["heart"].shape == (20, 18, 2, 4) and geometry.is_close(WHERE)
