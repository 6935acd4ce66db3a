"""How real volumes are prepared: as the training volumes of the model were, by whoever can say so."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.sets import VolumeSet
from cardiodit.imaging.preprocessing import PRESETS, Preprocessing, without_typical


def settle_preprocessing(
    synthetic: VolumeSet, model: str | None = None, named: str | None = None, depth: int | None = None
) -> Preprocessing:
    """From the samples' records, the model, or a preset or JSON file; an error where they contradict or none says.

    Args:
        model: folder or Hub name of a pipeline, a VQ model or PRDiT's transformer.
        named: a preset, or a JSON file as `Preprocessing.to_dict` writes it.
        depth: slices to crop or pad to, in place of what the preprocessing says.
    """
    told = {
        "the samples' records": synthetic.preprocessing,
        "--model": _of_model(model) if model else None,
        "--preprocessing": _named(named) if named else None,
    }
    known = {who: Preprocessing.from_dict(steps) for who, steps in told.items() if steps is not None}
    if not known:
        raise CardioDiTError(
            "How the real volumes are to be prepared is not known: the synthetic ones do not say what their model was "
            f"trained on. Give --model FOLDER (the pipeline that made them) or --preprocessing: one of "
            f"{', '.join(PRESETS)}, or a JSON file."
        )
    (first, steps), *others = known.items()
    for who, other in others:
        if without_typical(other) != without_typical(steps):
            raise CardioDiTError(
                f"{first[0].upper()}{first[1:]} and {who} prepare volumes in different ways. Real volumes go the way "
                "of the model's training volumes; leave the wrong one out."
            )
    return steps if depth is None else replace(steps, size=(*steps.size[:2], depth))


def _of_model(model: str) -> dict[str, Any]:
    from cardiodit.hub.load import open_informed

    steps = open_informed(model).config.preprocessing
    if steps is None:
        raise CardioDiTError(
            f"The model {model} does not say how its training volumes were prepared, as converted ones do not. Give "
            f"--preprocessing instead: one of {', '.join(PRESETS)}, or a JSON file."
        )
    return dict(steps)


def _named(name: str) -> dict[str, Any]:
    if name in PRESETS:
        return PRESETS[name].to_dict()
    try:
        return json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CardioDiTError(
            f"--preprocessing {name}: neither one of {', '.join(PRESETS)} nor a JSON file that can be read ({error})."
        ) from error
