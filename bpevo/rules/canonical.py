"""Canonical form of expressions: the key under which a search finds structural duplicates."""

from bpevo.rules.components import BINARIES, UNARIES
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode

# Operands that are abbreviations: each side computes the same.
_DEFINITIONS = {
    "g": BinaryNode("mul", OperandNode("gh"), OperandNode("dh")),
    "fa": BinaryNode("mul", OperandNode("fah"), OperandNode("dh")),
    "dfa": BinaryNode("mul", OperandNode("dfah"), OperandNode("dh")),
    "gh": BinaryNode("matmul", OperandNode("b_next"), UnaryNode("transpose", OperandNode("W"))),
    "fah": BinaryNode("matmul", OperandNode("b_next"), UnaryNode("transpose", OperandNode("R"))),
    "dfah": BinaryNode("matmul", OperandNode("b_L"), OperandNode("R_L")),
}
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


def canonical(node: Expression) -> Expression:
    """The same function in one form: idle genes dropped, abbreviations spelled out, commutative arguments sorted."""
    if isinstance(node, OperandNode):
        return canonical(_DEFINITIONS[node.name]) if not node.modifier and node.name in _DEFINITIONS else node
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
    x = canonical(node.x)
    inner = x if isinstance(x, UnaryNode) else None
    if (node.name, node.constant) in (("scale", 1.0), ("shift", 0.0)):
        return x
    if inner and node.name in _INVOLUTIONS and inner.name == node.name:
        return inner.x
    if inner and node.name in ("abs", "sqrt", "sq") and inner.name in ("neg", "abs"):
        return canonical(UnaryNode(node.name, inner.x, node.constant))
    if node.name == "sgn" and x == OperandNode("W"):
        return OperandNode("sgn_W")
    return UnaryNode("unit_elem2" if node.name == "unit_fro" else node.name, x, node.constant)
