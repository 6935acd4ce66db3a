import base64
import io
import json
import re
import webbrowser
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from cardiodit import CardioDiTError, CardioDiTPipeline, Geometry, VolumePipelineOutput
from cardiodit.imaging import Intensity, Preprocessing

from ..conftest import PREPARED

KNOWN = {"spacing": (1.5, 1.5, 8.0), "frame_time": 0.04, "scaling_factor": 1.25}


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_saving_writes_volumes_pictures_and_how_they_were_made(make_pipe, tmp_path: Path) -> None:
    make_pipe(vae=KNOWN, num_classes=2, class_dropout_prob=0.1, class_names=["a", "b"]).save_pretrained(tmp_path / "m")
    pipe = CardioDiTPipeline.from_pretrained(tmp_path / "m")
    out = pipe(seed=5, num_inference_steps=3, class_labels=["b", "a"], guidance_scale=2.0)
    paths = out.save(tmp_path / "samples")
    assert [p.name for p in paths] == ["seed5-00000.nii.gz", "seed5-00001.nii.gz"]
    image = nibabel.load(paths[1])
    assert np.array_equal(image.get_fdata(dtype=np.float32), out.volumes[1].numpy())
    assert image.header.get_zooms() == pytest.approx((1.5, 1.5, 8.0, 0.04))
    first, second = lines(tmp_path / "samples")
    assert (second["file"], second["seed"], second["index"], second["class_label"]) == (paths[1].name, 5, 1, "a")
    assert second["solver"] == "DPMSolverMultistepScheduler"
    assert second["num_inference_steps"] == 3 and second["guidance_scale"] == 2.0
    assert second["seconds"] > 0 and second["model"] == "m" and second["revision"].startswith("sha256:")
    assert str(tmp_path) not in json.dumps(first), "paths can tell of patients"
    assert sorted(p.suffix for p in (tmp_path / "samples").iterdir()) == [".gif", ".gif", ".gz", ".gz", ".jsonl"]


