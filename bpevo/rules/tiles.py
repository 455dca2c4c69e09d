"""The interpreter's machine on one tile: what a kernel does with the part of a unit's values that fast memory holds.

A tile is the whole batch times some features of the values of type X, as matrices [B, M]. Statistics and column norms are local
to it. What needs all tiles (norms of entries, rows and matrices) ends a *pass*: each tile gives a line of partial results, [B];
the lines of all tiles make what the norm divides by, and the next pass computes again up to there and goes on. Programs
that fit: bpevo.rules.tile_programs. Their kernels: bpevo.rules.kernels.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

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


class Rows(Protocol):
    """A tile's rows of state, [rows, 2, m]: what of them is a value is carried from instruction to instruction."""

    start: Any

    def read(self, carried, row) -> tuple[jax.Array, jax.Array]: ...

    def write(self, carried, row, really, mean, var) -> Any: ...


class ReferencedRows:
    """In a kernel's references, where nothing is carried; they change in the last pass alone."""

    start = ()

    def __init__(self, old, new, last):
        """`old` and `new` may be views of one array."""
        self._old, self._new, self._last = old, new, last

    def read(self, carried, row) -> tuple[jax.Array, jax.Array]:
        return self._old[row, 0, :], self._old[row, 1, :]

    def write(self, carried, row, really, mean, var) -> Any:
        def store():
            self._new[row, 0, :], self._new[row, 1, :] = mean, var

        lax.cond(really & self._last, store, lambda: None)
        return carried


def halves(index, branches: Sequence[Callable[[], Any]]):
    """lax.switch by halves: some backends know two branches alone, or try them one after the other."""
    if len(branches) == 1:
        return branches[0]()
    half = len(branches) // 2
    first, second = (
        functools.partial(halves, index, branches[:half]),
        functools.partial(halves, index - half, branches[half:]),
    )
    return lax.cond(index < half, first, second)


