"""Check what belongs in a published pipeline folder: expected files only, no paths of a machine, no patient data."""

import csv
import fnmatch
import html
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cardiodit._util.foreign_files import LONGEST_TEXT, check_number_of_values, read_object
from cardiodit.errors import CardioDiTError, reason_of
from cardiodit.hub.card.model_facts import INDEX, find_weights, read_weight_header
from cardiodit.hub.checks.images import findings_in_nifti, findings_in_picture, is_dicom
from cardiodit.latents.file import METADATA as LATENT_MARK

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".msgpack")
# Names of files and folders that only training writes.
LEFTOVERS = (
    *("checkpoint-*", "best", "logs", "latents", "reconstructions", "cache", "wandb", "runs"),
    *("run.json", "metrics.jsonl", "manifest*.csv", "optimizer*", "random_states*", "scaler*", "events.out.tfevents*"),
)
PLAIN_TEXT = ("LICENSE", "LICENCE", "NOTICE")

INTERNAL_MARK = "cardiodit-internal"  # in pages of `cardiodit audit`, which show patients
SHOWN = 3  # findings listed of each kind
NAME = r"[^\s/\\\"'`<>|*?:;,(){}\[\]]+"  # a folder or file name
BEFORE = r"(?<![^\s\"'`=(\[{,:;|>])"  # a path does not begin inside a word
PATHS = re.compile(
    rf"file://[^\s\"'<>]*"
    rf"|{BEFORE}/(?:{NAME}/{NAME}|{NAME}\.[A-Za-z]\w*)[^\s\"'`<>|)]*"
    rf"|{BEFORE}~(?:[A-Za-z_][\w-]*)?/{NAME}[^\s\"'`<>|)]*"
    rf"|{BEFORE}[A-Za-z]:[\\/]+{NAME}[^\s\"'`<>|)]*"
    rf"|(?<![\\\w])\\\\[\w.-]+\\[\w$.-]+[^\s\"'`<>|)]*"
)
BASE64 = re.compile(r"[A-Za-z0-9+/=]{256,}")  # base64: pictures and volumes embedded in a page
# From DICOM's basic confidentiality profile (PS3.15, annex E): attributes of patients, places and staff.
DICOM_TAGS = frozenset(
    """
    PatientName PatientID IssuerOfPatientID OtherPatientIDs OtherPatientNames PatientBirthDate PatientBirthTime
    PatientBirthName PatientMotherBirthName PatientSex PatientAge PatientSize PatientWeight PatientAddress
    PatientTelephoneNumbers PatientComments PatientReligiousPreference PatientState PatientInsurancePlanCodeSequence
    EthnicGroup Occupation AdditionalPatientHistory PregnancyStatus MedicalRecordLocator MilitaryRank
    CountryOfResidence RegionOfResidence ResponsiblePerson ReferringPhysicianName ReferringPhysicianAddress
    ReferringPhysicianTelephoneNumbers PerformingPhysicianName PhysiciansOfRecord NameOfPhysiciansReadingStudy
    RequestingPhysician OperatorsName InstitutionName InstitutionAddress InstitutionalDepartmentName StationName
    DeviceSerialNumber AccessionNumber AdmissionID StudyID StudyInstanceUID SeriesInstanceUID SOPInstanceUID
    FrameOfReferenceUID StudyDate SeriesDate AcquisitionDate ContentDate StudyTime SeriesTime AcquisitionTime
    AcquisitionDateTime ContentTime ImageComments
    """.split()  # noqa: SIM905  a list would fill a screen
)
SUBJECT_KEYS = frozenset({"subject", "subjectid", "patient", "mrn", "dateofbirth", "birthdate"})
PATIENT_KEYS = frozenset(tag.lower() for tag in DICOM_TAGS) | SUBJECT_KEYS | {"patientsname", "patientsbirthdate"}
PATIENT_GROUP = re.compile(r"\(?0010,?\s?[0-9A-Fa-f]{4}\)?")
DUMPED_TAGS = re.compile(rf"\b(?:{'|'.join(sorted(DICOM_TAGS))})\b[\"'`|*]*\s*[:=|]|\(0010,\s?[0-9A-Fa-f]{{4}}\)")


