"""Everything that does not belong in a published folder, put into a real one."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cardiodit.hub.checks.files import file_problems, folder_problems
from cardiodit.hub.publishing import check_folder
from cardiodit.imaging import Geometry
from cardiodit.imaging.nifti import read_nifti, write_nifti
from cardiodit.imaging.phantom import write_cohort
from cardiodit.latents import LatentHeader, write_latent
from cardiodit.viewer import Shown, write_viewer

DICOM = bytes(128) + b"DICM" + bytes(20)


def write(content: str | bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode() if isinstance(content, str) else content)


def save_weights(metadata: dict[str, str]) -> Callable[[Path], object]:
    return lambda path: save_file({"w": torch.zeros(2)}, path, metadata)


def save_latent(path: Path) -> None:
    latents = torch.zeros(2, 1, 2, 2, 1)
    write_latent(path, latents, LatentHeader("v", "p", "s", "float32", Geometry(), tuple(latents.shape), 1))


@pytest.mark.parametrize(
    "name, make, message",
    [
        ("model.pt", lambda path: torch.save({}, path), "is a pickle or may be one"),
        ("weights.bin", write(b"x"), "is a pickle or may be one"),
        ("a.ckpt", write(b"x"), "is a pickle or may be one"),
        ("a.pkl", lambda path: path.write_bytes(pickle.dumps({})), "is a pickle or may be one"),
        ("a.npy", lambda path: np.save(path, np.array([{}], object)), "holds pickled objects"),
        ("checkpoint-12/a.json", write("{}"), "left over from training"),
        ("optimizer.safetensors", save_weights({}), "left over from training"),
        ("run.json", write("{}"), "left over from training"),
        ("latents/a.safetensors", save_latent, "left over from training"),
        ("a.safetensors", save_latent, "holds the latents of a patient's image"),
        ("manifest-training.csv", write("image\na.nii\n"), "left over from training"),
        ("table.csv", write("image,subject\na.nii,p7\n"), "entries that tell of patients (subject)"),
        ("notes.txt", write("from /home/jane/ACDC"), "absolute paths (/home/jane/ACDC)"),
        ("notes.md", write(r"from C:\scans\doe"), r"absolute paths (C:\scans\doe)"),
        ("a.jsonl", write('{"a": "~/doe"}\n'), "absolute paths (~/doe)"),
        ("a.html", write("<p>file:///data</p>"), "absolute paths (file:///data)"),
        ("vae/extra.json", write('{"_name_or_path": "/data/runs/vae"}'), "absolute paths (/data/runs/vae)"),
        ("b.safetensors", save_weights({"from": "/home/jane/run"}), "absolute paths (/home/jane/run)"),
        ("c.safetensors", save_weights({"lora": '{"base": "C:\\\\x\\\\y"}'}), "(in its metadata)"),
        ("d.safetensors", write(b"\x08" + bytes(12)), "cannot be opened"),
        ("image", write(DICOM), "is a DICOM file"),
        ("picture.png", write(DICOM), "is a DICOM file"),
        ("side.json", write('{"PatientBirthDate": "19500101"}'), "(PatientBirthDate)"),
        ("a.yaml", write("PatientID: 7\n"), "(PatientID)"),
        ("a.json", write("{"), "is no valid JSON"),
        ("a.txt", write("Müller".encode("latin-1")), "is no UTF-8 text"),
        ("a.nii.gz", lambda path: write_nifti(path, np.zeros((4, 4, 2), np.float32), Geometry()), "not listed in a"),
        ("a.gif", lambda path: Image.new("L", (9, 9)).save(path, comment=b"DOE"), "more than a picture (comment)"),
        ("a.jpg", write(b"no"), "cannot be looked through"),
        ("patients.xlsx", write(b"PK"), "is of a kind that cannot be looked through"),
        (".DS_Store", write(b"x"), "is hidden"),
        (".git/config", write("x"), "is hidden"),
        ("link.txt", lambda path: path.symlink_to("/etc/hostname"), "is a link"),
    ],
)
def test_each_is_refused_alone(complete: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    (complete / name).parent.mkdir(parents=True, exist_ok=True)
    make(complete / name)
    (sentence,) = check_folder(complete).found
    first = name.partition("/")[0]
    assert sentence.startswith(first) and message in sentence and sentence.endswith("."), sentence


def test_what_people_publish_passes(complete: Path, samples: Path, tmp_path: Path) -> None:
    (complete / "samples").mkdir()
    for path in samples.iterdir():
        (complete / "samples" / path.name).write_bytes(path.read_bytes())
    write_viewer(complete / "hearts.html", [Shown("heart", read_nifti(next(samples.glob("*.nii.gz"))))])
    (complete / "LICENSE").write_text("As you like. https://creativecommons.org/licenses/by-nc/4.0/")
    (complete / "metrics.json").write_text('{"fid": 3.5, "unit": "mm/s"}')
    np.save(complete / "curve.npy", np.arange(4))
    save_file({"w": torch.zeros(2)}, complete / "adapter.safetensors", {"format": "pt"})
    assert check_folder(complete).found == []


def test_a_phantoms_manifest_is_refused_by_its_columns(complete: Path) -> None:
    manifest = write_cohort(complete.parent / "hearts", num=1, size=(32, 32, 4, 4))
    (complete / "list.csv").write_bytes(manifest.read_bytes())
    (sentence,) = file_problems(complete)
    assert "subject" in sentence


def test_what_is_no_whole_pipeline_folder(model: Path) -> None:
    assert list(folder_problems(model)) == []
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert any("its header promises" in sentence for sentence in file_problems(model))
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (model / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (model / "scheduler" / "scheduler_config.json").unlink()
    found = "\n".join(folder_problems(model))
    assert "names the part scheduler" in found and "names part-1.safetensors" in found
    weights.unlink()
    assert "contains no weights" in next(folder_problems(model))
    (model / "model_index.json").write_text("[")
    assert list(folder_problems(model)) != []
    (model / "model_index.json").unlink()
    assert "so it is not a pipeline folder" in next(folder_problems(model))
