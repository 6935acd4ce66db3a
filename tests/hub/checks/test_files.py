"""Files that do not belong in a published folder, paths and DICOM tags in text, and harmless look-alikes."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from cardiodit.hub.checks.files import (
    CHECKED,
    CHECKS,
    absolute_paths,
    file_problems,
    findings_in_csv,
    findings_in_json,
    findings_in_jsonl,
    findings_in_text,
    findings_in_yaml,
    folder_problems,
)
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
        ("model.pt", lambda path: torch.save({}, path), "is or may be a pickle"),
        ("weights.bin", write(b"x"), "is or may be a pickle"),
        ("a.ckpt", write(b"x"), "is or may be a pickle"),
        ("a.pkl", lambda path: path.write_bytes(pickle.dumps({})), "is or may be a pickle"),
        ("a.npy", lambda path: np.save(path, np.array([{}], object)), "contains pickled objects"),
        ("checkpoint-12/a.json", write("{}"), "left over from training"),
        ("optimizer.safetensors", save_weights({}), "left over from training"),
        ("run.json", write("{}"), "left over from training"),
        ("latents/a.safetensors", save_latent, "left over from training"),
        ("a.safetensors", save_latent, "contains the latents of a patient's image"),
        ("manifest-training.csv", write("image\na.nii\n"), "left over from training"),
        ("table.csv", write("image,subject\na.nii,p7\n"), "entries that describe patients (subject)"),
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
        ("a.json", write("{"), "is not valid JSON"),
        ("a.txt", write("Müller".encode("latin-1")), "is not UTF-8 text"),
        ("a.nii.gz", lambda path: write_nifti(path, np.zeros((4, 4, 2), np.float32), Geometry()), "not listed in a"),
        ("a.gif", lambda path: Image.new("L", (9, 9)).save(path, comment=b"DOE"), "more than a picture (comment)"),
        ("a.jpg", write(b"no"), "cannot be checked"),
        ("patients.xlsx", write(b"PK"), "is of a kind that cannot be checked"),
        (".DS_Store", write(b"x"), "is hidden"),
        (".git/config", write("x"), "is hidden"),
        ("link.txt", lambda path: path.symlink_to("/etc/hostname"), "is a link"),
    ],
)
def test_each_unwanted_file_is_refused(complete: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    (complete / name).parent.mkdir(parents=True, exist_ok=True)
    make(complete / name)
    (sentence,) = check_folder(complete).found
    first = name.partition("/")[0]
    assert sentence.startswith(first) and message in sentence and sentence.endswith("."), sentence


def test_ordinary_files_pass(complete: Path, samples: Path, tmp_path: Path) -> None:
    (complete / "samples").mkdir()
    for path in samples.iterdir():
        (complete / "samples" / path.name).write_bytes(path.read_bytes())
    write_viewer(complete / "hearts.html", [Shown("heart", read_nifti(next(samples.glob("*.nii.gz"))))])
    (complete / "LICENSE").write_text("As you like. https://creativecommons.org/licenses/by-nc/4.0/")
    (complete / "metrics.json").write_text('{"fid": 3.5, "unit": "mm/s"}')
    np.save(complete / "curve.npy", np.arange(4))
    save_file({"w": torch.zeros(2)}, complete / "adapter.safetensors", {"format": "pt"})
    assert check_folder(complete).found == []


def test_every_check_is_described() -> None:
    assert set(CHECKS) == set(CHECKED)


def test_a_phantoms_manifest_is_refused_by_its_columns(complete: Path) -> None:
    manifest = write_cohort(complete.parent / "hearts", num=1, size=(32, 32, 4, 4))
    (complete / "list.csv").write_bytes(manifest.read_bytes())
    (sentence,) = file_problems(complete)
    assert "subject" in sentence


def test_incomplete_pipeline_folders(model: Path) -> None:
    assert list(folder_problems(model)) == []
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert any("its header describes" in sentence for sentence in file_problems(model))
    index = {"weight_map": {"a": "part-1.safetensors"}}
    (model / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (model / "scheduler" / "scheduler_config.json").unlink()
    problems = "\n".join(folder_problems(model))
    assert "lists the component scheduler" in problems and "lists part-1.safetensors" in problems
    weights.unlink()
    assert "contains no weights" in next(folder_problems(model))
    (model / "model_index.json").write_text("[")
    assert list(folder_problems(model)) != []
    (model / "model_index.json").unlink()
    assert "so it is not a pipeline folder" in next(folder_problems(model))


@pytest.mark.parametrize(
    "text",
    [
        "/home/jane/ACDC",
        "trained on /data/acdc.",
        "`/mnt/x/y.nii.gz`",
        "path=/scratch/jd/runs",
        "a:/cluster/proj/x",
        "(/Users/Jane Doe/x)",
        "<td>/srv/pacs/1</td>",
        "/doe_john.nii",
        "~/hearts/doe",
        "~jane/hearts",
        r"C:\Users\jane",
        "D:/scans/doe",
        r"\\server\share\doe",
        "file:///etc/x",
        "file://server/x",
        "/Müller/scan",
    ],
)
def test_paths_are_found(text: str) -> None:
    assert len(absolute_paths(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/lab/hearts/tree/main",
        "see http://a.b/c/d.html",
        "and/or",
        "mm/s, g/kWh, 3 /s",
        "runs/vqgan/best",
        "./a/b and ../c/d",
        "org/name",
        "1/2/3",
        "</div></td>",
        "<br/>",
        "~5/6 of them",
        "a // b and /* c */",
        "x:y",
        "12:30/13:00",
        r"\alpha\beta",
        "sha256:abc/def",
        "[text](docs/a/b.md)",
        "/",
        "A/B testing of H/W",
        "data:image/jpeg;base64,/9j/" + "4AAQSkZJRgABAQ/" * 30,
        '"' + "/AAB" * 80 + '"',
    ],
)
def test_look_alikes_of_paths_are_ignored(text: str) -> None:
    assert absolute_paths(text) == []


@pytest.mark.parametrize(
    "content",
    [
        '{"a": [{"PatientName": "x"}]}',
        '{"patient_name": "x"}',
        '{"Patient\'s Name": "x"}',
        '{"00100010": {"vr": "PN"}}',
        '{"(0010,0020)": "7"}',
        '{"StudyInstanceUID": "1.2.3"}',
        '{"InstitutionName": ""}',
        '{"subject": "p7"}',
    ],
)
def test_keys_that_describe_patients(content: str) -> None:
    assert ["describe patients" in finding for finding in findings_in_json(content)] == [True]


def test_json_is_parsed_and_not_only_searched() -> None:
    escaped = r'{"a": "\u002fhome\/jane", "b": "C:\\Users\\x", "c": "A:\nB", "/data/doe/x": 1}'
    (finding,) = findings_in_json(escaped)
    assert "/data/doe/x, /home/jane, C:\\Users\\x" in finding
    lines = '{"seed": 1}\n{"model": "/home/jane/model"}\n'
    assert len(list(findings_in_jsonl(lines))) == 1
    assert "not valid JSON" in next(findings_in_json("{"))
    assert list(findings_in_json('{"beta": -Infinity, "patients": 100, "loss": null}')) == []


def test_yaml_with_its_comments_csv_and_prose() -> None:
    assert len(list(findings_in_yaml("a: 1  # from /home/jane/x\nb:\n  PatientID: 3\n"))) == 2
    assert "not valid YAML" in next(findings_in_yaml("a: [1"))
    assert "subject" in next(findings_in_csv("image,subject\na.nii,p1\n"))
    assert "subject" in next(findings_in_csv("image;subject\na.nii;p1\n"))
    assert list(findings_in_csv("step,loss\n1,0.5\n")) == []
    assert "DICOM tags" in next(findings_in_text("PatientName: DOE^JANE"))
    assert "DICOM tags" in next(findings_in_text("(0010,0010) PN [DOE^JANE]"))
    assert list(findings_in_text("Nobody's PatientName is in a sample; patients: 40.")) == []
    assert "/home/jane" in next(findings_in_text("<a href='&#47;home/jane'>"))
    many = " ".join(f"/home/p{i}/x" for i in range(9))
    assert "and 6 more" in next(findings_in_text(many))