class Tile:
    """One pass of one program over one tile. Values are [B, m]."""

    def __init__(
        self,
        layout: Layout,
        number,
        tile,
        scalars: Scalars | Any,
        stored: Mapping[str, Any],
        rows: Rows,
        lines,
        switch: Callable[[Any, Sequence[Callable[[], Any]]], Any] = halves,
    ):
        """References or arrays: `stored` [B, m], of b_L [C, B] and of R_L [C, m]; `lines` [PASSES, B]. `rows` holds the state;
        `number` is of the pass.

        Where there are no `lines`, this tile is all there is, and no norm ends a pass.
        """
        self._layout, self._number, self._tile, self._scalars = layout, number, tile, scalars
        self._stored, self._rows, self._lines, self._switch = stored, rows, lines, switch
        self._codes = p.codes()
        self._shape = layout.rows, layout.tile

    def run(self) -> tuple[jax.Array, jax.Array, Any]:
        """The signal, right in the last pass, this tile's line of the norm that ends another, and what its rows carry."""
        length = self._scalars.integer("length")
        value, line = jnp.zeros(self._shape, jnp.float32), jnp.zeros(self._shape[:1], jnp.float32)
        start = jnp.int32(0), value, line, jnp.int32(0), self._rows.start
        # `barrier` counts the norms that were passed; beyond `number` the pass is over.
        _, accumulator, line, _, rows = lax.while_loop(
            lambda c: (c[0] < length) & (c[3] <= self._number), self._instruction, start
        )
        return accumulator, line, rows

    def _instruction(self, carry):
        t, accumulator, line, barrier, rows = carry
        value = self._switch(self._scalars.integer("load", t), self._loads(accumulator))
        turns = self._scalars.integer("turns", t)
        _, value, line, barrier, rows = lax.while_loop(
            lambda c: (c[0] < turns) & (c[3] <= self._number),
            functools.partial(self._function, t),
            (jnp.int32(0), value, line, barrier, rows),
        )
        affine = Affine(
            self._scalars.real("affine", t, 0) > 0, *(self._scalars.real("affine", t, i) for i in range(1, 5))
        )
        # The affine map inside the branches: XLA makes one pass over memory of both.
        combines = [lambda: affine(value), lambda: accumulator]  # a product is none of ours
        combines += [lambda fn=b.fn: fn(accumulator, affine(value)) for b in BINARIES.values() if b.fn]
        return t + 1, self._switch(self._scalars.integer("combine", t), combines), line, barrier, rows

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
        i, value, line, barrier, rows = carry
        code = self._scalars.integer("function", t, i)
        detail = [self._scalars.integer("detail", t, 3 * i + k) for k in range(3)]
        average, c = self._scalars.integer("average", t, i) > 0, self._scalars.real("constant", t, i)
        takes_statistic = code == self._codes.functions.index(p.STATISTIC)
        row = jnp.where(takes_statistic, detail[1], 0 * code)
        kept = self._rows.read(rows, row)
        none = 0 * barrier  # computed: a branch that returns a literal has no lowering in Triton
        same = (line, none, *kept)

        branches = [lambda e=e: (e.fn(value, c), *same) for e in self._codes.elementwise]
        branches.append(lambda: (self._noise(value, c, average, p.Noise(*detail[:2])), *same))
        branches.append(lambda: (*self._norm(value, line, average, barrier, p.Norm(*detail)), *kept))
        branches.append(lambda: self._statistic(value, average, detail[0], *same))
        value, line, passed, mean, var = self._switch(code, branches)

        rows = self._rows.write(rows, row, takes_statistic, mean, var)
        return i + 1, value, line, barrier + passed, rows

    # What instructions do.

    def _indices(self) -> tuple[jax.Array, jax.Array]:
        rows = lax.broadcasted_iota(jnp.int32, self._shape, 0)
        return rows, self._tile * self._layout.tile + lax.broadcasted_iota(jnp.int32, self._shape, 1)

    def _noise(self, value: jax.Array, c, average, noise: p.Noise) -> jax.Array:
        numbers = self._uniform(average, self._scalars.key(noise.number))
        return self._switch(
            noise.which, [functools.partial(e.fn, value, c, numbers) for e in self._codes.noisy if e.fn]
        )

    def _uniform(self, average, key) -> jax.Array:
        """As jax.random.uniform of the key folded by the draw's number: entry i depends on the key and i alone."""
        rows, columns = self._indices()
        entry = jnp.where(average, 0 * rows, rows * self._layout.features) + columns
        return uniform(key, entry.astype(jnp.uint32))

    def _reduction(self, value: jax.Array, average, norm: p.Norm) -> Callable[[int], jax.Array]:
        """Lines of sums or maxima over an axis: of sizes as an order takes them, of an average's rows the first alone."""
        order, axis, _ = norm
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
        return lambda axis: lax.cond(largest, lambda: jnp.max(size, axis), lambda: jnp.sum(size, axis))

    def _of_real_columns(self, line: jax.Array) -> jax.Array:
        """A line of the tile's columns, with what is least for padding; [B, m], as are masks."""
        rows, columns = self._indices()
        inside = (rows < self._layout.batch) & (columns < self._layout.features)
        return jnp.where(inside, line[None], jnp.full(self._shape, -jnp.inf))

    def _norm(self, value: jax.Array, line: jax.Array, average, barrier, norm: p.Norm):
        """(value / (norm + ε), line, norms passed)."""
        order, axis, of_sums = norm
        lines = self._reduction(value, average, norm)

        def local():
            norms = _finished(lines(0), order)
            return value / (norms + EPSILON)[None], line, 0 * barrier

        def divide():
            return value / self._lines[barrier, :][:, None], line, 0 * barrier + 1

        def of_columns() -> jax.Array:
            sums = lines(0)
            sums = jnp.where(of_sums == p.SMALLEST, -sums, sums)
            return jnp.full_like(line, jnp.max(self._of_real_columns(sums)))

        def partial() -> jax.Array:
            """A line for each sample; of column sums one number, their largest or (as a negative) smallest."""
            return lax.cond(axis == _COL, of_columns, lambda: lines(1))

        def end():
            return value, partial(), 0 * barrier + self._number + 1

        def at_once():
            divisor = divisors(merged(partial()[None], norm), norm, self._layout.batch)
            return value / divisor[:, None], line, 0 * barrier

        beyond = at_once if self._lines is None else functools.partial(lax.cond, barrier < self._number, divide, end)
        return lax.cond((axis == _COL) & (of_sums == 0), local, beyond)

    def _statistic(self, value: jax.Array, average, what, line, passed, m: jax.Array, var: jax.Array):
        uses, batch = self._scalars.real("uses"), self._layout.batch
        inside = self._indices()[0] < batch

        def over_samples(x: jax.Array) -> jax.Array:
            return jnp.sum(x if self._layout.rows == batch else jnp.where(inside, x, 0.0), 0) / batch

        mean = over_samples(value)
        spread = over_samples((value - mean[None]) ** 2)
        # All rows of an average are the same.
        mean, spread = jnp.where(average, jnp.max(value, 0), mean), jnp.where(average, jnp.zeros_like(spread), spread)
        m, var = statistics.update(m / uses, var / uses, mean, spread, self._scalars.real("weight"))

        def taken(statistic) -> jax.Array:
            if statistic.average:
                return jnp.broadcast_to(statistic.average(m, var)[None], self._shape)
            return (value - m[None]) / statistic.divisor(m, var)[None]

        found = self._switch(what, [functools.partial(taken, statistic) for statistic in self._codes.statistics])
        return found, line, passed, m, var


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
