"""What volumes are measured with: feature networks, a segmenter, an autoencoder; opened once in each process."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import Choice, FeatureNetwork, load_network
from cardiodit.evaluation.features.inputs import Size
from cardiodit.evaluation.segmenters import Segmenter, open_segmenter

SPATIAL, SPATIOTEMPORAL = "spatial", "spatiotemporal"
MASKS, SEGMENTER = "masks", "segmenter"  # where labels come from


@dataclass(frozen=True)
class EvaluatorConfig:
    """What it takes to open the instruments anywhere.

    Args:
        features: name of the feature network.
        weights: of the network, a path or a file on the Hub.
        features_size: of the volumes that a network of one's own takes.
        segmenter: as `open_segmenter` takes it; None without.
        labels: where those of each set come from: "masks", "segmenter" or None.
        vae: a VQ model through which real volumes are passed; None without.
        is_cine: whether volumes beat; those that do not have no spatiotemporal features.
        device: where networks run.
    """

    features: str = "random"
    weights: str | None = None
    features_size: Size | None = None
    segmenter: str | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    vae: str | None = None
    is_cine: bool = True
    device: str = "cpu"

    def labels_of(self, kind: str) -> str | None:
        return dict(self.labels).get(kind)


@dataclass(frozen=True)
class Instruments:
    """Opened.

    Args:
        networks: by the kind of rows they give.
        left_out: what cannot be measured, and why.
    """

    networks: dict[str, FeatureNetwork]
    segmenter: Segmenter | None = None
    vae: Any = None
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def vae_identity(self) -> str | None:
        from cardiodit.evaluation.segmenters import identity_of

        return None if self.vae is None else identity_of(self.vae)

    @cached_property
    def identity(self) -> list[Any]:
        """All that changes numbers."""
        networks = {kind: network.identity for kind, network in self.networks.items()}
        segmenter = self.segmenter and [self.segmenter.identity, self.segmenter.labels, repr(self.segmenter.grid)]
        return [networks, segmenter, self.vae_identity]

    def describe(self) -> dict[str, Any]:
        """For the report's protocol."""
        features = {kind: network.describe() for kind, network in self.networks.items()}
        return {
            "features": {SPATIAL: None, SPATIOTEMPORAL: None, **features},
            "segmenter": None if self.segmenter is None else _described(self.segmenter),
            "reconstructions": self.vae_identity and {"identity": self.vae_identity},
        }


def _described(segmenter: Segmenter) -> dict[str, Any]:
    # Of a folder its own name; what lies above it is nobody's business.
    name = Path(segmenter.name).resolve().name if Path(segmenter.name).is_dir() else segmenter.name
    return {
        "name": name,
        "identity": segmenter.identity,
        "labels": segmenter.labels,
        "note": segmenter.note,
    }


@lru_cache(maxsize=1)
def open_instruments(recipe: EvaluatorConfig) -> Instruments:
    networks: dict[str, FeatureNetwork] = {SPATIAL: load_network(recipe.features, _choice(recipe, SPATIAL))}
    left_out = []
    if recipe.is_cine:
        try:
            networks[SPATIOTEMPORAL] = load_network(recipe.features, _choice(recipe, SPATIOTEMPORAL))
        except CardioDiTError as error:
            left_out.append(f"Spatiotemporal features: {error}")
    segmenter = open_segmenter(recipe.segmenter, recipe.device) if recipe.segmenter else None
    return Instruments(networks, segmenter, _open_vae(recipe), left_out)


def _choice(recipe: EvaluatorConfig, kind: str) -> Choice:
    return Choice(kind=kind, weights=recipe.weights, size=recipe.features_size, device=recipe.device)


def _open_vae(recipe: EvaluatorConfig) -> Any:
    if recipe.vae is None:
        return None
    from cardiodit.hub.load import open_vae

    return open_vae(recipe.vae).to(recipe.device)
