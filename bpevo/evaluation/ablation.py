"""What is left of a rule when one of its components is removed."""

import dataclasses
from collections.abc import Iterator

from bpevo.evaluation.treatments import Treatment
from bpevo.rules import InfeasibleEquation
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode


def ablations(treatment: Treatment) -> list[Treatment]:
    """Every feasible rule that lacks one component: a unary function, a mean, std or bn, or one side of a binary function."""
    found: dict[str, Treatment] = {}
    for expression in _without_one(treatment.expression):
        try:
            expression.check()
        except InfeasibleEquation:
            continue
        if expression != treatment.expression:
            found.setdefault(str(expression), Treatment(expression, treatment.transform))
    return list(found.values())


def _without_one(node: Expression) -> Iterator[Expression]:
    """Trees with one node removed, root first."""
    if isinstance(node, OperandNode):
        if node.statistic:
            yield OperandNode(node.name)
    elif isinstance(node, UnaryNode):
        yield node.x
        yield from (dataclasses.replace(node, x=x) for x in _without_one(node.x))
    elif isinstance(node, BinaryNode):
        yield node.left
        yield node.right
        yield from (dataclasses.replace(node, left=x) for x in _without_one(node.left))
        yield from (dataclasses.replace(node, right=x) for x in _without_one(node.right))
