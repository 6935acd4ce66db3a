"""Our own `HeartSegmenter`: one of the package, of a folder or training run, or of the Hub."""

from pathlib import Path

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.segmenters.bundle import METADATA, read_json
from cardiodit.evaluation.segmenters.segmenter import BATCH, Grid, Segmenter, identity_of
from cardiodit.hub.bundled_models import PHANTOM_SEGMENTER
from cardiodit.hub.load import CONFIG
from cardiodit.imaging.label_order import ACDC_ORDER
from cardiodit.models.segmenter import HeartSegmenter

TRAINED = Path("best", "segmenter")  # in the folder of a training run


def open_folder(name: str, folder: Path, device: str) -> Segmenter:
    place = next((place for place in (folder, folder / TRAINED) if (place / CONFIG).is_file()), None)
    if place is None:
        raise CardioDiTError(
            f"{folder} holds no segmenter: neither the {CONFIG} of a HeartSegmenter, here or in {TRAINED}, nor the "
            f"{METADATA} of a MONAI bundle is in it."
        )
    class_name = read_json(place / CONFIG).get("_class_name")
    if class_name != HeartSegmenter.__name__:
        raise CardioDiTError(f"{place / CONFIG} is that of a {class_name}, not of a HeartSegmenter.")
    return wrap(name, HeartSegmenter.from_pretrained(place), device)


def open_from_hub(name: str, device: str) -> Segmenter:
    try:
        model = HeartSegmenter.from_pretrained(name)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise CardioDiTError(f"There is no folder {name}, and the Hub gives no segmenter: {reason}") from error
    return wrap(name, model, device)


def wrap(name: str, model: HeartSegmenter, device: str) -> Segmenter:
    """Ours. Slices stay as they are, however far apart: resampling would mix what lies centimetres apart."""
    height, width, _ = model.config.spacing or (None, None, None)
    model = model.to(device).eval()
    note = "It was trained on drawn phantoms; of patients it knows nothing." if name == PHANTOM_SEGMENTER else ""
    return Segmenter(
        name=name,
        identity=identity_of(model),
        labels=ACDC_ORDER,
        grid=Grid(spacing=(height, width, None)),
        network=lambda cine, _: model.segment(cine, BATCH),
        note=note,
    )
