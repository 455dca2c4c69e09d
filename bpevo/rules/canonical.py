"""Forms of expressions: canonical, the key under which a search finds structural duplicates; and with less in them."""

import dataclasses
from collections.abc import Iterator

from bpevo.rules import formulas
from bpevo.rules.components import BINARIES, OPERANDS, UNARIES
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode

_INVOLUTIONS = ("neg", "transpose")


def _draws_noise(node: Expression) -> bool:
    """Whether two copies of `node` differ: each position draws its own noise."""
    return any(isinstance(n, UnaryNode) and UNARIES[n.name].noisy for n in node.walk())


def without_idle(node: Expression) -> Expression:
    """The same function without the genes that `left` ignores: the form to read."""
    if isinstance(node, OperandNode):
        return node
    if isinstance(node, UnaryNode):
        return UnaryNode(node.name, without_idle(node.x), node.constant)
    assert isinstance(node, BinaryNode)
    left = without_idle(node.left)
    return left if node.name == "left" else BinaryNode(node.name, left, without_idle(node.right))


def without_one(node: Expression) -> Iterator[Expression]:
    """Trees with one component less, root first: without a unary function, a mean, std or bn, or one side of a binary
    function. Not necessarily feasible."""
    if isinstance(node, OperandNode):
        if node.statistic:
            yield OperandNode(node.name)
    elif isinstance(node, UnaryNode):
        yield node.x
        yield from (dataclasses.replace(node, x=x) for x in without_one(node.x))
    elif isinstance(node, BinaryNode):
        yield node.left
        yield node.right
        yield from (dataclasses.replace(node, left=x) for x in without_one(node.left))
        yield from (dataclasses.replace(node, right=x) for x in without_one(node.right))


def canonical(node: Expression) -> Expression:
    """The same function in one form: idle genes dropped, commutative arguments sorted, formulas of operands spelled out.

    A formula of one function of a value of the unit, sgn(W), is longer than its operand, sgn_W: there the operand stands.
    """
    if isinstance(node, OperandNode):
        definition = None if node.statistic else formulas.definition(node.name)
        return node if definition is None or _short(definition) else canonical(definition)
    if isinstance(node, BinaryNode):
        left = canonical(node.left)
        if node.name == "left":
            return left
        right = canonical(node.right)
        if node.name in ("min", "max") and left == right and not _draws_noise(left):
            return left
        if BINARIES[node.name].commutative:
            left, right = sorted((left, right), key=str)
        return BinaryNode(node.name, left, right)
    assert isinstance(node, UnaryNode)
    result = _unary(node.name, canonical(node.x), node.constant)
    by_formula = (o.name for o in OPERANDS.values() if o.formula)
    return next((OperandNode(n) for n in by_formula if _short(formulas.definition(n)) == result), result)


def _unary(name: str, x: Expression, constant: float) -> Expression:
    """The canonical form of a unary function of a canonical x."""
    inner = x if isinstance(x, UnaryNode) else None
    if (name, constant) in (("scale", 1.0), ("shift", 0.0)):
        return x
    if inner and name in _INVOLUTIONS and inner.name == name:
        return inner.x
    if inner and name in ("abs", "sqrt", "sq") and inner.name in ("neg", "abs"):
        return canonical(UnaryNode(name, inner.x, constant))
    return UnaryNode("unit_elem2" if name == "unit_fro" else name, x, constant)


def _short(definition: Expression | None) -> Expression | None:
    """The canonical form of a formula that is one unary function of a value of the unit; None of any other."""
    if not isinstance(definition, UnaryNode) or not isinstance(definition.x, OperandNode):
        return None
    if formulas.definition(definition.x.name):
        return None
    form = _unary(definition.name, definition.x, definition.constant)
    return form if isinstance(form, UnaryNode) else None
