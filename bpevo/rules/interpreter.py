"""Equations as data: one compiled program runs any of them.

`assemble` turns an Equation on the host into a Program, a pytree of small arrays: at most 2P instructions for a machine
with one accumulator. Instruction t loads an operand (or the accumulator), takes mean, std or bn of it, applies a
unary function and combines the result into the accumulator. Genes that `left` ignores become no instruction.

Values live in one flat float32 buffer, long enough for every type, so that an element-wise function is one branch
whatever its type; averages are stored with their row repeated. What an instruction does is chosen by `lax.switch`: a
real branch when the index is a scalar, so under `vmap` the caller should map (see bpevo.layers).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpevo.rules import statistics
from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, UNARIES
from bpevo.rules.equation import DEFAULT_PARTS, Argument, Equation
from bpevo.rules.types import BASES, PRODUCTS, Type, matrix, product
from bpevo.rules.unit import State, Unit, UnitShapes

_ELEMENTWISE = tuple(u for u in UNARIES.values() if u.fn and not u.distribution)
_NOISES = tuple(u for u in UNARIES.values() if u.distribution)
_UNARY_CODES = {u.name: 1 + i for i, u in enumerate((*_ELEMENTWISE, *_NOISES))}  # 0 is the identity
_NORM, _WHITEN = len(_UNARY_CODES) + 1, len(_UNARY_CODES) + 2
_LOADS = {name: 1 + i for i, name in enumerate(OPERANDS)}  # 0 is the accumulator
_STATISTICS = {"": 0, "mean": 1, "std": 2, "bn": 3, "whiten": 4, "zero": 5}
_COMBINES = {b.name: 1 + i for i, b in enumerate(b for b in BINARIES.values() if b.fn)}  # 0 replaces the accumulator
_COMBINES |= {(name, m): len(_COMBINES) + 1 + i for i, (name, m) in enumerate((n, m) for n in PRODUCTS for m in (0, 1))}
_ORDERS = ("0", "1", "2", "ninf", "inf")
_AXES = ("elem", "col", "row")
_REDUCTIONS = {"mat1": 1, "matinf": 1, "matninf": 2}  # of the sums: 1 largest, 2 smallest


class Program(NamedTuple):
    """An assembled equation. T = 2 max_parts instructions, of which `length` are used."""

    load: np.ndarray  # shape=[T], int32
    base: np.ndarray  # shape=[T], int32, index into BASES of the loaded value
    average: np.ndarray  # shape=[T], int32, 1 where the value after mean or std is a [1, ·] average
    statistic: np.ndarray  # shape=[T], int32
    unary: np.ndarray  # shape=[T], int32
    constant: np.ndarray  # shape=[T], float32
    norm: np.ndarray  # shape=[T, 3], int32: order, axis, reduction of sums
    combine: np.ndarray  # shape=[T], int32
    row: np.ndarray  # shape=[T, 2], int32: rows of running state of the statistic and of whiten
    noise: np.ndarray  # shape=[T], int32, running number of the noise
    length: np.ndarray  # shape=(), int32
    uses: np.ndarray  # shape=[3], int32: products gh, fah, dfah


def assemble(equation: Equation) -> Program:
    """The Program of a feasible Equation. Raises InfeasibleEquation."""
    equation.check()
    length = 2 * np.asarray(equation.binary).shape[-1]
    fields = {name: np.zeros(length, np.int32) for name in Program._fields[:-2]}
    fields |= {"constant": np.zeros(length, np.float32)}
    fields |= {"norm": np.zeros((length, 3), np.int32), "row": np.zeros((length, 2), np.int32)}
    names: set[str] = set()
    rows = {"small": 0, "F": 0}
    t = noises = 0
    accumulator: Type | None = None
    for part in equation.to_parts():
        structure = BINARIES[part.binary].structure
        arguments = [(part.left, 0)]
        if structure != "left":
            arguments.append((part.right, -1))
        for argument, side in arguments:
            if argument.operand is None and argument.unary == "identity":
                continue  # the accumulator already holds it
            kind, code = _operand(argument, accumulator)
            fields["load"][t] = code
            fields["base"][t], fields["average"][t] = BASES.index(kind.base), kind.average
            if argument.operand is not None:
                names.add(argument.operand.name)
                what = argument.operand.modifier
                if OPERANDS[argument.operand.name].constant and what:
                    what = {"mean": "", "std": "zero", "bn": "zero"}[what]
                fields["statistic"][t] = _STATISTICS[what]
                fields["row"][t, 0] = rows["small"]
                rows["small"] += what in ("mean", "std", "bn")
            unary = UNARIES.get(argument.unary)
            if unary is not None and unary.structure != "transpose":
                constant = argument.operand is not None and OPERANDS[argument.operand.name].constant
                if unary.structure == "whiten" and constant:
                    fields["statistic"][t] = _STATISTICS["zero"]  # x equals its mean
                elif unary.structure == "whiten":
                    fields["unary"][t] = _WHITEN
                    pool = "F" if kind.base == "F" else "small"
                    fields["row"][t, 1] = rows[pool]
                    rows[pool] += 1
                elif unary.norm:
                    fields["unary"][t], fields["norm"][t] = _NORM, _norm_code(*unary.norm, kind.transposed)
                else:
                    fields["unary"][t], fields["constant"][t] = _UNARY_CODES[argument.unary], argument.constant
                    fields["noise"][t] = noises
                    noises += unary.distribution is not None
            if unary is not None and unary.structure == "transpose":
                kind = kind.transpose()
            if side == 0:
                accumulator = kind
            else:
                fields["combine"][t], accumulator = _combine(part.binary, accumulator, kind)
            t += 1
        if structure != "left" and len(arguments) == 2 and accumulator is None:
            raise AssertionError(equation)
    uses = [bool(names & group) for group in ({"gh", "g"}, {"fah", "fa"}, {"dfah", "dfa"})]
    return Program(**fields, length=np.int32(t), uses=np.array(uses, np.int32))


def _operand(argument: Argument, accumulator: Type | None) -> tuple[Type, int]:
    if argument.operand is None:
        assert accumulator is not None
        return accumulator, 0
    return argument.operand.type, _LOADS[argument.operand.name]


def _combine(binary: str, left: Type | None, right: Type) -> tuple[int, Type]:
    assert left is not None
    if BINARIES[binary].structure == "product":
        p = product(left, right)
        return _COMBINES[(p.name, int(p.mirrored))], p.result
    return _COMBINES[binary], dataclasses.replace(left, average=left.average and right.average)


def _norm_code(order: str, axis: str, transposed: bool) -> tuple[int, int, int]:
    """(order, axis of the stored matrix, reduction of the sums)."""
    reduction = 0
    if axis == "mat":
        reduction, axis, order = _REDUCTIONS[axis + order], "col" if order == "1" else "row", "1"
    if transposed and axis != "elem":
        axis = {"col": "row", "row": "col"}[axis]
    return _ORDERS.index(order), _AXES.index(axis), reduction


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InterpretedRule:
    """A rule whose equation is data: a `Program` (its leaves may be traced). Agrees with CompiledRule up to rounding."""

    program: Program

    @classmethod
    def of(cls, equation: Equation) -> "InterpretedRule":
        return cls(assemble(equation))

    needs_noise = True
    operands = frozenset(OPERANDS)

    @property
    def _parts(self) -> int:
        return self.program.load.shape[-1] // 2

    def init(self, shapes: UnitShapes) -> State:
        """Rows for every statistic an equation of P parts can hold: of all types but R_L's, and of R_L's type."""
        parts = self._parts
        small, feedback = _row_sizes(shapes)
        rows = (parts + 1) + 2 * parts
        return {"small": jnp.zeros((rows, 2, small)), "F": jnp.zeros((parts - 1, 2, feedback)), "step": jnp.zeros(())}

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        return _Machine(unit, state["step"] + 1).run(self.program, state)


def blank_program(max_parts: int = DEFAULT_PARTS) -> Program:
    """A program of the right shapes whose signal is zero."""
    from bpevo.rules.text import parse

    return assemble(parse("g - g").to_equation(max_parts))


def _row_sizes(shapes: UnitShapes) -> tuple[int, int]:
    columns = [shapes.matrix(base)[1] for base in "XYZ"]
    return max(*columns, int(np.prod(shapes.K))), int(np.prod(shapes.F))


class _Machine:
    """Runs programs on one unit. N is the length of the flat buffer."""

    def __init__(self, unit: Unit, step: jax.Array):
        self._unit, self._shapes = unit, unit.shapes
        self._sizes = {base: int(np.prod(self._shapes.of(base))) for base in BASES}
        self._n = max(self._sizes.values())
        self._w = statistics.weight_of_step(step)

    def _flat(self, x: jax.Array) -> jax.Array:
        return jnp.pad(jnp.ravel(x), (0, self._n - x.size))

    def _native(self, flat: jax.Array, base: str) -> jax.Array:
        return flat[: self._sizes[base]].reshape(self._shapes.of(base))

    def _matrix(self, flat: jax.Array, base: str) -> jax.Array:
        return matrix(self._native(flat, base), base)

    def run(self, program: Program, state: State) -> tuple[jax.Array, State]:
        unit = self._unit
        blank = jnp.zeros_like(unit.hp)
        shared = {
            name: lax.cond(program.uses[i] > 0, compute, lambda: blank)
            for i, (name, compute) in enumerate(
                {
                    "gh": lambda: unit.backward(unit.b_next, unit.W),
                    "fah": lambda: unit.backward(unit.b_next, unit.R),
                    "dfah": lambda: unit.product(unit.b_L, "ZF", unit.R_L),
                }.items()
            )
        }

        def instruction(t, carry):
            accumulator, small, feedback = carry
            value = lax.switch(program.load[t], self._loads(shared, accumulator))
            value, small = lax.cond(
                program.statistic[t] > 0,
                lambda s: self._take(value, s, program.statistic[t], program.row[t, 0], program.base[t]),
                lambda s: (value, s),
                small,
            )
            value, small, feedback = self._unary(program, t, value, small, feedback)
            accumulator = lax.switch(program.combine[t], self._combines(), accumulator, value)
            return accumulator, small, feedback

        start = jnp.zeros(self._n), state["small"], state["F"]
        accumulator, small, feedback = lax.fori_loop(0, program.length, instruction, start)
        return self._native(accumulator, "X"), {"small": small, "F": feedback, "step": state["step"] + 1}

    def _loads(self, shared: dict[str, jax.Array], accumulator: jax.Array):
        unit = self._unit
        values = {
            "sgn_W": lambda: jnp.sign(unit.W),
            **{name: functools.partial(shared.get, name) for name in shared},
            "g": lambda: shared["gh"] * unit.dh,
            "fa": lambda: shared["fah"] * unit.dh,
            "dfa": lambda: shared["dfah"] * unit.dh,
        }

        def load(name: str):
            return lambda: self._flat(values[name]() if name in values else getattr(unit, name))

        return [lambda: accumulator, *(load(name) for name in OPERANDS)]

    def _take(self, value, rows, what, row, base):
        """mean, std, bn or 0 of an operand, and the rows of running state with this one renewed."""

        def branch(name: str):
            return lambda rows: self._statistic(value, rows, what, row, name, average=False)

        zero = [lambda rows: (jnp.zeros_like(value), rows)]  # F has no state: R_L never changes
        return lax.switch(
            jnp.where(what == _STATISTICS["zero"], len(BASES) - 1, base), [branch(n) for n in BASES[:-1]] + zero, rows
        )

    def _statistic(self, value, rows, what, row, base: str, average):
        """One running statistic of a value of type `base`. what: 1 mean, 2 std, 3 bn, 4 whiten."""
        x = self._matrix(value, base)
        if base in ("K", "F"):
            mean, spread = jnp.ravel(x), 0.0
        else:
            mean = jnp.where(average, x[0], jnp.mean(x, 0))
            spread = jnp.where(average, 0.0, jnp.var(x, 0))
        size = mean.shape[0]
        old = lax.dynamic_slice(rows, (row, 0, 0), (1, 2, size))[0]
        m, var = statistics.update(old[0], old[1], mean, spread, self._w)
        rows = lax.dynamic_update_slice(rows, jnp.stack([m, var])[None], (row, 0, 0))
        shape = x.shape if base in ("K", "F") else (1, size)
        m, var = m.reshape(shape), var.reshape(shape)
        result = jnp.where(
            what <= 2,
            jnp.where(what == 1, m, jnp.sqrt(var)),
            jnp.where(what == 3, statistics.normalised(x, m, var), statistics.whitened(x, m, var)),
        )
        return self._flat(result), rows

    def _unary(self, program: Program, t, value, small, feedback):
        base, average, c = program.base[t], program.average[t] > 0, program.constant[t]

        def elementwise(entry):
            return lambda s, f: (entry.fn(value, c), s, f)

        def noisy(entry):
            def branch(s, f):
                key = jax.random.fold_in(self._unit.key, program.noise[t])
                draw = jax.random.normal if entry.distribution == "normal" else jax.random.uniform
                noise = self._spread(draw(key, (self._n,)), base, average)
                return entry.fn(value, c, noise), s, f

            return branch

        def norm(s, f):
            branches = [functools.partial(self._norm, value, name) for name in BASES]
            return lax.switch(base, branches, program.norm[t], average), s, f

        def whiten(s, f):
            row = program.row[t, 1]

            def branch(name: str):
                def go(s, f):
                    if name == "F":
                        if not f.shape[0]:
                            return value, s, f
                        out, f = self._statistic(value, f, 4, row, name, False)
                    else:
                        out, s = self._statistic(value, s, 4, row, name, average)
                    return out, s, f

                return go

            return lax.switch(base, [branch(name) for name in BASES], s, f)

        branches = [lambda s, f: (value, s, f)]
        branches += [elementwise(e) for e in _ELEMENTWISE] + [noisy(e) for e in _NOISES] + [norm, whiten]
        return lax.switch(program.unary[t], branches, small, feedback)

    def _spread(self, flat: jax.Array, base, average) -> jax.Array:
        """For an average: its first row repeated over the samples."""

        def repeat(name: str):
            rows, columns = self._shapes.matrix(name)
            return lambda: self._flat(jnp.broadcast_to(flat[:columns], (rows, columns)))

        return lax.switch(jnp.where(average, 1 + base, 0), [lambda: flat, *(repeat(name) for name in "XYZ")])

    def _norm(self, value: jax.Array, base: str, code: jax.Array, average: jax.Array) -> jax.Array:
        x = self._matrix(value, base)
        order, axis, reduction = code[0], code[1], code[2]
        size = jnp.abs(x)
        size = jnp.where(order == 0, (x != 0).astype(x.dtype), jnp.where(order == 2, size * size, size))
        # An average counts once, although its row is repeated.
        counted = jnp.where(average, jnp.arange(x.shape[0]) < 1, True)[:, None]

        def reduce(over: tuple[int, ...], kind: str):
            def branch():
                if kind == "min":
                    r = jnp.min(jnp.where(counted, size, jnp.inf) if 0 in over else size, over, keepdims=True)
                else:
                    masked = jnp.where(counted, size, 0.0) if 0 in over else size
                    r = (jnp.sum if kind == "sum" else jnp.max)(masked, over, keepdims=True)
                r = jnp.where(order == 2, jnp.sqrt(r), r)
                r = jnp.where(reduction == 1, jnp.max(r), jnp.where(reduction == 2, jnp.min(r), r))
                return self._flat(x / (r + EPSILON))

            return branch

        branches = [reduce(over, kind) for over in ((0, 1), (0,), (1,)) for kind in ("sum", "min", "max")]
        return lax.switch(3 * axis + jnp.maximum(order - 2, 0), branches)

    def _combines(self):
        def elementwise(entry):
            return lambda left, right: entry.fn(left, right)

        def multiply(name: str, mirrored: int):
            activation_base, weight_base = name

            def branch(left, right):
                activation, weight = (right, left) if mirrored else (left, right)
                result = self._unit.product(
                    self._native(activation, activation_base), name, self._native(weight, weight_base)
                )
                return self._flat(result)

            return branch

        return [
            lambda left, right: right,
            *(elementwise(b) for b in BINARIES.values() if b.fn),
            *(multiply(name, mirrored) for name in PRODUCTS for mirrored in (0, 1)),
        ]
