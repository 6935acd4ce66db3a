"""From hearts to vectors: networks by name, rows of volumes and cines, streamed and kept."""

from cardiodit.evaluation.features.cache import FeatureCache
from cardiodit.evaluation.features.catalogue import NAMES, Choice, load_network, network_of_module
from cardiodit.evaluation.features.extract import Source, extract, iterate, sources_of_cases
from cardiodit.evaluation.features.network import FeatureNetwork

__all__ = [
    "NAMES",
    "Choice",
    "FeatureCache",
    "FeatureNetwork",
    "Source",
    "extract",
    "iterate",
    "load_network",
    "network_of_module",
    "sources_of_cases",
]
