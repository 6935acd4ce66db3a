"""Segmenters by one name each."""

import re
from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters import bundle, cinema
from cardiodit.evaluation.segmenters.bundle import open_bundle
from cardiodit.evaluation.segmenters.cinema import open_cinema
from cardiodit.evaluation.segmenters.heart_network import open_folder, open_from_hub
from cardiodit.evaluation.segmenters.own_function import open_function
from cardiodit.evaluation.segmenters.segmenter import Segmenter
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER, find_model
from cardiodit.hub.load import HUB_NAME


def open_segmenter(spec: str | Path, device: str = "cpu") -> Segmenter:
    """Opens a segmenter.

    Args:
        spec: the name of one that comes with the package; the folder of a `HeartSegmenter` or of its training run, or
            its name on the Hub; the folder of a MONAI bundle such as `ventricular_short_axis_3label`; "cinema",
            "cinema:mnms" or "cinema:mnms:1" (trained on acdc, mnms or mnms2, seed 0 to 2), for which the package
            `cinema` must be installed; or "module:function", a function of a cine `(H, W, D, T)` and its `Geometry`
            that gives label maps, whose order its attribute `mask_order` tells, such as "RV=1 MYO=2 LV=3".
        device: where networks run.
    """
    name = str(spec)
    if match := re.fullmatch(cinema.NAME, name):
        return open_cinema(name, match["data"] or "acdc", int(match["seed"] or 0), device)
    found = Path(find_model(spec))
    if found.is_dir():
        return (open_bundle if (found / bundle.METADATA).is_file() else open_folder)(name, found, device)
    if re.fullmatch(r"[\w.]+:\w+", name):
        return open_function(name)
    if not re.fullmatch(HUB_NAME, name):
        raise CardioDiTError(
            f"There is no segmenter {name}: it is no folder, no name on the Hub (org/name), no module:function, and "
            f"neither {PHANTOM_SEGMENTER} nor cinema."
        )
    return open_from_hub(name, device)
