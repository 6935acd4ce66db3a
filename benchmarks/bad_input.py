"""Run every reader and command on bad files, and count how they end.

    python benchmarks/bad_input.py --output bad_input.json      # all cases; about half an hour on a core

A case ends well in one clear sentence of ours with exit code 1 or 2, or, if the file can be used after all, in a
result. It ends badly in a traceback, in an error that nobody foresaw (the sentence of the outermost boundary), after
more than a minute, or with more than 1.5 GiB of additional memory. Cases run one after the other in a child process,
which is replaced when a case takes too long.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from bad_files import (
    SPECIAL,
    Contents,
    bad_checkpoints,
    bad_dicom,
    bad_gzipped_nifti,
    bad_json,
    bad_nifti,
    bad_npz,
    bad_objects,
    bad_safetensors,
    bad_tables,
    bad_yaml,
    changed_values,
    put,
)

from cardiodit.errors import CardioDiTError

FIXTURES = Path(__file__).parents[1] / "tests" / "fixtures"
SENTENCE, RESULT = "a clear sentence", "a result"
UNFORESEEN, TRACEBACK, SLOW, LARGE = "an unforeseen error", "a traceback", "too slow", "too much memory"
LONG_SECONDS, MOST_SECONDS, MOST_BYTES = 5.0, 60.0, 1.5 * 2**30
# One step of training, in this process.
SHORT = (*("--max_train_steps", 1, "--validation_steps", 1, "--dataloader_num_workers", 0, "--report_to", "none"),)


@dataclass(frozen=True)
class Case:
    """A bad input: `run` puts it in its place, opens it, and returns how that ended, with what was printed."""

    target: str
    name: str
    run: Callable[[], tuple[str, str]]


# ---- How a case ends


def read(reader: Callable[[], Any], file: str) -> tuple[str, str]:
    """Call a reader; its error must be ours and name the file."""
    try:
        reader()
    except CardioDiTError as error:
        return (SENTENCE if file in str(error) else f"{SENTENCE} without the file's name"), str(error)
    except BaseException as error:
        return TRACEBACK, f"{type(error).__name__}: {error}"
    return RESULT, ""


def command(*arguments: object) -> tuple[str, str]:
    """Run a command in this process."""
    from cardiodit.cli import main

    return ended(lambda: main([str(argument) for argument in arguments]))


def script(name: str, *arguments: object) -> tuple[str, str]:
    """Run a training script in this process."""
    from importlib import import_module

    from accelerate.state import AcceleratorState

    from cardiodit.training.harness.processes import run_script

    module = import_module(f"cardiodit.training.{name}")
    AcceleratorState._reset_state(reset_partial_state=True)
    return ended(lambda: run_script(lambda: module.main([str(argument) for argument in arguments])))


def ended(run: Callable[[], int | None]) -> tuple[str, str]:
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = run() or 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        return TRACEBACK, f"{type(error).__name__}: {error}"
    text = said.getvalue()
    if "Traceback" in text:
        return TRACEBACK, text[-2000:]
    if "Something unexpected" in text:
        return UNFORESEEN, text[-2000:]
    if code == 0:
        return RESULT, ""
    return (SENTENCE if "error:" in text or code == 3 else "no sentence"), text[-600:]


# ---- The cases


def all_cases(work: Path) -> Iterator[Case]:
    """Yield every case; `work` is an empty folder for good and bad files."""
    for cases in (readers, images, models, latents_and_tables, cards, conversions, trainings):
        folder = work / cases.__name__
        folder.mkdir(parents=True, exist_ok=True)
        yield from cases(folder)


def cases_of(
    target: str, path: Path, contents: Contents, run: Callable[[], tuple[str, str]], every: int = 1
) -> Iterator[Case]:
    """Yield a case for each content of a file, or for every n-th; the good file is put back afterwards."""
    good = path.read_bytes() if path.is_file() else None

    def with_content(content: Any) -> tuple[str, str]:
        try:
            put(path, content)
            return run()
        finally:
            put(path, good if good is not None else SPECIAL["missing"])

    for name, content in islice({**contents, **SPECIAL}.items(), 0, None, every):
        yield Case(target, name, lambda content=content: with_content(content))


def reading(target: str, path: Path, contents: Contents, reader: Callable[[Path], Any]) -> Iterator[Case]:
    yield from cases_of(target, path, contents, lambda: read(lambda: reader(path), path.name))


def readers(work: Path) -> Iterator[Case]:
    """Every function that reads a foreign file."""
    from cardiodit._util.sample_records import read_sample_list
    from cardiodit._util.typed_yaml import read_yaml
    from cardiodit.convert.checkpoint import convert_weights, read_checkpoint
    from cardiodit.evaluation.features.weights import read_weights
    from cardiodit.evaluation.report import read_report
    from cardiodit.hub.card.model_facts import read_weight_header
    from cardiodit.hub.card.owner_facts import read_facts
    from cardiodit.imaging.dicom import read_dicom, read_dicom_ct
    from cardiodit.imaging.manifest import read_manifest
    from cardiodit.imaging.masks import read_label_map
    from cardiodit.imaging.nifti import read_nifti
    from cardiodit.imaging.npz import read_npz
    from cardiodit.latents import read_latent

    image = plain_nifti(work / "a.nii")
    yield from reading("read_nifti", work / "a.nii", bad_nifti(image), read_nifti)
    yield from reading("read_nifti", work / "a.nii.gz", bad_gzipped_nifti(image), read_nifti)
    yield from reading("read_label_map", work / "mask.nii", bad_nifti(image), read_label_map)
    cube = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    yield from reading("read_npz", work / "a.npz", bad_npz(cube), lambda path: read_npz(path, (1.0, 1.0, 1.0)))
    latent = next((FIXTURES / "saved/run-0.1/latents/training").glob("*.safetensors"))
    weights = bad_safetensors(latent.read_bytes())
    yield from reading("read_latent", work / "a.safetensors", weights, read_latent)
    yield from reading("read_weights", work / "b.safetensors", weights, read_weights)
    yield from reading("read_weight_header", work / "c.safetensors", weights, read_weight_header)
    torch_files = bad_checkpoints((FIXTURES / "golden/voldit/vqgan_best_model.pth").read_bytes())
    yield from reading("read_checkpoint", work / "a.pth", torch_files, read_checkpoint)
    new = work / "new.safetensors"
    yield from reading("convert_weights", work / "b.pth", torch_files, lambda path: again(convert_weights, path, new))
    yield from reading("read_yaml", work / "a.yaml", bad_yaml(), read_yaml)
    yield from reading("read_facts", work / "facts.yaml", bad_yaml(), read_facts)
    table = "image,subject\na.nii,1\na.nii.gz,2\n"
    yield from reading("read_manifest", work / "a.csv", bad_tables(table), read_manifest)
    yield from reading("read_report", work / "report.json", bad_json(), read_report)
    records = {name: content for name, content in bad_json().items() if content.strip()}
    yield from reading("read_sample_list", work / "samples.jsonl", records, lambda path: read_sample_list(path.parent))
    for name, reader in (("read_dicom", read_dicom), ("read_dicom_ct", read_dicom_ct)):
        folder = work / name
        stack = write_dicom(folder, "CT" if reader is read_dicom_ct else "MR")
        contents = {**bad_dicom(stack[0].read_bytes()), **{k: v for k, v in SPECIAL.items() if k == "a link to itself"}}
        run = lambda reader=reader, folder=folder: read(lambda: reader(folder), "")  # noqa: E731
        yield from cases_of(name, stack[0], contents, run)


def again(convert: Callable[[Path, Path], Any], path: Path, new: Path) -> None:
    new.unlink(missing_ok=True)
    convert(path, new)


def images(work: Path) -> Iterator[Case]:
    """Commands that read images."""
    image, page = plain_nifti(work / "a.nii"), work / "view.html"
    view = lambda: command("view", work / "a.nii", "--output", page)  # noqa: E731
    yield from cases_of("cardiodit view", work / "a.nii", bad_nifti(image), view)
    zipped = lambda: command("view", work / "a.nii.gz", "--output", page)  # noqa: E731
    yield from cases_of("cardiodit view", work / "a.nii.gz", bad_gzipped_nifti(image), zipped)
    masked = lambda: command("view", work / "a.nii", "--mask", work / "m.nii", "--output", page)  # noqa: E731
    yield from cases_of("cardiodit view --mask", work / "m.nii", bad_nifti(image), masked, every=5)

    def prepare(layout: str, source: Path, *more: str) -> Callable[[], tuple[str, str]]:
        output = work / f"prepared-{layout}"

        def run() -> tuple[str, str]:
            shutil.rmtree(output, ignore_errors=True)
            return command("prepare", layout, source, "--output_dir", output, "--min_slices", 1, *more)

        return run

    cohort = work / "cohort"
    for number in range(3):
        put(cohort / f"p{number}.nii", image)
    yield from cases_of(
        "cardiodit prepare folder", cohort / "p0.nii", bad_nifti(image), prepare("folder", cohort), every=4
    )
    for number in range(3):
        stack = write_dicom(work / "dicom" / f"p{number}", "MR")
    contents = bad_dicom(stack[0].read_bytes())
    yield from cases_of("cardiodit prepare dicom", stack[0], contents, prepare("dicom", work / "dicom"), every=5)


def models(work: Path) -> Iterator[Case]:
    """Model folders, opened by `cardiodit sample`, and copied by `cardiodit export`."""
    model = shutil.copytree(FIXTURES / "saved/cardiodit-0.1", work / "model", dirs_exist_ok=True)

    def sample(*more: str) -> tuple[str, str]:
        shutil.rmtree(work / "samples", ignore_errors=True)
        return command("sample", model, "--output_dir", work / "samples", "--num_inference_steps", 1, *more)

    files = {
        "model_index.json": 1,
        "transformer/config.json": 1,
        "vae/config.json": 2,
        "scheduler/scheduler_config.json": 3,
    }
    for file, every in files.items():
        contents = bad_objects(json.loads((model / file).read_text()))
        yield from cases_of(f"cardiodit sample: {file}", model / file, contents, sample, every)
    for component in ("transformer", "vae"):
        file = model / component / "diffusion_pytorch_model.safetensors"
        contents = bad_safetensors(file.read_bytes())
        yield from cases_of(f"cardiodit sample: {component}'s weights", file, contents, sample, every=3)
    index = model / "model_index.json"
    good = json.loads(index.read_text())
    malicious = {
        f"{component}: {entry}": json.dumps({**good, component: entry}).encode()
        for component in ("vae", "transformer", "scheduler", "_class_name")
        for entry in (
            *(["os", "system"], ["transformers", "AutoModel"], ["subprocess", "Popen"], ["evil", "Evil"]),
            *(["diffusers", "AutoencoderKL"], ["diffusers", "StableDiffusionPipeline"], ["cardiodit", "Evil"]),
            *([1, 2], ["a"], ["a", "b", "c"], "Evil", "DiffusionPipeline"),
        )
    }
    yield from cases_of("cardiodit sample: foreign classes", index, malicious, sample)

    def export() -> tuple[str, str]:
        shutil.rmtree(work / "exported", ignore_errors=True)
        return command("export", model, "--output_dir", work / "exported")

    yield from cases_of("cardiodit export", index, {**bad_objects(good), **malicious}, export, every=4)
    for device in ("gpu", "cuda:99", "meta", "", "cpu:x"):
        yield Case("cardiodit sample --device", device, lambda device=device: sample("--device", device))
    yield Case("cardiodit sample", "sizes beyond memory", lambda: sample("--height", "8000000", "--width", "8000000"))


def latents_and_tables(work: Path) -> Iterator[Case]:
    """Manifests of images and latents, and what commands do with them."""
    run = shutil.copytree(FIXTURES / "saved/run-0.1", work / "run", dirs_exist_ok=True)
    vae, manifest = run / "runs/vqgan", run / "images/validation/manifest.csv"
    columns = ("image", "subject", "ed_frame", "frame_time", "slices", "mask_order")

    def encode() -> tuple[str, str]:
        return command("encode", "--ids", manifest, "--vae", vae, "--output_dir", work / "latents", "--device", "cpu")

    yield from cases_of("cardiodit encode", manifest, bad_tables(manifest.read_text(), columns), encode, every=2)
    latents = run / "latents/training/manifest.csv"
    scale = lambda: command("scale-factor", "--latents", latents, "--vae", vae)  # noqa: E731
    yield from cases_of("cardiodit scale-factor", latents, bad_tables(latents.read_text(), ("latent",)), scale)
    latent = latents.parent / "8669493be74406fc2122.safetensors"
    yield from cases_of("cardiodit scale-factor: a latent", latent, bad_safetensors(latent.read_bytes()), scale)
    config = vae / "best/vae/config.json"
    yield from cases_of("cardiodit scale-factor: --vae", config, bad_objects(json.loads(config.read_text())), scale, 3)

    def evaluate(*more: object) -> tuple[str, str]:
        return command(
            *("evaluate", "--real", manifest, "--synthetic", manifest, "--output_dir", work / "evaluation"), *more
        )

    named = put(work / "steps.json", b"{}")
    yield from cases_of("cardiodit evaluate", named, bad_json(), lambda: evaluate("--preprocessing", named))
    for name in ("os.path:join", "none:none", "x.py:f", "json:loads", "torch:nn", ":", "cardiodit:evaluate"):
        for option in ("--features", "--segmenter", "--metric"):
            more = (option, name, "--features_size", 16, 16, 8, "--preprocessing", "cine", "--max_volumes", 2)
            yield Case(f"cardiodit evaluate {option}", name, lambda more=more: evaluate(*more))


def cards(work: Path) -> Iterator[Case]:
    """Cards and checks before publishing."""
    model = shutil.copytree(FIXTURES / "saved/cardiodit-0.1", work / "model", dirs_exist_ok=True)
    facts, report = put(work / "facts.yaml", b"{}"), work / "report.json"
    shutil.copy(FIXTURES / "saved/report-0.1/report.json", report)

    def card(*more: object) -> tuple[str, str]:
        return command("card", model, "--overwrite", *more)

    yield from cases_of("cardiodit card --facts", facts, bad_yaml(), lambda: card("--facts", facts))
    contents = bad_objects(json.loads(report.read_text()))
    yield from cases_of("cardiodit card --evaluation", report, contents, lambda: card("--evaluation", report), every=23)
    run = shutil.copytree(FIXTURES / "saved/run-0.1/runs/dit", work / "dit", dirs_exist_ok=True)
    contents = bad_objects(json.loads((run / "run.json").read_text()))
    yield from cases_of("cardiodit card --run", run / "run.json", contents, lambda: card("--run", run), every=5)
    yield from cases_of("cardiodit card --run", run / "config.yaml", bad_yaml(), lambda: card("--run", run))
    publish = lambda: command("publish", model, "org/name", "--dry_run")  # noqa: E731
    kinds: dict[str, Contents] = {
        "a.json": bad_json(),
        "a.yaml": bad_yaml(),
        "a.csv": bad_tables("image,subject\na,b\n"),
        "a.nii": bad_nifti(plain_nifti(work / "a.nii")),
        "a.safetensors": bad_safetensors((model / "vae/diffusion_pytorch_model.safetensors").read_bytes()),
    }
    for file, contents in kinds.items():
        every = 1 if len(contents) < 60 else 6
        yield from cases_of("cardiodit publish", model / file, contents, publish, every)


def conversions(work: Path) -> Iterator[Case]:
    """Checkpoints and configs of the systems' authors."""
    golden = shutil.copytree(FIXTURES / "golden/cardiodit", work / "golden", dirs_exist_ok=True)
    output = work / "model"

    def convert() -> tuple[str, str]:
        shutil.rmtree(output, ignore_errors=True)
        files = {
            "--stage1_ckpt": "vqgan_best_model.pth",
            "--stage1_cfg": "vqgan.yaml",
            "--diff_ckpt": "dit_best_model.pth",
            "--diff_cfg": "dit.yaml",
        }
        given = [text for option, file in files.items() for text in (option, golden / file)]
        return command("convert", "cardiodit", *given, "--scale_factor", 1, "--output_dir", output)

    for file in ("vqgan.yaml", "dit.yaml"):
        good = yaml.safe_load((golden / file).read_text())
        changed = {name: yaml.safe_dump(value).encode() for name, value in changed_values(good)}
        yield from cases_of(f"cardiodit convert: {file}", golden / file, {**bad_yaml(), **changed}, convert, every=4)
    for file in ("vqgan_best_model.pth", "dit_best_model.pth"):
        contents = bad_checkpoints((golden / file).read_bytes())
        yield from cases_of(f"cardiodit convert: {file}", golden / file, contents, convert)


