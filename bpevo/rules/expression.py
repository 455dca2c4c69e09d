"""Expressions: trees of components. Immutable, structural equality, exact printing, symbolic types, LaTeX."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from bpevo.rules import types
from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES
from bpevo.rules.types import SIGNAL, InfeasibleEquation, Type

if TYPE_CHECKING:
    from bpevo.rules.drawing import Drawing
    from bpevo.rules.equation import Equation


def format_constant(c: float) -> str:
    """Shortest text that reads back as the same float32."""
    return str(np.float32(c))


class Expression:
    """A tree of `OperandNode`, `UnaryNode` and `BinaryNode`. `str` is the text form and `bpevo.rules.parse` its inverse.

    >>> from bpevo.rules import parse
    >>> rule = parse("(b_next @ W.T) * dh")
    >>> print(rule.type, rule.key == parse("g").key)
    [B, I] True
    >>> print(parse("g - abs(h)").latex)
    g_i^p - \\left|h_i\\right|
    """

    @functools.cached_property
    def type(self) -> Type:
        """Symbolic type; raises InfeasibleEquation naming the part that does not fit and the two shapes."""
        raise NotImplementedError

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()

    @property
    def latex(self) -> str:
        """In the paper's notation, without the surrounding `$`."""
        raise NotImplementedError

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle b_i^p \leftarrow {self.latex}$"

    def __repr__(self) -> str:
        return f"parse({str(self)!r})"

    def draw(self) -> Drawing:
        """A picture: two layers forward, backprop, and what feeds b_i^p by this rule. See `bpevo.rules.drawing`.

        >>> from bpevo.rules import parse
        >>> parse("g").draw().save("rule.svg")  # doctest: +SKIP
        """
        from bpevo.rules.drawing import draw

        return draw(self)

    def walk(self) -> Iterator[Expression]:
        """Every node, children first, left to right: the order of evaluation."""
        for child in self.children:
            yield from child.walk()
        yield self

    @property
    def key(self) -> str:
        """Canonical form, see `bpevo.rules.canonical`."""
        from bpevo.rules.canonical import canonical

        return str(canonical(self))

    def to_equation(self, max_parts: int = 3) -> Equation:
        """The search's chain genome.

        Args:
            max_parts: Length to which it is padded.

        Raises:
            RuleSyntaxError: It is no chain of at most that many parts; names the node.

        >>> from bpevo.rules import parse
        >>> len(parse("unit_fro(g) + h").to_equation().to_parts())
        1
        """
        from bpevo.rules.equation import to_equation

        return to_equation(self, max_parts)

    def check(self) -> Expression:
        """Returns itself if the result is a signal [B, I]; else raises InfeasibleEquation."""
        if self.type != SIGNAL:
            raise InfeasibleEquation(f"the result of {self} is {self.type} but the signal b_i^p must be {SIGNAL}")
        return self


@dataclasses.dataclass(frozen=True, repr=False)
class OperandNode(Expression):
    """An operand or, with the name of a statistic, what is taken of it."""

    name: str
    statistic: str = ""

    def __str__(self) -> str:
        return f"{self.statistic}({self.name})" if self.statistic else self.name

    @functools.cached_property
    def type(self) -> Type:
        own = Type(OPERANDS[self.name].base)
        return own.mean() if self.statistic and STATISTICS[self.statistic].average else own

    @property
    def latex(self) -> str:
        own = OPERANDS[self.name].latex
        return STATISTICS[self.statistic].latex.format(x=own) if self.statistic else own


def is_infix(node: Expression) -> bool:
    """Whether the text form is written around an operator."""
    return (isinstance(node, UnaryNode) and UNARIES[node.name].infix) or (
        isinstance(node, BinaryNode) and BINARIES[node.name].infix
    )


@dataclasses.dataclass(frozen=True, repr=False)
class UnaryNode(Expression):
    """A unary function of `x`; `constant` is a float32 value, 0 where the function takes none."""

    name: str
    x: Expression
    constant: float = 0.0

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.x,)

    def __str__(self) -> str:
        entry = UNARIES[self.name]
        needs_parentheses = (entry.infix or entry.structure == "transpose") and is_infix(self.x)
        x = f"({self.x})" if needs_parentheses else str(self.x)
        if self.name == "shift" and self.constant < 0:
            return f"{x} - {format_constant(-self.constant)}"
        return entry.spelling.format(x=x, c=format_constant(self.constant))

    @functools.cached_property
    def type(self) -> Type:
        return self.x.type.transpose() if UNARIES[self.name].structure == "transpose" else self.x.type

    @property
    def latex(self) -> str:
        entry = UNARIES[self.name]
        transpose = entry.structure == "transpose"
        wrap = (entry.infix or transpose) and (is_infix(self.x) or isinstance(self.x, BinaryNode))
        wrap = wrap or (transpose and "^" in self.x.latex)  # LaTeX refuses a second superscript
        x = rf"\left({self.x.latex}\right)" if wrap else self.x.latex
        if self.name == "shift" and self.constant < 0:
            return f"{x} - {format_constant(-self.constant)}"
        return entry.latex.format(x=x, c=format_constant(self.constant))


@dataclasses.dataclass(frozen=True, repr=False)
class BinaryNode(Expression):
    """A binary function of `left` and `right`."""

    name: str
    left: Expression
    right: Expression

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.left, self.right)

    def __str__(self) -> str:
        entry = BINARIES[self.name]
        x, y = (f"({c})" if entry.infix and is_infix(c) else str(c) for c in self.children)
        return entry.spelling.format(x=x, y=y)

    @functools.cached_property
    def type(self) -> Type:
        a, b = self.left.type, self.right.type
        entry = BINARIES[self.name]
        try:
            if entry.structure == "left":
                return a
            return types.product(a, b).result if entry.structure == "product" else types.elementwise(a, b, entry.symbol)
        except InfeasibleEquation as error:
            raise InfeasibleEquation(f"in {self}: {error}; {self.left} is {a}, {self.right} is {b}") from None

    @property
    def latex(self) -> str:
        entry = BINARIES[self.name]
        wrap = entry.infix and self.name != "div"
        x, y = (rf"\left({c.latex}\right)" if wrap and is_infix(c) else c.latex for c in self.children)
        return entry.latex.format(x=x, y=y)
