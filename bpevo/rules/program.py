"""Equations assembled into programs: pytrees of small arrays that the interpreter's machine runs.

The machine has an accumulator and a scratch register. An instruction loads an operand or a register, applies one
function (a unary, or mean, std, bn of an operand) and combines the result into the accumulator. Genes that `left`
ignores become no instruction; `.T` becomes none either, only a different axis or product.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from bpevo.rules.components import BINARIES, OPERANDS, UNARIES
from bpevo.rules.equation import DEFAULT_PARTS, Argument, Equation
from bpevo.rules.types import BASES, PRODUCTS, Type, product

ACCUMULATOR, SCRATCH = 0, 1
LOADS = {name: 2 + i for i, name in enumerate(OPERANDS)}

ELEMENTWISE = tuple(u for u in UNARIES.values() if u.fn)  # the noisy ones too
FUNCTIONS = {u.name: 1 + i for i, u in enumerate(ELEMENTWISE)}  # 0 is the identity
NOISY = tuple(FUNCTIONS[u.name] for u in ELEMENTWISE if u.noisy)
NORM, STATISTIC, ZERO = (len(FUNCTIONS) + i for i in (1, 2, 3))
STATISTICS = {"mean": 0, "std": 1, "bn": 2, "whiten": 3}
ORDERS = ("0", "1", "2", "inf", "ninf")  # from "inf" on a maximum, before a sum
AXES = ("elem", "col", "row")
LARGEST, SMALLEST = 1, 2  # of the sums, for matrix norms

REPLACE, KEEP, MULTIPLY = 0, 1, 2  # accumulator := value; scratch := value; accumulator := product
COMBINES = {b.name: 3 + i for i, b in enumerate(b for b in BINARIES.values() if b.fn)}
PRODUCT_NAMES = tuple(PRODUCTS)


class Program(NamedTuple):
    """An assembled equation of at most T = 4 max_parts instructions, of which `length` are used."""

    load: np.ndarray  # shape=[T], int32
    base: np.ndarray  # shape=[T], int32, index into BASES of the loaded value
    average: np.ndarray  # shape=[T], int32, 1 where the loaded value is a [1, ·] average
    function: np.ndarray  # shape=[T], int32
    constant: np.ndarray  # shape=[T], float32
    detail: np.ndarray  # shape=[T, 3], int32: norm (order, axis, of sums); statistic (which, row); noise (number)
    combine: np.ndarray  # shape=[T], int32
    product: np.ndarray  # shape=[T, 2], int32: index into PRODUCT_NAMES, 1 where mirrored
    length: np.int32  # shape=(), int32
    uses: np.ndarray  # shape=[3], int32: whether it reads the products gh, fah, dfah


def state_rows(max_parts: int) -> tuple[int, int]:
    """Rows of running state that an equation can need: for values smaller than R_L, and of R_L's type.

    R, S and R_L never change, so their statistics need none; only a previous result can have R_L's type otherwise.
    """
    return (max_parts + 1) + 2 * max_parts, max_parts - 1


class _Assembler:
    def __init__(self, max_parts: int):
        self._max = 4 * max_parts
        self._fields = {n: np.zeros(self._max, np.int32) for n in ("load", "base", "average", "function", "combine")}
        self._fields["constant"] = np.zeros(self._max, np.float32)
        self._fields["detail"] = np.zeros((self._max, 3), np.int32)
        self._fields["product"] = np.zeros((self._max, 2), np.int32)
        self._length = self._noises = 0
        self._rows = {False: 0, True: 0}  # of R_L's type?
        self._operands: set[str] = set()

    def emit(self, load: int, kind: Type, function: tuple[int, float, tuple[int, ...]], combine: int, multiply=(0, 0)):
        t = self._length
        code, constant, detail = function
        values: dict[str, Any] = {
            "load": load,
            "base": BASES.index(kind.base),
            "average": kind.average,
            "function": code,
        }
        values |= {"constant": constant, "combine": combine, "product": multiply}
        for name, value in values.items():
            self._fields[name][t] = value
        self._fields["detail"][t, : len(detail)] = detail
        self._length += 1

    def argument(self, argument: Argument, accumulator: Type | None, target: int):
        """Emits all but the last instruction of `unary(operand)`; returns that one's (load, kind, function) and result.

        `target` is where intermediate values go: ACCUMULATOR if it is free, else SCRATCH.
        """
        steps: list[tuple[int, float, tuple[int, ...]]] = []
        if argument.operand is None:
            assert accumulator is not None
            load, kind, constant = ACCUMULATOR, accumulator, False
        else:
            name, modifier = argument.operand.name, argument.operand.modifier
            self._operands.add(name)
            load, kind, constant = LOADS[name], Type(OPERANDS[name].base), OPERANDS[name].constant
            if modifier and not constant:
                steps.append(self._statistic(modifier, kind))
            elif modifier in ("std", "bn"):
                steps.append((ZERO, 0.0, ()))  # of what never changes
        kinds = [kind, argument.operand.type] if argument.operand and steps else [kind]
        result = kinds[-1]
        if argument.unary != "identity":
            unary = UNARIES[argument.unary]
            if unary.structure == "transpose":
                result = result.transpose()
            elif unary.structure == "whiten":
                steps.append((ZERO, 0.0, ()) if constant else self._statistic("whiten", result))
            elif unary.norm:
                steps.append((NORM, 0.0, _norm(*unary.norm, result.transposed)))
            else:
                steps.append((FUNCTIONS[argument.unary], argument.constant, (self._noises,)))
                self._noises += unary.noisy
        for step, kind in zip(steps[:-1], kinds, strict=False):
            self.emit(load, kind, step, REPLACE if target == ACCUMULATOR else KEEP)
            load = target
        last = steps[-1] if steps else (0, 0.0, ())
        return (load, kinds[min(max(len(steps), 1), len(kinds)) - 1], last), result

    def _statistic(self, what: str, kind: Type) -> tuple[int, float, tuple[int, ...]]:
        feedback = kind.base == "F"
        row = self._rows[feedback]
        self._rows[feedback] += 1
        return STATISTIC, 0.0, (STATISTICS[what], row)

    def program(self) -> Program:
        uses = [bool(self._operands & set(names)) for names in (("gh", "g"), ("fah", "fa"), ("dfah", "dfa"))]
        return Program(**self._fields, length=np.int32(self._length), uses=np.array(uses, np.int32))


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
        last, left = assembler.argument(part.left, accumulator, ACCUMULATOR)
        if last[0] != ACCUMULATOR or last[2][0]:  # else the accumulator already holds it
            assembler.emit(*last, REPLACE)
        accumulator = left
        structure = BINARIES[part.binary].structure
        if structure == "left":
            continue
        last, right = assembler.argument(part.right, accumulator, SCRATCH)
        if structure == "product":
            p = product(left, right)
            assembler.emit(*last, MULTIPLY, (PRODUCT_NAMES.index(p.name), p.mirrored))
            accumulator = p.result
        else:
            assembler.emit(*last, COMBINES[part.binary])
            accumulator = dataclasses.replace(left, average=left.average and right.average)
    return assembler.program()


def blank_program(max_parts: int = DEFAULT_PARTS) -> Program:
    """A program of the right shapes, of no instruction: its signal is zero."""
    return _Assembler(max_parts).program()
