"""Feature networks: by name, and the feature vectors they compute from volumes and cines."""

from cardiodit.evaluation.features.catalogue import NAMES, Choice, load_network, network_of_module
from cardiodit.evaluation.features.inputs import Size
from cardiodit.evaluation.features.network import FeatureNetwork

__all__ = ["NAMES", "Choice", "FeatureNetwork", "Size", "load_network", "network_of_module"]
