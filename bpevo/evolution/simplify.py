"""A rule without the components that have no effect: the form in which what was found can be read."""

import functools

from bpevo.evolution import probe
from bpevo.evolution.equivalence import same
from bpevo.rules import Expression, InfeasibleEquation, without_idle, without_one

_SEED = 5  # of the probe's operands
_REMEMBERED = 1024  # rules


def components(expression: Expression) -> int:
    """Operands with their mean, std or bn, and functions with their constants: the nodes of the tree."""
    return sum(1 for _ in expression.walk())


@functools.lru_cache(_REMEMBERED)
def simplified(rule: Expression) -> Expression:
    """What is left when components are taken out, the most at once first, for as long as the rule computes the same.

    It is the same function (within the tolerances of bpevo.evolution.equivalence) and changes whichever component is taken out
    next. Raises InfeasibleEquation.

    >>> from bpevo.rules import parse
    >>> print(simplified(parse("unit_fro(0.5*g) + (0.01*(h - h))")))
    unit_fro(g)
    """
    left = without_idle(rule.check())
    own = probe.signals(probe.rule(left), _SEED)
    while True:
        for smaller in sorted(without_one(left), key=components):
            if _feasible(smaller) and same(own, probe.signals(probe.rule(smaller), _SEED)):
                left = smaller
                break
        else:
            return left


def _feasible(expression: Expression) -> bool:
    try:
        expression.check()
    except InfeasibleEquation:
        return False
    return True
