"""Equations assembled into programs: pytrees of small arrays that the interpreter's machine runs.

The machine has one register, the accumulator. An instruction is an argument of a part: it loads an operand or the
accumulator, applies up to two functions (a statistic; a unary), then an Affine, and combines the result into the
accumulator. Genes that `left` ignores become no instruction; `.T` becomes none either, only a different axis or
product.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from bpevo.rules import components, formulas
from bpevo.rules import expression as ex
from bpevo.rules.components import BINARIES, OPERANDS, STATISTICS, UNARIES, Affine, Component, Statistic, Unary
from bpevo.rules.equation import DEFAULT_PARTS, Argument, Equation
from bpevo.rules.types import BASES, PRODUCTS, Type, product

ACCUMULATOR, NOTHING = "accumulator", "zeros"
NOISE, NORM, STATISTIC = "noise", "norm", "statistic"
REPLACE, MULTIPLY = "", "@"  # accumulator := value; accumulator := product
ORDERS = ("0", "1", "2", "inf", "ninf")  # from "inf" on a maximum, before a sum
AXES = ("elem", "col", "row")
LARGEST, SMALLEST = 1, 2  # of the sums, for matrix norms
PRODUCT_NAMES = tuple(PRODUCTS)


class Codes(NamedTuple):
    """What the integers of a program stand for, by place: the machine's branches are in these orders."""

    loads: list[str]  # ACCUMULATOR, NOTHING, operands
    products: list[str]  # operands whose formula has a product: computed once, before the first instruction
    elementwise: list[Unary]
    functions: list[str]  # the names of `elementwise`, NOISE, NORM, STATISTIC
    noisy: list[Unary]
    statistics: list[Statistic]
    combines: list[str]  # REPLACE, MULTIPLY, binary functions


@functools.cache
def _codes(registered: tuple[Component, ...]) -> Codes:
    assert registered == components.extensions()
    elementwise = [u for u in UNARIES.values() if u.fn and not u.noisy]
    # Of what never changes, m is the value itself and the variance is 0.
    elementwise += [
        Unary(_of_constant(s), "", "", "", lambda x, c, average=s.average: average(x, 0 * x))
        for s in STATISTICS.values()
        if s.average and not s.paper
    ]
    return Codes(
        [ACCUMULATOR, NOTHING, *OPERANDS],
        [name for name in OPERANDS if formulas.has_product(name)],
        elementwise,
        [*(u.name for u in elementwise), NOISE, NORM, STATISTIC],
        [u for u in UNARIES.values() if u.noisy],
        [*STATISTICS.values(), *(u.statistic for u in UNARIES.values() if u.statistic)],
        [REPLACE, MULTIPLY, *(b.name for b in BINARIES.values() if b.fn)],
    )


def codes() -> Codes:
    """The codes as of now: registering a component changes them, and no program of before runs with those of after."""
    return _codes(components.extensions())


def _of_constant(statistic: Statistic) -> str:
    return f"{statistic.name} of a constant"


class Norm(NamedTuple):
    """Details of the function NORM."""

    order: Any  # index into ORDERS
    axis: Any  # index into AXES
    of_sums: Any  # LARGEST, SMALLEST or 0


class Running(NamedTuple):
    """Details of the function STATISTIC."""

    which: Any  # index into Codes.statistics
    row: Any  # of the state


