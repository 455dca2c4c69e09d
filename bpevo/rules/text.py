"""Text to Expression. Text may come from anyone: nothing is evaluated, every size is bounded before Python's parser runs."""

import ast
import difflib
import re
import warnings
from collections.abc import Iterable, Sequence

import numpy as np

from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode, format_constant
from bpevo.rules.types import RuleSyntaxError

MAX_CHARACTERS, MAX_NESTING, MAX_NODES = 1000, 64, 64
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INFIX = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.MatMult: "matmul"}
_FORMS = {
    "sub": "a number cannot stand before '-'; write (-x) + {c}",
    "div": "a number cannot be divided or divide; write inv(x) for 1/x and {inverse}*x for x/{c}",
    "pow": "there is no '**'; write sq(x) or cube(x)",
    "matmul": "a number cannot be a factor of '@'; write {c}*x",
}


def parse(text: str) -> Expression:
    """The Expression that `text` spells; the inverse of `str`.

    Args:
        text: An equation of the language.

    Returns:
        Its tree.

    Raises:
        RuleSyntaxError: What is wrong, where, and the nearest valid name.
        InfeasibleEquation: The part whose shapes do not fit, and the shapes.

    >>> parse("(b_next@W.T)*dh")
    parse('(b_next @ W.T) * dh')
    >>> parse("g + gg")
    Traceback (most recent call last):
    ...
    bpevo.rules.types.RuleSyntaxError: there is no operand 'gg'; the nearest is 'g', at character 5:
      g + gg
          ^
    """
    expression = read(text).check()
    if len(str(expression)) > MAX_CHARACTERS:  # constants in full: what is printed must read back
        raise RuleSyntaxError(
            f"an equation has at most {MAX_CHARACTERS} characters, printed this one has {len(str(expression))}"
        )
    return expression


