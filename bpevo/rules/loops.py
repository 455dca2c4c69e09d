"""The machine on tiles as loops on a CPU: one program after the other, its branches real, each tile as large as a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.rules import program as p
from bpevo.rules import statistics
from bpevo.rules import tiles as ti
from bpevo.rules.components import OPERANDS
from bpevo.rules.interpreter import products
from bpevo.rules.program import Program
from bpevo.rules.tile_programs import PASSES, barriers, norms, stored
from bpevo.rules.unit import State, Unit

FLOATS = 65536  # of a tile: a value of it, what it is made of and what it becomes stay in a core's own cache


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a CPU runs the machine.

    Args:
        floats: Of a tile, at most, but for a batch that is larger.
    """

    floats: int = FLOATS

    def layout(self, batch: int, features: int) -> ti.Layout:
        """Tiles of one size."""
        tiles = -(-features // max(1, self.floats // batch))
        return ti.Layout(batch, features, batch, -(-features // tiles))

    def __call__(self, unit: Unit, program: Program, state: State) -> tuple[jax.Array, jax.Array]:
        """The signal [B, M] and the next rows of state, of a program that tile_programs.takes accepts."""
        made, (batch, features) = products(unit, program), unit.shapes.matrix("X")
        layout, rows = self.layout(batch, features), state["small"]
        beyond = layout.tiles * layout.tile - features
        names = [n for n in dict.fromkeys([*stored(), *made]) if OPERANDS[n].base == "X"]
        values = (made[n] if n in made else unit.values.read(n) for n in names)
        arrays = {n: _padded(x.reshape(batch, features), beyond) for n, x in zip(names, values, strict=True)}
        run = _whole if layout.tiles == 1 else _by_tiles
        assert unit.key is not None
        signal, own = run(layout, _Numbers(program, state, unit.key), _padded(rows[..., :features], beyond), arrays)
        return signal[:, :features], lax.dynamic_update_slice_in_dim(rows, own[..., :features], 0, 2)


def _padded(x: jax.Array, beyond: int) -> jax.Array:
    return jnp.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, beyond)]) if beyond else x


class _Numbers:
    """A program's numbers, and what else a tile asks for, from where they are."""

    def __init__(self, program: Program, state: State, key: jax.Array):
        self._program, self._key, uses = program, key, statistics.uses(state)
        weight = statistics.weight_of_step(state["step"] / uses + 1)
        self._whole = {"length": program.length, "uses": uses, "weight": weight}

    def integer(self, name: str, t=0, i=0):
        return self._whole[name] if name in self._whole else self._of(name, t, i)

    real = integer

    def _of(self, name: str, t, i) -> jax.Array:
        table = getattr(self._program, name)
        return table.reshape(len(table), -1)[t, i]

    @property
    def ends(self) -> jax.Array:
        """How many norms end a pass."""
        return jnp.sum(barriers(self._program))

    @property
    def norms(self) -> jax.Array:
        """shape=[PASSES, 3]: those norms."""
        return norms(self._program).reshape(PASSES, 3)

    def key(self, number) -> tuple[jax.Array, jax.Array]:
        words = jax.random.key_data(jax.random.fold_in(self._key, number))
        return words[0], words[1]


class _Rows:
    """A tile's rows as an array that is carried."""

    def __init__(self, start: jax.Array):
        self.start = start

    def read(self, carried: jax.Array, row) -> tuple[jax.Array, jax.Array]:
        both = lax.dynamic_index_in_dim(carried, row, keepdims=False)
        return both[0], both[1]

    def write(self, carried: jax.Array, row, really, mean: jax.Array, var: jax.Array) -> jax.Array:
        return lax.dynamic_update_index_in_dim(carried, jnp.stack([mean, var]), row, 0)  # else what was read


