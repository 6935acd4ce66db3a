"""Images that can tell who a patient is: DICOM, free text in NIfTI headers, comments and EXIF in pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.errors import CardioDiTError
from cardiodit.hub.checks.pictures import extras_of
from cardiodit.imaging.nifti import SIZE_UNKNOWN

DICOM_MARK, DICOM_MARK_AT = b"DICM", 128
FREE_TEXT = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
VOXELS_AT = {348: 352, 540: 544}  # by the header's size: where voxels begin when nothing lies in between
GZIP_EXTRA, GZIP_NAME, GZIP_COMMENT = 4, 8, 16


def is_dicom(path: Path) -> bool:
    """By content, whatever the file is called."""
    with path.open("rb") as file:
        return file.read(DICOM_MARK_AT + len(DICOM_MARK))[DICOM_MARK_AT:] == DICOM_MARK


def findings_in_picture(path: Path) -> Iterator[str]:
    try:
        extras = extras_of(path.read_bytes())
    except ValueError as error:
        yield f"cannot be looked through ({error}); make it anew or take it out"
        return
    if extras:
        yield f"carries more than a picture ({', '.join(extras)}); save it again without"


def findings_in_nifti(path: Path) -> Iterator[str]:
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        header: Any = nibabel.load(path).header
        yield from _free_text(header)
        size = int(header["sizeof_hdr"])
        if int(header["vox_offset"]) > VOXELS_AT.get(size, 0) or getattr(header, "extensions", None):
            yield "carries header extensions, where scanners and programs leave patients' data; write it again without"
    except (ImageFileError, EOFError, OSError, KeyError, ValueError) as error:
        yield f"cannot be read as NIfTI ({error}); make it anew or take it out"
        return
    if path.suffix == ".gz" and path.read_bytes()[3] & (GZIP_EXTRA | GZIP_NAME | GZIP_COMMENT):
        yield "holds the name that it had before it was compressed; compress it again without (gzip --no-name)"
    if path.name not in _generated(path.parent):
        yield (
            f"is not listed in a {SAMPLE_LIST} beside it, so nothing says that it was generated; patients' volumes do "
            "not belong in a model's folder"
        )


def _free_text(header: Any) -> Iterator[str]:
    for field in FREE_TEXT:
        text = bytes(header[field].tobytes()).rstrip(b"\0 ") if field in header else b""
        if text and text != SIZE_UNKNOWN:
            yield f"has the text {text.decode('latin-1')!r} in its header's {field}; empty it"


def _generated(folder: Path) -> set[str]:
    """Files that a list of samples names."""
    try:
        return set(read_sample_list(folder))
    except (CardioDiTError, OSError, ValueError):
        return set()
