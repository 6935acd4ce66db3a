"""Compare PRDiT with patches of 16 voxels that do not overlap with recorded values; its weights need 1 GB.

    python benchmarks/prdit_stride16.py --recorded FOLDER

FOLDER holds `case_s16.json` (the rule by which all weights are made, their names and the authors' config) and
`expected_s16.safetensors`. The weights are saved as the authors save theirs, converted, and the model is run once.
Prints the largest differences, relative to the largest recorded value.
"""

import argparse
import json
import math
import tempfile
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from cardiodit import PRDiTTransformerModel
from cardiodit.convert.prdit import convert_prdit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recorded", type=Path, required=True)
    folder = parser.parse_args().recorded
    case, golden = json.loads((folder / "case_s16.json").read_text()), load_file(folder / "expected_s16.safetensors")
    with tempfile.TemporaryDirectory() as temporary:
        weights = {key: by_rule(key, shape) for key, shape in case["keys"].items()}
        print(f"{sum(weight.numel() for weight in weights.values()) / 1e6:.1f} M weights")
        entries = {"model": weights, "ema": weights, "config": case["config"], "epoch": "best"}
        torch.save(entries, f"{temporary}/best.pt")
        del weights, entries
        convert_prdit(f"{temporary}/best.pt", f"{temporary}/model")
        Path(f"{temporary}/best.pt").unlink()
        model = PRDiTTransformerModel.from_pretrained(f"{temporary}/model/transformer")
    with torch.no_grad():
        compare("whole", model(golden["input"], golden["model_timestep"]).sample, golden["sample"])
        for part in model.refiner_parts():
            for parameter in part.parameters():
                parameter.zero_()
        compare("local part", model(golden["input"], golden["model_timestep"]).sample, golden["coarse"])


def by_rule(key: str, shape: list[int]) -> torch.Tensor:
    """Return the recorded weights of a key."""
    number, size, start = zlib.crc32(key.encode()), 1 / math.sqrt(shape[1]) if len(shape) > 1 else 0.05, 0.0
    if key.endswith("norm.weight"):
        start, size = 1.0, 0.1
    steps = np.arange(math.prod(shape), dtype=np.float64) * (0.37 + (number % 997) / 1000)
    return torch.from_numpy((start + size * np.sin(steps + number % 1009)).reshape(shape).astype(np.float32))


def compare(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    print(f"{name}: {(found - expected).abs().max() / expected.abs().max():.2e}")


if __name__ == "__main__":
    main()
