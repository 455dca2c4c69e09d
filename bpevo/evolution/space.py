"""The search space: flat lists of components, random equations, mutations (arXiv 1808.02822, section 3.2).

A component is a function with its constant, or an operand with its mean, std or bn.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bpevo.rules import BINARIES, OPERANDS, STATISTICS, UNARIES, Equation, InfeasibleEquation
from bpevo.rules.equation import Argument, Part
from bpevo.rules.expression import OperandNode, format_constant
from bpevo.rules.text import suggestion

UnaryChoice = tuple[str, float]


def component_name(choice: UnaryChoice) -> str:
    """`clip:0.5`, `relu`."""
    name, constant = choice
    return f"{name}:{format_constant(constant)}" if name in UNARIES and UNARIES[name].takes_constant else name


ALL = "all"  # in a list of names: every component, also those that were registered


def operand_choices(paper: bool = False) -> dict[str, OperandNode]:
    """All operands and what can be taken of them, by name; or the paper's."""
    operands = [o.name for o in OPERANDS.values() if o.paper or not paper]
    statistics = ["", *(s.name for s in STATISTICS.values() if s.paper or not paper)]
    return {str(o): o for o in (OperandNode(name, s) for name in operands for s in statistics)}


def unary_choices(paper: bool = False) -> dict[str, UnaryChoice]:
    """All unary functions with each of their constants, by name; or the paper's."""
    unaries = [u for u in UNARIES.values() if u.paper or not paper]
    choices = [("identity", 0.0), *((u.name, float(np.float32(c))) for u in unaries for c in u.constants or (0.0,))]
    return {component_name(choice): choice for choice in choices}


def binary_choices(paper: bool = False) -> list[str]:
    """All binary functions, or the paper's."""
    return [b.name for b in BINARIES.values() if b.paper or not paper]


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
        """An empty subset means the paper's components, `all` also the registered ones.

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
        known = operand_choices()
        names = _chosen(operands, list(known), "operand") or list(operand_choices(paper=True))
        self.operands = [known[n] for n in names]
        self.unaries = _chosen_unaries(unaries) or list(unary_choices(paper=True).values())
        self.binaries = _chosen(binaries, binary_choices(), "binary function") or binary_choices(paper=True)

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

    def neighbours(self, equation: Equation) -> Iterator[Equation]:
        """Every equation that a single mutation can make of it; not necessarily feasible."""
        parts = equation.to_parts()
        for i, part in enumerate(parts):
            for gene in _genes(part):
                for after in self._alternatives(part, gene):
                    changed = [*parts[:i], _set(part, gene, after), *parts[i + 1 :]]
                    yield Equation.from_parts(changed, self.max_parts)

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
    names: list[str] = []
    for name in chosen:
        if name != ALL and name not in valid:
            raise ValueError(f"there is no {kind} {name!r}; {suggestion(name, valid)}")
        names += valid if name == ALL else [name]
    return list(dict.fromkeys(names))


def _chosen_unaries(chosen: Sequence[str]) -> list[UnaryChoice]:
    known = unary_choices()
    choices: list[UnaryChoice] = []
    for name in chosen:
        family = [c for c in known.values() if name in (ALL, c[0])]
        choices += family or [known.get(name) or _parse_unary(name, list(known))]
    return list(dict.fromkeys(choices))


def _parse_unary(name: str, known: list[str]) -> UnaryChoice:
    """A unary with a constant of its own, such as scale:3; raises ValueError."""
    function, _, text = name.partition(":")
    if function not in UNARIES or not (text and UNARIES[function].takes_constant):
        raise ValueError(f"there is no unary function {name!r}; {suggestion(name, known)}")
    try:
        return function, UNARIES[function].rounded(float(text))
    except ValueError as error:
        low, high = UNARIES[function].legal
        raise ValueError(f"the constant of {name!r} must be a number in [{low:.8g}, {high:.8g}]: {error}") from None


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
