"""Plant patients' names wherever a clinic's data hold them, and follow them through the whole chain.

    python benchmarks/names.py --output names.md      # a few minutes

Names are planted in the text fields and extensions of NIfTI headers, in DICOM tags, in the names of files and folders,
and in the cells and the heading of a table. The data are prepared, encoded and trained on; the model is sampled,
evaluated, described by a card, checked for publishing, and exported. The table says in which outputs each name is
found, in contents (decompressed) or file names. A name in what `cardiodit publish` accepts, in samples or in an export
is a failure; so is a file with a name that `publish` does not refuse.
"""

import argparse
import gzip
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bad_input import command, script, write_dicom

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures" / "saved"
PLANTED = {
    "NIfTI header": "Zebedee",
    "NIfTI extension": "Quimbyson",
    "DICOM tags": "Featherstonehaugh",
    "file name": "Wigglesworth",
    "folder name": "Throckmorton",
    "table cell (centre)": "Bartholomew",
    "table cell (other column)": "Cholmondeley",
    "table heading": "Ermintrude",
}
PUBLIC = ("samples", "pipeline with card", "export")  # in these, no name may be found
FACTS = {
    **dict.fromkeys(("cohort", "consent", "scanners", "lacks", "evaluation", "memorization", "country"), "as stated"),
    "license": "apache-2.0",
    "datasets": ["a cohort"],
    "contact": "the department",
    "repository": "org/name",
}


def plant(folder: Path) -> tuple[Path, Path]:
    """Write a cohort of NIfTI files, and one of DICOM files, that hold the names; return their folders."""
    import nibabel
    import pydicom

    cohort, dicom = folder / PLANTED["folder name"] / "nifti", folder / PLANTED["folder name"] / "dicom"
    cohort.mkdir(parents=True)
    for number, source in enumerate(sorted((FIXTURES / "run-0.1/images/training/images").glob("*.nii.gz"))):
        image: Any = nibabel.load(source)
        for field in ("descrip", "aux_file", "intent_name", "db_name"):
            image.header[field] = PLANTED["NIfTI header"].encode()
        comment = nibabel.nifti1.Nifti1Extension("comment", PLANTED["NIfTI extension"].encode())
        image.header.extensions.append(comment)
        nibabel.save(image, cohort / f"{PLANTED['file name']}-{number}.nii.gz")
    for number in range(4):
        for path in write_dicom(dicom / f"{PLANTED['folder name']}-{number}", "MR"):
            data = pydicom.dcmread(path)
            for tag in ("PatientName", "ReferringPhysicianName", "OperatorsName", "InstitutionName", "StudyID"):
                setattr(data, tag, PLANTED["DICOM tags"][:16])
            data.PatientComments = data.ImageComments = data.SeriesDescription = PLANTED["DICOM tags"]
            # The cines differ, so that they are not one patient's.
            pixels = np.frombuffer(data.PixelData, np.uint16) + 7 * number
            data.PixelData = pixels.astype(np.uint16).tobytes()
            data.save_as(path)
    return cohort, dicom


def table(cohort: Path, path: Path) -> Path:
    """Write a table of the subjects, who are named by their files, with names in cells and in the heading."""
    lines = [f"subject,label,centre,{PLANTED['table heading']}"]
    for image in sorted(cohort.glob("*.nii.gz")):
        subject, centre = image.name.partition(".")[0], PLANTED["table cell (centre)"]
        lines.append(f"{subject},normal,{centre},{PLANTED['table cell (other column)']}")
    path.write_text("\n".join(lines) + "\n")
    return path


