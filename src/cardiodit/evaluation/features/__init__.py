"""From hearts to vectors: networks by name, and the rows they make of volumes and cines."""

from cardiodit.evaluation.features.catalogue import NAMES, Choice, load_network, network_of_module
from cardiodit.evaluation.features.network import FeatureNetwork

__all__ = ["NAMES", "Choice", "FeatureNetwork", "load_network", "network_of_module"]
