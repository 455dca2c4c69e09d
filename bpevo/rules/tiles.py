"""The interpreter's machine on one tile: what a kernel does with the part of a unit's values that fast memory holds.

A tile is the whole batch times some features of the values of type X, as matrices [B, M]. Statistics and column norms are local
to it. What needs all tiles (norms of entries, rows and matrices) ends a *pass*: each tile gives a line of partial results, [B];
the lines of all tiles make what the norm divides by, and the next pass computes again up to there and goes on. Programs
that fit: bpevo.rules.tile_programs. Their kernels: bpevo.rules.kernels.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpevo.rules import formulas, statistics
from bpevo.rules import program as p
from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, Affine
from bpevo.rules.tile_programs import Scalars

_COL, _ELEM, _ROW = (p.AXES.index(axis) for axis in ("col", "elem", "row"))
_LARGEST_FROM, _TWO, _NINF = (p.ORDERS.index(order) for order in ("inf", "2", "ninf"))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of the blocks. Rows and features beyond B and M are padding."""

    batch: int  # B
    features: int  # M
    rows: int  # of a tile, at least B
    tile: int  # features of a tile

    @property
    def tiles(self) -> int:
        return -(-self.features // self.tile)


class Rows:
    """A tile's rows of state in a kernel's references, [rows, 2, m]; they change in the last pass alone."""

    def __init__(self, old, new, last):
        """`old` and `new` may be views of one array."""
        self._old, self._new, self._last = old, new, last

    def old(self, row) -> tuple[jax.Array, jax.Array]:
        return self._old[row, 0, :], self._old[row, 1, :]

    def write(self, row, really, mean, var) -> None:
        def store():
            self._new[row, 0, :], self._new[row, 1, :] = mean, var

        lax.cond(really & self._last, store, lambda: None)


class Tile:
    """One pass of one program over one tile. Values are [B, m]."""

    def __init__(self, layout: Layout, number, tile, scalars: Scalars, stored: Mapping[str, Any], rows: Rows, lines):
        """References: `stored` [B, m], of b_L [C, B] and of R_L [C, m]; `lines` [PASSES, B]. `rows` holds the state; `number`
        is of the pass."""
        self._layout, self._number, self._tile, self._scalars = layout, number, tile, scalars
        self._stored, self._rows, self._lines = stored, rows, lines
        self._codes = p.codes()
        self._shape = layout.rows, layout.tile

    def run(self) -> tuple[jax.Array, jax.Array]:
        """The signal, right in the last pass, and this tile's line of the norm that ends another."""
        length = self._scalars.integer("length")
        value, line = jnp.zeros(self._shape, jnp.float32), jnp.zeros(self._shape[:1], jnp.float32)
        start = jnp.int32(0), value, line, jnp.int32(0)
        # `barrier` counts the norms that were passed; beyond `number` the pass is over.
        _, accumulator, line, _ = lax.while_loop(
            lambda c: (c[0] < length) & (c[3] <= self._number), self._instruction, start
        )
        return accumulator, line

    def _instruction(self, carry):
        t, accumulator, line, barrier = carry
        value = _switch(self._scalars.integer("load", t), self._loads(accumulator))
        turns = self._scalars.integer("turns", t)
        _, value, line, barrier = lax.while_loop(
            lambda c: (c[0] < turns) & (c[3] <= self._number),
            functools.partial(self._function, t),
            (jnp.int32(0), value, line, barrier),
        )
        affine = Affine(
            self._scalars.real("affine", t, 0) > 0, *(self._scalars.real("affine", t, i) for i in range(1, 5))
        )
        value = affine(value)
        combines = [lambda: value, lambda: accumulator]  # a product is none of ours
        combines += [functools.partial(b.fn, accumulator, value) for b in BINARIES.values() if b.fn]
        return t + 1, _switch(self._scalars.integer("combine", t), combines), line, barrier

    def _loads(self, accumulator: jax.Array) -> list[Callable[[], jax.Array]]:
        def operand(name: str) -> Any:
            if name in self._stored:
                return self._stored[name] if name in ("b_L", "R_L") else self._stored[name][...]
            node = formulas.definition(name)
            assert node is not None
            return formulas.value(self, node, lambda n: operand(n.name), None)  # type: ignore[arg-type]

        zeros = lambda: jnp.zeros(self._shape, jnp.float32)  # noqa: E731
        known = [functools.partial(operand, name) if OPERANDS[name].base == "X" else zeros for name in OPERANDS]
        return [lambda: accumulator, zeros, *known]

    def product(self, signal, name: str, feedback) -> jax.Array:
        """b_L @ R_L, the only product of a tile: a sum over the classes."""
        assert name == "ZF"
        start = jnp.zeros(self._shape, jnp.float32)
        outer = lambda c, total: total + signal[c, :][:, None] * feedback[c, :][None]  # noqa: E731
        return lax.fori_loop(0, feedback.shape[0], outer, start)

    def _function(self, t, carry):
        i, value, line, barrier = carry
        code = self._scalars.integer("function", t, i)
        detail = [self._scalars.integer("detail", t, 3 * i + k) for k in range(3)]
        average, c = self._scalars.integer("average", t, i) > 0, self._scalars.real("constant", t, i)
        takes_statistic = code == self._codes.functions.index(p.STATISTIC)
        row = jnp.where(takes_statistic, detail[1], 0 * code)
        kept = self._rows.old(row)
        none = 0 * barrier  # computed: a branch that returns a literal has no lowering in Triton
        same = (line, none, *kept)

        branches = [lambda e=e: (e.fn(value, c), *same) for e in self._codes.elementwise]
        branches.append(lambda: (self._noise(value, c, average, p.Noise(*detail[:2])), *same))
        branches.append(lambda: (*self._norm(value, line, average, barrier, p.Norm(*detail)), *kept))
        branches.append(lambda: self._statistic(value, average, detail[0], *same))
        value, line, passed, mean, var = _switch(code, branches)

        self._rows.write(row, takes_statistic, mean, var)
        return i + 1, value, line, barrier + passed

    # What instructions do.

    def _indices(self) -> tuple[jax.Array, jax.Array]:
        rows = lax.broadcasted_iota(jnp.int32, self._shape, 0)
        return rows, self._tile * self._layout.tile + lax.broadcasted_iota(jnp.int32, self._shape, 1)

    def _noise(self, value: jax.Array, c, average, noise: p.Noise) -> jax.Array:
        """As jax.random.uniform of the key folded by the draw's number: entry i depends on the key and i alone."""
        rows, columns = self._indices()
        entry = jnp.where(average, 0 * rows, rows * self._layout.features) + columns
        numbers = uniform(self._scalars.key(noise.number), entry.astype(jnp.uint32))
        return _switch(noise.which, [functools.partial(e.fn, value, c, numbers) for e in self._codes.noisy if e.fn])

    def _norm(self, value: jax.Array, line: jax.Array, average, barrier, norm: p.Norm):
        """(value / (norm + ε), line, norms passed)."""
        order, axis, of_sums = norm
        largest, smallest = order >= _LARGEST_FROM, order == _NINF
        size = jnp.abs(value)
        size = jnp.where(
            order == 0,
            (value != 0).astype(jnp.float32),
            jnp.where(order == _TWO, size * size, jnp.where(smallest, -size, size)),
        )
        rows, columns = self._indices()
        inside = (rows < self._layout.batch) & (columns < self._layout.features)
        counts = (~average | (axis == _ROW) | (rows == 0)) & inside
        nothing, least = jnp.zeros_like(size), jnp.full_like(size, -jnp.inf)
        size = jnp.where(counts, size, jnp.where(largest, least, nothing))

        def lines(axis_: int) -> jax.Array:
            return lax.cond(largest, lambda: jnp.max(size, axis_), lambda: jnp.sum(size, axis_))

        def local():
            norms = _finished(lines(0), order)
            return value / (norms + EPSILON)[None], line, 0 * barrier

        def divide():
            return value / self._lines[barrier, :][:, None], line, 0 * barrier + 1

        def of_columns() -> jax.Array:
            sums = lines(0)
            sums = jnp.where(of_sums == p.SMALLEST, -sums, sums)
            return jnp.full_like(line, jnp.max(jnp.where(inside, sums[None], least)))

        def partial() -> jax.Array:
            """A line for each sample; of column sums one number, their largest or (as a negative) smallest."""
            return lax.cond(axis == _COL, of_columns, lambda: lines(1))

        def end():
            return value, partial(), 0 * barrier + self._number + 1

        beyond = functools.partial(lax.cond, barrier < self._number, divide, end)
        return lax.cond((axis == _COL) & (of_sums == 0), local, beyond)

    def _statistic(self, value: jax.Array, average, what, line, passed, m: jax.Array, var: jax.Array):
        uses, batch = self._scalars.real("uses"), self._layout.batch
        inside = self._indices()[0] < batch

        def over_samples(x: jax.Array) -> jax.Array:
            return jnp.sum(jnp.where(inside, x, 0.0), 0) / batch

        mean = over_samples(value)
        spread = over_samples((value - mean[None]) ** 2)
        # All rows of an average are the same.
        mean, spread = jnp.where(average, jnp.max(value, 0), mean), jnp.where(average, jnp.zeros_like(spread), spread)
        m, var = statistics.update(m / uses, var / uses, mean, spread, self._scalars.real("weight"))

        def taken(statistic) -> jax.Array:
            if statistic.average:
                return jnp.broadcast_to(statistic.average(m, var)[None], self._shape)
            return (value - m[None]) / statistic.divisor(m, var)[None]

        found = _switch(what, [functools.partial(taken, statistic) for statistic in self._codes.statistics])
        return found, line, passed, m, var


def _switch(index, branches: Sequence[Callable[[], Any]]):
    """lax.switch by halves: some backends know two branches alone, or try them one after the other."""
    if len(branches) == 1:
        return branches[0]()
    half = len(branches) // 2
    first, second = (
        functools.partial(_switch, index, branches[:half]),
        functools.partial(_switch, index - half, branches[half:]),
    )
    return lax.cond(index < half, first, second)


def _finished(r: jax.Array, order) -> jax.Array:
    """A norm of its reduction: a sum of squares has its root taken, and the smallest came as the largest of negatives."""
    r = jnp.where(order == _NINF, -r, r)
    return jnp.where(order == _TWO, jnp.sqrt(jnp.abs(r)), r)


def uniform(key: tuple[jax.Array, jax.Array], entry: jax.Array) -> jax.Array:
    """U[0, 1) of 23 bits of the entries of an array: the numbers of jax.random.uniform with partitionable Threefry."""
    k0, k1 = key
    words = [k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA)]
    x0, x1 = jnp.zeros_like(entry) + k0, entry + k1
    for block in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[block % 2]:
            x0 = x0 + x1
            x1 = (x1 << np.uint32(rotation)) | (x1 >> np.uint32(32 - rotation))
            x1 = x0 ^ x1
        x0, x1 = x0 + words[(block + 1) % 3], x1 + words[(block + 2) % 3] + np.uint32(block + 1)
    bits = ((x0 ^ x1) >> np.uint32(9)) | np.uint32(0x3F800000)
    return lax.bitcast_convert_type(bits, jnp.float32) - 1.0


