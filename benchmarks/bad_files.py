"""Bad files of every kind that the package reads: damaged, absurd, of wrong types, or made to exhaust time and memory.

Each function takes what is good and returns bad contents by name. `benchmarks/bad_input.py` and the tests put them in
the place of good files.
"""

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

Content = bytes | Callable[[Path], Any]  # bytes, or a function that puts something else than a file at a path
Contents = dict[str, Content]

FLOATS = (float("nan"), float("inf"), float("-inf"), 1e38, -1e38, 1e-40, -1.0, 0.0)
SHORTS = (0, -1, 7, 3, 32767, -32768)
# NIfTI-1 header fields: offset, format, values.
NIFTI_FIELDS: dict[str, tuple[int, str, tuple]] = {
    "sizeof_hdr": (0, "i", (0, 540, 1543569408, -1)),
    **{f"dim{i}": (40 + 2 * i, "h", SHORTS) for i in range(6)},
    "datatype": (70, "h", (0, 1, 3, 32, 128, 1792, 2304, 999, -1)),
    **{f"pixdim{i}": (76 + 4 * i, "f", FLOATS) for i in range(5)},
    "vox_offset": (108, "f", (*FLOATS, 3.0, 1e9)),
    "scl_slope": (112, "f", FLOATS),
    "scl_inter": (116, "f", FLOATS),
    "xyzt_units": (123, "B", (7, 63, 255, 5)),
    "qform_code": (252, "h", SHORTS),
    "sform_code": (254, "h", SHORTS),
    **{f"quatern{i}": (256 + 4 * i, "f", FLOATS[:6]) for i in range(3)},
    **{f"srow{i}": (280 + 4 * i, "f", FLOATS) for i in range(12)},
    "magic": (344, "4s", (b"ni1\0", b"n+2\0", b"\0\0\0\0", b"abcd")),
}
# Whatever stands where JSON or YAML has a number, a text, a list or an object.
WRONG_VALUES: tuple[Any, ...] = (None, "x", [], {}, [0], -1, 0, 10**9, 1.5, True, [[[]]], "\u0000", float("nan"))


def damaged(good: bytes, pieces: int = 8) -> Contents:
    """Cut a file off, flip bytes in it, or replace it."""
    places = [len(good) * i // pieces for i in range(pieces)]
    cut = {f"cut at {place}": good[:place] for place in places}
    flipped = {
        f"flipped at {place}": good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :]
        for place in (*range(0, 40, 3), *places)
        if place < len(good)
    }
    zeros = {"zeros in the middle": good[: len(good) // 2] + bytes(64) + good[len(good) // 2 + 64 :]}
    other = {"text": b"this is something else", "zeros": bytes(1000), "one byte": b"\x80", "doubled": good + good}
    return {**cut, **flipped, **zeros, **other}


def bad_nifti(good: bytes) -> Contents:
    """Return `.nii` files with one field of the header changed, and damaged ones."""
    cases = damaged(good)
    for name, (offset, kind, values) in NIFTI_FIELDS.items():
        for value in values:
            field = struct.pack(f"<{kind}", value)
            cases[f"{name} {value}"] = good[:offset] + field + good[offset + len(field) :]
    seven = struct.pack("<8h", 7, 2, 2, 2, 2, 2, 2, 2)
    cases["seven dimensions"] = good[:40] + seven + good[56:]
    cases["a huge shape"] = good[:40] + struct.pack("<8h", 4, *[32767] * 4, 1, 1, 1) + good[56:]
    for size in (2**62, 2**31, -1):
        header = bytearray(544)
        struct.pack_into("<i8s2h", header, 0, 540, b"n+2\0\r\n\x1a\n", 4, 16)
        struct.pack_into("<8q", header, 16, 3, size, 2, 2, 1, 1, 1, 1)
        struct.pack_into("<q", header, 168, 544)
        cases[f"NIfTI-2 of {size} rows"] = bytes(header) + bytes(64)
    return cases


def bad_gzipped_nifti(good: bytes) -> Contents:
    """Return `.nii.gz` files: damaged ones, and ones that expand to far more than their length."""
    cases = damaged(gzip.compress(good, 1))
    huge = good[:40] + struct.pack("<8h", 4, 30000, 30000, 10, 10, 1, 1, 1) + good[56:]
    cases["promises gigabytes"] = gzip.compress(huge)
    cases["bomb"] = gzip.compress(good + bytes(2**27))
    cases["bomb of what it promises"] = gzip.compress(huge[:352] + bytes(2**26))
    cases["two members"] = gzip.compress(good) * 2
    cases["not gzipped"] = good
    return cases


def bad_npz(good: np.ndarray) -> Contents:
    """Return `.npz` archives: damaged, lying about their size, of objects."""
    cases = damaged(_npz(good))
    cases["bomb"] = _npz(np.zeros(2**27, np.uint8))
    cases["objects"] = _npz(np.array([{}], object))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20)})
    for name, entry in {"header lies": header.getvalue(), "no array": b"text", "empty": b""}.items():
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ct.npy", entry)
        cases[name] = stream.getvalue()
    for name, array in {"texts": np.array(["a"]), "one axis": np.zeros(3), "no voxels": np.zeros((0, 1, 1))}.items():
        cases[name] = _npz(array)
    cases["not numbers"] = _npz(np.full((4, 4, 4), np.nan))
    return cases


