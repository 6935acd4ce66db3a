"""A segmenter of one's own: a Python function, named `module:function`."""

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters.segmenter import Grid, Segmenter
from cardiodit.hashing import sha256_of
from cardiodit.imaging.cohorts.found import ACDC_ORDER


def open_function(name: str) -> Segmenter:
    module_name, function_name = name.split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise CardioDiTError(f"The module of the segmenter {name} cannot be imported: {error}.") from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise CardioDiTError(f"{module_name} has no function {function_name}.")
    source = inspect.getsourcefile(module)
    return Segmenter(
        name=name,
        identity=sha256_of(Path(source)) if source else "unknown",
        labels=getattr(function, "mask_order", ACDC_ORDER),
        grid=Grid(),
        network=lambda cine, geometry: np.asarray(function(cine, geometry)),
        note="The identity is that of its source, not of weights that it may load.",
    )