class _Tile(ti.Tile):
    """A tile whose branches are real and whose reductions read a value once."""

    def _noise(self, value: jax.Array, c, average, noise: p.Noise) -> jax.Array:
        key, (batch, width) = self._scalars.key(noise.number), self._shape

        def changed(x: jax.Array, numbers: jax.Array) -> jax.Array:
            return lax.switch(noise.which, [functools.partial(e.fn, x, c, numbers) for e in self._codes.noisy if e.fn])

        def row() -> jax.Array:  # all rows of an average are the same
            numbers = ti.uniform(key, self._tile * width + lax.iota(jnp.uint32, width))
            return jnp.broadcast_to(changed(value[:1], numbers[None]), self._shape)

        def all_rows() -> jax.Array:
            if self._layout.tiles > 1:
                return changed(value, self._uniform(False, key))
            return changed(value, ti.uniform(key, lax.iota(jnp.uint32, batch * width)).reshape(self._shape))

        return lax.cond(average, row, all_rows)

    def _reduction(self, value: jax.Array, average, norm: p.Norm):
        batch, width = self._shape

        def lines(axis: int) -> jax.Array:
            def reduced(size, reduce, neutral):
                def of(x: jax.Array) -> jax.Array:
                    if self._layout.tiles * width == self._layout.features:
                        return size(x)
                    column = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1) + self._tile * width
                    return jnp.where(column < self._layout.features, size(x), neutral)

                def branch() -> jax.Array:
                    line = reduce(of(value), axis)
                    if axis == 0:
                        return jnp.where(average, of(value[0]), line)
                    first = lax.iota(jnp.int32, batch) == 0
                    return jnp.where(~average | (norm.axis == p.AXES.index("row")) | first, line, neutral)

                return branch

            return lax.switch(norm.order, [reduced(*how) for how in _ORDERS])

        return lines

    def _of_real_columns(self, line: jax.Array) -> jax.Array:
        column = lax.iota(jnp.int32, len(line)) + self._tile * len(line)
        return jnp.where(column < self._layout.features, line, -jnp.inf)


# As p.ORDERS: sizes, their reduction and what changes nothing in it; the smallest as the largest of negatives.
_ORDERS = (
    (lambda x: (x != 0).astype(x.dtype), jnp.sum, 0.0),
    (jnp.abs, jnp.sum, 0.0),
    (jnp.square, jnp.sum, 0.0),
    (jnp.abs, jnp.max, -jnp.inf),
    (lambda x: -jnp.abs(x), jnp.max, -jnp.inf),
)


def _whole(layout: ti.Layout, numbers: _Numbers, rows: jax.Array, arrays: dict[str, jax.Array]):
    """Everything is one tile: there is no pass but the last."""
    tile = _Tile(layout, 0, 0, numbers, arrays, _Rows(rows), None, lax.switch)
    value, _, rows = tile.run()
    return value, rows


def _by_tiles(layout: ti.Layout, numbers: _Numbers, rows: jax.Array, arrays: dict[str, jax.Array]):
    ends, norms_, width = numbers.ends, numbers.norms, layout.tile

    def one_pass(number, carry):
        norm, last = p.Norm(*norms_[number]), number == ends
        lines, *carry = carry

        def one_tile(j, carry):
            line, rows, signal = carry
            start = _Rows(lax.dynamic_slice_in_dim(rows, j * width, width, 2))
            views = {name: _View(x, j * width, width) for name, x in arrays.items()}
            tile = _Tile(layout, number, j, numbers, views, start, lines, lax.switch)
            value, found, own = tile.run()
            line = jnp.where(j == 0, found, ti.merged(jnp.stack([line, found]), norm))
            own = jnp.where(last, own, start.start)
            rows = lax.dynamic_update_slice_in_dim(rows, own, j * width, 2)
            # Before the last pass to where the last will write once more.
            place = jnp.where(last, j, 0) * width
            return line, rows, lax.dynamic_update_slice_in_dim(signal, value, place, 1)

        line, *carry = lax.fori_loop(0, layout.tiles, one_tile, (jnp.zeros_like(lines[0]), *carry))
        divisors = ti.divisors(line, norm, layout.batch)
        return lax.dynamic_update_index_in_dim(
            lines, divisors, number, 0
        ), *carry  # after the last pass nobody reads it

    blank = jnp.zeros_like(rows, shape=(layout.batch, layout.tiles * layout.tile))
    start = jnp.ones_like(rows, shape=(PASSES, layout.batch)), rows, blank
    _, rows, signal = lax.fori_loop(0, ends + 1, one_pass, start)
    return signal, rows


@dataclasses.dataclass(frozen=True)
class _View:
    """Some columns of an array, read where they are asked for."""

    array: jax.Array
    start: jax.Array
    width: int

    def __getitem__(self, _) -> jax.Array:
        return lax.dynamic_slice_in_dim(self.array, self.start, self.width, 1)