def test_a_single_sample_is_saved_as_the_file_that_is_named(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe(vae=KNOWN)
    out = pipe(seed=5, num_inference_steps=1)
    file = tmp_path / "new" / "heart.nii.gz"
    assert out.save(file) == [file] and [path.name for path in file.parent.iterdir()] == ["heart.nii.gz"]
    image = nibabel.load(file)
    assert np.array_equal(image.get_fdata(dtype=np.float32), out.volumes[0].numpy())
    assert image.header.get_zooms() == pytest.approx((1.5, 1.5, 8.0, 0.04))
    with pytest.raises(CardioDiTError, match="heart.nii.gz already exists and is not replaced"):
        out.save(str(file))
    with pytest.raises(CardioDiTError, match="two.nii is one file, and there are 2 samples: give save.. a folder"):
        pipe(num_samples=2, seed=0, num_inference_steps=1).save(tmp_path / "two.nii")
    assert not (tmp_path / "two.nii").exists()


def test_a_model_of_unknown_geometry_says_so(make_pipe, tmp_path: Path) -> None:
    (path,) = make_pipe()(seed=0, num_inference_steps=1).save(tmp_path)
    header = nibabel.load(path).header
    assert header["sform_code"] == 0 and header.get_xyzt_units()[0] == "unknown"


def test_a_model_that_knows_its_units_writes_them(make_pipe, tmp_path: Path) -> None:
    """The preprocessing travels in the model's folder, and what it did is undone."""
    steps = Preprocessing(intensity=Intensity("p0.5", "p99.5", typical=(20, 1020)), frames=16)
    make_pipe(vae={**KNOWN, "preprocessing": steps.to_dict()}).save_pretrained(tmp_path / "m")
    pipe = CardioDiTPipeline.from_pretrained(tmp_path / "m")
    assert Preprocessing.from_dict(pipe.vae.config.preprocessing) == steps and pipe.units == (20, 1020)
    out = pipe(seed=0, num_inference_steps=1)
    (path,) = out.save(tmp_path / "samples")
    written = nibabel.load(path)
    assert written.get_data_dtype() == np.int16
    assert np.allclose(written.get_fdata(), (out.volumes[0].numpy() + 1) * 500 + 20, atol=0.51)
    assert lines(tmp_path / "samples")[0]["units"] == [20, 1020]
    assert make_pipe().units is None


def test_the_revision_follows_the_weights(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe()
    assert pipe(num_inference_steps=1).records[0]["revision"] is None
    pipe.save_pretrained(tmp_path / "a")
    pipe.transformer.proj_out.bias.data += 1
    pipe.save_pretrained(tmp_path / "b")
    revisions = [
        CardioDiTPipeline.from_pretrained(tmp_path / name)(num_inference_steps=1).records[0]["revision"]
        for name in ("a", "a", "b")
    ]
    assert revisions[0] == revisions[1] != revisions[2]


def test_a_folder_is_filled_over_many_calls_and_nothing_is_replaced(make_pipe, tmp_path: Path) -> None:
    pipe = make_pipe()
    for first in (0, 2):
        pipe(num_samples=2, seed=1, first_sample=first, num_inference_steps=1).save(tmp_path / "s")
    assert [line["index"] for line in lines(tmp_path / "s")] == [0, 1, 2, 3]
    before = (tmp_path / "s" / "seed1-00003.nii.gz").read_bytes()
    with pytest.raises(CardioDiTError, match="seed1-00003.nii.gz already exists and is not replaced"):
        pipe(seed=1, first_sample=3, num_inference_steps=2).save(tmp_path / "s")
    assert (tmp_path / "s" / "seed1-00003.nii.gz").read_bytes() == before
    assert len(lines(tmp_path / "s")) == 4


def test_a_folder_that_holds_something_else_is_left_alone(make_pipe, tmp_path: Path) -> None:
    out = make_pipe()(num_inference_steps=1)
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(CardioDiTError, match="contains other files"):
        out.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.docx"]
    with pytest.raises(CardioDiTError, match="is a file; save.. needs a folder"):
        out.save(tmp_path / "thesis.docx")


def test_only_volumes_can_be_saved(make_pipe, tmp_path: Path) -> None:
    for output_type in ("pt", "latent"):
        with pytest.raises(CardioDiTError, match='output_type="volumes" or "np"'):
            make_pipe()(num_inference_steps=1, output_type=output_type).save(tmp_path / "s")
    assert not (tmp_path / "s").exists()
    assert len(make_pipe()(num_inference_steps=1, output_type="np").save(tmp_path / "s")) == 1


def test_records_of_generators_and_given_latents(make_pipe) -> None:
    pipe = make_pipe()
    generators = [torch.Generator().manual_seed(s) for s in (8, 9)]
    records = pipe(generator=generators, num_inference_steps=1).records
    assert [(r["seed"], r["generator_seed"]) for r in records] == [(None, 8), (None, 9)]
    (record,) = pipe(latents=torch.zeros(1, 8, 2, 8, 8, 4), seed=0, num_inference_steps=1).records
    assert record["given_latents"] is True


def sample_into(model: Path, folder: Path, first: int) -> None:
    torch.set_num_threads(1)
    pipe = CardioDiTPipeline.from_pretrained(model)
    pipe(num_samples=2, seed=3, first_sample=first, num_inference_steps=2).save(folder)


def test_two_processes_make_what_one_makes(make_pipe, tmp_path: Path) -> None:
    make_pipe().save_pretrained(tmp_path / "model")
    workers = [PREPARED.Process(target=sample_into, args=(tmp_path / "model", tmp_path / "two", f)) for f in (0, 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    pipe = CardioDiTPipeline.from_pretrained(tmp_path / "model")
    for path in pipe(num_samples=4, seed=3, num_inference_steps=2).save(tmp_path / "one"):
        one, two = (nibabel.load(folder / path.name).get_fdata() for folder in (tmp_path / "one", tmp_path / "two"))
        assert np.abs(one - two).mean() < 1e-3
    assert {line["file"] for line in lines(tmp_path / "two")} == {line["file"] for line in lines(tmp_path / "one")}


# --- In a notebook ---


@pytest.fixture
def out(make_pipe) -> VolumePipelineOutput:
    """Six samples of two classes."""
    labelled = {"num_classes": 2, "class_dropout_prob": 0.1, "class_names": ["dilated", "normal"]}
    return make_pipe(vae=KNOWN, **labelled)(["dilated", "normal"] * 3, num_inference_steps=1, seed=4)


def gif_in(html: str) -> Image.Image:
    found = re.search('src="data:image/gif;base64,([^"]+)"', html)
    assert found is not None
    return Image.open(io.BytesIO(base64.b64decode(found[1])))


def test_an_output_describes_itself_in_one_line(out: VolumePipelineOutput, make_pipe) -> None:
    size = " × ".join(map(str, out.volumes.shape[1:4]))
    facts = f"6 cines of {size} voxels, {out.volumes.shape[4]} frames, 1.5 × 1.5 × 8 mm, 40 ms per frame, seed 4"
    assert repr(out) == str(out) == f"VolumePipelineOutput({facts}: dilated, normal, dilated, normal …)"
    plain = make_pipe()(num_inference_steps=1, seed=0, first_sample=7)
    assert "mm" not in repr(plain) and repr(plain).endswith("frames, seed 0: sample 7)")
    latents = make_pipe()(num_inference_steps=1, output_type="latent")
    assert repr(latents) == f"VolumePipelineOutput(Tensor of shape {tuple(latents.volumes.shape)})"
    assert latents._repr_html_() == f"<p>{latents!r}</p>"


def test_an_output_shows_its_first_samples_beating(out: VolumePipelineOutput) -> None:
    html = out._repr_html_()
    with gif_in(html) as gif:
        assert gif.n_frames == out.volumes.shape[4] and gif.info["duration"] == 40 and gif.info["loop"] == 0
        assert gif.height == 4 * 96
    assert "the first 4" in html and "dilated" in html
    assert "the first" not in out[:2]._repr_html_()
    name = VolumePipelineOutput(out.volumes[:1], [{**out.records[0], "class_label": "<b>"}], out.geometry)
    assert "<b>" not in name._repr_html_() and "&lt;b&gt;" in name._repr_html_()


def test_each_sample_is_an_output_of_its_own(out: VolumePipelineOutput, tmp_path: Path) -> None:
    assert torch.equal(out[1].volumes, out.volumes[1:2]) and out[1].records == out.records[1:2]
    assert out[1].geometry == out.geometry and out[-1].records[0]["index"] == 5
    assert [record["index"] for record in out[1:6:2].records] == [1, 3, 5]
    assert out["volumes"] is out.volumes and out.to_tuple()[0] is out.volumes
    assert [path.name for path in out[2].save(tmp_path)] == ["seed4-00002.nii.gz"]
    with pytest.raises(IndexError, match="There is no sample 6: this output has 6"):
        out[6]


def test_a_gif_of_all_samples(out: VolumePipelineOutput, tmp_path: Path) -> None:
    path = out[:2].to_gif(tmp_path / "new" / "hearts.gif")
    with Image.open(path) as gif:
        frames = [np.array(frame.convert("L")) for frame in ImageSequence.Iterator(gif)]
    assert len(frames) == out.volumes.shape[4] and frames[0].shape[0] == 2 * 96
    assert any(not np.array_equal(frame, frames[0]) for frame in frames)
    voxels = np.linspace(-1, 1, 48 * 48 * 40, dtype=np.float32).reshape(48, 48, 40)
    chest = VolumePipelineOutput(voxels[None], out.records[:1], Geometry((2.0, 2.0, 2.0)))
    with gif_in(chest._repr_html_()) as gif:  # runs through the slices
        assert gif.n_frames == 32
    with pytest.raises(CardioDiTError, match=r"to_gif\(\) needs volumes"):
        VolumePipelineOutput(out.volumes).to_gif(tmp_path / "none.gif")


def test_show_opens_the_viewer_in_the_browser(
    out: VolumePipelineOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "opened.txt"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{note}"\n')
    browser.chmod(0o755)
    monkeypatch.setattr(webbrowser, "_tryorder", ["ours"])
    monkeypatch.setattr(webbrowser, "_browsers", {"ours": [None, webbrowser.GenericBrowser([str(browser), "%s"])]})
    kept = out[:2].show(tmp_path / "hearts.html")
    assert kept == tmp_path / "hearts.html" and note.read_text().strip() == kept.as_uri()
    temporary = out[0].show()
    assert temporary is not None and note.read_text().strip() == temporary.as_uri()
    assert "<title>dilated, normal</title>" in kept.read_text()


def test_a_pipeline_tells_its_labels_and_takes_one_first(make_pipe) -> None:
    names = {"num_classes": 2, "class_dropout_prob": 0.1, "class_names": ["dilated", "normal"]}
    pipe = make_pipe(**names)
    assert pipe.labels == ["dilated", "normal"]
    assert make_pipe(num_classes=3).labels == [0, 1, 2] and make_pipe().labels == []
    first, named = pipe("normal", 1, seed=0), pipe(class_labels="normal", num_inference_steps=1, seed=0)
    assert torch.equal(first.volumes, named.volumes) and first.records[0]["class_label"] == "normal"
    assert [record["class_label"] for record in pipe(["normal", 0], 1).records] == ["normal", "dilated"]
    with pytest.raises(CardioDiTError, match="num_samples='normal' must be a whole number"):
        pipe("normal", class_labels="dilated")
    with pytest.raises(CardioDiTError, match="no class label 'norml' in this model; choose 0 to 1 or dilated, normal"):
        pipe("norml")
