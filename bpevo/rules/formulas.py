"""Operands by formula: what each stands for and reads, and the value of an expression over a unit.

Both engines take the operands that are no values of the unit from here.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, UNARIES
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode
from bpevo.rules.text import read
from bpevo.rules.types import Type, matrix, product
from bpevo.rules.unit import Unit


@functools.cache
def _read(formula: str) -> Expression:
    return read(formula)


def definition(name: str) -> Expression | None:
    """What the operand `name` stands for; None if it is a value of the unit."""
    formula = OPERANDS[name].formula
    return _read(formula) if formula else None


def live(node: Expression) -> Iterator[Expression]:
    """Nodes in order of evaluation, without what `left` ignores."""
    ignored = isinstance(node, BinaryNode) and BINARIES[node.name].structure == "left"
    for child in node.children[:1] if ignored else node.children:
        yield from live(child)
    yield node


def reads(name: str) -> frozenset[str]:
    """The values of the unit that the operand `name` is made of; of one that is none, itself."""
    node = definition(name)
    if node is None:
        return frozenset((name,))
    return frozenset().union(*(reads(n.name) for n in live(node) if isinstance(n, OperandNode)))


def is_constant(name: str) -> bool:
    """Whether the operand never changes during a run."""
    return all(OPERANDS[n].draw is not None for n in reads(name))


def has_product(name: str) -> bool:
    """Whether the formula of the operand multiplies matrices by itself, not through another operand."""
    node = definition(name)
    return node is not None and any(
        isinstance(n, BinaryNode) and BINARIES[n.name].structure == "product" for n in live(node)
    )


def products_of(name: str) -> frozenset[str]:
    """The operands with a product that must be known before the value of the operand `name`."""
    node = definition(name)
    if node is None:
        return frozenset()
    inner = (products_of(n.name) for n in live(node) if isinstance(n, OperandNode))
    return frozenset([name] * has_product(name)).union(*inner)


def unit_values() -> frozenset[str]:
    """All operands that are values of the unit."""
    return frozenset(o.name for o in OPERANDS.values() if not o.formula)


def formula_value(unit: Unit, name: str, operand: Callable[[str], jax.Array]) -> jax.Array:
    """The value of an operand by formula in its native shape; `operand` gives those that the formula names."""
    node = definition(name)
    assert node is not None
    return value(unit, node, lambda n: operand(n.name), _refuse)


def _refuse(node: UnaryNode, x: jax.Array) -> jax.Array:
    raise AssertionError(f"{node} in a formula")


def value(
    unit: Unit,
    node: Expression,
    operand: Callable[[OperandNode], jax.Array],
    stateful: Callable[[UnaryNode, jax.Array], jax.Array],
) -> jax.Array:
    """The value of a tree in its native shape, not transposed whatever its type.

    `operand` gives the leaves and `stateful` what draws noise or keeps statistics; both are called in order of evaluation.
    """
    if isinstance(node, OperandNode):
        return operand(node)
    if isinstance(node, UnaryNode):
        x = value(unit, node.x, operand, stateful)
        entry = UNARIES[node.name]
        return stateful(node, x) if entry.noisy or entry.statistic else _unary(node, x)
    assert isinstance(node, BinaryNode)
    binary = BINARIES[node.name]
    left = value(unit, node.left, operand, stateful)
    if binary.structure == "left":
        return left
    right = value(unit, node.right, operand, stateful)
    if binary.structure == "product":
        p = product(node.left.type, node.right.type)
        activation, weight = (right, left) if p.mirrored else (left, right)
        return unit.product(activation, p.name, weight)
    assert binary.fn is not None
    return binary.fn(left, right)


def _unary(node: UnaryNode, x: jax.Array) -> jax.Array:
    entry, kind, c = UNARIES[node.name], node.x.type, jnp.float32(node.constant)
    if entry.structure == "transpose":
        return x
    if entry.norm:
        return x / (jnp.reshape(_norm(x, kind, *entry.norm), _norm_shape(x, kind, entry.norm[1])) + EPSILON)
    if entry.affine:
        return entry.affine(c)(x)
    assert entry.fn is not None
    return entry.fn(x, c)


def _norm(x: jax.Array, kind: Type, order: str, axis: str) -> jax.Array:
    """The norm of the (transposed) matrix form: scalar, [1, columns] or [rows, 1] of the stored matrix."""
    x = jnp.abs(matrix(x, kind.base))
    if axis == "mat":
        # Largest column sum (1), largest (inf) or smallest (ninf) row sum; rows and columns swap when transposed.
        sums = jnp.sum(x, 0 if (order == "1") != kind.transposed else 1)
        return jnp.min(sums) if order == "ninf" else jnp.max(sums)
    over = {"elem": (0, 1), "col": (0,), "row": (1,)}[axis]
    if kind.transposed and axis != "elem":
        over = (1 - over[0],)
    match order:
        case "0":
            return jnp.sum(x != 0, over, dtype=x.dtype)
        case "1":
            return jnp.sum(x, over)
        case "2":
            return jnp.sqrt(jnp.sum(x * x, over))
        case "ninf":
            return jnp.min(x, over)
    return jnp.max(x, over)


def _norm_shape(x: jax.Array, kind: Type, axis: str) -> tuple[int, ...]:
    """Shape that lets `_norm` broadcast against the native value."""
    if axis in ("elem", "mat"):
        return (1,) * x.ndim
    per_row = (axis == "row") != kind.transposed
    split = x.ndim - 1 if kind.base == "K" else 1
    return tuple(n if (d < split) == per_row else 1 for d, n in enumerate(x.shape))
