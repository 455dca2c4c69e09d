"""Duplicates: which equations compute what an earlier one computes.

Two rules are the same if their signals agree on the synthetic units of bpevo.evolution.probe. A search looks for that in
two steps. The *key* of an equation, stored with its proposal, is a sketch of its signals on the operands of one seed: a
few random projections. Where sketches are close the two are *confirmed*: compared entry by entry on the operands of
another seed. Closeness is not transitive, so an equation is compared with proposals alone, first to last, never with the
duplicates of one. How often that is right, `python -m bpevo.bench.equivalence` measures on networks that train.
"""

import collections
import functools
import itertools
import math
from typing import Protocol

import numpy as np

from bpevo.evolution import probe
from bpevo.evolution.proposals import Proposal
from bpevo.rules import Equation, InterpretedRule

TOLERANCE = 5e-5  # of a signal; twenty times stricter than what may differ in a network, whose layers have other shapes
LINE_TOLERANCE = 5e-2  # of one of its features or samples: what the rest of the signal would hide
_SKETCH_SEED, _CONFIRM_SEED = 1, 2
_SKETCH_TOLERANCE = 1e-2  # generous: what it lets through is confirmed
_SKETCHED = [i * probe.STEPS + t for i in range(len(probe.REGIMES)) for t in (0, probe.STEPS - 1)]
_PROJECTIONS = 2  # of a signal: a point in the plane
_CELL = 1.25 * _SKETCH_TOLERANCE  # wider than what is close, of the size's logarithm and the angle
_ANGLES = math.floor(math.tau / _CELL)  # cells around the plane's origin
_NOWHERE = -(10**9)  # the origin's
_WIDTH = len(_SKETCHED) * _PROJECTIONS


class Duplicates(Protocol):
    """An extension point: what a controller takes for a duplicate. `find` must depend on nothing but what was added."""

    def key(self, equation: Equation) -> str:
        """What is stored with a proposal, so that a later session need not compute it. Raises InfeasibleEquation."""

    def find(self, equation: Equation, key: str) -> int | None:
        """Id of the first proposal of which the equation with this key is a duplicate."""

    def add(self, proposal: Proposal) -> None:
        """Takes a proposal, also of an earlier session; all of them come in id order."""


class SameText:
    """Equations are duplicates if their canonical forms are equal."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def key(self, equation: Equation) -> str:
        return equation.key

    def find(self, equation: Equation, key: str) -> int | None:
        return self._ids.get(key)

    def add(self, proposal: Proposal) -> None:
        self._ids.setdefault(proposal.key, proposal.id)


class SameFunction:
    """Equations are duplicates if they compute the same, whatever they look like."""

    def __init__(self) -> None:
        self._proposals: list[Proposal] = []
        self._sketches = np.zeros((1024, _WIDTH))  # of the proposals, then room
        self._places: dict[tuple[int, int], list[int]] = collections.defaultdict(
            list
        )  # of the proposals, by their cells

    def key(self, equation: Equation) -> str:
        return _sketch(equation).tobytes().hex()

    def find(self, equation: Equation, key: str) -> int | None:
        sketch = _read(equation, key)
        near = self._near(sketch)
        if not len(near):
            return None
        own = _confirming(equation)
        for i in near:
            if same(own, _confirming(self._proposals[i].equation)):
                return self._proposals[i].id
        return None

    def add(self, proposal: Proposal) -> None:
        n = len(self._proposals)
        if n == len(self._sketches):
            self._sketches = np.concatenate([self._sketches, np.zeros_like(self._sketches)])
        self._sketches[n] = _read(proposal.equation, proposal.key)
        self._places[_cell(self._sketches[n])].append(n)
        self._proposals.append(proposal)

    def _near(self, sketch: np.ndarray) -> np.ndarray:
        """Places of the proposals whose sketches are close in every signal."""
        size, angle = _cell(sketch)
        beside = itertools.product((size - 1, size, size + 1), (angle - 1, angle, angle + 1))
        near = np.array(sorted(n for s, a in beside for n in self._places.get((s, a % _ANGLES), ())), int)
        for i in range(0, _WIDTH, _PROJECTIONS):
            signal = slice(i, i + _PROJECTIONS)
            near = near[_relative(self._sketches[near, signal], sketch[signal], -1) <= _SKETCH_TOLERANCE]
        return near


def _cell(sketch: np.ndarray) -> tuple[int, int]:
    """Where a sketch's first signal lies in the plane, by its size and angle: close ones lie in the same cell or side by side.

    So a look for duplicates costs the same however many proposals there are.
    """
    x, y = sketch[:_PROJECTIONS]
    size = math.hypot(x, y)
    if not size:
        return _NOWHERE, 0
    return math.floor(math.log(size) / _CELL), math.floor((math.atan2(y, x) / math.tau + 0.5) * _ANGLES) % _ANGLES


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two rules' signals [cells, samples, features] agree in every cell."""
    return bool(
        np.all(_relative(a, b, (1, 2)) <= TOLERANCE)
        and np.all(_relative(a, b, 1) <= LINE_TOLERANCE)
        and np.all(_relative(a, b, 2) <= LINE_TOLERANCE)
    )


def _relative(a: np.ndarray, b: np.ndarray, axis) -> np.ndarray:
    """|a - b| / max(|a|, |b|), Euclidean norms over `axis`; 0 where both are 0."""
    largest = np.maximum(*(np.sqrt(np.sum(x * x, axis)) for x in (a, b)))
    return np.sqrt(np.sum((a - b) ** 2, axis)) / np.where(largest > 0, largest, 1)


@functools.cache
def _projection() -> np.ndarray:
    size = probe.BATCH * probe.INPUTS
    return np.random.default_rng(0).choice([-1.0, 1.0], (size, _PROJECTIONS)) / np.sqrt(size)


def _sketch(equation: Equation) -> np.ndarray:
    """[_WIDTH] float32, little-endian."""
    signal = probe.signals(InterpretedRule.of(equation), _SKETCH_SEED)[_SKETCHED]
    sketch = signal.reshape(len(_SKETCHED), -1) @ _projection()
    return np.clip(sketch, -1e38, 1e38).ravel().astype("<f4")


def _read(equation: Equation, key: str) -> np.ndarray:
    """The sketch that a key holds; computed if it is a key of the first releases, a digest."""
    if len(key) != 8 * _WIDTH:
        return _sketch(equation).astype(np.float64)
    return np.frombuffer(bytes.fromhex(key), "<f4").astype(np.float64)


def _confirming(equation: Equation) -> np.ndarray:
    return probe.signals(InterpretedRule.of(equation), _CONFIRM_SEED)
