"""A rule as a picture, after figure 1 of arXiv 1808.02822: two layers forward, backprop, and what feeds the rule's b_i^p.

Three columns from right to left, as signals go: values of the unit; what the equation makes of them by formulas and
running statistics; b_i^p. Its arrows are the operands of the equation and the functions that draw noise or remember.
"""

import dataclasses
import os
import pathlib
import re
import textwrap

from bpevo.rules import formulas, svg
from bpevo.rules.canonical import without_idle
from bpevo.rules.components import BINARIES, OPERANDS, UNARIES
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode, format_constant, is_infix
from bpevo.rules.svg import FAINT, INK, Run

WIDTH = 360
_VALUE, _OPERAND, _SIGNAL, _BELOW = 322, 194, 88, 25  # centres of the columns
_VALUE_BOX, _OPERAND_BOX, _SIGNAL_BOX = (66, 42), (134, 42), (42, 34)
_PITCH, _PASSING = 50, 20  # of boxes, and of a value that passes the middle column
_DH = Run("σ′")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value: its color, and what the legend says."""

    color: str
    fill: str
    legend: str
    dashed: bool = False


SIGNAL = Kind("#b3261e", "#fdeceb", "signal from above")
FORWARD = Kind("#1f5fa8", "#e9f1fb", "forward value")
WEIGHT = Kind("#4a4a4a", "#efefef", "weight")
RANDOM = Kind("#1b6e3c", "#e8f5ec", "random", dashed=True)
MEMORY = Kind("#6a3d9a", "#f2ecf9", "running average")
FORMULA = Kind(INK, "#fff", "")


@dataclasses.dataclass(frozen=True)
class Drawing:
    """An SVG of a rule; a notebook shows it.

    Attributes:
        svg: The file's text.
    """

    svg: str

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file. Raises OSError."""
        pathlib.Path(path).write_text(self.svg, encoding="utf-8")

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"a drawing of {len(self.svg):,} characters: a notebook shows it, .save('rule.svg') writes it"


@dataclasses.dataclass(frozen=True)
class Source:
    """What an arrow of b_i^p comes from: `name` as it is written in the equation, and the unit's values it is made of."""

    name: str
    reads: frozenset[str]
    kind: Kind
    remark: str = ""
    formula: tuple[Run, ...] = ()

    @property
    def passes(self) -> bool:
        """Whether it is a value of the unit as it is."""
        return self.reads == {self.name}

    @property
    def recursive(self) -> bool:
        return "b_next" in self.reads


def sources(expression: Expression) -> list[Source]:
    """What b_i^p depends on, in order of first use; idle genes are left out."""
    found: dict[str, Source] = {}
    for node in formulas.live(without_idle(expression)):
        source = None
        if isinstance(node, OperandNode):
            by_formula = formulas.definition(node.name)
            kind = MEMORY if node.statistic else FORMULA if by_formula else kind_of(node.name)
            source = Source(
                str(node), formulas.reads(node.name), kind, formula=tuple(_runs(by_formula)) if by_formula else ()
            )
        elif isinstance(node, UnaryNode) and UNARIES[node.name].noisy:
            constant = f" {format_constant(node.constant)}" if UNARIES[node.name].takes_constant else ""
            source = Source(node.name + constant, frozenset(), RANDOM, "fresh each step")
        elif isinstance(node, UnaryNode) and UNARIES[node.name].statistic:
            source = Source(node.name, frozenset(), MEMORY, "running average")
        if source:
            found.setdefault(source.name, source)
    return list(found.values())


def kind_of(value: str) -> Kind:
    """The kind of a value of the unit."""
    operand = OPERANDS[value]
    if operand.draw:
        return RANDOM
    return SIGNAL if value in ("b_next", "b_L") else WEIGHT if operand.base == "K" else FORWARD


def draw(expression: Expression) -> Drawing:
    """The picture of a rule: two layers forward, backprop, and the rule beside it.

    360 px wide; letters are of 11.5 px and more.

    >>> from bpevo.rules import parse
    >>> draw(parse("min(unit_fro(g), clip(h, 1.0))")).svg.count('data-to="signal"')
    2
    """
    picture = svg.Picture(WIDTH, f"the backward rule {without_idle(expression)}")
    feeds = sources(expression)
    reads = frozenset[str]().union(*(s.reads for s in feeds))
    _network(picture, reads)
    y = _equation(picture, 184, str(without_idle(expression)))
    y = _rule(picture, y + 12, feeds)
    return Drawing(picture.text(_legend(picture, y + 24, feeds, reads)))


