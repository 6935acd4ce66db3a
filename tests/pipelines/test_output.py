import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from cardiodit import CardioDiTError, CardioDiTPipeline
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
