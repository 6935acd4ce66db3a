"""Find patient data in images: DICOM, free text in NIfTI headers, comments and EXIF in pictures."""

from collections.abc import Callable, Iterator
from pathlib import Path

from cardiodit._util.sample_records import SAMPLE_LIST, read_sample_list
from cardiodit.errors import CardioDiTError
from cardiodit.imaging.nifti import SIZE_UNKNOWN, has_extensions, read_header

DICOM_MARK, DICOM_MARK_AT = b"DICM", 128

NIFTI_TEXT = ("descrip", "aux_file", "intent_name", "db_name", "data_type")
NIFTI_VOXELS_AT = {348: 352, 540: 544}  # by header size: where voxels begin if there are no extensions
GZIP_EXTRA, GZIP_NAME, GZIP_COMMENT = 4, 8, 16

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# Chunks that draw the picture; all others are text, times or data of other programs.
PNG_DRAWS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD"),
    *(b"acTL", b"fcTL", b"fdAT"),
}
GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
GIF_EXTENSION, GIF_IMAGE, GIF_END = 0x21, 0x2C, 0x3B
GIF_CONTROL, GIF_COMMENT, GIF_TEXT = 0xF9, 0xFE, 0x01
JPEG_HEAD, JPEG_TAIL = b"\xff\xd8", b"\xff\xd9"
JPEG_SCAN, JPEG_END, JPEG_COMMENT = 0xDA, 0xD9, 0xFE
JPEG_JFIF, JPEG_ADOBE = 0xE0, 0xEE
JPEG_APPLICATIONS = range(0xE0, 0xF0)
TRAILING = "data after its end"


def is_dicom(path: Path) -> bool:
    """Recognize DICOM by content, whatever the file is called."""
    return _first_bytes(path, DICOM_MARK_AT + len(DICOM_MARK))[DICOM_MARK_AT:] == DICOM_MARK


def _first_bytes(path: Path, count: int) -> bytes:
    with path.open("rb") as file:
        return file.read(count)


def findings_in_nifti(path: Path) -> Iterator[str]:
    try:
        header = read_header(path)
        for field in NIFTI_TEXT:
            text = bytes(header[field].tobytes()).rstrip(b"\0 ") if field in header else b""
            if text and text != SIZE_UNKNOWN:
                yield f"has the text {text.decode('latin-1')!r} in its header's {field}; clear it"
        voxels_at = NIFTI_VOXELS_AT.get(int(header["sizeof_hdr"]), 0)
        if int(header["vox_offset"]) > voxels_at or has_extensions(path, header):
            yield "has header extensions, where scanners and programs store patient data; save it without them"
    except Exception as error:  # a header may hold anything
        yield f"cannot be read as NIfTI ({str(error).rstrip('.')}); create it again or remove it"
        return
    if path.suffix == ".gz" and _first_bytes(path, 4)[3] & (GZIP_EXTRA | GZIP_NAME | GZIP_COMMENT):
        yield "contains the name it had before it was compressed; compress it again with gzip --no-name"
    if path.name not in _generated_files(path.parent):
        yield (
            f"is not listed in a {SAMPLE_LIST} beside it, so there is no evidence that it was generated; patients' "
            "volumes do not belong in a model's folder"
        )


def _generated_files(folder: Path) -> set[str]:
    """Return the files listed in a folder's sample list, if it has a readable one."""
    try:
        return set(read_sample_list(folder))
    except (CardioDiTError, OSError, ValueError):
        return set()


def findings_in_picture(path: Path) -> Iterator[str]:
    try:
        extras = picture_extras(path.read_bytes())
    except ValueError as error:
        yield f"cannot be checked ({error}); create it again or remove it"
        return
    if extras:
        yield f"contains more than a picture ({', '.join(extras)}); save it without"


def picture_extras(content: bytes) -> list[str]:
    """Name everything in a picture file besides the picture; raise ValueError if it is damaged or not a picture."""
    walk: Callable[[bytes], Iterator[str]]
    if content.startswith(PNG_HEAD):
        walk = _png_extras
    elif content.startswith(b"GIF"):
        walk = _gif_extras
    elif content.startswith(JPEG_HEAD):
        walk = _jpeg_extras
    else:
        raise ValueError("it is not a PNG, GIF or JPEG file")
    try:
        return list(dict.fromkeys(walk(content)))
    except IndexError as error:
        raise ValueError("it is truncated") from error


def _png_extras(content: bytes) -> Iterator[str]:
    at, kind = len(PNG_HEAD), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if len(kind) < 4:
            raise IndexError
        if kind not in PNG_DRAWS:
            yield f"{kind.decode('latin-1')} chunk"
        at += 12 + length
    if at > len(content):
        raise IndexError
    if content[at:]:
        yield TRAILING


def _gif_extras(content: bytes) -> Iterator[str]:
    at = 13 + _gif_palette_size(content[10])
    while content[at] != GIF_END:
        if content[at] == GIF_IMAGE:
            at = _after_gif_blocks(content, at + 11 + _gif_palette_size(content[at + 9]))
        elif content[at] == GIF_EXTENSION:
            kind, name = content[at + 1], content[at + 3 : at + 14]
            if kind in (GIF_COMMENT, GIF_TEXT):
                yield "comment" if kind == GIF_COMMENT else "text"
            elif kind != GIF_CONTROL and name not in GIF_LOOPS:
                yield f"{name.decode('latin-1').strip()} block"
            at = _after_gif_blocks(content, at + 2)
        else:
            raise ValueError("it is damaged")
    if content[at + 1 :]:
        yield TRAILING


def _gif_palette_size(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(content: bytes, at: int) -> int:
    while content[at]:
        at += 1 + content[at]
    return at + 1


def _jpeg_extras(content: bytes) -> Iterator[str]:
    at = len(JPEG_HEAD)
    while content[at + 1] != JPEG_SCAN:
        marker = content[at + 1]
        if content[at] != 0xFF or marker == JPEG_END:
            raise ValueError("it is damaged")
        if marker == JPEG_COMMENT:
            yield "comment"
        elif marker in JPEG_APPLICATIONS and marker not in (JPEG_JFIF, JPEG_ADOBE):
            yield f"APP{marker - JPEG_JFIF} block (EXIF, XMP or similar)"
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    end = content.rfind(JPEG_TAIL)
    if end < 0:
        raise IndexError
    if content[end + len(JPEG_TAIL) :]:
        yield TRAILING
