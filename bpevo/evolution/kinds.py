"""The kind of a rule: what it keeps of backprop's signal, judged on the probe's units at the scale of networks.

Backprop's signal in a unit is `g`, made from the signal that arrives from above. With X [samples, features] a rule's
signal there, noise taken out, its kind is the first of these that holds in every step of the regimes "early" and "late"
(within the tolerances of bpevo.evolution.equivalence):

- `NO_SIGNAL`: X = 0.
- `BACKPROP`: X = g.
- `SCALED`: X = c g with one number c > 0 for all units and steps. In a network of L layers it acts like c^L.
- `PER_UNIT`: X = c g with a number c ≥ 0 of its own in every unit and step: backprop's direction in each unit, another length.
- `PER_SAMPLE`: row p of X is c_p times that of g, c_p ≥ 0.
- `PER_FEATURE`: column i of X is c_i times that of g, c_i ≥ 0.
- `PER_ENTRY`: every entry of X is 0 or has the sign of g's.
- `OTHER`: anything else: it uses other information, or turns backprop's direction.

"reversed " stands before the kind of a rule whose negative has one of the kinds from SCALED to PER_ENTRY, `BACKPROP` included,
and " + noise" after that of one that draws noise which matters. A rule that differs from backprop only where networks hardly
come, such as `clip(g, 1.0)`, is backprop.
"""

import functools

import numpy as np

from bpevo.evolution import probe
from bpevo.evolution.equivalence import same
from bpevo.rules import UNARIES, Equation, Expression, parse
from bpevo.rules.expression import BinaryNode, UnaryNode

NO_SIGNAL = "no signal"
BACKPROP = "backprop"
SCALED = "scaled backprop"
PER_UNIT = "backprop, rescaled per unit"
PER_SAMPLE = "backprop, rescaled per sample"
PER_FEATURE = "backprop, rescaled per feature"
PER_ENTRY = "backprop, rescaled per entry"
OTHER = "other information"
KINDS = (NO_SIGNAL, BACKPROP, SCALED, PER_UNIT, PER_SAMPLE, PER_FEATURE, PER_ENTRY, OTHER)

_REVERSED, _NOISE = "reversed ", " + noise"
_SEED = 3
_REMEMBERED = 4096  # rules
_CELLS = [i * probe.STEPS + t for i, regime in enumerate(probe.REGIMES) if regime != "wide" for t in range(probe.STEPS)]


def kind(rule: Expression | Equation) -> str:
    """One of KINDS, possibly with "reversed " before and " + noise" after it. Raises InfeasibleEquation.

    Chains of at most DEFAULT_PARTS parts run in the program that finds duplicates, longer ones in one for their length; any
    other expression compiles one.

    >>> kind(parse("unit_row2(g)"))
    'backprop, rescaled per sample'
    """
    return _named(rule.to_expression() if isinstance(rule, Equation) else rule)


def plain(kind: str) -> str:
    """The one of KINDS in the name of a kind.

    >>> plain("reversed scaled backprop + noise")
    'scaled backprop'
    """
    return kind.removeprefix(_REVERSED).removesuffix(_NOISE)


@functools.lru_cache(_REMEMBERED)
def _named(expression: Expression) -> str:
    quiet = without_noise(expression.check())
    signal, true = _signals(quiet), _backprop()
    found = _kind(signal, true)
    if found == OTHER:
        reverse = _kind(-signal, true)
        found = OTHER if reverse == OTHER else _REVERSED + reverse
    return found if quiet == expression or same(signal, _signals(expression)) else found + _NOISE


def without_noise(node: Expression) -> Expression:
    """The same expression with the argument of every noisy function in its place."""
    if isinstance(node, UnaryNode):
        x = without_noise(node.x)
        return x if UNARIES[node.name].noisy else UnaryNode(node.name, x, node.constant)
    if isinstance(node, BinaryNode):
        return BinaryNode(node.name, without_noise(node.left), without_noise(node.right))
    return node


def _signals(expression: Expression) -> np.ndarray:
    return probe.signals(probe.rule(expression), _SEED)[_CELLS]


@functools.cache
def _backprop() -> np.ndarray:
    return _signals(parse("g"))


def _kind(x: np.ndarray, g: np.ndarray) -> str:
    """For signals x where backprop has g, both [cells, samples, features]."""
    if not np.any(x):
        return NO_SIGNAL
    if same(x, g):
        return BACKPROP
    for found, axes in ((SCALED, (0, 1, 2)), (PER_UNIT, (1, 2)), (PER_SAMPLE, (2,)), (PER_FEATURE, (1,))):
        factor = _factor(x, g, axes)
        if np.all(factor >= 0) and same(x, factor * g):
            return found
    return PER_ENTRY if same(x, np.where(np.sign(x) == np.sign(g), x, 0)) else OTHER


def _factor(x: np.ndarray, g: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The factor of g that comes closest to x, one for each line along `axes`; 0 where g is 0.

    For all cells together it is the middle one of theirs, for the cells' sizes differ by orders of magnitude.
    """
    if len(axes) == 3:
        return np.median(_factor(x, g, (1, 2)))
    squares = np.sum(g * g, axes, keepdims=True)
    return np.sum(x * g, axes, keepdims=True) / np.where(squares > 0, squares, 1)
