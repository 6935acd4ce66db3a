"""The app of `cardiodit app`: choose a model and generate a heart that beats in the browser.

It takes no files, so nobody can put a patient's images into it: there is no field for them, and uploads, which gradio
accepts by itself, are refused.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import PHANTOM_MODEL, PHANTOM_SEGMENTER

if TYPE_CHECKING:
    import gradio

    from cardiodit.evaluation.metrics.function import Function
    from cardiodit.evaluation.segmenters import Segmenter
    from cardiodit.imaging.volume import Volume

ANY = "any"
CANDIDATES = 4  # hearts of which the one with the nearest ejection fraction is shown, if the model knows none
STEPS = (5, 50)
WAITING = 16  # requests in the queue
HOUR = 3600
INTRODUCTION = (
    "# Generated hearts\n"
    "A diffusion model draws a heart that nobody has: choose, generate, and watch it beat. For research only: not a "
    "medical device, and not evidence about any patient. This app takes no files."
)


@dataclass(frozen=True)
class Generated:
    """A generated volume, its label map if there is a segmenter, and its function if it is a heart."""

    volume: "Volume"
    parts: np.ndarray | None
    function: "Function | None"
    note: str


def serve(server: Any, host: str, port: int) -> None:
    """Serve the app of `make_server` until it is stopped."""
    import uvicorn

    uvicorn.run(server, host=host, port=port, log_level="warning")


def make_server(models: Sequence[str], segmenter: str | None = None) -> Any:
    """Return the app as a web application that refuses uploads.

    Args:
        models: models to choose from, as `open_pipeline` takes them.
        segmenter: what labels their hearts, as in `open_segmenter`; default: the bundled one for the bundled model.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # nothing is sent anywhere
    try:
        import gradio
        from fastapi import FastAPI, Request
        from fastapi.responses import PlainTextResponse
    except ImportError as error:
        raise CardioDiTError('The app needs gradio: pip install "cardiodit[app]".') from error
    server = FastAPI()

    async def refuse_uploads(request: Request, forward: Any) -> Any:
        sends_a_file = "multipart/form-data" in request.headers.get("content-type", "")
        if sends_a_file or request.url.path.rstrip("/").endswith("/upload"):
            return PlainTextResponse("This app takes no files.", status_code=403)
        return await forward(request)

    server.middleware("http")(refuse_uploads)
    return gradio.mount_gradio_app(server, build(models, segmenter), path="/", theme=_theme(), footer_links=[])


def build(models: Sequence[str], segmenter: str | None = None) -> "gradio.Blocks":
    """Return the app's page."""
    import gradio

    pipes = {name: _open(name) for name in models}  # a model that cannot be opened is an error before anybody comes
    with gradio.Blocks(title="Generated hearts", delete_cache=(HOUR, HOUR)) as page:
        gradio.Markdown(INTRODUCTION)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                model = gradio.Dropdown(list(models), value=models[0], label="Model", visible=len(models) > 1)
                label = gradio.Dropdown(_labels(pipes[models[0]]), value=ANY, label="Diagnosis")
                wants_ef = gradio.Checkbox(False, label="Choose the ejection fraction")
                ef = gradio.Slider(15, 75, value=55, step=1, label="Ejection fraction, %", visible=False)
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed")
                steps = gradio.Slider(*STEPS, value=25, step=1, label="Denoising steps")
                button = gradio.Button("Generate", variant="primary")
                note = gradio.Markdown(elem_id="note")
                files = gradio.File(label="NIfTI", file_count="multiple", interactive=False)
            with gradio.Column(scale=3):
                viewer = gradio.HTML("<p>Press Generate.</p>", elem_id="viewer")
        wants_ef.change(lambda on: gradio.Slider(visible=on), wants_ef, ef, show_progress="hidden")
        model.change(lambda name: gradio.Dropdown(_labels(_open(name)), value=ANY), model, label)

        def answer(name: str, label: str, wants_ef: bool, ef: float, seed: float, steps: float) -> list[Any]:
            try:
                made = generate(name, label, ef if wants_ef else None, int(seed), int(steps), segmenter)
            except CardioDiTError as error:
                raise gradio.Error(str(error)) from error
            return [shown(made, label), made.note, write_files(made, int(seed))]

        asked = [model, label, wants_ef, ef, seed, steps]
        button.click(answer, asked, [viewer, note, files], concurrency_limit=1, api_visibility="private")
    page.queue(max_size=WAITING)
    return page


