"""What is asked of an evaluation."""

from dataclasses import dataclass
from pathlib import Path

from cardiodit.evaluation.features.inputs import Size

MEASURED = "measured"  # the folder of what is kept


@dataclass(frozen=True)
class Request:
    """What is to be evaluated, and with what.

    Args:
        real: manifest.
        synthetic: folder or manifest.
        output_dir: where reports go and what was measured is kept.
        model, preprocessing, depth: how real volumes are prepared (`settle_preprocessing`).
        features, weights, features_size: the feature network (`features.load_network`).
        segmenter: that labels both sets; None without.
        real_masks: take the manifest's masks for the real set all the same.
        reconstructions: a VQ model that real volumes are passed through.
        critic: also train critics.
        max_volumes: of each set, drawn by the seed.
        processes: that measure; the report does not depend on it.
    """

    real: Path
    synthetic: Path
    output_dir: Path
    model: str | None = None
    preprocessing: str | None = None
    depth: int | None = None
    features: str = "random"
    weights: str | None = None
    features_size: Size | None = None
    segmenter: str | None = None
    real_masks: bool = False
    reconstructions: str | None = None
    critic: bool = False
    max_volumes: int | None = None
    seed: int = 0
    processes: int = 1
    device: str = "cpu"