def _network(picture: svg.Picture, reads: frozenset[str]) -> None:
    """Two layers forward and backprop's way back."""
    xs, y, back = (34, 107, 180, 253, 326), 58, 124
    names = ("", "", "hp", "h", "hp_next")
    forward = ("h_{i-1}^p", "h_{i-1}", "h_i^p", "h_i", "h_{i+1}^p")
    backward = ("b_{i-1}^p", "b_{i-1}", "b_i^p", "b_i", "b_{i+1}^p")
    picture.words(8, 16, "forward", FAINT, bold=True)
    picture.words(8, 96, "backprop", FAINT, bold=True)
    for x, name, up, down in zip(xs, names, forward, backward, strict=True):
        fill = FORWARD.fill if name in reads else "#fff"
        hint = f"{name}, {OPERANDS[name].doc}" if name else "one layer below"
        _box(picture, x, y, (42, 32), FORWARD, fill, hint, [_symbol(up)])
        _box(picture, x, back, (42, 32), SIGNAL, "#fff", "the signal of backprop", [_symbol(down)])
    labels = (Run("σ"), _symbol("W_{i-1}"), Run("σ"), _symbol("W_i"))
    for left, right, label in zip(xs, xs[1:], labels, strict=False):
        weight = label.text == "W"
        color = WEIGHT.color if weight else FORWARD.color
        middle = (left + right) / 2
        picture.line(f"M{left + 21} {y}H{right - 21}", color)
        picture.head(right - 21, y, color, right=True)
        picture.formula(middle, y - 21, [label], color, 14)
        picture.line(f"M{right - 21} {back}H{left + 21}", SIGNAL.color)
        picture.head(left + 21, back, SIGNAL.color)
        below = Run("W", label.sub, "⊤") if weight else _DH
        picture.formula(middle, back + 32, [below], color, 14)


def _equation(picture: svg.Picture, y: float, text: str) -> float:
    """The equation in lines; returns the last baseline."""
    picture.words(8, y, "this rule", FAINT, bold=True)
    columns = int((WIDTH - 16) / (12 * svg.MONO_WIDTH))
    for line in textwrap.wrap(text, columns, break_on_hyphens=False):
        y += 18
        picture.code(8, y, line)
    return y


def _rule(picture: svg.Picture, top: float, feeds: list[Source]) -> float:
    """What feeds b_i^p; returns the lower edge."""
    rows = {name: i for i, s in enumerate(feeds) for name in s.reads}
    by_row = {name: [i for i, s in enumerate(feeds) if name in s.reads] for name in rows}
    order = list(OPERANDS)
    values = sorted(rows.keys() - {"b_next"}, key=lambda v: (sum(by_row[v]) / len(by_row[v]), order.index(v)))
    values = ["b_next", *values]
    heights = [_PASSING if s.passes else _PITCH for s in feeds]
    height = max(_PITCH * len(values), sum(heights), _PITCH)
    at = {v: top + height / 2 + _PITCH * (i - (len(values) - 1) / 2) for i, v in enumerate(values)}
    middle, start = [], top + (height - sum(heights)) / 2
    for h in heights:
        middle.append(start + h / 2)
        start += h
    y = top + height / 2

    edge, inner, outer = _SIGNAL + _SIGNAL_BOX[0] / 2, _OPERAND - _OPERAND_BOX[0] / 2, _OPERAND + _OPERAND_BOX[0] / 2
    for source, row in zip(feeds, middle, strict=True):
        color, thick = _stroke(source)
        for value in sorted(source.reads):
            kind = kind_of(value)
            stroke, wide = (SIGNAL.color, 2.5) if value == "b_next" else (kind.color, 1.5)
            data = {} if source.passes else {"from_": value, "to": source.name}
            start = _VALUE - _VALUE_BOX[0] / 2
            picture.line(_curve(start, at[value], outer, row), stroke, wide, kind.dashed, **data)
            if not source.passes:
                picture.head(outer, row, stroke)
        begin = outer if source.passes else inner
        path = f"M{svg.number(begin)} {svg.number(row)}H{svg.number(inner)}" + _bend(inner, row, edge + 6, y)
        picture.line(path, color, thick, source.kind.dashed, from_=source.name, to="signal")
    for source, row in zip(feeds, middle, strict=True):
        if not source.passes:
            _operand(picture, row, source)
    for value in values:
        kind, read = kind_of(value), value in rows
        shown = kind if read else Kind("#aaa", "#fff", "")
        hint = f"{value}, {OPERANDS[value].doc}" + ("" if read else "; this rule does not read it")
        _box(picture, _VALUE, at[value], _VALUE_BOX, shown, shown.fill, hint, [_label(value)], value)
    strongest = max(feeds, key=lambda s: s.recursive)
    picture.head(edge, y, _stroke(strongest)[0])
    _box(picture, _SIGNAL, y, _SIGNAL_BOX, SIGNAL, SIGNAL.fill, "the rule's signal", [_symbol("b_i^p")])
    left = _BELOW + _SIGNAL_BOX[0] / 2
    picture.line(f"M{_SIGNAL - _SIGNAL_BOX[0] / 2} {svg.number(y)}H{left}", FAINT, dashed=True)
    picture.head(left, y, FAINT)
    _box(picture, _BELOW, y, _SIGNAL_BOX, Kind("#aaa", "#fff", ""), "#fff", "one layer below", [_symbol("b_{i-1}^p")])
    picture.words(8, y + 34, "and so on below", FAINT)
    return top + height


