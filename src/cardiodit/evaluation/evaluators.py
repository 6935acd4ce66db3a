"""The networks that measure volumes: feature networks, a segmenter, an autoencoder; opened once in each process."""

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import Choice, FeatureNetwork, Size, load_network
from cardiodit.evaluation.features.weights import hash_of_weights
from cardiodit.evaluation.metrics.registry import SPATIAL, SPATIOTEMPORAL
from cardiodit.evaluation.segmenters import Segmenter, open_segmenter

MASKS, SEGMENTER = "masks", "segmenter"  # where labels come from


@dataclass(frozen=True)
class EvaluatorConfig:
    """Settings from which any process opens the evaluators.

    Args:
        features: name of the feature network.
        weights: of the network: a path or a file on the Hub.
        features_size: input size of a user's own network.
        segmenter: argument of `open_segmenter`; None for none.
        labels: source of each set's labels: "masks", "segmenter" or None.
        vae: VQ model through which real volumes are passed; None for none.
        is_cine: whether volumes have frames; others have no spatiotemporal features.
        radiomics: whether radiomics features are measured.
        device: of the networks.
    """

    features: str = "random"
    weights: str | None = None
    features_size: Size | None = None
    segmenter: str | None = None
    labels: tuple[tuple[str, str | None], ...] = ()
    vae: str | None = None
    is_cine: bool = True
    radiomics: bool = False
    device: str = "cpu"

    def labels_of(self, name: str) -> str | None:
        """Return the source of the labels of the "real" or "synthetic" set."""
        return dict(self.labels).get(name)


@dataclass(frozen=True)
class Evaluators:
    """The opened networks.

    Args:
        networks: by the kind of their features.
        radiomics: whether radiomics features are measured.
        left_out: what they cannot measure, and why.
    """

    networks: dict[str, FeatureNetwork]
    segmenter: Segmenter | None = None
    vae: Any = None
    radiomics: bool = False
    left_out: list[str] = field(default_factory=list)

    @cached_property
    def vae_identity(self) -> str | None:
        return None if self.vae is None else hash_of_weights(self.vae)

    @cached_property
    def identity(self) -> list[Any]:
        """Everything that affects the numbers."""
        networks = {kind: network.identity for kind, network in self.networks.items()}
        segmenter = self.segmenter and [
            self.segmenter.identity,
            self.segmenter.structures or self.segmenter.labels,
            repr(self.segmenter.grid),
        ]
        return [networks, segmenter, self.vae_identity, self.radiomics]

    def describe(self) -> dict[str, Any]:
        """For the report's protocol."""
        features = {kind: network.describe() for kind, network in self.networks.items()}
        return {
            "features": {SPATIAL: None, SPATIOTEMPORAL: None, **features},
            "segmenter": None if self.segmenter is None else _described(self.segmenter),
            "reconstructions": self.vae_identity and {"identity": self.vae_identity},
        }


def _described(segmenter: Segmenter) -> dict[str, Any]:
    # A folder by its own name: reports are shared, and must not reveal the folders above it.
    name = Path(segmenter.name).resolve().name if Path(segmenter.name).is_dir() else segmenter.name
    return {
        "name": name,
        "identity": segmenter.identity,
        "labels": segmenter.structures or segmenter.labels,
        "note": segmenter.note,
    }


@lru_cache(maxsize=1)
def open_evaluators(config: EvaluatorConfig) -> Evaluators:
    networks: dict[str, FeatureNetwork] = {SPATIAL: load_network(config.features, _choice(config, SPATIAL))}
    left_out = []
    if config.is_cine:
        try:
            networks[SPATIOTEMPORAL] = load_network(config.features, _choice(config, SPATIOTEMPORAL))
        except CardioDiTError as error:
            left_out.append(f"Spatiotemporal features: {error}")
    segmenter = open_segmenter(config.segmenter, config.device) if config.segmenter else None
    return Evaluators(networks, segmenter, _open_vae(config), config.radiomics, left_out)


def _choice(config: EvaluatorConfig, kind: str) -> Choice:
    return Choice(kind=kind, weights=config.weights, size=config.features_size, device=config.device)


def _open_vae(config: EvaluatorConfig) -> Any:
    if config.vae is None:
        return None
    from cardiodit.hub.load import open_vae

    return open_vae(config.vae).to(config.device)
