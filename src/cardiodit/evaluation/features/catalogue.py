"""A feature network by its name, or out of any torch module."""

import sys
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from cardiodit.errors import CardioDiTError
from cardiodit.evaluation.features import published
from cardiodit.evaluation.features.cinema import RULES as CINEMA_RULES
from cardiodit.evaluation.features.cinema import load_cinema
from cardiodit.evaluation.features.inputs import InputRules, Size
from cardiodit.evaluation.features.network import TorchNetwork
from cardiodit.evaluation.features.own_module import Pooled, hash_of_module, import_module, probe_width
from cardiodit.evaluation.features.random_network import RandomNetwork
from cardiodit.evaluation.user_code import hash_of_sources
from cardiodit.imaging.geometry import Triple

NAMES = ("random", "medicalnet10", "medicalnet50", "radimagenet", "cinema")
RANDOM_NOTE = "random features: no trained network was given"


@dataclass(frozen=True)
class Choice:
    """What may be chosen of a network; None leaves it as the network's own.

    Args:
        kind: of rows, "spatial" or, for cines, "spatiotemporal".
        frames: of a cine for spatial rows, evenly spread; None for all.
        slices: of a cine for spatiotemporal rows, evenly spread; None for all.
        weights: a path, or `org/name:file` on the Hub.
        revision: of the Hub's repository.
        sha256: that the weights' file must have.
        size, spacing: that volumes are brought to (`InputRules`).
        device: where the network runs.
    """

    kind: str = "spatial"
    frames: int | None = 4
    slices: int | None = None
    weights: str | None = None
    revision: str | None = None
    sha256: str | None = None
    size: Size | None = None
    spacing: Triple | None = None
    device: str = "cpu"

    def rules(self, own: InputRules) -> InputRules:
        as_it_is = own.still_as_it_is and not (self.size or self.spacing)
        return replace(own, size=self.size or own.size, spacing=self.spacing or own.spacing, still_as_it_is=as_it_is)

    def network(self, name: str, module: nn.Module, width: int, weights: dict[str, Any], **told: Any) -> TorchNetwork:
        return TorchNetwork(
            name,
            module,
            width,
            weights,
            kind=self.kind,
            frames=self.frames,
            slices=self.slices,
            device=self.device,
            **told,
        )


def load_network(name: str, choice: Choice | None = None) -> TorchNetwork:
    """One of `NAMES`, or `python_module:callable` for a module of one's own, which needs a size."""
    choice = choice or Choice()
    if name == "random":
        return _random(choice)
    if name in ("medicalnet10", "medicalnet50"):
        return _medicalnet(name, choice)
    if name == "radimagenet":
        return _radimagenet(choice)
    if name == "cinema":
        return _cinema(choice)
    if ":" in name:
        return network_of_module(import_module(name), name, choice)
    raise CardioDiTError(
        f"There is no feature network {name!r}; choose from {', '.join(NAMES)}, or write python_module:callable."
    )


def network_of_module(module: nn.Module, name: str, choice: Choice) -> TorchNetwork:
    """Any module that takes `(1, 1, H, W, D)` of the choice's size in [-1, 1], its own weights already in it."""
    _refuse_weights(name, "brings its weights with it", choice)
    if choice.size is None:
        raise CardioDiTError(f"The network {name} needs the size of the volumes that it takes: three numbers.")
    pooled = Pooled(module)
    width = probe_width(pooled, choice.size, name)
    weights = {"source": "a module of the user's own", "sha256": hash_of_module(module, str(module))}
    settings = {"code_sha256": _hash_of_code(module, name)}
    return choice.network(name, pooled, width, weights, rules=choice.rules(InputRules()), settings=settings)


def _hash_of_code(module: nn.Module, name: str) -> str | None:
    """Over the files of the module's classes, torch's aside, and of what made it: `forward` is no weight."""
    classes = {type(part) for part in module.modules()}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] != "torch"]
    return hash_of_sources(*own, sys.modules.get(name.partition(":")[0]))


def _random(choice: Choice) -> TorchNetwork:
    _refuse_weights("random", "has no weights to load", choice)
    module = RandomNetwork()
    weights = {"source": "drawn with seed 0", "sha256": hash_of_module(module)}
    settings = {"note": RANDOM_NOTE}
    return choice.network(
        "random", module, module.features, weights, rules=choice.rules(InputRules()), settings=settings
    )


def _medicalnet(name: str, choice: Choice) -> TorchNetwork:
    depth = int(name.removeprefix("medicalnet"))
    module, found = published.load_medicalnet(depth, choice.weights, choice.revision, choice.sha256)
    width = published.MEDICALNET_PLANS[depth].features
    rules, settings = choice.rules(published.MEDICALNET_RULES), {"axes": "depth first, as it was trained"}
    return choice.network(name, module, width, found.describe(), rules=rules, settings=settings)


def _radimagenet(choice: Choice) -> TorchNetwork:
    module, found, width = published.load_radimagenet(choice.weights, choice.revision, choice.sha256)
    settings = {"planes": f"at most {module.planes} of each of three orientations, resized to {module.size}²"}
    rules = choice.rules(published.RADIMAGENET_RULES)
    return choice.network("radimagenet", module, width, found.describe(), rules=rules, settings=settings)


def _cinema(choice: Choice) -> TorchNetwork:
    if choice.kind != "spatial":
        raise CardioDiTError("CineMA knows a depth, not a time axis: choose spatial rows, or another network.")
    if choice.weights or choice.size or choice.spacing:
        raise CardioDiTError("CineMA brings its weights, size and spacing with it; leave them out.")
    module, found = load_cinema(choice.revision, choice.sha256)
    size = CINEMA_RULES.size or (192, 192, 16)
    settings = {"features": "the mean of the short-axis tokens"}
    width = probe_width(module, size, "cinema")
    return choice.network("cinema", module, width, found.describe(), rules=CINEMA_RULES, settings=settings)


def _refuse_weights(name: str, why: str, choice: Choice) -> None:
    if choice.weights or choice.revision or choice.sha256:
        raise CardioDiTError(f"The network {name} {why}; leave out weights, revision and sha256.")