def _npz(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, ct=array)
    return stream.getvalue()


def bad_json() -> Contents:
    """Return JSON files that are none, or hold something else than an object."""
    texts = {
        "empty": "",
        "null": "null",
        "list": "[]",
        "number": "1",
        "text": '"x"',
        "object without keys": "{}",
        "cut off": '{"a": ',
        "nested": "[" * 10_000,
        "nested objects": '{"a":' * 10_000,
        "many digits": '{"a": ' + "9" * 5000 + "}",
        "NUL": '{"a": "\0"}',
        "comment": "{} // x",
        "infinite": '{"a": 1e999}',
    }
    binary = {"Latin-1": b'{"a": "\xe4"}', "UTF-16": '{"a": 1}'.encode("utf-16"), "bytes": bytes(range(256))}
    return {**{name: text.encode() for name, text in texts.items()}, **binary}


def changed_values(good: dict[str, Any], at: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an object with one value, at any depth, replaced by one of a wrong type or size, or removed."""
    for key, value in good.items():
        yield f"{at}{key} removed", {name: other for name, other in good.items() if name != key}
        for wrong in WRONG_VALUES:
            if json.dumps(wrong) != json.dumps(value):
                yield f"{at}{key} {json.dumps(wrong)}", {**good, key: wrong}
        if isinstance(value, dict):
            for name, changed in changed_values(value, f"{at}{key}."):
                yield name, {**good, key: changed}


def bad_objects(good: dict[str, Any]) -> Contents:
    """Return JSON files like a good one but for one value, and those of `bad_json`."""
    return {**bad_json(), **{name: json.dumps(value).encode() for name, value in changed_values(good)}}


def bad_yaml() -> Contents:
    """Return YAML files that are none, or that expand to billions of values."""
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    texts = {
        "empty": "",
        "null": "null",
        "list": "[]",
        "scalar": "x",
        "tab": "a:\n\t- b",
        "cut off": "a: [1, ",
        "nested": "a: " + "[" * 5000,
        "bomb": laughs,
        "itself": "a: &a [*a]",
        "code": "a: !!python/object/apply:os.system ['true']",
        "unknown tag": "a: !b c",
        "two documents": "a: 1\n---\nb: 2",
        "date": "a: 2020-99-99",
        "many digits": "a: " + "9" * 5000,
        "list as key": "? [a]\n: b",
        "NUL": "a: \0",
        "unknown key": "unknown: 1",
        "binary": "a: !!binary x",
    }
    return {**{name: text.encode() for name, text in texts.items()}, "Latin-1": b"a: \xe4", "bytes": bytes(range(256))}


def bad_tables(good: str, columns: tuple[str, ...] = ()) -> Contents:
    """Return CSV files that are none, and those with a wrong value in the first row of a column."""
    head, first, *rest = good.splitlines()
    names = head.split(",")
    cases = {
        "empty": b"",
        "only a heading": head.encode(),
        "one column": b"x\n1\n",
        "Latin-1": good.encode() + b"\xe4,\n",
        "UTF-16": good.encode("utf-16"),
        "long field": (head + "\n" + "x" * 200_000 + "\n").encode(),
        "open quote": (head + '\n"x').encode(),
        "NUL": (good + "\0").encode(),
        "more cells": (good.rstrip() + ",x,y\n").encode(),
        "heading twice": f"{head},{names[0]}\n{first},x\n".encode(),
        "bytes": bytes(range(256)),
    }
    for column in columns or names:
        for value in ("", "x", "nan", "inf", "-1", "1e99", "1.5", "9" * 400, "../x", "/dev/zero", "\ud800"):
            cells = first.split(",") if column in names else [*first.split(","), value]
            if column in names:
                cells[names.index(column)] = value
            heading = head if column in names else f"{head},{column}"
            more = [line if column in names else f"{line}," for line in rest]
            text = "\n".join([heading, ",".join(cells), *more]) + "\n"
            cases[f"{column} {value[:12]!r}"] = text.encode("utf-8", "surrogatepass")
    return cases


def bad_safetensors(good: bytes) -> Contents:
    """Return safetensors files: damaged, with a header that lies or is no table of tensors."""
    cases = damaged(good)
    length = int.from_bytes(good[:8], "little")
    headers: dict[str, Any] = {
        "empty header": b"",
        "list as header": b"[]",
        "nested header": b"[" * 20_000,
        "no tensors": b"{}",
        "text as tensor": b'{"a": "x"}',
        "null as tensor": b'{"a": null}',
        "unknown type": b'{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}',
        "huge shape": b'{"a": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 4]}}',
        "offsets outside": b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4000000000]}}',
        "negative shape": b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        "numbers as metadata": b'{"__metadata__": {"a": 1}}',
    }
    cases |= {name: len(header).to_bytes(8, "little") + header for name, header in headers.items()}
    cases["header of exabytes"] = (2**62).to_bytes(8, "little") + good[8:]
    cases["other name"] = good[:8] + good[8 : 8 + length].replace(b'":{"dtype"', b'_":{"dtype"', 1)[:length] + b""
    return cases


class Unknown:
    """A class that reading must not look up."""


def bad_checkpoints(good: bytes) -> Contents:
    """Return torch files: damaged, of unusual tensors, or with pickled code."""
    plain = torch.ones(2, 2)
    objects: dict[str, Any] = {
        "a number": 1,
        "a list": [plain],
        "no tensors": {"a": 1},
        "nothing": {},
        "an object": {"model": Unknown()},
        "a function": {"model": print},
        "sparse": {"model": {"a": plain.to_sparse()}},
        "compressed rows": {"model": {"a": plain.to_sparse_csr()}},
        "quantised": {"model": {"a": torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8)}},
        "without content": {"model": {"a": plain.to("meta")}},
        "expanded": {"model": {"a": torch.ones(1).expand(10**6, 10**6)}},
        "numbers as names": {"model": {1: plain}},
        "a table in a table": {"model": {"model": {"a": plain}}},
        "complex": {"model": {"a": plain.to(torch.complex64)}},
    }
    cases = damaged(good, pieces=6)
    for name, value in objects.items():
        for is_zip in (True, False):
            stream = io.BytesIO()
            torch.save(value, stream, _use_new_zipfile_serialization=is_zip)
            cases[f"{name}{'' if is_zip else ', legacy'}"] = stream.getvalue()
    cases["plain pickle"] = pickle.dumps({"model": [1]})
    cases["pickle that runs code"] = b"cos\nsystem\n(S'true'\ntR."
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**26))
    cases["bomb"] = stream.getvalue()
    return cases


DICOM_VALUES = ("x", "", "1\\2\\3", "nan", "1e400", "-1", "0", "1000000000")
DICOM_NUMBERS = (
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness", "RescaleSlope"),
    *("RescaleIntercept", "TriggerTime", "NominalInterval", "InstanceNumber", "SeriesNumber", "NumberOfFrames"),
)
DICOM_SHORTS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")


def bad_dicom(good: bytes) -> Contents:
    """Return DICOM files: damaged, without an attribute, or with text and other numbers where numbers belong."""
    import pydicom

    cases = damaged(good)
    for name in (*DICOM_NUMBERS, *DICOM_SHORTS, "PixelData", "PhotometricInterpretation", "Modality"):
        data = pydicom.dcmread(io.BytesIO(good))
        if name in data:
            del data[name]
            cases[f"{name} removed"] = _dicom_bytes(data)
    for name in (*DICOM_NUMBERS, "SeriesDescription", "SpecificCharacterSet", "Modality", "ImageType"):
        for value in DICOM_VALUES:
            data = pydicom.dcmread(io.BytesIO(good))
            _set_raw(data, name, value.encode())
            cases[f"{name} {value}"] = _dicom_bytes(data)
    for name in DICOM_SHORTS:
        for number in (0, 1, 7, 65535):
            data = pydicom.dcmread(io.BytesIO(good))
            setattr(data, name, number)
            cases[f"{name} {number}"] = _dicom_bytes(data)
    data = pydicom.dcmread(io.BytesIO(good))
    _set_raw(data, "SeriesDescription", b"\xff\xfe\x80")
    cases["description that is no text"] = _dicom_bytes(data)
    return cases


def _set_raw(data: Any, name: str, value: bytes) -> None:
    """Set an attribute to bytes that pydicom would not accept as its value."""
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(name))
    value = value + b" " * (len(value) % 2)
    data._dict[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)


def _dicom_bytes(data: Any) -> bytes:
    stream = io.BytesIO()
    data.save_as(stream)
    return stream.getvalue()


def put(path: Path, content: Content) -> Path:
    """Write a bad file in the place of whatever is there, or call the function that makes it."""
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path


SPECIAL: Contents = {
    "missing": lambda path: None,
    "a pipe": os.mkfifo,
    "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a folder": Path.mkdir,
}