def read(text: str) -> Expression:
    """The same for a tree of any type, feasible or not. Raises RuleSyntaxError."""
    if not isinstance(text, str):
        raise RuleSyntaxError(f"an equation is a text, not {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise RuleSyntaxError(f"an equation has at most {MAX_CHARACTERS} characters, this one has {len(text)}")
    text = text.strip(" ")
    for place, character in enumerate(text):
        if not " " <= character <= "~" or character in "#\\'\"`;:{}[]":
            raise RuleSyntaxError(_at(text, place, f"the character {character!r} has no meaning here"))
    _check_nesting(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        place = error.offset - 1 if error.offset else len(text)
        raise RuleSyntaxError(_at(text, place, "this is no expression" if text else "the equation is empty")) from None
    _check_size(text, tree)
    with np.errstate(over="ignore"):  # of numbers beyond float32, which are refused as any too large
        return _Reader(text).expression(tree)


def _calls() -> set[str]:
    """What is written as a function of expressions."""
    return {n for n, u in UNARIES.items() if u.spelling.startswith(n)} | {n for n, b in BINARIES.items() if not b.infix}


def _at(text: str, place: int, message: str) -> str:
    """`message` with the place under it; what is no printable ASCII, terminal control above all, shows as '?'."""
    start = max(0, place - 30)
    excerpt = "".join(c if " " <= c <= "~" else "?" for c in text[start : place + 30])
    return f"{message}, at character {place + 1}:\n  {excerpt}\n  {' ' * (place - start)}^"


def nearest(name: str, valid: Iterable[str]) -> str:
    """The valid name that `name` may be a slip of: mostly the same letters, or the same in another order, or one too few or
    too many; empty where there is none."""

    def likeness(other: str) -> float:
        a, b = name.lower(), other.lower()
        ratio = difflib.SequenceMatcher(None, a, b).ratio()
        slip = abs(len(a) - len(b)) == 1 and ratio == 2 * min(len(a), len(b)) / (len(a) + len(b))
        return ratio if slip or sorted(a) == sorted(b) or ratio >= 0.7 else 0.0

    best = max(valid, key=likeness)
    return best if likeness(best) else ""


def suggestion(name: str, valid: Sequence[str]) -> str:
    """The nearest valid name in words; where none is near, all of them."""
    near = nearest(name, valid)
    return f"the nearest is {near!r}" if near else f"there are {', '.join(valid)}"


def _check_nesting(text: str) -> None:
    opened: list[int] = []
    for place, character in enumerate(text):
        if character == "(":
            opened.append(place)
        elif character == ")" and not opened:
            raise RuleSyntaxError(_at(text, place, "this bracket closes none"))
        elif character == ")":
            opened.pop()
        if len(opened) > MAX_NESTING:
            raise RuleSyntaxError(_at(text, place, f"parentheses nest deeper than {MAX_NESTING}"))
    if opened:
        raise RuleSyntaxError(_at(text, opened[-1], "this bracket is never closed"))


def _check_size(text: str, tree: ast.expr) -> None:
    """Bounds depth and size without recursion, so that the reader may recurse."""
    stack, seen = [(tree, 1)], 0
    while stack:
        node, depth = stack.pop()
        seen += not isinstance(node, ast.Constant)
        if depth > 2 * MAX_NESTING or seen > 3 * MAX_NODES:
            raise RuleSyntaxError(_at(text, 0, f"an equation has at most {MAX_NODES} components"))
        stack.extend((child, depth + 1) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))


class _Reader:
    def __init__(self, text: str):
        self._text, self._nodes = text, 0

    def _error(self, node: ast.AST, message: str) -> RuleSyntaxError:
        return RuleSyntaxError(_at(self._text, getattr(node, "col_offset", 0), message))

    def _count(self, node: ast.AST) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise self._error(node, f"an equation has at most {MAX_NODES} components")

    def expression(self, node: ast.expr) -> Expression:
        self._count(node)
        match node:
            case ast.Name(id=name):
                return self._operand(node, name)
            case ast.Attribute(value=value, attr=attribute):
                if attribute != "T":
                    raise self._error(node, f"only .T can follow an expression, not .{attribute}")
                return UnaryNode("transpose", self.expression(value))
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return UnaryNode("neg", self.expression(operand))
            case ast.UnaryOp(op=ast.UAdd()):
                raise self._error(node, "there is no leading '+'; write x instead of +x")
            case ast.BinOp(left=left, op=op, right=right):
                return self._binary(node, op, left, right)
            case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
                return self._call(node, name, args)
            case ast.Constant():
                self._number(node)
                raise self._error(node, "a number stands only in n*x, x*n, x + n, n + x, x - n and as a constant")
        raise self._error(node, f"{type(node).__name__} is not part of the language")

    def _operand(self, node: ast.AST, name: str) -> OperandNode:
        if name in OPERANDS:
            return OperandNode(name)
        if name in _calls() or name in STATISTICS:
            raise self._error(node, f"{name} is a function: write {name}(…)")
        raise self._unknown(node, name, "operand", list(OPERANDS))

    def _unknown(self, node: ast.AST, name: str, kind: str, valid: list[str]) -> RuleSyntaxError:
        entry = UNARIES.get(name) or BINARIES.get(name)
        if entry:  # written otherwise
            return self._error(node, f"there is no {kind} {name!r}: write {entry.spelling.format(x='x', y='y', c='2')}")
        return self._error(node, f"there is no {kind} {name!r}; {suggestion(name, valid)}")

    def _call(self, node: ast.Call, name: str, args: list[ast.expr]) -> Expression:
        def arity(n: int, form: str) -> None:
            if len(args) != n:
                raise self._error(node, f"{name} is written {form}, but {len(args)} arguments are given")

        if name in STATISTICS:
            arity(1, f"{name}(operand)")
            if not isinstance(args[0], ast.Name):
                raise self._error(args[0], f"{name}(…) takes an operand alone, such as {name}(g)")
            return OperandNode(self._operand(args[0], args[0].id).name, name)
        if name not in _calls():
            if name in OPERANDS:
                raise self._error(node, f"{name} is an operand and takes no arguments")
            raise self._unknown(node, name, "function", sorted(_calls() | set(STATISTICS)))
        if name in BINARIES:
            arity(2, f"{name}(x, y)")
            return BinaryNode(name, self.expression(args[0]), self.expression(args[1]))
        entry = UNARIES[name]
        arity(1 + entry.takes_constant, entry.spelling.format(x="x", c="number"))
        constant = 0.0
        if entry.takes_constant:
            number = self._number(args[1])
            if number is None:
                raise self._error(args[1], f"the second argument of {name} must be a number")
            constant = self._constant(args[1], name, number)
        return UnaryNode(name, self.expression(args[0]), constant)

    def _binary(self, node: ast.BinOp, op: ast.operator, left: ast.expr, right: ast.expr) -> Expression:
        name = _INFIX.get(type(op))
        if name is None:
            raise self._error(
                node, _FORMS["pow"] if isinstance(op, ast.Pow) else "this operator is not in the language"
            )
        numbers = self._number(left), self._number(right)
        if numbers == (None, None):
            return BinaryNode(name, self.expression(left), self.expression(right))
        if None not in numbers:
            raise self._error(node, "an operation needs at least one operand that is no number")
        place, other = (left, right) if numbers[0] is not None else (right, left)
        number = next(n for n in numbers if n is not None)
        if name in ("div", "matmul") or (name == "sub" and place is left):
            c = format_constant(number)
            inverse = format_constant(1 / number) if number else "a"
            raise self._error(node, _FORMS[name].format(c=c, inverse=inverse))
        function = "scale" if name == "mul" else "shift"
        constant = self._constant(place, function, -number if name == "sub" else number)
        return UnaryNode(function, self.expression(other), constant)

    def _number(self, node: ast.expr) -> float | None:
        """The number that `node` writes, folding signs; None if it is none."""
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            sign, node = -sign, node.operand
        if not isinstance(node, ast.Constant):
            return None
        written = self._text[node.col_offset : node.end_col_offset]
        if not _NUMBER.fullmatch(written):
            raise self._error(node, f"{written} is not a plain decimal number")
        return sign * float(written)

    def _constant(self, node: ast.AST, function: str, number: float) -> float:
        try:
            return UNARIES[function].rounded(number)
        except ValueError as error:
            raise self._error(node, str(error)) from None
