"""Equations as data: one compiled program runs any of them.

Values live in one flat float32 buffer, long enough for every type, so that an element-wise function is one branch
whatever its type; averages are stored with their row repeated. What an instruction does is chosen by `lax.switch`: a
real branch when the index is a scalar, so under `vmap` the caller should map (see bpevo.layers.unit). Every branch
is compiled once per unit: the fewer, the shorter the wait, hence reductions are shared between types and orders.
Whatever depends on the equation is decided in a named scope of its own, by which bpevo.bench counts what a program does.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpevo.rules import formulas, statistics
from bpevo.rules import program as p
from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, Affine
from bpevo.rules.equation import Equation
from bpevo.rules.program import Program, assemble
from bpevo.rules.types import BASES, PRODUCTS, WEIGHTS, matrix
from bpevo.rules.unit import State, Unit, UnitShapes

_SMALL = BASES[:-1]  # all but R_L's type


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InterpretedRule:
    """A rule whose equation is data: one compiled program runs any equation. Agrees with CompiledRule up to rounding.

    Args:
        program: From `assemble`; its leaves may be traced, and stacked over candidates.

    >>> from bpevo.rules import parse
    >>> print(InterpretedRule.of(parse("unit_fro(g)").to_equation()).program)
    0 load g, norm order=2 axis=elem
    """

    program: Program

    needs_noise = True
    equation_is_data = True

    @classmethod
    def of(cls, equation: Equation) -> "InterpretedRule":
        """The rule of an equation. Raises InfeasibleEquation."""
        return cls(assemble(equation))

    @property
    def reads(self) -> frozenset[str]:
        return formulas.unit_values()

    def __str__(self) -> str:
        return "(an equation as data)"

    def init(self, shapes: UnitShapes) -> State:
        small, feedback = p.state_rows(self.program.load.shape[-1] // 2)
        return {
            "small": jnp.zeros((small, 2, _row_length(shapes)), jnp.float32),
            "F": jnp.zeros((feedback, 2, int(np.prod(shapes.F))), jnp.float32),
            "step": jnp.float32(0),
            "uses": jnp.float32(1),
        }

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        self.program.check()
        program = jax.tree.map(jnp.asarray, self.program)  # fresh from `assemble` it holds NumPy arrays
        return _Machine(unit, program, state).run()


def products(unit: Unit, program: Program) -> dict[str, jax.Array]:
    """Operands whose formula has a product, gh, fah and dfah: each computed once, if the program reads it."""
    found: dict[str, jax.Array] = {}
    for used, name in zip(program.uses, p.codes().products, strict=True):
        blank = jnp.zeros_like(unit.values.b_next, shape=unit.shapes.of(OPERANDS[name].base))
        compute = functools.partial(_operand, unit, found.copy(), name)
        found[name] = _switch(f"compute_{name}", used, [lambda blank=blank: blank, compute])
    return found


def _operand(unit: Unit, made: dict[str, jax.Array], name: str) -> jax.Array:
    """Its value, where `made` has those of `products`."""
    if name in made:
        return made[name]
    if formulas.definition(name) is None:
        return unit.values.read(name)
    return formulas.formula_value(unit, name, functools.partial(_operand, unit, made))


def _row_length(shapes: UnitShapes) -> int:
    return max(*(shapes.matrix(base)[1] for base in "XYZ"), int(np.prod(shapes.K)))


class _Machine:
    """Runs one program on one unit. N is the length of the flat buffer."""

    def __init__(self, unit: Unit, program: Program, state: State):
        self._unit, self._program, self._shapes, self._codes = unit, program, unit.shapes, p.codes()
        self._sizes = {base: int(np.prod(self._shapes.of(base))) for base in BASES}
        self._n = max(self._sizes.values())
        self._lines = max(max(self._shapes.matrix(base)) for base in BASES)
        self._state, self._uses = state, statistics.uses(state)
        self._step = state["step"] / self._uses + 1
        self._w = statistics.weight_of_step(self._step)

    def _zeros(self, *shape: int) -> jax.Array:
        """Float32; inside `jax.shard_map` they vary as the unit's values do, so that branches and loops have one type."""
        return jnp.zeros_like(self._unit.values.b_next, shape=shape)

    def _flat(self, x: jax.Array) -> jax.Array:
        return _pad(x, self._n)

    def _native(self, flat: jax.Array, base: str) -> jax.Array:
        return flat[: self._sizes[base]].reshape(self._shapes.of(base))

    def _matrix(self, flat: jax.Array, base: str) -> jax.Array:
        return matrix(self._native(flat, base), base)

    def run(self) -> tuple[jax.Array, State]:
        program, made = self._program, products(self._unit, self._program)

        def instruction(t, carry):
            accumulator, small, feedback = carry
            value = _switch("load", program.load[t], self._loads(made, accumulator))
            # Loops with 0, 1 or 2 turns, not branches: what a loop leaves alone it does not copy.
            function = functools.partial(self._function, t)
            value, small = _loop("functions", program.turns[t], function, (value, small))
            if feedback.shape[0]:
                renew = functools.partial(self._feedback_statistic, p.Running(*program.detail[t, 0, :2]))
                value, feedback = _loop("feedback", program.feedback[t], renew, (value, feedback))
            return _switch("combine", program.combine[t], self._combines(t), accumulator, value), small, feedback

        start = self._zeros(self._n), self._state["small"], self._state["F"]
        accumulator, small, feedback = _loop("instructions", program.length, instruction, start)
        new = {"small": small, "F": feedback, "step": self._step, "uses": jnp.float32(1)}
        return self._native(accumulator, "X"), new

    def _loads(self, made: dict[str, jax.Array], accumulator: jax.Array):
        def load(name: str):
            return lambda: self._flat(_operand(self._unit, made, name))

        return [lambda: accumulator, lambda: self._zeros(self._n), *map(load, OPERANDS)]

    def _function(self, t, i, carry):
        """Applies function i of instruction t; carry is (value, state)."""
        value, small = carry
        program = self._program
        base, average, c = program.base[t, i], program.average[t, i] > 0, program.constant[t, i]
        code, detail = program.function[t, i], program.detail[t, i]
        running = p.Running(*detail[:2])
        row = jnp.where(code == self._codes.functions.index(p.STATISTIC), running.row, 0)

        def elementwise(entry):
            return lambda old: (entry.fn(value, c), old)

        branches = [elementwise(entry) for entry in self._codes.elementwise]
        branches.append(lambda old: (self._noise(value, c, base, average, p.Noise(*detail[:2])), old))
        branches.append(lambda old: (self._norm(value, base, average, p.Norm(*detail)), old))
        branches.append(lambda old: self._statistic(value, base, average, running.which, old))
        # Branches return the state's row, not the state: what passes through a branch is copied.
        value, new = _switch("function", code, branches, lax.dynamic_index_in_dim(small, row, keepdims=False))
        small = lax.dynamic_update_index_in_dim(small, new, row, 0)
        return value, small

    def _noise(self, value: jax.Array, c, base, average, noise: p.Noise) -> jax.Array:
        """A noisy function. Entry i of its U[0, 1) depends on the key and i alone; an average has one row of it."""
        assert self._unit.key is not None
        flat = jax.random.uniform(jax.random.fold_in(self._unit.key, noise.number), (self._n,), jnp.float32)

        def repeat(name: str):
            rows, columns = self._shapes.matrix(name)
            return lambda: self._flat(jnp.broadcast_to(flat[:columns], (rows, columns)))

        uniform = _switch("draw", jnp.where(average, 1 + base, 0), [lambda: flat, *(repeat(n) for n in "XYZ")])
        return _switch("noise", noise.which, [lambda e=e: e.fn(value, c, uniform) for e in self._codes.noisy])

    def _norm(self, value: jax.Array, base, average, norm: p.Norm) -> jax.Array:
        """value / (norm + ε): a reduction into lines (one per row or column), then a division by them."""
        order, axis, of_sums = norm
        largest = order >= p.ORDERS.index("inf")
        sign = jnp.where(order == p.ORDERS.index("ninf"), -1.0, 1.0)  # smallest = -largest of the negative

        # An average counts once, although its row is repeated; along rows the repetitions do no harm.
        count = self._count(base, average & (axis != p.AXES.index("row")))
        size = jnp.abs(value)
        size = jnp.where(order == 0, jnp.where(value != 0, 1.0, 0.0), jnp.where(order == 2, size * size, sign * size))
        size = jnp.where(jnp.arange(self._n, dtype=jnp.int32) < count, size, jnp.where(largest, -jnp.inf, 0.0))

        def lines(name: str, over: int, reduce):
            return lambda: _pad(reduce(self._matrix(size, name), over), self._lines)

        which = jnp.where(axis == 0, 0, 1 + (axis - 1) * len(BASES) + base)
        reductions = (jnp.sum, jnp.max)
        branches = [lambda r=r: _pad(r(size), self._lines) for r in reductions]
        branches += [lines(name, over, r) for over in (0, 1) for name in BASES for r in reductions]
        r = _switch("reduce", 2 * which + largest.astype(jnp.int32), branches) * sign
        r = jnp.where(order == p.ORDERS.index("2"), jnp.sqrt(jnp.abs(r)), r)
        real = (
            jnp.arange(self._lines, dtype=jnp.int32)
            < _table([1, *(self._shapes.matrix(n)[1 - o] for o in (0, 1) for n in BASES)])[which]
        )
        r = jnp.where(of_sums == p.LARGEST, jnp.max(jnp.where(real, r, -jnp.inf)), r)
        r = jnp.where(of_sums == p.SMALLEST, jnp.min(jnp.where(real, r, jnp.inf)), r) + EPSILON

        def divide(name: str, over: int):
            def branch():
                x = self._matrix(value, name)
                line = r[: x.shape[1 - over]]
                return self._flat(x / (line[None] if over == 0 else line[:, None]))

            return branch

        by_line = [divide(name, over) for over in (0, 1) for name in BASES]
        return _switch("divide", which, [lambda: value / r[0], *by_line])

    def _count(self, base, average) -> jax.Array:
        """Number of distinct entries of a value."""
        sizes = _table([self._sizes[n] for n in BASES])
        columns = _table([self._sizes[n] if n in WEIGHTS else self._shapes.matrix(n)[1] for n in BASES])
        return jnp.where(average, columns, sizes)[base]

    def _statistic(self, value: jax.Array, base, average, what, old: jax.Array):
        """A running statistic and the renewed row of state, [2, row length]."""
        length = old.shape[-1]

        def moments(name: str):
            def branch():
                x = self._matrix(value, name)
                if name in WEIGHTS:
                    return _pad(x, length), self._zeros(length)
                mean = jnp.mean(x, 0)
                spread = jnp.mean((x - mean[None]) ** 2, 0)
                mean, spread = jnp.where(average, x[0], mean), jnp.where(average, 0.0, spread)
                return _pad(mean, length), _pad(spread, length)

            return branch

        mean, spread = _switch("moments", base, [moments(name) for name in _SMALL])
        new = statistics.update(old[0] / self._uses, old[1] / self._uses, mean, spread, self._w)
        terms = self._terms(what, *new)

        def result(name: str):
            def branch():
                x = self._matrix(value, name)
                shape = x.shape if name in WEIGHTS else (1, x.shape[1])
                return self._flat(self._taken(what, x, *(v[: int(np.prod(shape))].reshape(shape) for v in terms)))

            return branch

        return _switch("statistic", base, [result(name) for name in _SMALL]), jnp.stack(new)

    def _feedback_statistic(self, running: p.Running, _, carry):
        """The same for a value of R_L's type, with its own state."""
        value, feedback = carry
        x = value[: self._sizes["F"]]
        old = lax.dynamic_index_in_dim(feedback, running.row, keepdims=False)
        new = statistics.update(old[0] / self._uses, old[1] / self._uses, x, 0.0, self._w)
        feedback = lax.dynamic_update_index_in_dim(feedback, jnp.stack(new), running.row, 0)
        return self._flat(self._taken(running.which, x, *self._terms(running.which, *new))), feedback

    def _terms(self, what, m: jax.Array, var: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """What `_taken` needs of m and var: (average, mean, divisor); computed here, once a line."""
        averages = {k: s.average(m, var) for k, s in enumerate(self._codes.statistics) if s.average}
        divisors = {k: s.divisor(m, var) for k, s in enumerate(self._codes.statistics) if s.divisor}
        return _choice(what, averages), m, _choice(what, divisors)

    def _taken(self, what, x: jax.Array, average: jax.Array, m: jax.Array, divisor: jax.Array) -> jax.Array:
        averages = [what == k for k, s in enumerate(self._codes.statistics) if s.average]
        return jnp.where(functools.reduce(jnp.logical_or, averages), average, (x - m) / divisor)

    def _combines(self, t):
        name, mirrored = self._program.product[t]
        affine = Affine(*self._program.affine[t])

        def elementwise(entry):
            return lambda accumulator, value: entry.fn(accumulator, affine(value))

        def multiply(accumulator, value):
            orders = [lambda a, b: (a, b), lambda a, b: (b, a)]
            activation, weight = _switch("mirror", mirrored, orders, accumulator, affine(value))

            def branch(name: str):
                left, right = PRODUCTS[name][:2]
                return lambda: self._flat(
                    self._unit.product(self._native(activation, left), name, self._native(weight, right))
                )

            return _switch("multiply", name, [branch(n) for n in p.PRODUCT_NAMES])

        return [
            lambda accumulator, value: affine(value),
            multiply,
            *(elementwise(b) for b in BINARIES.values() if b.fn),
        ]


def _switch(scope: str, index, branches: Sequence[Callable], *operands):
    with jax.named_scope(scope):
        return lax.switch(index, branches, *operands)


def _loop(scope: str, turns, body: Callable, carry):
    with jax.named_scope(scope):
        return lax.fori_loop(0, turns, body, carry)


def _table(values: list[int]) -> jax.Array:
    """Made of scalar literals: a constant would become an operand, which vmap of a lax.cond batches and custom_vmap refuses."""
    return jnp.stack([jnp.full((), v, jnp.int32) for v in values])


def _pad(x: jax.Array, length: int) -> jax.Array:
    return jnp.pad(jnp.ravel(x), (0, length - x.size))


def _choice(what, values: dict[int, jax.Array]) -> jax.Array:
    """The value whose key is `what`; some value if there is none."""
    *others, (_, chosen) = values.items()
    for k, value in reversed(others):
        chosen = jnp.where(what == k, value, chosen)
    return chosen