class Noise(NamedTuple):
    """Details of the function NOISE."""

    number: Any  # of the draw, in order of evaluation
    which: Any  # index into Codes.noisy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Program:
    """An assembled equation of at most T = 2 max_parts instructions, of which `length` are used. `str` lists them."""

    load: Any  # shape=[T], int32, index into Codes.loads
    turns: Any  # shape=[T], int32, number of functions
    feedback: Any  # shape=[T], int32, 1 where instead of functions a statistic of a value of R_L's type is taken
    base: Any  # shape=[T, 2], int32, index into BASES of each function's argument
    average: Any  # shape=[T, 2], int32, 1 where that is a [1, ·] average
    function: Any  # shape=[T, 2], int32, index into Codes.functions
    constant: Any  # shape=[T, 2], float32
    detail: Any  # shape=[T, 2, 3], int32, a Norm, Running or Noise
    affine: Any  # shape=[T, 5], float32, an Affine
    combine: Any  # shape=[T], int32, index into Codes.combines
    product: Any  # shape=[T, 2], int32: index into PRODUCT_NAMES, 1 where mirrored
    length: Any  # shape=(), int32
    uses: Any  # shape=[P], int32: whether it reads each of Codes.products
    # With these components registered the integers have the meaning that they had when it was assembled.
    registered: tuple[Component, ...] = dataclasses.field(metadata={"static": True})

    def check(self) -> None:
        """Raises ValueError if other components are registered than when it was assembled."""
        if self.registered != components.extensions():
            raise ValueError(
                "this program was assembled before a component was registered or forgotten: assemble its equation again"
            )

    def __str__(self) -> str:
        """One instruction a line; of a single program."""
        self.check()
        instructions = [f"{t} {self._instruction(t)}" for t in range(int(self.length))]
        return "\n".join(instructions or ["no instruction: a zero signal"])

    def _instruction(self, t: int) -> str:
        known = codes()
        parts = [f"load {known.loads[self.load[t]]}"]
        if self.feedback[t]:
            parts.append(self._statistic(t, 0))
        parts += [self._function(t, i) for i in range(int(self.turns[t]))]
        changed = {k: v for k, v in Affine(*self.affine[t])._asdict().items() if v != Affine._field_defaults[k]}
        if changed:
            parts.append(" ".join(["affine", *(f"{k}={ex.format_constant(v)}" for k, v in changed.items())]))
        combine = known.combines[self.combine[t]]
        if combine == MULTIPLY:
            name, mirrored = PRODUCT_NAMES[self.product[t, 0]], self.product[t, 1]
            combine = f"@ {name}{' mirrored' if mirrored else ''}"
        return ", ".join([*parts, combine] if combine else parts)

    def _function(self, t: int, i: int) -> str:
        known = codes()
        match known.functions[self.function[t, i]]:
            case "norm":
                norm = Norm(*self.detail[t, i])
                sums = ("", " largest", " smallest")[norm.of_sums]
                return f"norm order={ORDERS[norm.order]} axis={AXES[norm.axis]}{sums}"
            case "noise":
                noise = Noise(*self.detail[t, i, :2])
                return f"{known.noisy[noise.which].name} constant={ex.format_constant(self.constant[t, i])} number={noise.number}"
            case "statistic":
                return self._statistic(t, i)
            case name:
                return name

    def _statistic(self, t: int, i: int) -> str:
        running = Running(*self.detail[t, i, :2])
        return f"{codes().statistics[running.which].name} row={running.row}"


class _Function(NamedTuple):
    name: str  # one of Codes.functions
    argument: Type
    constant: float = 0.0
    detail: tuple[int, ...] = ()


class _Value(NamedTuple):
    """What an instruction computes before it combines."""

    load: str  # one of Codes.loads
    functions: list[_Function]
    affine: Affine
    type: Type


def state_rows(max_parts: int) -> tuple[int, int]:
    """Rows of running state that an equation can need: for values smaller than R_L, and of R_L's type.

    R, S and R_L never change, so their statistics need none; only a previous result can have R_L's type otherwise.
    """
    return (max_parts + 1) + 2 * max_parts, max_parts - 1