def _stroke(source: Source) -> tuple[str, float]:
    return (SIGNAL.color, 2.5) if source.recursive else (source.kind.color, 1.5)


def _bend(x1: float, y1: float, x2: float, y2: float) -> str:
    bend = (x1 - x2) / 2
    a, b = svg.number(x1 - bend), svg.number(x2 + bend)
    return f"C{a} {svg.number(y1)} {b} {svg.number(y2)} {svg.number(x2)} {svg.number(y2)}"


def _curve(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"M{svg.number(x1)} {svg.number(y1)}" + _bend(x1, y1, x2, y2)


def _operand(picture: svg.Picture, y: float, source: Source) -> None:
    w, h = _OPERAND_BOX
    fits = source.formula and svg.width(source.formula, 14) < w - 6
    name = source.name if len(source.name) <= 16 else source.name[:15] + "…"
    picture.box(_OPERAND, y, w, h, source.kind.color, source.kind.fill, source.kind.dashed, source.name)
    two = fits or source.remark
    picture.code(_OPERAND, y - 4 if two else y + 5, name, source.kind.color, 13, "middle")
    if fits:
        picture.formula(_OPERAND, y + 14, source.formula, source.kind.color, 14)
    elif source.remark:
        picture.words(_OPERAND, y + 13, source.remark, source.kind.color, anchor="middle")


def _box(picture, x, y, size, kind: Kind, fill: str, hint: str, label: list[Run], name: str = "") -> None:
    picture.box(x, y, *size, kind.color, fill, kind.dashed, hint)
    picture.formula(x, y - 2 if name else y + 5, label, kind.color)
    if name:
        picture.code(x, y + 16, name, kind.color, svg.SMALL, "middle")


def _symbol(latex: str) -> Run:
    found = svg.symbol(latex.replace("-", "−"))
    assert found is not None
    return found


def _label(value: str) -> Run:
    """A value in the paper's notation, or by its name."""
    if value == "dh":
        return _DH
    return svg.symbol(OPERANDS[value].latex) or Run(value, italic=False)


def _runs(node: Expression) -> list[Run]:
    """A formula of values of the unit, operands by formula spelled out."""
    if isinstance(node, OperandNode):
        inner = formulas.definition(node.name)
        return [_label(node.name)] if inner is None else _runs(inner)
    assert isinstance(node, UnaryNode | BinaryNode)
    entry = UNARIES[node.name] if isinstance(node, UnaryNode) else BINARIES[node.name]
    tight = is_infix(node) or entry.structure == "transpose"
    arguments = [_in_parentheses(c) if tight and is_infix(_meant(c)) else _runs(c) for c in node.children]
    if entry.structure == "transpose":
        *before, last = arguments[0]
        return [*before, dataclasses.replace(last, sup="⊤")] if not last.sup else [*before, last, Run("", sup="⊤")]
    spelling = entry.spelling.replace("*", "⊙").replace("@", "·") if isinstance(node, BinaryNode) else entry.spelling
    runs: list[Run] = []
    for piece in re.split(r"(\{[xyc]\})", spelling):
        if piece == "{c}" and isinstance(node, UnaryNode):
            runs.append(Run(format_constant(node.constant), italic=False))
        elif piece in ("{x}", "{y}"):
            runs += arguments["xy".index(piece[1])]
        elif piece:
            runs.append(Run(piece, italic=False))
    return runs


def _in_parentheses(node: Expression) -> list[Run]:
    return [Run("(", italic=False), *_runs(node), Run(")", italic=False)]


def _meant(node: Expression) -> Expression:
    """What is spelled out for a node: of an operand by formula, the formula."""
    formula = formulas.definition(node.name) if isinstance(node, OperandNode) else None
    return node if formula is None else _meant(formula)


def _legend(picture: svg.Picture, y: float, feeds: list[Source], reads: frozenset[str]) -> float:
    """What the colors mean and whether the rule is recursive; returns the height of the picture."""
    recursive = "b_next" in reads
    said = (
        "recursive: it comes from the signal above"
        if recursive
        else "not recursive: it reads nothing of the signal above"
    )
    picture.words(8, y, said, SIGNAL.color if recursive else INK)
    used = {s.kind for s in feeds if s.kind.legend} | {kind_of(v) for v in reads}
    for i, kind in enumerate(k for k in (SIGNAL, FORWARD, WEIGHT, RANDOM, MEMORY) if k in used):
        x = 8 + 172 * (i % 2)
        y += 20 * (i % 2 == 0)
        picture.line(f"M{x} {svg.number(y - 4)}h22", kind.color, 2.5, kind.dashed)
        picture.words(x + 28, y, kind.legend)
    return y + 12
