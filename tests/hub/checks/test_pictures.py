"""What pictures carry beside themselves, in files that Pillow and our own writers make."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from cardiodit.hub.checks.pictures import extras_of
from cardiodit.imaging.pictures import write_gif, write_sheet, write_slices

PICTURE = Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20))
NAME = "DOE^JANE"


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def exif() -> Image.Exif:
    tags = Image.Exif()
    tags[0x010E] = NAME
    return tags


def text_chunks(compressed: bool = False) -> PngImagePlugin.PngInfo:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Patient", NAME, zip=compressed)
    chunks.add_itxt("Author", NAME)
    return chunks


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_a_picture_alone(kind: str) -> None:
    assert extras_of(saved(kind)) == []


def test_our_own_pictures(tmp_path: Path) -> None:
    cine = np.random.default_rng(0).uniform(-1, 1, (12, 12, 2, 4))
    write_gif(tmp_path / "a.gif", cine)
    write_gif(tmp_path / "masked.gif", cine, masks=(cine > 0).astype(int))
    write_sheet(tmp_path / "b.png", cine)
    write_slices(tmp_path / "c.png", cine[..., 0])
    assert [extras_of(path.read_bytes()) for path in sorted(tmp_path.iterdir())] == [[]] * 4


@pytest.mark.parametrize(
    "content, found",
    [
        (saved("PNG", pnginfo=text_chunks()), ["tEXt chunk", "iTXt chunk"]),
        (saved("PNG", pnginfo=text_chunks(compressed=True)), ["zTXt chunk", "iTXt chunk"]),
        (saved("PNG", exif=exif()), ["eXIf chunk"]),
        (saved("GIF", comment=NAME.encode()), ["comment"]),
        (saved("JPEG", comment=NAME.encode()), ["comment"]),
        (saved("JPEG", exif=exif()), ["APP1 block (EXIF, XMP or the like)"]),
        *((saved(kind) + NAME.encode(), ["data after its end"]) for kind in ("PNG", "GIF", "JPEG")),
    ],
)
def test_what_tells_of_somebody_is_found(content: bytes, found: list[str]) -> None:
    assert extras_of(content) == found


@pytest.mark.parametrize("kind", ["PNG", "GIF", "JPEG"])
def test_files_that_were_cut_short(kind: str) -> None:
    whole = saved(kind)
    for size in (4, 15, len(whole) // 2, len(whole) - 3):
        with pytest.raises(ValueError):
            extras_of(whole[:size])


def test_what_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no PNG, GIF or JPEG"):
        extras_of(b"hello")
