"""Encoding one volume, also while training, and a cohort with its masks."""

import csv
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cardiodit import CardioDiTError, VQModel3D, VQModel4D
from cardiodit._util import memory
from cardiodit.cli import main
from cardiodit.hub.load import open_vae
from cardiodit.imaging import (
    Geometry,
    Preprocessing,
    prepare_case,
    prepare_mask,
    read_manifest,
    read_nifti,
    write_nifti,
)
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.nifti import read_labels
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import (
    Counts,
    LatentCohort,
    encode_cohort,
    encode_volume,
    identity_of_vae,
    read_header,
    read_latent,
    read_mask,
    write_latent,
)
from cardiodit.training.latent_data import encode as encode_online
from cardiodit.training.latent_data import read_cohort

from ..conftest import begin, begin_two, copy_chests


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def edited_rows(manifest: Path, **columns: str) -> Path:
    """Rewrite a manifest with columns whose `{}` stands for what they were."""
    rows = [{**row, **{name: text.format(row[name]) for name, text in columns.items()}} for row in rows_of(manifest)]
    write_manifest(manifest, rows)
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.match("energy*.jsonl")}


def encode(manifest: Path, vae: Any, folder: Path, **settings: Any) -> tuple[Counts, str]:
    messages: list[str] = []
    return encode_cohort(manifest, vae, folder, report=messages.append, **settings), "\n".join(messages)


