"""Do masks steer? Requested structures beside those found in what was generated.

For unseen phantoms, their own segmentation is requested of a steered model, and the shipped segmenter says what is
there: Dice of the left ventricle and of its muscle, beside the same for samples that nothing steers, and beside the
segmenter's ceiling, its Dice on the phantoms themselves. Writes `steering.json` and a GIF: mask, generated heart, both.

    python benchmarks/steering.py --model runs/tgca/pipeline --output results
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cardiodit.imaging import Preprocessing
from cardiodit.imaging.cases import prepare_case, prepare_mask
from cardiodit.imaging.manifest import read_manifest
from cardiodit.imaging.phantom import write_cohort
from cardiodit.imaging.pictures import COLOURS, strip_of
from cardiodit.models.segmenter import HeartSegmenter, dice
from cardiodit.pipelines.opening import open_pipeline
from cardiodit.shipped import PHANTOM_SEGMENTER, shipped_model

FRESH_SEED = 2000
PARTS = {2: "myocardium", 3: "left ventricle"}
ABOVE_FREE, LEAST = 0.25, 0.75
TILE = 96


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="pipeline with an adapter for the phantoms' masks")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--condition_guidance_scale", type=float, default=1.0)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    segmenter = HeartSegmenter.from_pretrained(shipped_model(PHANTOM_SEGMENTER))
    pipe = open_pipeline(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    folder = arguments.output / f"fresh{FRESH_SEED}-{arguments.count}"
    if not folder.is_dir():
        write_cohort(folder, arguments.count, FRESH_SEED, workers=2)
    steps = Preprocessing.from_dict(pipe.vae.config.preprocessing)
    found: dict[str, list[list[float]]] = {"steered": [], "free": [], "ceiling": []}
    rows = []
    for index, case in enumerate(read_manifest(folder / "manifest.csv")):
        prepared = prepare_case(case, steps)
        mask = prepare_mask(case, prepared).voxels
        settings: dict[str, Any] = {
            "class_labels": case.row["label"],
            "num_inference_steps": arguments.steps,
            "seed": 0,
            "first_sample": index,
            "decode_batch_size": 8,
            "output_type": "np",
        }
        steered = pipe(mask, condition_guidance_scale=arguments.condition_guidance_scale, **settings).volumes[0]
        free = pipe(mask, conditioning_scale=0.0, **settings).volumes[0]
        for name, cine in (("steered", steered), ("free", free), ("ceiling", prepared.volume.voxels)):
            found[name].append(list(dice(segmenter.segment(cine), mask, tuple(PARTS)).values()))
        rows.append((mask, steered))
    means = {
        name: dict(zip(PARTS.values(), np.mean(values, axis=0).round(4).tolist())) for name, values in found.items()
    }
    print(json.dumps(means, indent=1))
    (arguments.output / "steering.json").write_text(json.dumps({"means": means, "each": found}, indent=1) + "\n")
    write_gif(arguments.output / "steering.gif", rows[:4], pipe.geometry.frame_time)
    gains = {part: means["steered"][part] - means["free"][part] for part in PARTS.values()}
    met = min(gains.values()) >= ABOVE_FREE and min(means["steered"].values()) >= LEAST
    print("Masks steer." if met else f"Missed: Dice {means['steered']}, above free samples by {gains}.")
    return 0 if met else 1


def write_gif(path: Path, rows: list[tuple[np.ndarray, np.ndarray]], frame_time: float | None) -> None:
    """For each heart a row: the mask, what was generated, and both, of the slices in the middle."""
    frames = []
    for t in range(rows[0][0].shape[3]):
        lines = []
        for mask, cine in rows:
            middle = slice(mask.shape[2] // 2 - 2, mask.shape[2] // 2 + 1)
            grey = strip_of(cine[:, :, middle, t], None, (-1, 1))
            outlined = strip_of(cine[:, :, middle, t], mask[:, :, middle, t], (-1, 1))
            lines.append(np.concatenate([coloured(mask[:, :, middle, t]), rgb(grey), outlined], axis=1))
        sheet = Image.fromarray(np.concatenate(lines))
        zoom = TILE / rows[0][0].shape[1]
        frames.append(sheet.resize((round(sheet.width * zoom), round(sheet.height * zoom)), Image.Resampling.BICUBIC))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 * (frame_time or 0.06)), loop=0)


def rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def coloured(mask: np.ndarray) -> np.ndarray:
    turned = strip_of(mask.astype(float), None, (0, 255))
    picture = np.zeros((*turned.shape, 3), np.uint8)
    for label, colour in COLOURS.items():
        picture[turned == label] = colour
    return picture


if __name__ == "__main__":
    sys.exit(main())
