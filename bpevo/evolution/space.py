"""The search space: flat lists of components, random equations, mutations (arXiv 1808.02822, section 3.2).

A component is a function with its constant, or an operand with its mean, std or bn.
"""

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bpevo.rules import BINARIES, MODIFIERS, OPERANDS, UNARIES, Equation, InfeasibleEquation
from bpevo.rules.equation import Argument, Part
from bpevo.rules.expression import OperandNode, format_constant

UnaryChoice = tuple[str, float]


def component_name(choice: UnaryChoice) -> str:
    """`clip:0.5`, `relu`."""
    name, constant = choice
    return f"{name}:{format_constant(constant)}" if name in UNARIES and UNARIES[name].takes_constant else name


ALL_OPERANDS = {str(o): o for o in (OperandNode(name, m) for name in OPERANDS for m in MODIFIERS)}
ALL_UNARIES: dict[str, UnaryChoice] = {
    component_name(choice): choice
    for choice in [
        ("identity", 0.0),
        *((u.name, float(np.float32(c))) for u in UNARIES.values() for c in u.constants or (0.0,)),
    ]
}


@dataclasses.dataclass(frozen=True)
class Change:
    """One mutation: the gene and its component before and after."""

    part: int
    gene: str  # operand1, unary1, operand2, unary2, binary
    before: str
    after: str


class SearchSpace:
    """Chains of 1..max_parts parts over subsets of the components."""

    def __init__(
        self,
        max_parts: int = 3,
        operands: Sequence[str] = (),
        unaries: Sequence[str] = (),
        binaries: Sequence[str] = (),
    ):
        """Empty subsets mean all.

        Args:
          max_parts: of the longest equation.
          operands: such as `g`, `mean(g)`.
          unaries: such as `relu`, `clip` (all its constants), `clip:0.5`.
          binaries: such as `add`.

        Raises:
          ValueError: a component is unknown; the message names the nearest.

        >>> space = SearchSpace(2, operands=["g", "h"], unaries=["identity", "clip"], binaries=["add"])
        >>> str(space.random(np.random.default_rng(0)))
        '(clip(h, 0.5) + clip(g, 0.01)) + g'
        """
        if max_parts < 1:
            raise ValueError(f"max_parts must be at least 1, not {max_parts}")
        self.max_parts = max_parts
        self.operands = [ALL_OPERANDS[n] for n in _chosen(operands, list(ALL_OPERANDS), "operand")]
        names = list(ALL_UNARIES)
        if unaries:
            families = {c[0] for c in ALL_UNARIES.values()}
            names = []
            for n in unaries:
                if n in families:
                    names += [k for k, c in ALL_UNARIES.items() if c[0] == n]
                else:
                    names += [_unary(n)]
        self.unaries = list(dict.fromkeys(ALL_UNARIES.get(n) or _parse_unary(n) for n in names))
        self.binaries = _chosen(binaries, list(BINARIES), "binary function")

    def argument(self, rng: np.random.Generator) -> Argument:
        unary, constant = _pick(rng, self.unaries)
        return Argument(_pick(rng, self.operands), unary, constant)

    def random(self, rng: np.random.Generator) -> Equation:
        """A random genome, uniform in its number of parts; not necessarily feasible."""
        parts = []
        for i in range(int(rng.integers(1, self.max_parts + 1))):
            left = self.argument(rng)
            left = dataclasses.replace(left, operand=None) if i else left
            parts.append(Part(_pick(rng, self.binaries), left, self.argument(rng)))
        return Equation.from_parts(parts, self.max_parts)

    def padded(self, rng: np.random.Generator, equation: Equation) -> Equation:
        """`equation` with `left` parts up to max_parts, their idle genes drawn: mutation can wake them."""
        parts = equation.to_parts()
        while len(parts) < self.max_parts:
            parts.append(Part("left", Argument(None), self.argument(rng)))
        return Equation.from_parts(parts, self.max_parts)

    def mutated(self, rng: np.random.Generator, equation: Equation) -> tuple[Equation, Change]:
        """One component, picked uniformly, swapped for another of its list; not necessarily feasible.

        Raises ValueError if no component has an alternative.
        """
        parts = equation.to_parts()
        genes = [(i, gene) for i, part in enumerate(parts) for gene in _genes(part) if self._alternatives(part, gene)]
        if not genes:
            raise ValueError("every component list has a single entry: nothing can be mutated")
        i, gene = _pick(rng, genes)
        before = _get(parts[i], gene)
        after = _pick(rng, self._alternatives(parts[i], gene))
        parts[i] = _set(parts[i], gene, after)
        return Equation.from_parts(parts, self.max_parts), Change(i, gene, _name(before), _name(after))

    def _alternatives(self, part: Part, gene: str) -> list:
        lists: dict[str, Sequence[Any]] = {"o": self.operands, "u": self.unaries, "b": self.binaries}
        current = _get(part, gene)
        return [c for c in lists[gene[0]] if c != current]


def feasible(equation: Equation) -> bool:
    """Whether the symbols of its shapes fit, for dense and convolution units alike."""
    try:
        equation.check()
    except InfeasibleEquation:
        return False
    return True


def _pick(rng: np.random.Generator, items: Sequence) -> Any:
    return items[int(rng.integers(len(items)))]


def _chosen(chosen: Sequence[str], valid: list[str], kind: str) -> list[str]:
    for name in chosen:
        if name not in valid:
            raise ValueError(f"there is no {kind} {name!r}; the nearest is {_nearest(name, valid)!r}")
    return list(dict.fromkeys(chosen)) or valid


def _nearest(name: str, valid: list[str]) -> str:
    return difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]


def _unary(name: str) -> str:
    """A unary with a constant of its own, such as scale:3; raises ValueError."""
    _parse_unary(name)
    return name


def _parse_unary(name: str) -> UnaryChoice:
    function, _, text = name.partition(":")
    if function not in UNARIES or not (text and UNARIES[function].takes_constant):
        raise ValueError(f"there is no unary function {name!r}; the nearest is {_nearest(name, list(ALL_UNARIES))!r}")
    low, high = UNARIES[function].legal
    try:
        constant = float(np.float32(float(text)))
    except ValueError:
        constant = float("nan")
    if not low <= constant <= high:
        raise ValueError(f"the constant of {name!r} must be a number in [{low:g}, {high:g}]")
    return function, constant


def _genes(part: Part) -> list[str]:
    return [*(["operand1"] if part.left.operand else []), "unary1", "operand2", "unary2", "binary"]


def _get(part: Part, gene: str):
    if gene == "binary":
        return part.binary
    argument = part.left if gene.endswith("1") else part.right
    return argument.operand if gene.startswith("operand") else (argument.unary, argument.constant)


def _set(part: Part, gene: str, value) -> Part:
    if gene == "binary":
        return dataclasses.replace(part, binary=value)
    side = "left" if gene.endswith("1") else "right"
    argument = getattr(part, side)
    if gene.startswith("operand"):
        argument = dataclasses.replace(argument, operand=value)
    else:
        argument = dataclasses.replace(argument, unary=value[0], constant=value[1])
    return dataclasses.replace(part, **{side: argument})


def _name(value) -> str:
    return component_name(value) if isinstance(value, tuple) else str(value)