def trainings(work: Path) -> Iterator[Case]:
    """Configs and manifests of training; what can be used after all is trained for one step."""
    saved = shutil.copytree(FIXTURES / "saved/run-0.1", work / "saved", dirs_exist_ok=True)
    plan = {
        "train_dit": (saved / "dit.yaml", saved / "latents", ("--vae", saved / "runs/vqgan", "--preview_samples", 0)),
        "train_vqgan": (saved / "vqgan.yaml", saved / "images", ()),
    }
    for stage, (config, data, more) in plan.items():
        good = yaml.safe_load(config.read_text())
        ids = (data / "training/manifest.csv", data / "validation/manifest.csv")

        def train(stage: str = stage, config: Path = config, ids: tuple = ids, more: tuple = more) -> tuple[str, str]:
            shutil.rmtree(work / stage, ignore_errors=True)
            given = ("--config", config, "--training_ids", ids[0], "--validation_ids", ids[1], "--cpu", *SHORT)
            return script(stage, *given, *more, "--output_dir", work, "--run_name", stage)

        yield from cases_of(stage, config, bad_yaml(), train)
        changed = {name: yaml.safe_dump(value).encode() for name, value in changed_values(good)}
        yield from cases_of(f"{stage}: a value", config, changed, train, every=7)
        yield from cases_of(
            f"{stage}: a manifest", ids[0], bad_tables(ids[0].read_text(), ("subject",)), train, every=2
        )


