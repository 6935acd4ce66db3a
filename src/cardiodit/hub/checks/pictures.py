"""What picture files hold beside the picture: comments, EXIF, text. Found by walking over a file's own blocks."""

from collections.abc import Callable, Iterator

PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# What draws the picture; all else is text, time or another program's own.
PNG_DRAWS = {
    *(b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"pHYs", b"bKGD"),
    *(b"acTL", b"fcTL", b"fdAT"),
}
GIF_LOOPS = (b"NETSCAPE2.0", b"ANIMEXTS1.0")
GIF_EXTENSION, GIF_IMAGE, GIF_END = 0x21, 0x2C, 0x3B
GIF_CONTROL, GIF_COMMENT, GIF_TEXT = 0xF9, 0xFE, 0x01
JPEG_START, JPEG_SCAN, JPEG_END, JPEG_COMMENT = 0xD8, 0xDA, 0xD9, 0xFE
JPEG_JFIF, JPEG_ADOBE = 0xE0, 0xEE
JPEG_APPLICATIONS = range(0xE0, 0xF0)


def extras_of(content: bytes) -> list[str]:
    """Names of all that is no picture; raises ValueError for a file that is none, or was cut short."""
    for is_one, walk in ((content[:8] == PNG_HEAD, _of_png), (content[:3] == b"GIF", _of_gif)):
        if is_one:
            return _found(walk, content)
    if content[:2] == b"\xff\xd8":
        return _found(_of_jpeg, content)
    raise ValueError("it is no PNG, GIF or JPEG file")


def _found(walk: Callable[[bytes], Iterator[str]], content: bytes) -> list[str]:
    try:
        return list(dict.fromkeys(walk(content)))
    except IndexError as error:
        raise ValueError("it was cut short") from error


def _of_png(content: bytes) -> Iterator[str]:
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
        yield "data after its end"


def _of_gif(content: bytes) -> Iterator[str]:
    at = 13 + _gif_colours(content[10])
    while content[at] != GIF_END:
        if content[at] == GIF_IMAGE:
            at = _after_gif_blocks(content, at + 11 + _gif_colours(content[at + 9]))
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
        yield "data after its end"


def _gif_colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(content: bytes, at: int) -> int:
    while content[at]:
        at += 1 + content[at]
    return at + 1


def _of_jpeg(content: bytes) -> Iterator[str]:
    at = 2
    while content[at + 1] != JPEG_SCAN:
        marker = content[at + 1]
        if content[at] != 0xFF or marker == JPEG_END:
            raise ValueError("it is damaged")
        if marker == JPEG_COMMENT:
            yield "comment"
        elif marker in JPEG_APPLICATIONS and marker not in (JPEG_JFIF, JPEG_ADOBE):
            yield f"APP{marker - JPEG_JFIF} block (EXIF, XMP or the like)"
        at += 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    end = content.rfind(b"\xff\xd9")
    if end < 0:
        raise IndexError
    if content[end + 2 :]:
        yield "data after its end"