def folder_problems(folder: Path) -> Iterator[str]:
    """Report missing and unreadable components of a pipeline folder."""
    try:
        find_weights(folder)
        index = read_object(folder / INDEX)
        components = [name for name, value in index.items() if isinstance(value, list) and any(value)]
    except CardioDiTError as error:
        yield str(error)
        return
    for name in components:
        if not any((folder / name).glob("*config.json")):
            yield f"{INDEX} lists the component {name}, whose config is missing; save or copy the folder again."
    for shards in folder.rglob("*.safetensors.index.json"):
        try:
            names = set(map(str, read_object(shards)["weight_map"].values()))
        except Exception:
            yield f"{shards} cannot be read; save the folder again."
            continue
        if missing := sorted(name for name in names if not (shards.parent / name).is_file()):
            yield f"{shards} lists {', '.join(missing)}, which is missing; save or copy the folder again."


def file_problems(folder: Path) -> Iterator[str]:
    """Report each file that does not belong in the folder or could identify a patient."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            yield f"{name} is a link; replace it with the file itself, or remove it."
        elif hidden := next((part for part in Path(name).parts if part.startswith(".")), None):
            if path.name == hidden:
                yield f"{name} is hidden; remove it."
        elif leftover := next((part for part in Path(name).parts if _is_leftover(part)), None):
            if path.name == leftover:
                yield f"{name} is left over from training and not part of the model; remove it."
        elif not path.is_dir() and not path.is_file():
            yield f"{name} is a device or a pipe; remove it."
        elif path.is_file():
            for finding in findings_in(path):
                yield f"{name} {finding}."


def _is_leftover(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in LEFTOVERS)


def findings_in(path: Path) -> Iterator[str]:
    """Check a file by its kind; kinds that cannot be checked are refused."""
    suffix = _kind_of(path)
    if is_dicom(path):
        yield "is a DICOM file, which identifies its patient; remove it"
    elif suffix in PICKLES:
        yield "is or may be a pickle, which can run code when it is opened; save as safetensors, or remove it"
    elif suffix in CHECKS:
        yield from CHECKS[suffix](path)
    elif path.name in PLAIN_TEXT:
        yield from _text_check(findings_in_text)(path)
    else:
        yield "is of a kind that cannot be checked for patient data; remove it"


def what_is_checked(path: Path) -> str:
    """Describe what `findings_in` looks for in a file of this kind."""
    return CHECKED.get(_kind_of(path), CHECKED[".txt"])


def _kind_of(path: Path) -> str:
    return ".nii.gz" if path.name.endswith(".nii.gz") else path.suffix.lower()


def _text_check(findings: Callable[[str], Iterator[str]]) -> Callable[[Path], Iterator[str]]:
    def check(path: Path) -> Iterator[str]:
        if path.stat().st_size > LONGEST_TEXT:
            yield f"is longer than {LONGEST_TEXT} bytes, so it is not checked; shorten it or remove it"
            return
        try:
            content = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            yield "is not UTF-8 text, so it cannot be checked; save it as UTF-8 or remove it"
            return
        try:
            yield from findings(content)
        except Exception as error:  # content may be anything
            yield f"cannot be checked ({reason_of(error)}); correct it or remove it"

    return check


def _findings_in_weights(path: Path) -> Iterator[str]:
    try:
        metadata = read_weight_header(path).metadata
    except CardioDiTError as error:
        yield f"cannot be opened: {str(error).rstrip('.')}"
        return
    if LATENT_MARK in metadata:
        yield "contains the latents of a patient's image; remove it"
    values = {key: _parsed_json(value) for key, value in metadata.items()}
    yield from (f"{finding} (in its metadata)" for finding in _findings_in_value(values))


def _parsed_json(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _findings_in_array(path: Path) -> Iterator[str]:
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:
        yield "contains pickled objects or is damaged; save numbers only, or remove it"


def absolute_paths(text: str) -> list[str]:
    """Find paths from a machine's root or a user's home, on POSIX and Windows; web addresses are ignored."""
    return list(dict.fromkeys(path.rstrip(".,;:") for path in PATHS.findall(BASE64.sub(" ", text))))


def findings_in_json(content: str) -> Iterator[str]:
    return _findings_in_documents([content])


def findings_in_jsonl(content: str) -> Iterator[str]:
    return _findings_in_documents([line for line in content.splitlines() if line.strip()])


def _findings_in_documents(documents: list[str]) -> Iterator[str]:
    try:
        values = [json.loads(document) for document in documents]
    except (ValueError, RecursionError) as error:
        yield f"is not valid JSON ({reason_of(error)}), so it cannot be checked; fix it or remove it"
        return
    yield from _findings_in_value(values)


def findings_in_yaml(content: str) -> Iterator[str]:
    try:
        values = list(yaml.safe_load_all(content))
        check_number_of_values(values, "it")
    except Exception as error:
        yield f"is not valid YAML ({reason_of(error)}), so it cannot be checked; fix it or remove it"
        return
    yield from _findings_in_value([values, content])


def findings_in_csv(content: str) -> Iterator[str]:
    delimiter = ";" if ";" in content.partition("\n")[0] else ","
    yield from _findings_in_keys(next(csv.reader(io.StringIO(content), delimiter=delimiter), []))
    yield from findings_in_text(content)


def findings_in_text(content: str) -> Iterator[str]:
    content = html.unescape(content)
    if INTERNAL_MARK in content:
        yield "shows images of patients (a page of `cardiodit audit`); remove it, and keep audit.json"
    yield from _findings_in_paths(absolute_paths(content))
    if tags := list(dict.fromkeys(DUMPED_TAGS.findall(content))):
        yield f"contains DICOM tags ({_first_few(tags)}); remove them with their values"


def _findings_in_value(value: Any) -> Iterator[str]:
    """Check all keys and texts of a nested value."""
    texts, keys = _collect(value)
    yield from _findings_in_keys(keys)
    yield from _findings_in_paths([path for text in texts for path in absolute_paths(text)])


def _collect(value: Any) -> tuple[list[str], list[str]]:
    """Return all texts, including keys, and all keys of a nested value."""
    if isinstance(value, dict):
        texts, keys = [str(key) for key in value], [str(key) for key in value]
        children = list(value.values())
    elif isinstance(value, list | tuple):
        texts, keys, children = [], [], list(value)
    else:
        return ([value] if isinstance(value, str) else []), []
    for child in children:
        more_texts, more_keys = _collect(child)
        texts += more_texts
        keys += more_keys
    return texts, keys


def _findings_in_keys(keys: list[str]) -> Iterator[str]:
    if revealing := [key for key in dict.fromkeys(keys) if _is_patient_key(key)]:
        yield f"has entries that describe patients ({_first_few(revealing)}); remove them with their values"


def _is_patient_key(key: str) -> bool:
    return re.sub(r"[^a-z]", "", key.lower()) in PATIENT_KEYS or PATIENT_GROUP.fullmatch(key.strip()) is not None


def _findings_in_paths(paths: list[str]) -> Iterator[str]:
    if unique := list(dict.fromkeys(paths)):
        yield f"contains absolute paths ({_first_few(unique)}); remove them, or keep the file's name only"


def _first_few(texts: list[str]) -> str:
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(text if len(text) <= 80 else f"{text[:77]}..." for text in texts[:SHOWN]) + more


CHECKS: dict[str, Callable[[Path], Iterator[str]]] = {
    **dict.fromkeys((".yaml", ".yml", ".cff"), _text_check(findings_in_yaml)),
    **dict.fromkeys((".md", ".txt", ".html", ".htm", ".py"), _text_check(findings_in_text)),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif"), findings_in_picture),
    **dict.fromkeys((".nii", ".nii.gz"), findings_in_nifti),
    ".json": _text_check(findings_in_json),
    ".jsonl": _text_check(findings_in_jsonl),
    ".csv": _text_check(findings_in_csv),
    ".safetensors": _findings_in_weights,
    ".npy": _findings_in_array,
}
# What each check looks for, in words, for the list of `cardiodit publish --dry_run`.
CHECKED: dict[str, str] = {
    **dict.fromkeys((".yaml", ".yml", ".cff", ".json", ".jsonl"), "no key of patient data, no path of a machine"),
    **dict.fromkeys((".md", ".txt", ".html", ".htm", ".py"), "no DICOM tags, no path of a machine"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif"), "a picture and nothing else: no EXIF, no comments"),
    **dict.fromkeys((".nii", ".nii.gz"), "no text or extension in the header, listed as a sample"),
    ".csv": "no column of patient data, no path of a machine",
    ".safetensors": "weights, not latents; metadata without patient data or paths",
    ".npy": "numbers only",
}