class _Assembler:
    def __init__(self, max_parts: int):
        self._codes, t = codes(), 2 * max_parts
        self.program = Program(
            load=np.zeros(t, np.int32),
            turns=np.zeros(t, np.int32),
            feedback=np.zeros(t, np.int32),
            base=np.zeros((t, 2), np.int32),
            average=np.zeros((t, 2), np.int32),
            function=np.zeros((t, 2), np.int32),
            constant=np.zeros((t, 2), np.float32),
            detail=np.zeros((t, 2, 3), np.int32),
            affine=np.tile(np.array(Affine(), np.float32), (t, 1)),
            combine=np.zeros(t, np.int32),
            product=np.zeros((t, 2), np.int32),
            length=np.int32(0),
            uses=np.zeros(len(self._codes.products), np.int32),
            registered=components.extensions(),
        )
        self._noises = 0
        self._rows = {False: 0, True: 0}  # of R_L's type?

    def emit(self, value: _Value, combine: str, multiply: tuple[int, int] = (0, 0)):
        program, known, t = self.program, self._codes, int(self.program.length)
        program.load[t] = known.loads.index(value.load)
        program.feedback[t] = any(f.name == STATISTIC and f.argument.base == "F" for f in value.functions)
        program.turns[t] = 0 if program.feedback[t] else len(value.functions)
        for i, f in enumerate(value.functions):
            program.base[t, i], program.average[t, i] = BASES.index(f.argument.base), f.argument.average
            program.function[t, i], program.constant[t, i] = known.functions.index(f.name), f.constant
            program.detail[t, i, : len(f.detail)] = f.detail
        program.affine[t], program.product[t] = value.affine, multiply
        program.combine[t] = known.combines.index(combine)
        self.program = dataclasses.replace(program, length=np.int32(t + 1))

    def argument(self, argument: Argument, accumulator: Type | None) -> _Value:
        """The value of `unary(operand)`, or of `unary(accumulator)`."""
        value, constant = self._loaded(argument.operand, accumulator)
        if argument.unary == "identity":
            return value
        unary, kind = UNARIES[argument.unary], value.type
        if unary.structure == "transpose":
            return value._replace(type=kind.transpose())
        if unary.affine:
            return value._replace(affine=unary.affine(argument.constant))
        if unary.statistic:
            return self._taken(unary.statistic, value, constant)
        if unary.norm:
            function = _Function(NORM, kind, 0.0, _norm(*unary.norm, kind.transposed))
        elif unary.noisy:
            detail = Noise(self._noises, self._codes.noisy.index(unary))
            function = _Function(NOISE, kind, argument.constant, detail)
            self._noises += 1
        else:
            function = _Function(unary.name, kind, argument.constant)
        return value._replace(functions=[*value.functions, function])

    def _loaded(self, operand: ex.OperandNode | None, accumulator: Type | None) -> tuple[_Value, bool]:
        """An operand with its statistic, or the accumulator, and whether it never changes."""
        if operand is None:
            assert accumulator is not None
            return _Value(ACCUMULATOR, [], Affine(), accumulator), False
        for name in formulas.products_of(operand.name):
            self.program.uses[self._codes.products.index(name)] = 1
        constant = formulas.is_constant(operand.name)
        value = _Value(operand.name, [], Affine(), Type(OPERANDS[operand.name].base))
        if operand.statistic:
            value = self._taken(STATISTICS[operand.statistic], value, constant)
        return value._replace(type=operand.type), constant

    def _taken(self, statistic: Statistic, value: _Value, constant: bool) -> _Value:
        """A statistic of a value; of what never changes the mean is the value, and what a divisor divides is 0."""
        if not constant:
            feedback = value.type.base == "F"
            detail = Running(self._codes.statistics.index(statistic), self._rows[feedback])
            self._rows[feedback] += 1
            function = _Function(STATISTIC, value.type, 0.0, detail)
        elif statistic.name == "mean":
            return value
        elif statistic.divisor or statistic.name == "std":
            return value._replace(load=NOTHING, functions=[])
        else:
            function = _Function(_of_constant(statistic), value.type)
        return value._replace(functions=[*value.functions, function])


def _norm(order: str, axis: str, transposed: bool) -> Norm:
    of_sums = 0
    if axis == "mat":  # largest column sum (1), largest (inf) or smallest (ninf) row sum
        of_sums = SMALLEST if order == "ninf" else LARGEST
        axis, order = ("col" if order == "1" else "row"), "1"
    if transposed and axis != "elem":
        axis = {"col": "row", "row": "col"}[axis]
    return Norm(ORDERS.index(order), AXES.index(axis), of_sums)


def assemble(equation: Equation) -> Program:
    """The program of an equation, for InterpretedRule.

    Args:
        equation: A feasible equation; its max_parts fixes the shapes of the program.

    Returns:
        A Program of NumPy arrays that cannot be written to: the same one for the same object while it is remembered.

    Raises:
        InfeasibleEquation: The part whose shapes do not fit, and the shapes.

    >>> from bpevo.rules import parse
    >>> print(assemble(parse("(unit_col2(sgn_W) @ b_next.T).T * dh").to_equation()))
    0 load sgn_W, norm order=2 axis=col
    1 load b_next, @ YK mirrored
    2 load dh, mul
    """
    return _assembled(equation, components.extensions())


@functools.lru_cache(1024)  # one equation is trained many times
def _assembled(equation: Equation, registered: tuple) -> Program:
    assert registered == components.extensions()
    equation.check()
    assembler = _Assembler(np.asarray(equation.binary).shape[-1])
    accumulator: Type | None = None
    for part in equation.to_parts():
        left = assembler.argument(part.left, accumulator)
        if (left.load, left.functions, left.affine) != (ACCUMULATOR, [], Affine()):  # else it stays as it is
            assembler.emit(left, REPLACE)
        accumulator = left.type
        structure = BINARIES[part.binary].structure
        if structure == "left":
            continue
        right = assembler.argument(part.right, accumulator)
        if structure == "product":
            p = product(left.type, right.type)
            assembler.emit(right, MULTIPLY, (PRODUCT_NAMES.index(p.name), p.mirrored))
            accumulator = p.result
        else:
            assembler.emit(right, part.binary)
            accumulator = dataclasses.replace(left.type, average=left.type.average and right.type.average)
    for array in jax.tree.leaves(assembler.program):
        array.setflags(write=False)
    return assembler.program


def blank_program(max_parts: int = DEFAULT_PARTS) -> Program:
    """A program of the right shapes, of no instruction: its signal is zero."""
    return _Assembler(max_parts).program
