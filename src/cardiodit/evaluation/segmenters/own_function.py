"""A segmenter of one's own: a Python function, named `module:function`."""

from typing import Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters.segmenter import Grid, Segmenter
from cardiodit.evaluation.user_code import LOOKED_IN, hash_of_sources, import_own
from cardiodit.imaging.label_order import ACDC_ORDER, parse_order


def open_function(name: str) -> Segmenter:
    module_name, function_name = name.split(":")
    try:
        module = import_own(module_name)
    except ImportError as error:
        raise CardioDiTError(
            f"The module of the segmenter {name} cannot be imported ({error}). {LOOKED_IN}: install it, set "
            "PYTHONPATH, or go to its folder."
        ) from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        raise CardioDiTError(f"{module_name} has no function {function_name}.")
    order = getattr(function, "mask_order", None)
    if not order:
        raise CardioDiTError(
            f"The segmenter {name} does not say which of its labels is which. Write below the function, for example, "
            f'{function_name}.mask_order = "{ACDC_ORDER}".'
        )
    parse_order(order)
    return Segmenter(
        name=name,
        identity=hash_of_sources(module, function) or "unknown",
        labels=order,
        grid=Grid(),
        network=lambda cine, geometry: np.asarray(function(cine, geometry)),
        note="The identity is that of its source file, not of other code or of weights that it may load.",
    )
