"""The published preprocessings in words."""

from cardiodit.hub.card.model_words import preprocessing
from cardiodit.imaging.preprocessing import PRESETS


def test_every_preset_is_described_step_by_step() -> None:
    words = {name: preprocessing(steps, is_cine=name.startswith("c")) for name, steps in PRESETS.items()}
    assert words["cine"].splitlines() == [
        "1. Reoriented to one axis order: slices from base to apex, end-diastole first.",
        "2. Resampled to H 1.4 mm, W 1.4 mm; D as in the file.",
        "3. Cropped or padded around the centre to H 128, W 128, D 10 voxels.",
        "4. One beat resampled periodically to 32 frames.",
        "5. Intensities: percentile 0.5 of each volume becomes -1, percentile 99.5 of each volume becomes 1, linear in "
        "between; values outside are clipped.",
    ]
    assert "repeated and cut to 32" in words["cardiodit"] and "Axes left as stored" in words["cardiodit"]
    assert "Resized as a whole to H 512" in words["voldit"] and "-1000 in the source's units" in words["voldit"]
    assert "Voxel size" not in words["voldit"] and "beat" not in words["voldit"]
    assert words["prdit-lidc-128"].splitlines()[-2:] == [
        "4. Intensities: -1000 in the source's units becomes -1, percentile 99.9 of each volume's field of view "
        "becomes 1, linear in between; values outside are clipped.",
        "5. Averaged over cubes of 2 voxels along each axis.",
    ]
