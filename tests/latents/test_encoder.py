import csv
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cardiodit import CardioDiTError, VQModel3D, VQModel4D
from cardiodit.cli import main
from cardiodit.imaging import Preprocessing, prepare_case, read_manifest
from cardiodit.imaging.manifest import write_manifest
from cardiodit.imaging.phantom import write_chests, write_cohort
from cardiodit.latents import Counts, LatentCohort, encode_cohort, read_header, read_latent, write_latent

from ..conftest import begin, begin_two


def rows_of(manifest: Path) -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encode(manifest: Path, vae: Any, folder: Path, **settings: Any) -> tuple[Counts, str]:
    said: list[str] = []
    return encode_cohort(manifest, vae, folder, report=said.append, **settings), "\n".join(said)


def test_every_image_has_its_latents_and_says_what_they_are(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    counts, said = encode(phantoms, vae, tmp_path / "out")
    assert counts == Counts(new=2) and "2 of 2: phantom-0001.nii.gz new" in said
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


def test_it_goes_on_where_it_stopped(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
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
    counts, said = encode(moved, vae, out)
    assert counts == Counts(kept=1, repaired=1)
    assert f"Removed .tmp-0123abcd-{first.name}" in said and "left where they are: 0123.safetensors" in said
    assert contents(out) == {**before, ".tmp-notes.txt": b"", "0123.safetensors": b""}


def test_what_was_made_otherwise_is_made_anew(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
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


def test_a_volume_that_does_not_beat(make_vae: Callable[..., VQModel3D], tmp_path: Path) -> None:
    manifest = write_chests(tmp_path / "chests", num=1, size=(32, 32, 32))
    vae = make_vae(VQModel3D, preprocessing=Preprocessing(size=(32, 32, 16)).to_dict())
    encode(manifest, vae, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "manifest.csv")
    header = read_header(tmp_path / "out" / row["latent"])
    assert (header.shape, header.frames) == ((8, 8, 8, 4), 1)


def test_volumes_are_encoded_in_tiles_where_asked(phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
    encode(phantoms, vae, tmp_path / "auto")
    assert not vae.use_tiling  # small enough
    encode(phantoms, vae, tmp_path / "tiles", tiling="on")
    assert vae.use_tiling
    with pytest.raises(CardioDiTError, match="tiling='yes' must be one of"):
        encode(phantoms, vae, tmp_path / "wrong", tiling="yes")


def test_latents_of_an_older_version_that_do_not_tell_their_preprocessing(
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


def test_all_that_is_wrong_is_told_at_the_end(own_phantoms: Path, vae: VQModel4D, tmp_path: Path) -> None:
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


def test_volumes_of_several_sizes_are_noticed_at_once(vae: VQModel4D, tmp_path: Path) -> None:
    deep = write_cohort(tmp_path / "deep", num=1, size=(32, 32, 5, 8))
    flat = write_cohort(tmp_path / "flat", num=1, size=(32, 32, 3, 8))
    rows = [{"image": str(manifest.parent / rows_of(manifest)[0]["image"])} for manifest in (deep, flat)]
    write_manifest(tmp_path / "both.csv", rows)
    steps = Preprocessing(size=(32, 32, None), frames=8)
    with pytest.raises(CardioDiTError, match=r"\(8, 5, 8, 8, 2\) of .*deep.*\(8, 3, 8, 8, 2\) of .*flat.*Give a depth"):
        encode(tmp_path / "both.csv", vae, tmp_path / "out", steps=steps)
    counts, said = encode(tmp_path / "both.csv", vae, tmp_path / "out", steps=steps, depth=4)
    assert counts == Counts(changed=2) and "not the one that the VQ model was trained with" in said


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"depth": 0}, "must be three positive numbers"),
        ({"steps": Preprocessing(size=(32, 32, 32), frames=6)}, "must be a multiple of 4"),
        ({"steps": Preprocessing(size=(31, 32, 4), frames=8)}, "must be a multiple of 4"),
    ],
)
def test_settings_that_cannot_work(phantoms: Path, vae: VQModel4D, tmp_path: Path, settings, message) -> None:
    with pytest.raises(CardioDiTError, match=message):
        encode(phantoms, vae, tmp_path / "out", **settings)
    assert not list(tmp_path.glob("out/*"))


def test_models_that_cannot_be_used(phantoms: Path, make_vae: Callable, vae: VQModel4D, tmp_path: Path) -> None:
    with pytest.raises(CardioDiTError, match="does not say how its training volumes were prepared. Give a preset: cin"):
        encode(phantoms, make_vae(), tmp_path / "out")
    with pytest.raises(CardioDiTError, match="is in torch.bfloat16. Open it in float32"):
        encode(phantoms, vae.to(torch.bfloat16), tmp_path / "out")


def test_a_manifest_of_images_is_never_overwritten(own_phantoms: Path, vae: VQModel4D) -> None:
    before = own_phantoms.read_bytes()
    with pytest.raises(CardioDiTError, match="is no manifest of latents"):
        encode(own_phantoms, vae, own_phantoms.parent)
    assert own_phantoms.read_bytes() == before


def test_a_killed_run_goes_on_and_several_processes_share_the_work(make_vae: Callable, steps, tmp_path: Path) -> None:
    """Kill, go on, and two real processes: each time the same bytes as one run without interruption."""
    cohort = write_cohort(tmp_path / "cohort", num=4, size=(32, 32, 3, 8))
    vae = make_vae(channels=(32, 64), num_res_channels=(32, 64), preprocessing=steps.to_dict())
    vae.save_pretrained(tmp_path / "run" / "best" / "vae")
    encode(cohort, vae, tmp_path / "whole")

    def command(folder: str) -> list[str]:
        return ["encode", "--ids", str(cohort), "--vae", str(tmp_path / "run"), "--output_dir", str(tmp_path / folder)]

    sharing = begin_two(main, command("shared"), said=tmp_path / "said")
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
    said = (tmp_path / "said").read_text()
    assert [process.exitcode for process in sharing] == [0, 0], said
    assert "2 of 2" in said and said.count("4 new, 0 kept") == 1
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")
