"""Paths and DICOM tags in text, and what only looks like them."""

import pytest

from cardiodit.hub.checks.text import (
    absolute_paths,
    findings_in_csv,
    findings_in_json,
    findings_in_text,
    findings_in_yaml,
)


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
def test_what_only_looks_like_a_path(text: str) -> None:
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
def test_keys_that_tell_of_patients(content: str) -> None:
    assert ["tell of patients" in finding for finding in findings_in_json(content, ".json")] == [True]


def test_json_is_read_and_not_only_searched() -> None:
    escaped = r'{"a": "\u002fhome\/jane", "b": "C:\\Users\\x", "c": "A:\nB", "/data/doe/x": 1}'
    (finding,) = findings_in_json(escaped, ".json")
    assert "/data/doe/x, /home/jane, C:\\Users\\x" in finding
    lines = '{"seed": 1}\n{"model": "/home/jane/model"}\n'
    assert len(list(findings_in_json(lines, ".jsonl"))) == 1
    assert "no valid JSON" in next(findings_in_json("{", ".json"))
    assert list(findings_in_json('{"beta": -Infinity, "patients": 100, "loss": null}', ".json")) == []


def test_yaml_with_its_comments_csv_and_prose() -> None:
    assert len(list(findings_in_yaml("a: 1  # from /home/jane/x\nb:\n  PatientID: 3\n"))) == 2
    assert "no valid YAML" in next(findings_in_yaml("a: [1"))
    assert "subject" in next(findings_in_csv("image,subject\na.nii,p1\n"))
    assert "subject" in next(findings_in_csv("image;subject\na.nii;p1\n"))
    assert list(findings_in_csv("step,loss\n1,0.5\n")) == []
    assert "DICOM tags" in next(findings_in_text("PatientName: DOE^JANE"))
    assert "DICOM tags" in next(findings_in_text("(0010,0010) PN [DOE^JANE]"))
    assert list(findings_in_text("Nobody's PatientName is in a sample; patients: 40.")) == []
    assert "/home/jane" in next(findings_in_text("<a href='&#47;home/jane'>"))
    many = " ".join(f"/home/p{i}/x" for i in range(9))
    assert "and 6 more" in next(findings_in_text(many))
