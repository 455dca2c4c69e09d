"""Equations assembled into programs: pytrees of small arrays that the interpreter's machine runs.

The machine has one register, the accumulator. An instruction is an argument of a part: it loads an operand or the
accumulator, applies up to two functions (a statistic; a unary), then a Line, and combines the result into the
accumulator. Genes that `left` ignores become no instruction; `.T` becomes none either, only a different axis or
product.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from bpevo.rules.components import BINARIES, OPERANDS, UNARIES, Line
from bpevo.rules.equation import DEFAULT_PARTS, Argument, Equation
from bpevo.rules.types import BASES, PRODUCTS, Type, product

ACCUMULATOR, NOTHING = 0, 1  # NOTHING: zeros
LOADS = {name: 2 + i for i, name in enumerate(OPERANDS)}

ELEMENTWISE = tuple(u for u in UNARIES.values() if u.fn and not u.noisy)
NOISY = tuple(u for u in UNARIES.values() if u.noisy)
FUNCTIONS = {u.name: i for i, u in enumerate(ELEMENTWISE)}
NOISE, NORM, STATISTIC = (len(FUNCTIONS) + i for i in range(3))
STATISTICS = {"mean": 0, "std": 1, "bn": 2, "whiten": 3}
ORDERS = ("0", "1", "2", "inf", "ninf")  # from "inf" on a maximum, before a sum
AXES = ("elem", "col", "row")
LARGEST, SMALLEST = 1, 2  # of the sums, for matrix norms

REPLACE, MULTIPLY = 0, 1  # accumulator := value; accumulator := product
COMBINES = {b.name: 2 + i for i, b in enumerate(b for b in BINARIES.values() if b.fn)}
PRODUCT_NAMES = tuple(PRODUCTS)


class Program(NamedTuple):
    """An assembled equation of at most T = 2 max_parts instructions, of which `length` are used."""

    load: np.ndarray  # shape=[T], int32
    turns: np.ndarray  # shape=[T], int32, number of functions
    feedback: np.ndarray  # shape=[T], int32, 1 where instead of functions a statistic of a value of R_L's type is taken
    base: np.ndarray  # shape=[T, 2], int32, index into BASES of each function's argument
    average: np.ndarray  # shape=[T, 2], int32, 1 where that is a [1, ·] average
    function: np.ndarray  # shape=[T, 2], int32
    constant: np.ndarray  # shape=[T, 2], float32
    detail: (
        np.ndarray
    )  # shape=[T, 2, 3], int32: norm (order, axis, of sums); statistic (which, row); noise (number, which)
    line: np.ndarray  # shape=[T, 5], float32, the fields of a Line
    combine: np.ndarray  # shape=[T], int32
    product: np.ndarray  # shape=[T, 2], int32: index into PRODUCT_NAMES, 1 where mirrored
    length: np.int32  # shape=(), int32
    uses: np.ndarray  # shape=[3], int32: whether it reads the products gh, fah, dfah


class _Function(NamedTuple):
    code: int
    argument: Type
    constant: float = 0.0
    detail: tuple[int, ...] = ()


class _Value(NamedTuple):
    """What an instruction computes before it combines."""

    load: int
    functions: list[_Function]
    line: Line
    type: Type


def state_rows(max_parts: int) -> tuple[int, int]:
    """Rows of running state that an equation can need: for values smaller than R_L, and of R_L's type.

    R, S and R_L never change, so their statistics need none; only a previous result can have R_L's type otherwise.
    """
    return (max_parts + 1) + 2 * max_parts, max_parts - 1


class _Assembler:
    def __init__(self, max_parts: int):
        t = 2 * max_parts
        one, two = np.zeros(t, np.int32), np.zeros((t, 2), np.int32)
        self.program = Program(
            load=one,
            turns=one.copy(),
            feedback=one.copy(),
            base=two,
            average=two.copy(),
            function=two.copy(),
            constant=np.zeros((t, 2), np.float32),
            detail=np.zeros((t, 2, 3), np.int32),
            line=np.tile(np.array(Line(), np.float32), (t, 1)),
            combine=one.copy(),
            product=two.copy(),
            length=np.int32(0),
            uses=np.zeros(3, np.int32),
        )
        self._noises = 0
        self._rows = {False: 0, True: 0}  # of R_L's type?

    def emit(self, value: _Value, combine: int, multiply: tuple[int, int] = (0, 0)):
        program, t = self.program, int(self.program.length)
        program.load[t] = value.load
        program.feedback[t] = any(f.code == STATISTIC and f.argument.base == "F" for f in value.functions)
        program.turns[t] = 0 if program.feedback[t] else len(value.functions)
        for i, f in enumerate(value.functions):
            program.base[t, i], program.average[t, i] = BASES.index(f.argument.base), f.argument.average
            program.function[t, i], program.constant[t, i] = f.code, f.constant
            program.detail[t, i, : len(f.detail)] = f.detail
        program.line[t], program.combine[t], program.product[t] = value.line, combine, multiply
        self.program = program._replace(length=np.int32(t + 1))

    def argument(self, argument: Argument, accumulator: Type | None) -> _Value:
        """The value of `unary(operand)`, or of `unary(accumulator)`."""
        functions: list[_Function] = []
        if argument.operand is None:
            assert accumulator is not None
            load, kind, constant = ACCUMULATOR, accumulator, False
        else:
            name, modifier = argument.operand.name, argument.operand.modifier
            for i, names in enumerate((("gh", "g"), ("fah", "fa"), ("dfah", "dfa"))):
                self.program.uses[i] |= name in names
            load, kind, constant = LOADS[name], Type(OPERANDS[name].base), OPERANDS[name].constant
            if modifier and not constant:
                functions.append(self._statistic(modifier, kind))
            elif modifier in ("std", "bn"):
                load = NOTHING  # of what never changes
            kind = argument.operand.type
        line = Line()
        if argument.unary != "identity":
            unary = UNARIES[argument.unary]
            if unary.structure == "transpose":
                kind = kind.transpose()
            elif unary.structure == "whiten":
                if constant:
                    load = NOTHING
                else:
                    functions.append(self._statistic("whiten", kind))
            elif unary.norm:
                functions.append(_Function(NORM, kind, 0.0, _norm(*unary.norm, kind.transposed)))
            elif unary.line:
                line = unary.line(argument.constant)
            elif unary.noisy:
                detail = (self._noises, NOISY.index(unary))
                functions.append(_Function(NOISE, kind, argument.constant, detail))
                self._noises += 1
            else:
                functions.append(_Function(FUNCTIONS[argument.unary], kind))
        return _Value(load, functions, line, kind)

    def _statistic(self, what: str, kind: Type) -> _Function:
        feedback = kind.base == "F"
        self._rows[feedback] += 1
        return _Function(STATISTIC, kind, 0.0, (STATISTICS[what], self._rows[feedback] - 1))


def _norm(order: str, axis: str, transposed: bool) -> tuple[int, int, int]:
    of_sums = 0
    if axis == "mat":  # largest column sum (1), largest (inf) or smallest (ninf) row sum
        of_sums = SMALLEST if order == "ninf" else LARGEST
        axis, order = ("col" if order == "1" else "row"), "1"
    if transposed and axis != "elem":
        axis = {"col": "row", "row": "col"}[axis]
    return ORDERS.index(order), AXES.index(axis), of_sums


def assemble(equation: Equation) -> Program:
    """The Program of a feasible Equation. Raises InfeasibleEquation."""
    equation.check()
    assembler = _Assembler(np.asarray(equation.binary).shape[-1])
    accumulator: Type | None = None
    for part in equation.to_parts():
        left = assembler.argument(part.left, accumulator)
        if (left.load, left.functions, left.line) != (ACCUMULATOR, [], Line()):  # else it stays as it is
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
            assembler.emit(right, COMBINES[part.binary])
            accumulator = dataclasses.replace(left.type, average=left.type.average and right.type.average)
    return assembler.program


def blank_program(max_parts: int = DEFAULT_PARTS) -> Program:
    """A program of the right shapes, of no instruction: its signal is zero."""
    return _Assembler(max_parts).program
