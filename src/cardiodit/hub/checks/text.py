"""Text that can tell who a patient is, or on whose machine a file was made: paths, DICOM tags, names of subjects."""

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

SHOWN = 3  # findings of a kind
NAME = r"[^\s/\\\"'`<>|*?:;,(){}\[\]]+"  # a folder or a file
BEFORE = r"(?<![^\s\"'`=(\[{,:;|>])"  # a path does not begin within a word
PATHS = re.compile(
    rf"file://[^\s\"'<>]*"
    rf"|{BEFORE}/(?:{NAME}/{NAME}|{NAME}\.[A-Za-z]\w*)[^\s\"'`<>|)]*"
    rf"|{BEFORE}~(?:[A-Za-z_][\w-]*)?/{NAME}[^\s\"'`<>|)]*"
    rf"|{BEFORE}[A-Za-z]:[\\/]+{NAME}[^\s\"'`<>|)]*"
    rf"|(?<![\\\w])\\\\[\w.-]+\\[\w$.-]+[^\s\"'`<>|)]*"
)
PACKED = re.compile(r"[A-Za-z0-9+/=]{256,}")  # base64: pictures and volumes within a page
# Of DICOM's basic profile for confidentiality (PS3.15, annex E): what a header says of patient, place and people.
TAGS = frozenset(
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
    """.split()  # noqa: SIM905  as many as a list would fill a screen with
)
SUBJECTS = frozenset({"subject", "subjectid", "patient", "mrn", "dateofbirth", "birthdate"})
KEYS = frozenset(tag.lower() for tag in TAGS) | SUBJECTS | {"patientsname", "patientsbirthdate"}
PATIENT_GROUP = re.compile(r"\(?0010,?\s?[0-9A-Fa-f]{4}\)?")
DUMPED = re.compile(rf"\b(?:{'|'.join(sorted(TAGS))})\b[\"'`|*]*\s*[:=|]|\(0010,\s?[0-9A-Fa-f]{{4}}\)")


def absolute_paths(text: str) -> list[str]:
    """Paths that begin at a machine's root or a person's home, on POSIX and Windows; addresses on the web are none."""
    return list(dict.fromkeys(path.rstrip(".,;:") for path in PATHS.findall(PACKED.sub(" ", text))))


def findings_in_json(content: str, suffix: str) -> Iterator[str]:
    """Of `.json` and `.jsonl`."""
    parts = [line for line in content.splitlines() if line.strip()] if suffix == ".jsonl" else [content]
    try:
        values = [json.loads(part) for part in parts]
    except ValueError as error:
        yield f"is no valid JSON ({error}), so it cannot be looked through; mend it or take it out"
        return
    yield from findings_in_value(values)


def findings_in_yaml(content: str) -> Iterator[str]:
    try:
        values = list(yaml.safe_load_all(content))
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        yield f"is no valid YAML ({reason}), so it cannot be looked through; mend it or take it out"
        return
    yield from findings_in_value([values, content])


def findings_in_csv(content: str) -> Iterator[str]:
    header = next(csv.reader(io.StringIO(content), delimiter=";" if ";" in content.partition("\n")[0] else ","), [])
    yield from _telling_keys(header)
    yield from findings_in_text(content)


def findings_in_text(content: str) -> Iterator[str]:
    """Of anything else that people read."""
    content = html.unescape(content)
    yield from _telling_paths(absolute_paths(content))
    if dumped := list(dict.fromkeys(DUMPED.findall(content))):
        yield f"holds DICOM tags ({_some(dumped)}); take them out, with their values"


def findings_in_value(value: Any) -> Iterator[str]:
    """Of keys and texts, however deep they lie."""
    texts, keys = _collect(value)
    yield from _telling_keys(keys)
    yield from _telling_paths([path for text in texts for path in absolute_paths(text)])


def _collect(value: Any) -> tuple[list[str], list[str]]:
    """All texts, keys among them, and all keys."""
    if isinstance(value, dict):
        texts, keys = [str(key) for key in value], [str(key) for key in value]
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        texts, keys, inner = [], [], list(value)
    else:
        return ([value] if isinstance(value, str) else []), []
    for item in inner:
        more_texts, more_keys = _collect(item)
        texts += more_texts
        keys += more_keys
    return texts, keys


def _telling_keys(keys: list[str]) -> Iterator[str]:
    found = [key for key in dict.fromkeys(keys) if _is_telling(key)]
    if found:
        yield f"has entries that tell of patients ({_some(found)}); take them out, with their values"


def _is_telling(key: str) -> bool:
    return re.sub(r"[^a-z]", "", key.lower()) in KEYS or PATIENT_GROUP.fullmatch(key.strip()) is not None


def _telling_paths(paths: list[str]) -> Iterator[str]:
    found = list(dict.fromkeys(paths))
    if found:
        yield f"holds absolute paths ({_some(found)}); take them out, or leave the file's name only"


def _some(found: list[str]) -> str:
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(text if len(text) <= 80 else f"{text[:77]}..." for text in found[:SHOWN]) + more
