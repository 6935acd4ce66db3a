"""Conditional sampling from a table: every mask is looked at first, and volumes lie where their masks do."""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
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
from cardiodit.imaging.manifest import Case, prepare_case, prepare_mask
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.volume import Volume
from cardiodit.models.adapter_tgca import fingerprint_of
from cardiodit.models.conditions import Conditions, as_model_sees
from cardiodit.pipelines.mask_rows import MaskRows

STEPS = Preprocessing(size=(16, 16, 2), frames=4, intensity=Intensity("minimum", "maximum"))
AS_STORED = Preprocessing(intensity=Intensity("minimum", "maximum"), orient=False)
# Rows go to the front and columns to the left: a model that turns its volumes exchanges them.
WHERE = Geometry.of_affine(np.array([[0, -2.0, 0, 31], [1.5, 0, 0, -7], [0, 0, 8, 5], [0, 0, 0, 1.0]]), frame_time=0.1)
ELSEWHERE = Geometry((1.0, 1.0, 1.0), 0.1)
CONDITIONS = Conditions(("heart",), ((1, 2, 3),))
ACDC, MNMS = "RV=1 MYO=2 LV=3", "LV=1 MYO=2 RV=3"


@pytest.fixture(scope="module")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a steered model that nobody trained."""

    def make(steps: Preprocessing | None = STEPS, **changes: Any) -> Path:
        torch.manual_seed(0)
        vae = VQModel4D(
            channels=(8, 8),
            num_res_channels=(8, 8),
            num_res_layers=1,
            num_embeddings=32,
            embedding_dim=4,
            preprocessing=None if steps is None else steps.to_dict(),
            spacing=(2.0, 1.5, 8.0),
            frame_time=0.03,
        )
        base = DiT4DTransformerModel((2, 4, 4, 1), (1, 2, 2, 1), 4, 2, 2, 16)
        said = {"condition_channels": 3, "condition_keys": ["heart"], "condition_labels": [[1, 2, 3]], **changes}
        adapter = TGCAAdapterModel(32, 2, 4, channels=(4, 8, 8), strides=((2, 2, 2), (2, 2, 2)), **said)
        for parameter in [*base.parameters(), *adapter.parameters()]:
            torch.nn.init.normal_(parameter, std=0.2)
        adapter.register_to_config(fingerprint=fingerprint_of(base))
        folder = tmp_path_factory.mktemp("steered") / "model"
        CardioDiTControlPipeline(vae, base, make_scheduler(), adapter).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> Path:
    return make_model()


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """Writes masks and a table of them with more columns."""

    def write(count: int = 2, most: int = 3, size: tuple = (20, 18, 2, 4), key: str = "heart", **columns: Any) -> Path:
        for i in range(count):
            write_nifti(tmp_path / f"mask{i}.nii.gz", body(i, most, size), WHERE)
        names = [key, *columns]
        rows = [",".join([f"mask{i}.nii.gz", *(values[i] for values in columns.values())]) for i in range(count)]
        (tmp_path / "masks.csv").write_text("\n".join([",".join(names), *rows]) + "\n")
        return tmp_path / "masks.csv"

    return write


def body(number: int = 0, label: int = 3, size: tuple[int, ...] = (20, 18, 2, 4)) -> np.ndarray:
    """Smaller in the last slice, and in each frame another one."""
    mask = np.zeros(size, np.uint8)
    mask[4 + number : 12, 5:11] = label
    mask[10:, :, -1] = 0
    if len(size) == 4:
        for frame in range(size[3]):
            mask[4 + number, 5 : 5 + frame, :, frame] = 0
    return mask


def opened(model: Path) -> CardioDiTControlPipeline:
    pipe = CardioDiTControlPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def records_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def sample(model: Path, table: Path, output: Path, *more: str) -> int:
    arguments = ["sample", str(model), "--masks", str(table), "--output_dir", str(output)]
    return main([*arguments, "--num_inference_steps", "2", *more])


def test_a_row_is_a_volume_that_lies_where_its_mask_does(
    make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path
) -> None:
    """Also in a model that turns volumes before it sees them; the file says so, and how long a frame lasts."""
    output = tmp_path / "out"
    intensity = Intensity("p0.5", "p99.5", typical=(0, 1000))
    assert sample(make_model(replace(STEPS, intensity=intensity)), table(), output) == 0
    for number in range(2):
        volume = nibabel.load(output / f"seed0-0000{number}.nii.gz")
        assert volume.shape == (16, 16, 2, 4) and volume.get_data_dtype() == np.int16
        assert volume.header.get_zooms() == pytest.approx((2.0, 1.5, 8.0, 0.1))
        # Cut from 20 × 18 around the middle and turned: columns are rows now.
        for i, j, k in [(0, 0, 0), (15, 0, 0), (0, 15, 0), (3, 5, 1)]:
            assert volume.affine @ [i, j, k, 1] == pytest.approx(WHERE.affine @ [2 + j, 1 + i, k, 1], abs=1e-4)
    assert len({record["masks"] for record in records_of(output)}) == 2
    assert "mask0" not in (output / "samples.jsonl").read_text()


def test_masks_that_are_stored_otherwise_steer_the_same(model: Path, tmp_path: Path) -> None:
    """Turned, upside down and begun at another frame: as `encode` does it for training, by the table's columns."""
    plain = Volume(body(), WHERE)
    stored = [plain, plain.permute((1, 0, 2)).flip(0), plain.flip(2), plain.roll(2)]  # whose frame 2 is frame 0
    told = ["base to apex,0", "base to apex,0", "apex to base,0", "base to apex,2"]
    for number, volume in enumerate(stored):
        write_nifti(tmp_path / f"{number}.nii.gz", volume.voxels, volume.geometry)
    lines = [f"{number}.nii.gz,{words}" for number, words in enumerate(told)]
    (tmp_path / "m.csv").write_text("\n".join(["heart,slices,ed_frame", *lines]) + "\n")
    rows = MaskRows(tmp_path / "m.csv", opened(model))
    assert len(set(rows.identities)) == 1
    for number, words in enumerate(told):
        columns = dict(zip(("heart", "slices", "ed_frame"), [f"{number}.nii.gz", *words.split(",")], strict=True))
        case = Case(tmp_path / f"{number}.nii.gz", "s", columns, tmp_path)
        as_trained = prepare_mask(case, prepare_case(case, STEPS), "heart")
        assert np.array_equal(rows[number][0]["heart"], as_trained.voxels) and as_trained.voxels.any()
    first, upside_down = rows[0][1], rows[2][1]
    assert upside_down.is_close(first)  # the same places in the scanner, whatever the order in the file
    (tmp_path / "m.csv").write_text("heart,slices\n0.nii.gz,\n2.nii.gz,\n")
    assert len(set(MaskRows(tmp_path / "m.csv", opened(model)).identities)) == 2