def _by_maximum(norm: p.Norm) -> jax.Array:
    return (norm.order >= _LARGEST_FROM) | (norm.axis == _COL)


def merged(lines: jax.Array, norm: p.Norm) -> jax.Array:
    """The line of all tiles, [B], of theirs, [tiles, B]."""
    return jnp.where(_by_maximum(norm), jnp.max(lines, 0), jnp.sum(lines, 0))


def joined(line: jax.Array, other: jax.Array, norm: p.Norm) -> jax.Array:
    """The line of two sets of tiles, of theirs."""
    return jnp.where(_by_maximum(norm), jnp.maximum(line, other), line + other)


def nothing(norm: p.Norm, like: jax.Array) -> jax.Array:
    """What changes no line that it is joined with."""
    return jnp.where(_by_maximum(norm), jnp.full_like(like, -jnp.inf), jnp.zeros_like(like))


def divisors(line: jax.Array, norm: p.Norm, batch: int) -> jax.Array:
    """What a norm divides each sample by, of the line of all tiles; both [at least B], those beyond B are padding."""
    order, axis, of_sums = norm
    overall = jnp.where(_by_maximum(norm), jnp.max(line), jnp.sum(line))
    r = _finished(jnp.where(axis == _ELEM, overall, line), order)
    real = lax.broadcasted_iota(jnp.int32, line.shape, 0) < batch
    nothing = jnp.full_like(r, jnp.inf)
    largest, smallest = jnp.max(jnp.where(real, r, -nothing)), jnp.min(jnp.where(real, r, nothing))
    of_lines = jnp.where(of_sums == p.LARGEST, largest, smallest)
    # Column sums came as one number in every place, their largest or the negative of their smallest.
    of_columns = jnp.where(of_sums == p.LARGEST, overall, -overall)
    r = jnp.where(of_sums == 0, r, jnp.where(axis == _COL, of_columns, of_lines))
    return r + EPSILON