def test_every_image_is_encoded_with_its_header(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    counts, messages = encode(phantoms, vae, tmp_path / "out")
    assert counts == Counts(new=2) and "2 of 2: phantom-0001.nii.gz new" in messages
    steps = Preprocessing.from_dict(vae.config.preprocessing)
    rows, cases = rows_of(tmp_path / "out" / "manifest.csv"), read_manifest(phantoms)
    assert [row["subject"] for row in rows] == [case.subject for case in cases]
    assert {"label", "lv_ef_percent"} < set(rows[0]) and not {"image", "mask", "volumes"} & set(rows[0])
    for row, case in zip(rows, cases):
        header, latents = read_latent(tmp_path / "out" / row["latent"])
        prepared = prepare_case(case, steps)
        with torch.no_grad():
            expected = vae.quantize(vae.encode(prepared.tensor()[None]).latents).latents[0]
        torch.testing.assert_close(latents, expected, atol=1e-6, rtol=0)
        assert header.geometry == prepared.volume.geometry
        assert (header.shape, header.frames) == ((8, 4, 8, 8, 2), 8)


def test_a_latent_file_names_no_path_and_no_subject(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    encode(phantoms, vae, tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        for told in (b"phantom", b"images", b"nii", b"/", str(tmp_path).encode()):
            assert told not in path.read_bytes()[:2000] and told not in path.name.encode()


def test_a_second_run_keeps_valid_files_and_repairs_damaged_ones(
    own_phantoms: Path, vae: VQModel4D, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    encode(own_phantoms, vae, out)
    before, first = contents(out), out / rows_of(out / "manifest.csv")[0]["latent"]
    vae.register_to_config(scaling_factor=2.0)
    moved = own_phantoms.parent.rename(tmp_path / "elsewhere") / "manifest.csv"
    assert encode(moved, vae, out)[0] == Counts(kept=2)

    first.write_bytes(first.read_bytes()[:-1])
    (out / f".tmp-0123abcd-{first.name}").write_bytes(b"half of one")
    (out / ".tmp-notes.txt").touch()
    (out / "0123.safetensors").touch()
    counts, messages = encode(moved, vae, out)
    assert counts == Counts(kept=1, repaired=1)
    assert f"Removed .tmp-0123abcd-{first.name}" in messages
    assert "belong to no image" in messages and "0123.safetensors" in messages
    assert contents(out) == {**before, ".tmp-notes.txt": b"", "0123.safetensors": b""}


def test_outdated_latents_are_encoded_again(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    out = tmp_path / "out"
    encode(phantoms, vae, out)
    before = contents(out)
    assert encode(phantoms, vae, out, dtype=torch.bfloat16)[0] == Counts(changed=2)
    assert encode(phantoms, vae, out, depth=6)[0] == Counts(changed=2)
    assert all(read_header(path).shape == (8, 6, 8, 8, 2) for path in out.glob("*.safetensors"))
    vae.encoder.blocks[0].conv.weight.data += 0.1
    assert encode(phantoms, vae, out, batch_size=3)[0] == Counts(changed=2)
    vae.encoder.blocks[0].conv.weight.data.zero_()
    assert encode(phantoms, vae, out)[0] == Counts(changed=2)
    assert set(contents(out)) == set(before) and contents(out) != before


def test_a_static_volume(make_vae: Callable[..., VQModel3D], tmp_path: Path) -> None:
    manifest = copy_chests(tmp_path / "chests", num=1, seed=0, size=(32, 32, 32))
    vae = make_vae(VQModel3D, preprocessing=Preprocessing(size=(32, 32, 16)).to_dict())
    encode(manifest, vae, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "manifest.csv")
    header = read_header(tmp_path / "out" / row["latent"])
    assert (header.shape, header.frames) == ((8, 8, 8, 4), 1)


def test_volumes_are_encoded_in_tiles_on_request(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    encode(phantoms, vae, tmp_path / "auto")
    assert not vae.use_tiling  # small enough
    encode(phantoms, vae, tmp_path / "tiles", tiling="on")
    assert vae.use_tiling
    with pytest.raises(CardioDiTError, match="tiling='yes' must be one of"):
        encode(phantoms, vae, tmp_path / "wrong", tiling="yes")


def test_latents_of_an_older_version_without_their_preprocessing(
    phantoms: Path, vae: VQModel4D, tmp_path: Path
) -> None:
    encode(phantoms, vae, tmp_path / "out")
    before = contents(tmp_path / "out")
    for path in (tmp_path / "out").glob("*.safetensors"):
        header, latents = read_latent(path)
        write_latent(path, latents, replace(header, steps=None))
    old = LatentCohort.open(tmp_path / "out" / "manifest.csv")
    assert old.steps is None
    assert encode(phantoms, vae, tmp_path / "out")[0] == Counts(changed=2)
    assert contents(tmp_path / "out") == before
    new = LatentCohort.open(tmp_path / "out" / "manifest.csv")
    assert new.steps == Preprocessing.from_dict(vae.config.preprocessing) and new.identity == old.identity


def test_another_voxel_size_is_refused_and_can_be_resampled(
    phantoms: Path, own_phantoms: Path, make_vae: Callable, steps: Preprocessing, tmp_path: Path
) -> None:
    """Hearts of 4.5 mm would be generated, and measured, as hearts of 5 mm. Online training refuses them too."""
    vae, out = make_vae(preprocessing=steps.to_dict(), spacing=(5.0, 5.0, 25.0)), tmp_path / "out"
    manifest = edited_rows(own_phantoms, subject="another {}")
    for run in (lambda: encode_masks(phantoms, vae, out), lambda: read_cohort(phantoms, manifest, vae)):
        with pytest.raises(CardioDiTError, match=r"--spacing 5 5 25, or .*data\.preprocessing\.spacing") as caught:
            run()
        told = (
            "phantom-0001.nii.gz has voxels of 4.5 × 4.5 × 33.33 mm after preprocessing, and the VQ model was trained"
        )
        assert told in str(caught.value) and "5 × 5 × 25 mm" in str(caught.value)
    assert not contents(out)
    encode(phantoms, vae, out, spacing=(5.0, 5.0, 25.0))
    (first, _) = LatentCohort.open(out / "manifest.csv").headers
    assert first.geometry.spacing == (5, 5, 25)
    resampled = read_cohort(phantoms, manifest, vae, spacing=(5.0, 5.0, 25.0)).training.source
    assert torch.equal(encode_volume(vae, resampled[0]), LatentCohort.open(out / "manifest.csv")[0])


def test_latents_of_another_voxel_size_are_not_trained_on(
    phantoms: Path, own_phantoms: Path, vae: VQModel4D, tmp_path: Path
) -> None:
    encode(phantoms, vae, tmp_path / "a")
    encode(edited_rows(own_phantoms, subject="another {}"), vae, tmp_path / "b")
    both = [tmp_path / name / "manifest.csv" for name in ("a", "b")]
    headers = LatentCohort.open(both[0]).headers
    vae.register_to_config(spacing=(5.0, 5.0, 25.0))
    changed = identity_of_vae(vae)
    for folder in (tmp_path / "a", tmp_path / "b"):  # as written before voxel sizes were compared
        for path in folder.glob("*.safetensors"):
            header, latents = read_latent(path)
            write_latent(path, latents, replace(header, vae=changed))
    with pytest.raises(CardioDiTError, match="has voxels of 4.5 × 4.5 × 33.33 mm"):
        read_cohort(*both, vae)
    with pytest.raises(CardioDiTError, match="--spacing is for images; latents have the voxel size"):
        read_cohort(*both, vae, spacing=(5.0, 5.0, 25.0))
    with pytest.raises(CardioDiTError, match="--depth is for images; latents have the slices"):
        read_cohort(*both, vae, depth=8)
    assert headers[0].geometry.spacing == pytest.approx((4.5, 4.5, 100 / 3))


def test_slices_that_are_added_are_said(phantoms: Path, vae: VQModel4D, own_phantoms: Path, tmp_path: Path) -> None:
    told = "images have too few slices and are padded with empty ones: phantom-0000.nii.gz (has 3 of 8), phantom-0001"
    assert f"2 of 2 {told}" in encode(phantoms, vae, tmp_path / "out", depth=8)[1]
    notes: list[str] = []
    read_cohort(phantoms, edited_rows(own_phantoms, subject="another {}"), vae, depth=8, report=notes.append)
    assert "4 of 4 images have too few slices" in notes[-1]
    assert "padded" not in encode(phantoms, vae, tmp_path / "three", depth=3)[1]


def test_an_unknown_voxel_size_and_another_frame_time_are_noted(
    phantoms: Path, make_vae: Callable, steps: Preprocessing, tmp_path: Path
) -> None:
    vae = make_vae(preprocessing=steps.to_dict(), frame_time=0.3)
    _, messages = encode(phantoms, vae, tmp_path / "out")
    assert (
        "The VQ model does not know the voxel size" in messages
        and "These volumes have 4.5 × 4.5 × 33.33 mm" in messages
    )
    assert re.search(r"A frame lasts 1\d\d ms in these volumes .* and 300 ms in the VQ model's", messages)
    vae.register_to_config(frame_time=0.11, spacing=(4.5, 4.5, 100 / 3))
    assert "VQ model" not in encode(phantoms, vae, tmp_path / "other")[1]


def test_all_problems_are_reported_at_the_end(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    out, rows = tmp_path / "out", rows_of(own_phantoms)
    image = own_phantoms.parent / rows[0]["image"]
    image.write_bytes(image.read_bytes()[:-100])
    shutil.copy(own_phantoms.parent / rows[1]["image"], own_phantoms.parent / "again.nii.gz")
    rows += [{**rows[1], "image": "again.nii.gz"}, {**rows[1], "image": rows[1]["mask"], "ed_frame": "99"}]
    write_manifest(own_phantoms, rows)
    with pytest.raises(CardioDiTError) as caught:
        encode(own_phantoms, vae, out)
    heading, *problems, advice = str(caught.value).splitlines()
    assert "no manifest was written" in heading and "are kept" in advice and len(problems) == 3
    assert "phantom-0000.nii.gz is damaged or was cut off" in problems[0]
    assert "again.nii.gz holds the same volume as" in problems[1] and "images/phantom-0001.nii.gz" in problems[1]
    assert "labels/phantom-0001.nii.gz cannot be encoded. End-diastole cannot be frame 99" in problems[2]
    assert len(contents(out)) == 1
    write_manifest(own_phantoms, rows[1:2])
    assert encode(own_phantoms, vae, out)[0] == Counts(kept=1)


def test_volumes_of_several_sizes_are_noticed_early(vae: VQModel4D, tmp_path: Path) -> None:
    deep = write_cohort(tmp_path / "deep", num=1, size=(32, 32, 5, 8))
    flat = write_cohort(tmp_path / "flat", num=1, size=(32, 32, 3, 8))
    rows = [{"image": str(manifest.parent / rows_of(manifest)[0]["image"])} for manifest in (deep, flat)]
    write_manifest(tmp_path / "both.csv", rows)
    steps = Preprocessing(size=(32, 32, None), frames=8)
    with pytest.raises(CardioDiTError, match=r"\(8, 5, 8, 8, 2\) of .*deep.*\(8, 3, 8, 8, 2\) of .*flat.*Give a depth"):
        encode(tmp_path / "both.csv", vae, tmp_path / "out", steps=steps)
    counts, messages = encode(tmp_path / "both.csv", vae, tmp_path / "out", steps=steps, depth=4)
    assert counts == Counts(changed=2) and "not the one that the VQ model was trained with" in messages


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"depth": 0}, "must be three positive numbers"),
        ({"steps": Preprocessing(size=(32, 32, 32), frames=6)}, "must be a multiple of 4"),
        ({"steps": Preprocessing(size=(31, 32, 4), frames=8)}, "must be a multiple of 4"),
    ],
)
def test_invalid_settings_are_refused(phantoms: Path, vae: VQModel4D, tmp_path: Path, settings, message) -> None:
    with pytest.raises(CardioDiTError, match=message):
        encode(phantoms, vae, tmp_path / "out", **settings)
    assert not list(tmp_path.glob("out/*"))


def test_unsuitable_models_are_refused(phantoms: Path, make_vae: Callable, vae: VQModel4D, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="does not say how its training volumes were prepared. Give a preset: cin"):
        encode(phantoms, make_vae(), tmp_path / "out")
    with pytest.raises(CardioDiTError, match="is in torch.bfloat16. Open it in float32"):
        encode(phantoms, vae.to(torch.bfloat16), tmp_path / "out")


def test_a_manifest_of_images_is_never_overwritten(own_phantoms: Path, vae: VQModel4D) -> None:
    before = own_phantoms.read_bytes()
    with pytest.raises(CardioDiTError, match="is not a manifest of latents"):
        encode(own_phantoms, vae, own_phantoms.parent)
    assert own_phantoms.read_bytes() == before


def test_a_killed_run_resumes_and_several_processes_share_the_work(make_vae: Callable, steps, tmp_path: Path) -> None:
    """A resumed run and two real processes write the same bytes as one run without interruption."""
    cohort = write_cohort(tmp_path / "cohort", num=4, size=(32, 32, 3, 8))
    vae = make_vae(channels=(32, 64), num_res_channels=(32, 64), preprocessing=steps.to_dict())
    vae.save_pretrained(tmp_path / "run" / "best" / "vae")
    encode(cohort, vae, tmp_path / "whole")

    def command(folder: str) -> list[str]:
        return ["encode", "--ids", str(cohort), "--vae", str(tmp_path / "run"), "--output_dir", str(tmp_path / folder)]

    sharing = begin_two(main, command("shared"), said=tmp_path / "messages")
    killed = begin(main, command("killed"))
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("killed/[!.]*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.001)
    killed.kill()
    killed.join()
    done = len(list(tmp_path.glob("killed/[!.]*.safetensors")))
    assert 0 < done < 4 and not (tmp_path / "killed" / "manifest.csv").exists()
    assert main(command("killed")) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")

    for process in sharing:
        process.join()
    messages = (tmp_path / "messages").read_text()
    assert [process.exitcode for process in sharing] == [0, 0], messages
    assert "2 of 2" in messages and messages.count("4 new, 0 kept") == 1
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


# --- One volume ---


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


def test_the_batch_size_does_not_change_the_result(vae: VQModel4D) -> None:
    x = volume(5, 32, 32, 8)
    torch.testing.assert_close(encode_volume(vae, x, 1), encode_volume(vae, x, 3), atol=1e-6, rtol=0)


def test_slices_of_a_batch_that_is_too_large_are_encoded_one_by_one(
    vae: VQModel4D, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles are for slices that are too large by themselves, because they change the result a little."""
    one_slice = memory._decoding_bytes(vae, (1, 8, 8, 8, 2))
    monkeypatch.setattr(memory, "TILED_ABOVE", 2 * one_slice)
    batches: list[int] = []
    vae.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    encode_volume(vae, volume(4, 32, 32, 8), batch_size=2)
    encode_volume(vae, volume(4, 32, 32, 8), batch_size=4)
    assert batches == [2, 2, 1, 1, 1, 1] and not vae.use_tiling


@pytest.mark.parametrize("kind", [VQModel4D, VQModel3D])
def test_online_training_sees_the_latents_of_the_command_to_the_bit(
    make_vae: Callable, kind: type, phantoms: Path, tmp_path: Path
) -> None:
    """In batches of two, whatever training has configured for its own computation."""
    if kind is VQModel4D:
        manifest, steps = phantoms, Preprocessing(size=(32, 32, 4), frames=8)
    else:
        manifest = copy_chests(tmp_path / "chests", num=2, seed=0, size=(32, 32, 32))
        steps = Preprocessing(size=(32, 32, 16))
    make_vae(kind, preprocessing=steps.to_dict()).save_pretrained(tmp_path / "vae")
    vae_folder, output = str(tmp_path / "vae"), str(tmp_path / "latents")
    assert main(["encode", "--ids", str(manifest), "--vae", vae_folder, "--output_dir", output]) == 0
    written = LatentCohort.open(tmp_path / "latents" / "manifest.csv")

    vae = open_vae(tmp_path / "vae")
    other = tmp_path / "other.csv"
    write_manifest(
        other, [{"image": str(case.image), "subject": f"other {case.subject}"} for case in read_manifest(manifest)]
    )
    samples = read_cohort(manifest, other, vae).training.source
    with torch.autocast("cpu", torch.bfloat16):
        seen = encode_online(vae, torch.stack([samples[0], samples[1]]))
    assert torch.equal(seen, torch.stack([written[0], written[1]])) and seen.dtype == torch.float32


def test_kernels_do_not_depend_on_what_training_has_configured(vae: VQModel4D) -> None:
    def settings() -> tuple[bool, ...]:
        cudnn = torch.backends.cudnn
        return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic

    seen: list[tuple[bool, ...]] = []
    vae.encoder.blocks[0].register_forward_pre_hook(lambda *_: seen.append(settings()))
    before = settings()
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            encode_volume(vae, volume(1, 32, 32, 8))
            assert settings() == (True, False, True, False)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before[0]
    assert seen == [(True, True, False, True)]  # TF32, as `cardiodit encode` sets it; codes are searched without


def test_encoding_does_not_change_the_codebook(vae: VQModel4D) -> None:
    before = identity_of_vae(vae)
    encode_volume(vae, volume(2, 32, 32, 8))
    assert identity_of_vae(vae) == before


def test_half_precision_gives_float32_codes(vae: VQModel4D) -> None:
    x = volume(2, 32, 32, 8)
    exact, coarse = encode_volume(vae, x), encode_volume(vae, x, dtype=torch.bfloat16)
    assert coarse.dtype == torch.float32
    assert (exact == coarse).all(dim=0).float().mean() > 0.7  # the others lie between two codes


def test_images_that_the_model_cannot_encode_are_refused(vae: VQModel4D, make_vae: Callable) -> None:
    with pytest.raises(CardioDiTError, match="is 3D, and a VQModel4D encodes cines"):
        encode_volume(vae, volume(32, 32, 8))
    with pytest.raises(CardioDiTError, match="is a cine, and a VQModel3D encodes volumes"):
        encode_volume(make_vae(VQModel3D), volume(4, 32, 32, 8))
    with pytest.raises(CardioDiTError, match="not finite"):
        encode_volume(vae, volume(4, 32, 32, 8) * torch.nan)


# --- Masks stored with latents ---

MNMS, ACDC = "LV=1 MYO=2 RV=3", "RV=1 MYO=2 LV=3"


def encode_masks(manifest: Path, vae: VQModel4D, folder: Path) -> tuple[list[dict[str, str]], str]:
    """Return the rows of the latents' manifest, and the messages."""
    messages: list[str] = []
    encode_cohort(manifest, vae, folder, report=messages.append, condition_keys=["mask"])
    return rows_of(folder / "manifest.csv"), "\n".join(messages)


def masks_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of every file beside the latents."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "masks").iterdir()}


def rewrite(manifest: Path, change: Any, **columns: str) -> Path:
    """Changes the first row's mask, and its columns; returns the mask's path."""
    rows = rows_of(manifest)
    path = manifest.parent / rows[0]["mask"]
    mask = read_nifti(path)
    write_nifti(path, change(mask.voxels), mask.geometry)
    write_manifest(manifest, [{**rows[0], **columns}, *rows[1:]])
    return path


def test_masks_are_prepared_as_their_images(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    rows, messages = encode_masks(phantoms, vae, tmp_path / "out")
    assert "Relabelling" not in messages
    steps = Preprocessing.from_dict(vae.config.preprocessing)
    for row, case in zip(rows, read_manifest(phantoms), strict=True):
        expected = prepare_mask(case, prepare_case(case, steps))
        assert expected is not None
        written = read_labels(tmp_path / "out" / row["mask"])
        assert np.array_equal(written.voxels, expected.voxels) and set(np.unique(written.voxels)) == {0, 1, 2, 3}
        assert written.geometry.is_close(expected.geometry)


def test_masks_are_kept_renewed_and_tidied_up(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rows, _ = encode_masks(own_phantoms, vae, out)
    before = masks_in(out)
    assert encode_masks(own_phantoms, vae, out)[0] == rows and masks_in(out) == before  # nothing was written again

    first = out / rows[0]["mask"]
    first.write_bytes(first.read_bytes()[:-100])
    (out / "masks" / f".tmp-0123abcd-{first.name}").write_bytes(b"half of one")
    assert f"Removed .tmp-0123abcd-{first.name}" in encode_masks(own_phantoms, vae, out)[1]
    assert {name: content for name, (content, _) in masks_in(out).items()} == {n: c for n, (c, _) in before.items()}

    rewrite(own_phantoms, lambda voxels: voxels[::-1])
    changed, _ = encode_masks(own_phantoms, vae, out)
    assert changed[0]["mask"] != rows[0]["mask"] and changed[1] == rows[1]
    assert changed[0]["latent"] == rows[0]["latent"]
    assert not np.array_equal(read_mask(out / changed[0]["mask"]), read_mask(first))


def test_masks_of_two_cohorts_get_the_same_labels(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    """M&Ms labels the left ventricle 1, ACDC the right one: mixed, a model would confuse them."""
    expected, _ = encode_masks(own_phantoms, vae, tmp_path / "acdc")
    rewrite(own_phantoms, np.array([0, 3, 2, 1], np.uint8).__getitem__, mask_order=MNMS)
    rows, messages = encode_masks(own_phantoms, vae, tmp_path / "mixed")
    assert f"Relabelling 1 of 2 masks from {MNMS} to ACDC's {ACDC}." in messages
    assert [row["mask_order"] for row in rows] == [ACDC, ACDC]
    for row, other in zip(rows, expected, strict=True):
        assert np.array_equal(read_mask(tmp_path / "mixed" / row["mask"]), read_mask(tmp_path / "acdc" / other["mask"]))
    rewrite(own_phantoms, np.asarray, mask_order="")
    with pytest.raises(CardioDiTError, match="mask_order is empty in 1 of 2 rows"):
        encode_masks(own_phantoms, vae, tmp_path / "silent")


def only_two_frames(voxels: np.ndarray) -> np.ndarray:
    """Labels of end-diastole and end-systole only, like those of ACDC and M&Ms."""
    return np.where(np.isin(np.arange(voxels.shape[3]), [0, 3]), voxels, 0).astype(np.uint8)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda voxels: voxels * np.float32(0.5), "holds values that are not labels, such as 0.5"),
        (lambda voxels: voxels.astype(np.int16) * 100, "holds labels from 0 to 300; labels must be 0 to 255"),
        (lambda voxels: voxels[..., 0], "its image (32, 32, 4, 8): a cine needs a mask of every frame"),
        (lambda voxels: voxels[:16], "The mask's grid (16, 32, 3, 8)"),
        (only_two_frames, "has labels in 2 of its 8 frames. Steering needs them in every frame"),
        (lambda voxels: voxels + np.uint8(1), "4 is not in the order 'LV=1"),
    ],
)
def test_invalid_masks_are_reported(own_phantoms: Path, vae: VQModel4D, tmp_path: Path, change, message: str) -> None:
    order = MNMS if "order" in message else ACDC
    rewrite(own_phantoms, change, mask_order=order)
    with pytest.raises(CardioDiTError) as caught:
        encode_masks(own_phantoms, vae, tmp_path / "out")
    assert message in str(caught.value) and "phantom-0000" in str(caught.value)
    assert not (tmp_path / "out" / "manifest.csv").exists()


def test_a_mask_on_another_grid(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    path = own_phantoms.parent / rows_of(own_phantoms)[0]["mask"]
    write_nifti(path, read_nifti(path).voxels, Geometry((3.0, 3.0, 9.0), 0.03))
    with pytest.raises(CardioDiTError, match=r"The mask's grid .* is not that of its image"):
        encode_masks(own_phantoms, vae, tmp_path / "out")