def test_a_hearts_labels_come_into_one_order(make_model: Callable[..., Path], tmp_path: Path) -> None:
    pipe = opened(make_model(condition_keys=["mask"]))
    labels = body()
    labels[5:8, 6:9] = 1
    exchanged = np.array([0, 3, 2, 1], np.uint8)[labels]
    for name, voxels in {"a": labels, "b": exchanged}.items():
        write_nifti(tmp_path / f"{name}.nii.gz", voxels, WHERE)
    (tmp_path / "m.csv").write_text(f"mask,mask_order\na.nii.gz,{ACDC}\nb.nii.gz,{MNMS}\n")
    assert len(set(MaskRows(tmp_path / "m.csv", pipe).identities)) == 1
    (tmp_path / "m.csv").write_text(f"mask,mask_order\na.nii.gz,\nb.nii.gz,{MNMS}\n")
    with pytest.raises(CardioDiTError, match="mask_order is empty in 1 of 2 rows"):
        MaskRows(tmp_path / "m.csv", pipe)


def test_a_frame_lasts_as_long_as_the_table_the_reference_the_mask_or_the_model_say(
    model: Path, table: Callable[..., Path], tmp_path: Path
) -> None:
    pipe = opened(model)
    path = table(image=["", "image.nii.gz"], frame_time=["0.2", ""])
    write_nifti(tmp_path / "image.nii.gz", np.zeros((20, 18, 2, 4), np.int16), replace(WHERE, frame_time=0.15))
    rows = MaskRows(path, pipe)
    assert [rows[i][1].frame_time for i in range(2)] == pytest.approx([0.2, 0.15])
    assert MaskRows(table(), pipe)[0][1].frame_time == pytest.approx(0.1)
    beat = MaskRows(table(1, size=(20, 18, 2, 8)), pipe)[0][1]
    assert beat.frame_time == pytest.approx(0.2)  # eight frames became four
    for silent in (None, 5.0):  # a header that says nothing of time, or something that no heart does
        path = table(1)
        write_nifti(tmp_path / "mask0.nii.gz", body(), replace(WHERE, frame_time=silent))
        assert sample(model, path, tmp_path / f"out{silent}") == 0
        written = nibabel.load(tmp_path / f"out{silent}" / "seed0-00000.nii.gz")
        assert written.header["pixdim"][4] == pytest.approx(0.03)


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