def found_in(folder: Path) -> dict[str, set[str]]:
    """Return the files of a folder, by the planted name that their content or path holds."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        texts = [name.encode(), *(_plain(path) if path.is_file() else [])]
        for source, planted in PLANTED.items():
            needles = (planted.encode(), planted.lower().encode(), planted[:16].encode())
            if any(needle in text for text in texts for needle in needles):
                found[source].add(path.name if path.suffix != "" else name)
    return found


def _plain(path: Path) -> list[bytes]:
    """Return a file's bytes, and what is compressed in it."""
    content = path.read_bytes()
    plain = [content]
    if path.suffix == ".gz":
        plain.append(gzip.decompress(content))
    if content[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            plain += [archive.read(name) for name in archive.namelist()]
    return plain


def follow(work: Path) -> tuple[dict[str, dict[str, set[str]]], list[str]]:
    """Run the whole chain; return where names are found by stage, and the failures."""
    cohort, dicom = plant(work / "clinic")
    stages: dict[str, dict[str, set[str]]] = {}
    failures: list[str] = []

    def stage(name: str, folder: Path, *arguments: object) -> None:
        end, said = command(*arguments)
        if end != "a result":
            raise RuntimeError(f"{name} ended in {end}: {said[-1500:]}")
        stages[name] = found_in(folder)
        print(f"{name}: {end}", flush=True)

    data = table(cohort, work / "table.csv")
    prepared, latents, samples = work / "prepared", work / "latents", work / "samples"
    split = ("--fractions", 0.6, 0.2, 0.2, "--min_slices", 1)
    stage("prepare", prepared, "prepare", "folder", cohort, "--table", data, "--output_dir", prepared, *split)
    stage("prepare dicom", work / "stacks", "prepare", "dicom", dicom, "--output_dir", work / "stacks", *split)
    manifests = [prepared / f"{name}.csv" for name in ("training", "validation", "test")]
    common = ("--cpu", "--output_dir", work / "runs", "--max_train_steps", 4, "--report_to", "none")
    settings = yaml.safe_load((FIXTURES / "run-0.1/vqgan.yaml").read_text())
    settings["data"]["cache"] = "disk"
    (work / "vqgan.yaml").write_text(yaml.safe_dump(settings))
    ids = ("--training_ids", manifests[0], "--validation_ids", manifests[1])
    print(script("train_vqgan", "--config", work / "vqgan.yaml", *ids, *common, "--run_name", "vqgan")[0], flush=True)
    stages["run of stage 1"] = found_in(work / "runs/vqgan")
    stages["cache"] = found_in(work / "runs/cache")
    vae = ("--vae", work / "runs/vqgan")
    stage("encode", latents, "encode", "--ids", *manifests[:2], *vae, "--output_dir", latents, "--device", "cpu")
    command("scale-factor", "--latents", latents / "training/manifest.csv", *vae)
    ids = tuple(
        item
        for option, name in (("--training_ids", "training"), ("--validation_ids", "validation"))
        for item in (option, latents / name / "manifest.csv")
    )
    config = ("--config", FIXTURES / "run-0.1/dit.yaml", "--preview_samples", 0, "--dataloader_num_workers", 0)
    print(script("train_dit", *config, *ids, *vae, *common, "--run_name", "dit"), flush=True)
    stages["run of stage 2"] = found_in(work / "runs/dit")
    pipeline = work / "runs/dit/pipeline"
    stage("samples", samples, "sample", pipeline, "--output_dir", samples, "--num_samples", 4, "--device", "cpu")
    evaluation = work / "evaluation"
    sets = ("--real", manifests[0], "--synthetic", samples, "--output_dir", evaluation)
    stage("evaluate", evaluation, "evaluate", *sets)
    (work / "facts.yaml").write_text(yaml.safe_dump(FACTS))
    card = ("--facts", work / "facts.yaml", "--previews", samples, "--evaluation", evaluation / "report.json")
    stage("pipeline with card", pipeline, "publish", pipeline, "org/name", "--dry_run", *card)
    stage("export", work / "export", "export", pipeline, "--output_dir", work / "export")
    failures += [
        f"{source} in {name}: {sorted(files)}" for name in PUBLIC for source, files in stages.get(name, {}).items()
    ]
    failures += refused(pipeline, [next(cohort.glob("*.nii.gz")), next(dicom.rglob("*.dcm")), manifests[0], data])
    return stages, failures


def refused(pipeline: Path, files: list[Path]) -> list[str]:
    """Put files with names into the folder, one at a time; return those that `publish` does not refuse."""
    accepted = []
    for file in files:
        copy = Path(shutil.copy(file, pipeline / f"added{''.join(file.suffixes)}"))
        end, _ = command("publish", pipeline, "org/name", "--dry_run")
        if end == "a result":
            accepted.append(f"publish accepts {file.name} in the folder")
        copy.unlink()
    return accepted


def as_table(stages: dict[str, dict[str, set[str]]]) -> str:
    lines = ["| name planted in | " + " | ".join(stages) + " |", "|---" * (len(stages) + 1) + "|"]
    for source in PLANTED:
        cells = [", ".join(sorted({_kind(name) for name in found.get(source, ())})) for found in stages.values()]
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kind(name: str) -> str:
    """Return a file's name with the planted one left out."""
    for planted in PLANTED.values():
        name = name.replace(planted, "…")
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        stages, failures = follow(Path(folder))
    print(as_table(stages))
    for failure in failures:
        print(f"FAILED: {failure}")
    if arguments.output:
        arguments.output.write_text(as_table(stages) + "\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
