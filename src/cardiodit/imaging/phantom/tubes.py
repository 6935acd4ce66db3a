"""Tubes that narrow, and trees that grow of them: airways and vessels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y and z, of shapes that broadcast
Outline = Callable[[Points], np.ndarray]  # how far points lie outside, in mm, negative within

INSIDE = 2.0  # mm that branches stay away from an outline


@dataclass(frozen=True)
class Tubes:
    """Straight pieces of tube, conical and with round ends: ends (N, 3), radii (N,)."""

    starts: np.ndarray
    ends: np.ndarray
    start_radii: np.ndarray
    end_radii: np.ndarray

    @classmethod
    def joined(cls, parts: "Sequence[Tubes]") -> "Tubes":
        fields = ("starts", "ends", "start_radii", "end_radii")
        return cls(*(np.concatenate([getattr(part, field) for part in parts]) for field in fields))

    def grown(self, by: float) -> "Tubes":
        return Tubes(self.starts, self.ends, self.start_radii + by, self.end_radii + by)

    def distance(self, point: np.ndarray, thicker_than: float = 0.0) -> float:
        """From a point to the nearest wall of the tubes that are so thick."""
        thick = self.start_radii > thicker_than
        starts, axes = self.starts[thick], (self.ends - self.starts)[thick]
        share = ((point - starts) * axes).sum(1) / np.maximum((axes**2).sum(1), 1e-9)
        nearest = starts + np.clip(share, 0, 1)[:, None] * axes
        return float((np.linalg.norm(point - nearest, axis=1) - self.start_radii[thick]).min())


def link(start: np.ndarray, end: np.ndarray, start_radius: float, end_radius: float) -> Tubes:
    """One straight piece."""
    return Tubes(start[None], end[None], np.array([start_radius]), np.array([end_radius]))


@dataclass(frozen=True)
class Tree:
    """Nodes of a branching tree, the root first: positions (N, 3), the node before, how many twigs each feeds."""

    positions: np.ndarray
    parents: np.ndarray
    loads: np.ndarray

    def radii(self, root: float, power: float) -> np.ndarray:
        """Murray's law: what flows through a branch is its radius to a power."""
        return root * (self.loads / self.loads[0]) ** (1 / power)

    def beside(self, way: np.ndarray, distances: np.ndarray) -> "Tree":
        """The same tree moved sideways at every node, towards `way`."""
        axes = self.positions - self.positions[self.parents]
        axes[0] = axes[1] if len(axes) > 1 else way
        axes /= np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-9)
        across = way - (axes @ way)[:, None] * axes
        across /= np.maximum(np.linalg.norm(across, axis=1, keepdims=True), 0.2)
        return Tree(self.positions + across * distances[:, None], self.parents, self.loads)

    def tubes(self, radii: np.ndarray, thinnest: float = 0.0) -> Tubes:
        kept = np.flatnonzero(radii >= thinnest)[1:]
        parents = self.parents[kept]
        return Tubes(self.positions[parents], self.positions[kept], np.sqrt(radii[parents] * radii[kept]), radii[kept])


def grow_tree(root: np.ndarray, ends: np.ndarray, random: np.random.Generator, outside: Outline) -> Tree:
    """Fills a region: a branch goes part of the way to the middle of what it feeds, and its daughters share that out.

    The method of Tawhai et al., Ann Biomed Eng 28:793 (2000), a generation at a time.
    """
    positions, parents, loads = root[None], np.zeros(1, int), [len(ends)]
    growing, fed = np.zeros(1, int), [ends]
    while fed:
        starts = positions[growing]
        middles = np.array([some.mean(axis=0) for some in fed])
        share = np.where([len(some) > 1 for some in fed], random.uniform(0.34, 0.5, len(fed)), 0.85)[:, None]
        tips = _kept_inside(starts, starts + share * (middles - starts), outside)
        numbers = np.arange(len(tips)) + len(positions)
        positions, parents = np.concatenate([positions, tips]), np.concatenate([parents, growing])
        loads += [len(some) for some in fed]
        split = [(n, some, m - s) for n, some, m, s in zip(numbers, fed, middles, starts, strict=True) if len(some) > 1]
        fed = [half for _, some, way in split for half in _halves(some, way, random)]
        growing = np.repeat(np.array([number for number, _, _ in split], int), 2)
    return Tree(positions, parents, np.array(loads, dtype=float))


def _kept_inside(starts: np.ndarray, tips: np.ndarray, outside: Outline) -> np.ndarray:
    """Tips (N, 3) of branches that would leave the region are pushed back into it."""
    for _ in range(6):
        along = np.stack([starts + share * (tips - starts) for share in (0.4, 0.7, 1.0)])  # (3, N, 3)
        depth = outside_at(outside, along.reshape(-1, 3)).reshape(3, -1)
        worst = depth.argmax(axis=0)
        leaves = np.flatnonzero(depth.max(axis=0) > -INSIDE)
        if not len(leaves):
            break
        place, far = along[worst[leaves], leaves], depth[worst[leaves], leaves]
        slope = np.stack([outside_at(outside, place + step) - far for step in np.eye(3)], axis=1)
        slope /= np.maximum((slope**2).sum(axis=1, keepdims=True), 0.1)
        tips[leaves] -= np.clip(far + INSIDE + 0.5, 0, 12)[:, None] * slope
    return tips


def outside_at(outside: Outline, places: np.ndarray) -> np.ndarray:
    """An outline at places (N, 3)."""
    x, y, z = places.T
    return outside((x, y, z))


def _halves(fed: np.ndarray, way: np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Divides points across the direction of flow where they spread widest."""
    spread = fed - fed.mean(axis=0)
    along = way / max(np.linalg.norm(way), 1e-9)
    spread = spread - 0.7 * (spread @ along)[:, None] * along
    widest = np.linalg.eigh(spread.T @ spread)[1][:, -1]
    order = np.argsort(spread @ widest)
    cut = int(np.clip(round(len(fed) * random.uniform(0.38, 0.62)), 1, len(fed) - 1))
    return fed[order[:cut]], fed[order[cut:]]