# ---- Good files


def plain_nifti(path: Path) -> bytes:
    """Write a small cine as `.nii`, and return its bytes."""
    from cardiodit.imaging.geometry import Geometry
    from cardiodit.imaging.nifti import write_nifti

    voxels = np.random.default_rng(0).integers(0, 900, (24, 20, 4, 8)).astype(np.int16)
    write_nifti(path, voxels, Geometry((1.5, 1.5, 8.0), 0.1))
    return path.read_bytes()


def write_dicom(folder: Path, modality: str) -> list[Path]:
    """Write a stack of three slices, of two phases each if it is a cine."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place in range(3):
        for phase in range(2 if modality == "MR" else 1):
            data = pydicom.Dataset()
            data.file_meta = pydicom.dataset.FileMetaDataset()
            data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.MRImageStorage
            data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
            data.Modality, data.SeriesInstanceUID, data.SeriesNumber = modality, "1.2.3", 1
            data.SeriesDescription, data.ImageType = "cine_sax", ["ORIGINAL", "PRIMARY"]
            data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 8 * place]
            data.PixelSpacing, data.SliceThickness = [1.5, 1.5], 8
            data.TriggerTime, data.NominalInterval, data.InstanceNumber = 400 * phase, 800, 2 * place + phase + 1
            data.RescaleSlope, data.RescaleIntercept, data.NumberOfFrames = 1, 0, 1
            data.Rows, data.Columns, data.SamplesPerPixel = 16, 16, 1
            data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
            data.PhotometricInterpretation = "MONOCHROME2"
            data.PixelData = np.random.default_rng(place).integers(0, 900, (16, 16)).astype(np.uint16).tobytes()
            paths.append(folder / f"{place}-{phase}.dcm")
            data.save_as(paths[-1], enforce_file_format=True)
    return paths


# ---- Running


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON with every case that did not end well")
    parser.add_argument("--only", default="", help="run only targets in which this regular expression is found")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = run_all(Path(folder), arguments.only)
    counts = Counter(end for _, _, end, _, _ in ends)
    for target, number in Counter(target.partition(":")[0] for target, *_ in ends).items():
        print(f"{number:6} {target}")
    print(f"{len(ends)} cases: " + ", ".join(f"{number} ended in {end}" for end, number in counts.most_common()))
    well = counts[SENTENCE] + counts[RESULT]
    print(
        f"{well} of {len(ends)} ({well / max(1, len(ends)):.2%}) ended well; the slowest took "
        f"{max((seconds for *_, seconds in ends), default=0):.1f} s"
    )
    bad = [end for end in ends if end[2] not in (SENTENCE, RESULT)]
    if arguments.output:
        arguments.output.write_text(json.dumps(bad, indent=1))
    return int(well < len(ends))


def run_all(work: Path, only: str) -> list[tuple[str, str, str, str, float]]:
    """Run the cases in a child process, which is replaced if one takes too long; return how each ended."""
    ends: list[tuple[str, str, str, str, float]] = []
    context = multiprocessing.get_context("fork")
    while True:
        receiver, sender = context.Pipe(duplex=False)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        child = context.Process(target=run_from, args=(len(ends), work, only, sender), daemon=True)
        child.start()
        sender.close()
        current = ("", "")
        try:
            while True:
                if not receiver.poll(MOST_SECONDS if any(current) else 10 * MOST_SECONDS):  # it imports first
                    ends.append((*current, SLOW, "", MOST_SECONDS))
                    show(len(ends), *ends[-1])
                    break
                message = receiver.recv()
                if message is None:
                    child.join()
                    return ends
                if len(message) == 2:
                    current = message
                else:
                    ends.append(message)
                    show(len(ends), *message)
        except EOFError:
            if current == ("", ""):
                raise RuntimeError("The process that runs the cases ended before its first case.") from None
            ends.append((*current, "a killed process", "", 0.0))
            show(len(ends), *ends[-1])
        child.kill()
        child.join()


def show(number: int, target: str, name: str, end: str, text: str, seconds: float) -> None:
    """Print a case that ended badly or took long, and now and then the number of cases."""
    if end not in (SENTENCE, RESULT) or seconds > LONG_SECONDS:
        print(f"{number} {target} | {name} | {end} | {seconds:.1f} s | {' '.join(text.split())[-300:]}", flush=True)
    elif number % 100 == 0:
        print(number, flush=True)


def run_from(start: int, work: Path, only: str, sender: Any) -> None:
    """Run all cases from a number on; report each before and after it."""
    from measuring import peak_mib

    chosen = (case for case in all_cases(work) if re.search(only, case.target))
    for case in islice(chosen, start, None):
        sender.send((case.target, case.name))
        outcome: list[tuple[str, str]] = []
        began = time.perf_counter()
        peak = peak_mib(lambda case=case, outcome=outcome: outcome.append(case.run()))
        seconds = time.perf_counter() - began
        end, text = outcome[0]
        end = LARGE if peak * 2**20 > MOST_BYTES else end
        sender.send((case.target, case.name, end, text, round(seconds, 2)))
    sender.send(None)


if __name__ == "__main__":
    sys.exit(main())
