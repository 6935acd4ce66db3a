"""Identities by which an audit belongs to one model and one training cohort: hashes of weights and of data."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from cardiodit._util.hashing import add_weights, sha256_of
from cardiodit.errors import CardioDiTError
from cardiodit.hub.bundled_models import find_model, pipeline_of_run
from cardiodit.hub.card.model_facts import find_weights
from cardiodit.hub.card.training_runs import RECORD, read_run
from cardiodit.imaging.cache import identity_of_files
from cardiodit.imaging.manifest import Case, beat_of_case, order_of_case, prepare_case, read_case
from cardiodit.imaging.preprocessing import Preprocessing
from cardiodit.latents.file import SCHEMA, identity_of, identity_of_source, identity_of_steps, identity_of_vae
from cardiodit.pipelines.output import HASHED, revision_of_folders

PRECISIONS = ("float32", "bfloat16", "float16")
STAGE = "\n### Stage "  # heading of a training run in a card
IN_CARD = re.compile(r"\| Identity of the training data \| `([0-9a-f]{16})` \|")
VOLUMES = re.compile(r"\| Volumes trained on \| (.+) \|")
ROUNDED = "| Weights in this folder | differ"


def identity_of_weights(folder: Path) -> str:
    """Hash the values of all weights of a pipeline folder; saving the folder again does not change the hash."""
    digest = hashlib.sha256()
    for component, files in sorted(find_weights(folder).items()):
        weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
        digest.update(component.encode())
        add_weights(digest, weights)
    return digest.hexdigest()


def revision_of_folder(folder: Path) -> str | None:
    """Return the revision that samples of this folder's pipeline record."""
    return revision_of_folders([str(folder / component) for component in find_weights(folder)])


def are_alike(first: str, second: str) -> bool:
    """Tell whether two revisions are of one kind, Hub commits or hashes of files, so that they can be compared."""
    return first.startswith(HASHED) == second.startswith(HASHED)


@dataclass(frozen=True)
class KnownCohort:
    """The identity of the cohort that a model was trained on, and where it was found; it may be cut short.

    Latents are identified by the VQ model's weights too. If those were changed after training, as by rounding, no
    latents are those of stage 2 any more; then the images of stage 1 count, if both stages had equally many.
    """

    identity: str
    source: str
    stage1: str | None = None

    def match(self, identities: Sequence[str]) -> str | None:
        """Return by what these identities are known to be the cohort's; None if they are not."""
        if any(identity.startswith(self.identity) for identity in identities):
            return self.source
        if self.stage1 is not None and any(identity.startswith(self.stage1) for identity in identities):
            return f"stage 1 in {self.source}, as the VQ model was changed after stage 2"
        return None


def known_cohort(model: Path, run: Path | None = None) -> KnownCohort | None:
    """Return what a model's training run, or else its card, says about its training data."""
    home = model.resolve().parent
    if run is None and (home / RECORD).is_file():
        run = home
    if run is not None:
        identity = read_run(run).record.get("data", {}).get("training_data")
        if identity is None:
            raise CardioDiTError(f"The run {run} does not record its training data. Leave --run out.")
        return KnownCohort(str(identity), "the training run")
    card = model / "README.md"
    stages = card.read_text(encoding="utf-8").split(STAGE) if card.is_file() else []
    found = [(stage, identity[1]) for stage in stages if (identity := IN_CARD.search(stage))]
    if not found:
        return None
    (first, images), (last, identity) = found[0], found[-1]
    counts = [VOLUMES.search(stage) for stage in (first, last)]
    is_same_size = counts[0] and counts[1] and counts[0][1] == counts[1][1]
    return KnownCohort(identity, "the model card", images if ROUNDED in first and is_same_size else None)


def cohort_identities(cases: Sequence[Case], steps: Preprocessing, vae: Any = None) -> list[str]:
    """Return the identities under which training may have recorded these images: as images, or as their latents."""
    identities = [identity_of_files(cases, [sha256_of(case.image) for case in cases], steps)]
    if vae is None:
        return identities
    headers = [_latent_header(case, steps, vae) for case in cases]
    shared = {"vae": identity_of_vae(vae), "preprocessing": identity_of_steps(steps), "schema": SCHEMA}
    return identities + [
        identity_of([{**header, **shared, "precision": precision} for header in headers]) for precision in PRECISIONS
    ]


def _latent_header(case: Case, steps: Preprocessing, vae: Any) -> dict[str, Any]:
    """Return what differs between the headers of latent files, without encoding the image."""
    volume = read_case(case)
    prepared = prepare_case(case, steps).volume
    height, width, depth, frames = (*prepared.voxels.shape, 1)[:4]
    factors = vae.scale_factors
    size: tuple[int, ...]
    if prepared.is_cine:
        size = (depth, height // factors[0], width // factors[1], frames // factors[2])
    else:
        size = (height // factors[0], width // factors[1], depth // factors[2])
    return {
        "source": identity_of_source(volume, order_of_case(case, volume, steps), beat_of_case(case, steps)),
        "geometry": prepared.geometry.to_dict(),
        "shape": [vae.config.embedding_dim, *size],
        "frames": frames,
    }


def model_folder(name: str) -> Path:
    """Return the pipeline folder of a model or run; the weights of a repository on the Hub are downloaded first."""
    place = find_model(name)
    if Path(place).is_dir():
        return pipeline_of_run(Path(place))
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(place), allow_patterns=["*.json", "*.safetensors", "README.md"]))
    except Exception as error:  # no network, no such repository: each version of the client raises its own
        raise CardioDiTError(
            f"{name} is neither a folder nor a model that can be downloaded ({str(error).splitlines()[0]})."
        ) from error
