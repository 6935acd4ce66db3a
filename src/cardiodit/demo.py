"""Generate hearts with the phantom model, and write volumes, pictures and a page that plays them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cardiodit._util.terminal import SharedBar, say
from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.metrics.function import Function, left_ventricle
from cardiodit.hub.bundled_models import PHANTOM_MODEL, PHANTOM_SEGMENTER, bundled_model
from cardiodit.imaging.figures import write_beating_rows, write_sheet_with_curve
from cardiodit.imaging.geometry import Geometry
from cardiodit.imaging.nifti import write_nifti
from cardiodit.imaging.volume import Volume
from cardiodit.models.segmenter import HeartSegmenter
from cardiodit.pipelines import CardioDiTPipeline
from cardiodit.pipelines.output import sample_path
from cardiodit.viewer.page import Shown, write_viewer

STEPS, GUIDANCE = 25, 1.0  # as in the evaluation of the model


@dataclass(frozen=True)
class Heart:
    """A generated cine `(H, W, D, T)` in [-1, 1], its label map, and its function."""

    label: str
    cine: np.ndarray
    parts: np.ndarray
    function: Function


def run_demo(output_dir: Path, num_samples: int = 4, seed: int = 0) -> None:
    """Sample hearts, cycling over the model's labels, and write volumes, pictures and a page into a new folder."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise CardioDiTError(f"{output_dir} is not an empty folder; choose another --output_dir or remove it.")
    pipe = CardioDiTPipeline.from_pretrained(PHANTOM_MODEL)
    names = pipe.transformer.config.class_names
    labels = [names[i % len(names)] for i in range(num_samples)]
    say(f"Generating {num_samples} hearts: {', '.join(labels)}.")
    with SharedBar(pipe, calls=1, description="Denoising"):
        out = pipe(labels, num_inference_steps=STEPS, guidance_scale=GUIDANCE, seed=seed, decode_batch_size=8)
    out.save(output_dir / "samples")
    hearts = find_parts(labels, np.asarray(out.volumes), pipe.geometry)
    write_pictures(output_dir, hearts, pipe.geometry, seed)
    print_function(hearts)
    say(
        f"\nThese are phantoms: the model was trained on drawn hearts, not on patients.\n"
        f"{output_dir / 'hearts.gif'} and the sheets show them; the volumes are in {output_dir / 'samples'}.\n"
        f"Open this page in a browser to play them: {output_dir / 'hearts.html'}"
    )


def find_parts(labels: Sequence[str], cines: np.ndarray, geometry: Geometry) -> list[Heart]:
    segmenter = HeartSegmenter.from_pretrained(bundled_model(PHANTOM_SEGMENTER))
    hearts = []
    for label, cine in zip(labels, cines, strict=True):
        parts = segmenter.segment(cine)
        hearts.append(Heart(label, cine, parts, left_ventricle(parts, geometry)))
    return hearts


def write_pictures(folder: Path, hearts: Sequence[Heart], geometry: Geometry, seed: int) -> None:
    """Write label maps into `parts/`, `hearts.gif`, a sheet for each heart, and `hearts.html`."""
    (folder / "parts").mkdir()
    shown = []
    for index, heart in enumerate(hearts):
        name = f"{index + 1}-{heart.label}"
        write_nifti(folder / "parts" / sample_path(folder, seed, index).name, heart.parts, geometry)
        write_sheet_with_curve(
            folder / f"sheet-{name}.png", heart.label, heart.cine, heart.function.volumes_ml, geometry.frame_time
        )
        shown.append(Shown(heart.label, Volume(heart.cine, geometry), heart.parts, (-1.0, 1.0)))
    write_beating_rows(folder / "hearts.gif", [(heart.label, heart.cine) for heart in hearts], geometry.frame_time)
    write_viewer(folder / "hearts.html", shown, "Generated hearts")


def print_function(hearts: Sequence[Heart]) -> None:
    print(f"\n{'heart':<16}{'EDV mL':>8}{'ESV mL':>8}{'EF %':>8}")
    for heart in hearts:
        f = heart.function
        print(f"{heart.label:<16}{f.edv:>8.0f}{f.esv:>8.0f}{f.ef:>8.0f}")