def test_masks_of_another_size_than_the_trained_one_go_on_too(
    make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, path, output = make_model(AS_STORED), table(size=(24, 16, 2, 4)), tmp_path / "out"
    assert sample(model, path, output, "--num_samples", "1") == 0
    assert sample(model, path, output) == 0
    assert records_of(output)[0]["latent_size"] == [2, 6, 4, 1]
    assert sample(model, path, output) == 0
    assert "All requested samples are already in" in capsys.readouterr().out
    assert sample(model, path, tmp_path / "other", "--height", "32") == 1
    assert "--height: volumes have the size of their masks" in capsys.readouterr().err


def test_nothing_is_generated_while_a_mask_is_wrong(
    model: Path, table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_nifti(tmp_path / "other.nii.gz", np.zeros((20, 18, 2, 4), np.int16), ELSEWHERE)
    write_nifti(tmp_path / "small.nii.gz", np.zeros((4, 18, 2, 4), np.int16), WHERE)
    path = table(3, image=["other.nii.gz", "small.nii.gz", ""])
    (tmp_path / "mask2.nii.gz").unlink()
    assert sample(model, path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "row 1: the mask heart lies elsewhere in space than the reference image" in told
    assert "row 2: the mask heart has the shape (20, 18, 2, 4), the reference image (4, 18, 2, 4)" in told
    assert "row 3:" in told and "mask2" in told and "nothing was generated" in told
    assert not (tmp_path / "out").exists()
    assert sample(model, table(most=9), tmp_path / "out") == 1
    assert "9, which is not a label" in capsys.readouterr().err


def test_volumes_that_the_model_cannot_make_are_listed_with_everything_else(
    make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = table(5, size=(16, 16, 2, 4))
    write_nifti(tmp_path / "mask1.nii.gz", body(size=(16, 16, 2)), WHERE)
    write_nifti(tmp_path / "mask2.nii.gz", body(size=(16, 20, 2, 4)), WHERE)
    write_nifti(tmp_path / "mask3.nii.gz", body(label=9, size=(16, 16, 2, 4)), WHERE)
    some_frames = body(size=(16, 16, 2, 4))
    some_frames[..., 1:3] = 0
    write_nifti(tmp_path / "mask4.nii.gz", some_frames, WHERE)
    assert sample(make_model(AS_STORED), path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "row 1:" not in told
    assert "row 2: A mask has the shape (16, 16, 2); (H, W, D, T) was expected" in told
    assert "row 3: width=20 cannot be generated: along width this model generates multiples of 8" in told
    assert "row 4: The mask heart holds 9, which is not a label" in told
    assert "row 5:" in told and "labels in 2 of its 4 frames" in told


def test_two_masks_of_a_row_lie_on_one_grid(
    make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A reference's geometry stands for masks that have none, not for masks that lie elsewhere."""
    model = make_model(condition_keys=["heart", "vessel"], condition_labels=[[2, 3], [1]])
    path = table(vessel=["vessel0.nii.gz", "vessel1.nii.gz"], image=["", "image.nii.gz"])
    write_nifti(tmp_path / "image.nii.gz", np.zeros((20, 18, 2, 4), np.int16), WHERE)
    for number in range(2):
        write_nifti(tmp_path / f"vessel{number}.nii.gz", body(2, 1), ELSEWHERE)
    assert sample(model, path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "row 1: the mask vessel lies elsewhere in space than the mask heart" in told
    assert "row 2: the mask vessel lies elsewhere in space than the reference image" in told
    write_nifti(tmp_path / "vessel0.nii.gz", body(2, 1), WHERE)
    write_nifti(tmp_path / "vessel1.nii.gz", body(2, 1), Geometry(None, 0.1))
    assert sample(model, path, tmp_path / "out") == 0
    # The same in Python, where masks are given as the model sees them.
    pipe = opened(model)
    rows = MaskRows(path, pipe)
    made = pipe(rows[1][0], seed=0, first_sample=1, num_inference_steps=2)
    written = nibabel.load(tmp_path / "out" / "seed0-00001.nii.gz").get_fdata(dtype=np.float32)
    np.testing.assert_allclose(made.volumes[0].numpy(), written, atol=1e-4)
    assert made.records[0]["masks"] == rows.identities[1] == records_of(tmp_path / "out")[1]["masks"]
    with pytest.raises(CardioDiTError, match="takes several masks; give them by name: heart, vessel"):
        pipe(np.zeros((16, 16, 2, 4)))


def test_an_adapter_that_was_trained_anew_is_another_model(
    model: Path, table: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    retrained = tmp_path / "retrained"
    pipe = opened(model)
    pipe.adapter.condition_embed.conv_out.bias.data += 1
    pipe.save_pretrained(retrained)
    assert sample(model, table(1), tmp_path / "out") == 0
    assert sample(retrained, table(1), tmp_path / "out") == 1
    assert "revision was sha256:" in capsys.readouterr().err


def test_masks_and_an_adapter_come_together(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["sample", str(model), "--output_dir", str(tmp_path / "out")]) == 1
    assert "is controlled by masks (heart)" in capsys.readouterr().err
    pipe = CardioDiTControlPipeline.from_pretrained(model)
    with pytest.raises(CardioDiTError, match="From 0.6 to 0.2|from 0.6 to 0.2"):
        pipe(np.zeros((16, 16, 2, 4)), control_guidance_start=0.6, control_guidance_end=0.2)
    with pytest.raises(CardioDiTError, match="liver is not known"):
        pipe({"heart": np.zeros((16, 16, 2, 4)), "liver": np.zeros((16, 16, 2, 4))})
    with pytest.raises(CardioDiTError, match="2 masks were given for 3 samples"):
        pipe([np.zeros((16, 16, 2, 4))] * 2, num_samples=3)
    with pytest.raises(CardioDiTError, match=r"\(H, W, D, T\) was expected"):
        pipe(np.zeros((16, 16, 2)))
    with pytest.raises(CardioDiTError, match=r"the same size; these have \(16, 16, 2, 4\) and \(24, 16, 2, 4\)"):
        pipe([np.zeros((24, 16, 2, 4)), np.zeros((16, 16, 2, 4))])
    with pytest.raises(CardioDiTError, match="num_inference_steps=0 must be a whole number from 1 to"):
        pipe(np.zeros((16, 16, 2, 4)), num_inference_steps=0)
    with pytest.raises(CardioDiTError, match="control_guidance_end='late' must be a finite number"):
        pipe(np.zeros((16, 16, 2, 4)), control_guidance_end="late")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("-inf")])
@pytest.mark.parametrize(
    "name", ["conditioning_scale", "condition_guidance_scale", "control_guidance_start", "control_guidance_end"]
)
def test_strengths_are_finite(model: Path, name: str, value: float) -> None:
    with pytest.raises(CardioDiTError, match=rf"{name}=.*(nan|inf).* must be a finite number"):
        opened(model)(body(size=(16, 16, 2, 4)), num_inference_steps=1, **{name: value})


def test_exchanged_axes_are_refused(
    model: Path, make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    said = r"the shape \(2, 16, 16, 4\), .* axes permuted: \(16, 16, 2, 4\) along \(height, width, depth, frames\)"
    with pytest.raises(CardioDiTError, match=said):
        opened(model)(body(size=(16, 16, 2, 4)).transpose(2, 0, 1, 3))
    assert sample(make_model(AS_STORED), table(1, size=(16, 16, 4, 2)), tmp_path / "out") == 1
    assert "row 1: A mask has the shape (16, 16, 4, 2)" in capsys.readouterr().err


def test_a_size_that_was_not_trained_is_told_once(
    model: Path, make_model: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings: dict[str, Any] = {"num_inference_steps": 1, "output_type": "latent"}
    opened(model)(body(size=(16, 16, 2, 4)), **settings)
    cropped = opened(make_model(replace(STEPS, size=(16, 16, 6))))  # an adapter that learned at another depth
    cropped(body(size=(16, 16, 6, 4)), **settings)
    assert "trained on" not in caplog.text
    for _ in range(2):
        opened(model)(body(size=(16, 24, 2, 4)), **settings)
    assert caplog.text.count("The masks are (16, 24, 2, 4) along (height, width, depth, frames)") == 1
    assert "trained on (16, 16, 2, 4)" in caplog.text


def test_a_row_without_any_label_is_refused_and_in_python_asks_for_nothing(
    model: Path, make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    path = table(3)
    write_nifti(tmp_path / "mask1.nii.gz", np.zeros((20, 18, 2, 4), np.uint8), WHERE)
    outside = np.zeros((20, 18, 2, 4), np.uint8)
    outside[:2] = 3  # which the model's crop leaves away
    write_nifti(tmp_path / "mask2.nii.gz", outside, WHERE)
    assert sample(model, path, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "row 1:" not in told and "nothing was generated" in told and not (tmp_path / "out").exists()
    assert "row 2: the mask heart has no label in any frame" in told and "row 3: the mask heart has no label" in told
    pipe = opened(model)
    settings: dict[str, Any] = {"seed": 0, "num_inference_steps": 1, "output_type": "latent"}
    nothing = np.zeros((16, 16, 2, 4), np.uint8)
    asked_for_nothing = pipe(nothing, condition_guidance_scale=3.0, **settings).volumes
    assert torch.allclose(asked_for_nothing, pipe(nothing, **settings).volumes, atol=1e-5)


def test_one_of_several_masks_may_be_empty(
    make_model: Callable[..., Path], table: Callable[..., Path], tmp_path: Path
) -> None:
    pipe = opened(make_model(condition_keys=["heart", "vessel"], condition_labels=[[2, 3], [1]]))
    path = table(1, vessel=["vessel.nii.gz"])
    write_nifti(tmp_path / "vessel.nii.gz", np.zeros((20, 18, 2, 4), np.uint8), WHERE)
    assert len(MaskRows(path, pipe)) == 1
    write_nifti(tmp_path / "mask0.nii.gz", np.zeros((20, 18, 2, 4), np.uint8), WHERE)
    with pytest.raises(CardioDiTError, match="row 1: the masks heart, vessel have no label in any frame"):
        MaskRows(path, pipe)


def test_the_record_names_the_masks_of_each_sample(model: Path) -> None:
    pipe = opened(model)
    masks = [body(number, size=(16, 16, 2, 4)) for number in (0, 1)]
    settings: dict[str, Any] = {"seed": 0, "num_inference_steps": 1}
    each = [record["masks"] for record in pipe(masks, **settings).records]
    both = [record["masks"] for record in pipe(masks[1].astype(float), num_samples=2, **settings).records]
    assert each[0] != each[1] and both == [each[1]] * 2
    assert len(pipe(masks[0], return_dict=False, **settings)) == 1


def test_steering_in_bfloat16_is_steering(model: Path) -> None:
    mask = body(size=(16, 16, 2, 4))
    settings: dict[str, Any] = {"seed": 0, "num_inference_steps": 3, "output_type": "latent"}
    full = opened(model)
    half = CardioDiTControlPipeline.from_pretrained(model, torch_dtype=torch.bfloat16)
    assert half.adapter.dtype == torch.bfloat16 and half.adapter.time_gate.weight.dtype == torch.float32
    steered, near = (pipe(mask, **settings) for pipe in (full, half))
    free = full(mask, conditioning_scale=0.0, **settings)
    assert near.records[0]["dtype"] == "bfloat16"
    error = (near.volumes - steered.volumes).norm()
    assert error < 0.1 * steered.volumes.norm() and error < 0.5 * (free.volumes - steered.volumes).norm()


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
    controls, empty = (
        pipe._control.arguments(latents, time.expand(1), 0, empty)["block_controls"] for empty in (False, True)
    )
    steered, unsteered = (pipe.transformer(latents, time, block_controls=c).sample for c in (controls, empty))
    assert torch.allclose(pipe._predict(latents, time, {}, {}, 0), steered + 2 * (steered - unsteered), atol=1e-5)
    assert pipe._control.arguments(latents, time, 4) == {}
    # Gate and scale act.
    assert torch.allclose(
        pipe.adapter(pipe._control.embedded, torch.zeros(1, 32), 2.0)[0],
        2 * pipe.adapter(pipe._control.embedded, torch.zeros(1, 32))[0],
    )


def test_labels_become_channels_and_other_values_are_errors() -> None:
    mask = np.arange(4).reshape(2, 2, 1, 1)
    channels = CONDITIONS.channels_of({"heart": mask})
    assert channels.shape == (3, 2, 2, 1, 1) and (channels.sum(axis=0) == (mask > 0)).all()
    assert (channels[2] == (mask == 3)).all()
    with pytest.raises(CardioDiTError, match="heart is missing"):
        CONDITIONS.channels_of({})
    with pytest.raises(CardioDiTError, match="different shapes"):
        Conditions(("a", "b")).channels_of({"a": mask, "b": mask[:1]})


@pytest.mark.parametrize("conditions", [Conditions(("heart",)), CONDITIONS])
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([0, 0.5], "heart holds 0.5, which is not a label"),
        ([0, np.nan], "values from nan to nan"),
        ([-1000, 400], "values from -1000 to 400. Expected labels, which are integers from 0 to 255. Is it an image"),
        ([0, 300], "values from 0 to 300"),
        (["a", "b"], "voxels of type"),
    ],
)
def test_what_is_no_label_map_is_refused(conditions: Conditions, values: list, sentence: str) -> None:
    with pytest.raises(CardioDiTError, match=sentence):
        conditions.channels_of({"heart": np.array(values).reshape(2, 1, 1)})


def test_a_mask_without_listed_labels_is_a_channel_of_its_values() -> None:
    conditions = Conditions(("a", "b"))
    mask = np.arange(4).reshape(2, 2, 1)
    assert conditions.channels_of({"a": mask * 1.0, "b": mask > 1}).max(axis=(1, 2, 3)).tolist() == [3, 1]
    with pytest.raises(CardioDiTError, match="holds only 0 and 255, as pictures of masks do"):
        conditions.channels_of({"a": mask, "b": np.uint8([[[0], [255]], [[0], [0]]])})


def test_labels_that_are_not_listed_are_background_where_that_is_said() -> None:
    conditions = Conditions(("body",), ((1, 7),), "background")
    mask = np.array([0, 1, 5, 7]).reshape(4, 1, 1)
    assert conditions.channels_of({"body": mask}).argmax(axis=1).ravel().tolist() == [1, 3]
    assert conditions.channels_of({"body": mask}).sum() == 2
    adapter = TGCAAdapterModel(32, 1, 3, 2, ["body"], [[1, 7]], channels=(4, 4), strides=((2, 2, 2),))
    assert adapter.conditions.other_labels == adapter.config.other_labels == "refuse"
    with pytest.raises(CardioDiTError, match="other_labels='keep' must be one of refuse, background"):
        Conditions(("body",), ((1,),), "keep")
    with pytest.raises(CardioDiTError, match="other_labels=background needs labels"):
        Conditions(("body",), None, "background")


def test_a_base_of_8_bits_is_the_same_one_and_an_adapter_of_nobody_knows_what_warns(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = opened(model)
    quantised(pipe.transformer)
    parts = {name: pipe.components[name] for name in ("vae", "scheduler", "adapter")}
    CardioDiTControlPipeline(transformer=pipe.transformer, **parts)
    other = DiT4DTransformerModel((2, 4, 4, 1), (1, 2, 2, 1), 4, 2, 2, 16)
    for strange in (other, quantised(deepcopy(other))):
        with pytest.raises(CardioDiTError, match="trained on another transformer"):
            CardioDiTControlPipeline(transformer=strange, **parts)
    assert "could not be checked" not in caplog.text
    parts["adapter"].register_to_config(fingerprint=None)
    CardioDiTControlPipeline(transformer=other, **parts)
    assert "does not record which transformer it was trained on" in caplog.text
    parts["adapter"].register_to_config(fingerprint=[0.1, -0.2, 0.3, -0.4, 0.5, -0.6, 0.7, -0.8])  # of version 1
    CardioDiTControlPipeline(transformer=other, **parts)
    assert "records in another version's format which transformer it was trained on" in caplog.text


def quantised(model: torch.nn.Module) -> torch.nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig(version=2))
    return model


def test_a_model_without_preprocessing_takes_masks_as_they_are(
    make_model: Callable[..., Path], table: Callable[..., Path]
) -> None:
    masks, geometry = MaskRows(table(size=(24, 16, 2, 4)), opened(make_model(None)))[1]
    assert masks["heart"].shape == (24, 16, 2, 4) and geometry.is_close(WHERE)
