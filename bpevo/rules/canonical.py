"""Canonical form of expressions: the key under which a search finds structural duplicates."""

from bpevo.rules.components import BINARIES, UNARIES
from bpevo.rules.expression import Binary, Expression, Operand, Unary

# Operands that are abbreviations: each side computes the same.
_DEFINITIONS = {
    "g": Binary("mul", Operand("gh"), Operand("dh")),
    "fa": Binary("mul", Operand("fah"), Operand("dh")),
    "dfa": Binary("mul", Operand("dfah"), Operand("dh")),
    "gh": Binary("matmul", Operand("b_next"), Unary("transpose", Operand("W"))),
    "fah": Binary("matmul", Operand("b_next"), Unary("transpose", Operand("R"))),
    "dfah": Binary("matmul", Operand("b_L"), Operand("R_L")),
}
_INVOLUTIONS = ("neg", "transpose")


def _draws_noise(node: Expression) -> bool:
    """Whether two copies of `node` differ: each position draws its own noise."""
    return any(isinstance(n, Unary) and UNARIES[n.name].noisy for n in node.walk())


def without_idle(node: Expression) -> Expression:
    """The same function without the genes that `left` ignores: the form to read."""
    if isinstance(node, Operand):
        return node
    if isinstance(node, Unary):
        return Unary(node.name, without_idle(node.x), node.constant)
    assert isinstance(node, Binary)
    left = without_idle(node.left)
    return left if node.name == "left" else Binary(node.name, left, without_idle(node.right))


def canonical(node: Expression) -> Expression:
    """The same function in one form: idle genes dropped, abbreviations spelled out, commutative arguments sorted."""
    if isinstance(node, Operand):
        return canonical(_DEFINITIONS[node.name]) if not node.modifier and node.name in _DEFINITIONS else node
    if isinstance(node, Binary):
        left = canonical(node.left)
        if node.name == "left":
            return left
        right = canonical(node.right)
        if node.name in ("min", "max") and left == right and not _draws_noise(left):
            return left
        if BINARIES[node.name].commutative:
            left, right = sorted((left, right), key=str)
        return Binary(node.name, left, right)
    assert isinstance(node, Unary)
    x = canonical(node.x)
    inner = x if isinstance(x, Unary) else None
    if (node.name, node.constant) in (("scale", 1.0), ("shift", 0.0)):
        return x
    if inner and node.name in _INVOLUTIONS and inner.name == node.name:
        return inner.x
    if inner and node.name in ("abs", "sqrt", "sq") and inner.name in ("neg", "abs"):
        return canonical(Unary(node.name, inner.x, node.constant))
    if node.name == "sgn" and x == Operand("W"):
        return Operand("sgn_W")
    return Unary("unit_elem2" if node.name == "unit_fro" else node.name, x, node.constant)
