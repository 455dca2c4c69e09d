"""Treatments that train alike are trained once: rules of one function under the same transform and optimizer."""

import functools
from collections.abc import Iterable

import numpy as np

from bpevo.evaluation.treatments import Treatment
from bpevo.evolution import probe
from bpevo.evolution.equivalence import TOLERANCE, same
from bpevo.rules import Expression
from bpevo.rules.canonical import canonical

_SEED = 4  # of the probe's operands
_REMEMBERED = 256  # signals; a quarter of a megabyte each


class Firsts(dict[Treatment, Treatment]):
    """Each treatment that was asked for, in order, with the first that trains alike: itself, or an earlier one.

    Two rules are one function if their canonical forms are equal or their signals on the probe are. Closeness is not
    transitive, so they are compared with first ones alone.
    """

    def __init__(self, treatments: Iterable[Treatment] = ()):
        super().__init__()
        self._classes = _Classes()
        self._first: dict[tuple[Expression, str, str], Treatment] = {}
        for treatment in treatments:
            self[treatment]

    def __missing__(self, treatment: Treatment) -> Treatment:
        alike = self._classes.first(treatment.expression), treatment.transform, treatment.optimizer
        return self.setdefault(treatment, self._first.setdefault(alike, treatment))


class _Classes:
    """Expressions by function."""

    def __init__(self) -> None:
        self._of_form: dict[str, Expression] = {}
        self._representatives: list[Expression] = []
        self._sizes: list[np.ndarray] = []  # of a representative's signal in each cell of the probe

    def first(self, expression: Expression) -> Expression:
        form = str(canonical(expression))
        if form not in self._of_form:
            self._of_form[form] = self._compared(expression)
        return self._of_form[form]

    def _compared(self, expression: Expression) -> Expression:
        own = _signals(expression)
        sizes = np.linalg.norm(own, axis=(1, 2))
        for other, theirs in zip(self._representatives, self._sizes, strict=True):
            close = np.abs(sizes - theirs) <= TOLERANCE * np.maximum(sizes, theirs)
            if np.all(close) and same(own, _signals(other)):
                return other
        self._representatives.append(expression)
        self._sizes.append(sizes)
        return expression


@functools.lru_cache(_REMEMBERED)
def _signals(expression: Expression) -> np.ndarray:
    return probe.signals(probe.rule(expression), _SEED)
