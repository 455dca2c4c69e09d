"""Equation: the search's genome, a chain of 1..P parts `f(u1(op1), u2(op2))` as a pytree of fixed-length arrays.

From the second part on, op1 is the result of the part before. Every gene is kept, also those that `left` ignores:
a later mutation may wake them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from bpevo.rules import expression as ex
from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES
from bpevo.rules.types import RuleSyntaxError

PREVIOUS = -1  # op1 of parts after the first
DEFAULT_PARTS = 3


class Alleles(NamedTuple):
    """What the integers of a genome stand for. Registering a component appends to one of them."""

    operands: list[str]
    statistics: list[str]  # "" is the operand itself
    unaries: list[str]  # "identity" is none
    binaries: list[str]


def alleles() -> Alleles:
    return Alleles(list(OPERANDS), ["", *STATISTICS], ["identity", *UNARIES], list(BINARIES))


@dataclasses.dataclass(frozen=True)
class Argument:
    """`unary(operand)` of one part; `operand` None stands for the previous result."""

    operand: ex.OperandNode | None
    unary: str = "identity"
    constant: float = 0.0

    def expression(self, previous: ex.Expression | None = None) -> ex.Expression:
        x = self.operand or previous
        assert x is not None
        return x if self.unary == "identity" else ex.UnaryNode(self.unary, x, self.constant)


@dataclasses.dataclass(frozen=True)
class Part:
    """`binary(left, right)`."""

    binary: str
    left: Argument
    right: Argument


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Equation:
    """Chain genome, padded with zeros to P parts; leaves may carry leading batch axes (K slots).

    Made from a text by `parse(text).to_equation()`; `==` and `str` are those of the tree, idle genes included.

    >>> from bpevo.rules import parse
    >>> parse("min(unit_fro(g), clip(h, 1.0))").to_equation()
    Equation('min(unit_fro(g), clip(h, 1.0))')
    """

    operand: jax.typing.ArrayLike  # shape=[P, 2], int32, index into Alleles.operands or PREVIOUS
    statistic: jax.typing.ArrayLike  # shape=[P, 2], int32, index into Alleles.statistics
    unary: jax.typing.ArrayLike  # shape=[P, 2], int32, index into Alleles.unaries
    constant: jax.typing.ArrayLike  # shape=[P, 2], float32
    binary: jax.typing.ArrayLike  # shape=[P], int32, index into Alleles.binaries
    parts: jax.typing.ArrayLike  # shape=(), int32, number of parts used

    @classmethod
    def from_parts(cls, parts: list[Part], max_parts: int = DEFAULT_PARTS) -> Equation:
        """Raises RuleSyntaxError if there are more than `max_parts` parts."""
        if not 1 <= len(parts) <= max_parts:
            raise RuleSyntaxError(f"the equation has {len(parts)} parts; this search allows 1 to {max_parts}")
        known, integers = alleles(), np.zeros((3, max_parts, 2), np.int32)
        constant, binary = np.zeros((max_parts, 2), np.float32), np.zeros(max_parts, np.int32)
        for i, part in enumerate(parts):
            binary[i] = known.binaries.index(part.binary)
            for j, argument in enumerate((part.left, part.right)):
                operand = argument.operand
                integers[0, i, j] = known.operands.index(operand.name) if operand else PREVIOUS
                integers[1, i, j] = known.statistics.index(operand.statistic) if operand else 0
                integers[2, i, j] = known.unaries.index(argument.unary)
                constant[i, j] = argument.constant
        operands, taken, unaries = integers
        return cls(operands, taken, unaries, constant, binary, np.int32(len(parts)))

    def to_parts(self) -> list[Part]:
        known, parts = alleles(), int(np.asarray(self.parts))
        genes = (np.asarray(x)[:parts].tolist() for x in (self.operand, self.statistic, self.unary, self.constant))

        def argument(operand: int, statistic: int, unary: int, constant: float) -> Argument:
            node = None if operand == PREVIOUS else ex.OperandNode(known.operands[operand], known.statistics[statistic])
            return Argument(node, known.unaries[unary], constant)

        pairs = [[argument(*gene) for gene in zip(*sides, strict=True)] for sides in zip(*genes, strict=True)]
        names = [known.binaries[i] for i in np.asarray(self.binary)[:parts].tolist()]
        return [Part(name, *pair) for name, pair in zip(names, pairs, strict=True)]

    def to_expression(self) -> ex.Expression:
        """The tree; `left(x, y)` shows idle genes, except a last part whose idle gene is the default."""
        result: ex.Expression | None = None
        parts = self.to_parts()
        for i, part in enumerate(parts):
            left, right = part.left.expression(result), part.right.expression()
            short = i == len(parts) - 1 and part.binary == "left" and part.right == _idle(part.left)
            result = (
                left if short and (i == 0 or part.left.unary != "identity") else ex.BinaryNode(part.binary, left, right)
            )
        assert result is not None
        return result

    def check(self) -> Equation:
        """Returns itself; raises InfeasibleEquation as `Expression.check`."""
        self.to_expression().check()
        return self

    @property
    def key(self) -> str:
        """Canonical form: equal for equations that differ only in idle genes, order of sums, and the like."""
        from bpevo.rules.canonical import canonical

        return str(canonical(self.to_expression()))

    @property
    def latex(self) -> str:
        return self.to_expression().latex

    def _repr_latex_(self) -> str:
        return self.to_expression()._repr_latex_()

    def __str__(self) -> str:
        return str(self.to_expression())

    def __repr__(self) -> str:
        return f"Equation({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Equation):
            return self.to_parts() == other.to_parts()
        return self.to_expression() == other if isinstance(other, ex.Expression) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.to_expression())


def _idle(left: Argument) -> Argument:
    """The default of an ignored right gene: the left operand again, or g after a previous result."""
    return Argument(left.operand or ex.OperandNode("g"))


def to_equation(expression: ex.Expression, max_parts: int = DEFAULT_PARTS) -> Equation:
    """The chain genome of an expression. Raises RuleSyntaxError that names the node that is no chain."""

    def argument(node: ex.Expression, chain: list[Part]) -> Argument:
        unary, constant, inner = "identity", 0.0, node
        if isinstance(node, ex.UnaryNode):
            unary, constant, inner = node.name, node.constant, node.x
        if isinstance(inner, ex.OperandNode):
            return Argument(inner, unary, constant)
        chain.extend(parts(inner))
        return Argument(None, unary, constant)

    def parts(node: ex.Expression) -> list[Part]:
        chain: list[Part] = []
        if not isinstance(node, ex.BinaryNode):
            left = argument(node, chain)
            return [*chain, Part("left", left, _idle(left))]
        left = argument(node.left, chain)
        inner = node.right.x if isinstance(node.right, ex.UnaryNode) else node.right
        if not isinstance(inner, ex.OperandNode):
            raise RuleSyntaxError(
                f"{expression} is no chain of parts: the second operand of each part must be an operand with at most "
                f"one unary function, but here it is {node.right}; write the longer side first or use it as a tree"
            )
        return [*chain, Part(node.name, left, argument(node.right, []))]

    return Equation.from_parts(parts(expression.check()), max_parts)