def _theme() -> Any:
    import gradio

    return gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no fonts from elsewhere


@cache
def _open(name: str) -> Any:
    from cardiodit.pipelines.load import open_pipeline

    pipe = open_pipeline(name)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def _open_segmenter(name: str) -> "Segmenter":
    from cardiodit.evaluation.segmenters import open_segmenter

    return open_segmenter(name)


def _labels(pipe: Any) -> list[str]:
    return [ANY, *map(str, pipe.labels)]


def generate(
    name: str, label: str = ANY, ef: float | None = None, seed: int = 0, steps: int = 25, segmenter: str | None = None
) -> Generated:
    """Generate one volume.

    Args:
        name: the model.
        label: class label, or "any".
        ef: requested ejection fraction in percent. A model that is conditioned on it receives it; of others several
            samples are generated, and the one that is nearest is returned.
        seed, steps: as in a pipeline's call.
        segmenter: what labels hearts.
    """
    if not STEPS[0] <= steps <= STEPS[1] or seed < 0:
        raise CardioDiTError(f"steps={steps} must be from {STEPS[0]} to {STEPS[1]}, and seed={seed} at least 0.")
    pipe = _open(name)
    segmenter = segmenter or (PHANTOM_SEGMENTER if name == PHANTOM_MODEL else None)
    arguments: dict[str, Any] = {"num_inference_steps": steps, "seed": seed}
    if label != ANY:
        arguments["class_labels"] = label
    knows_ef = "ef" in (getattr(pipe, "conditions", None) or ())
    if ef is not None and knows_ef:
        arguments["ef"] = ef
    if ef is not None and not knows_ef and segmenter is None:
        raise CardioDiTError(f"{name} is not conditioned on the ejection fraction, and no segmenter measures it.")
    count = CANDIDATES if ef is not None and not knows_ef else 1
    out = pipe(num_samples=count, **arguments)
    made = [_measured(out[i], segmenter) for i in range(count)]
    if ef is None or count == 1:
        return made[0]
    distances = [abs(each.function.ef - ef) if each.function else np.inf for each in made]
    best = made[int(np.argmin(distances))]
    measured = ", ".join(f"{each.function.ef:.0f}%" if each.function else "unknown" for each in made)
    return Generated(best.volume, best.parts, best.function, f"{best.note} Nearest of {count} hearts ({measured}).")


def _measured(out: Any, segmenter: str | None) -> Generated:
    from cardiodit.evaluation.metrics.function import left_ventricle
    from cardiodit.imaging.volume import Volume

    volume = np.asarray(out.volumes[0])
    seconds = out.records[0].get("seconds")
    words = f"Generated in {seconds:.1f} s on {out.records[0].get('device', 'this machine')}." if seconds else ""
    if segmenter is None or volume.ndim != 4:
        return Generated(Volume(volume, out.geometry), None, None, words)
    parts = _open_segmenter(segmenter).segment(volume, out.geometry)
    function = left_ventricle(parts, out.geometry)
    measured = f"EF {function.ef:.0f}%, EDV {function.edv:.0f} mL, ESV {function.esv:.0f} mL."
    return Generated(Volume(volume, out.geometry), parts, function, f"**{measured}** {words}")


def shown(made: Generated, title: str) -> str:
    """Return the HTML in which the volume plays, with its labels and its volume curve."""
    from cardiodit.viewer.page import Shown, in_page

    return in_page([Shown(title if title != ANY else "heart", made.volume, made.parts, (-1.0, 1.0))])


def write_files(made: Generated, seed: int) -> list[str]:
    """Write the volume, and its label map, as NIfTI for the download."""
    from cardiodit.imaging.nifti import write_nifti

    folder = Path(tempfile.mkdtemp(prefix="cardiodit-app-"))
    write_nifti(folder / f"heart-{seed}.nii.gz", made.volume.voxels, made.volume.geometry)
    if made.parts is not None:
        write_nifti(folder / f"parts-{seed}.nii.gz", made.parts, made.volume.geometry)
    return [str(path) for path in sorted(folder.iterdir())]
