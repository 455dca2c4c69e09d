"""The machine on tiles as loops on a CPU: one program after the other, its branches real, each tile as large as a cache."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.rules import program as p
from bpevo.rules import tiles as ti
from bpevo.rules.tile_programs import PASSES, Scalars

FLOATS = 65536  # of a tile: a value of it, what it is made of and what it becomes stay in a core's own cache


@dataclasses.dataclass(frozen=True)
class Loop:
    """How a CPU runs the machine.

    Args:
        floats: Of a tile, at most, but for a batch that is larger.
    """

    floats: int = FLOATS

    one_by_one = True  # under vmap branches would be no branches

    def layout(self, batch: int, features: int) -> ti.Layout:
        """Tiles of one size."""
        tiles = -(-features // max(1, self.floats // batch))
        return ti.Layout(batch, features, batch, -(-features // tiles))

    def __call__(self, scalars: tuple[jax.Array, ...], rows: jax.Array, arrays: dict[str, jax.Array]):
        """The signal [B, M] and the next rows of state [rows, 2, at least M].

        `scalars` of tile_programs.pack, `arrays` [B, M] of tile_programs.stored.
        """
        batch, features = next(iter(arrays.values())).shape
        layout = self.layout(batch, features)
        beyond = layout.tiles * layout.tile - features
        if beyond:
            arrays = {name: jnp.pad(x, [(0, 0), (0, beyond)]) for name, x in arrays.items()}
        own = rows[..., :features]
        own = jnp.pad(own, [(0, 0), (0, 0), (0, beyond)]) if beyond else own
        program = Scalars(0, *(x[None] for x in scalars))
        run = _whole if layout.tiles == 1 else _by_tiles
        signal, own = run(layout, program, own, arrays)
        return signal[:, :features], lax.dynamic_update_slice_in_dim(rows, own[..., :features], 0, 2)


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


def _whole(layout: ti.Layout, program: Scalars, rows: jax.Array, arrays: dict[str, jax.Array]):
    """Everything is one tile: there is no pass but the last."""
    tile = _Tile(layout, 0, 0, program, arrays, _Rows(rows), None, lax.switch)
    value, _, rows = tile.run()
    return value, rows


def _by_tiles(layout: ti.Layout, program: Scalars, rows: jax.Array, arrays: dict[str, jax.Array]):
    ends, width = program.integer("ends"), layout.tile

    def one_pass(number, carry):
        norm, last = program.norm(jnp.minimum(number, PASSES - 1)), number == ends
        lines, *carry = carry

        def one_tile(j, carry):
            line, rows, signal = carry
            start = _Rows(lax.dynamic_slice_in_dim(rows, j * width, width, 2))
            views = {name: _View(x, j * width, width) for name, x in arrays.items()}
            tile = _Tile(layout, number, j, program, views, start, lines, lax.switch)
            value, found, own = tile.run()
            line = jnp.where(j == 0, found, ti.merged(jnp.stack([line, found]), norm))
            own = jnp.where(last, own, start.start)
            rows = lax.dynamic_update_slice_in_dim(rows, own, j * width, 2)
            # Before the last pass to where the last will write once more.
            place = jnp.where(last, j, 0) * width
            return line, rows, lax.dynamic_update_slice_in_dim(signal, value, place, 1)

        line, *carry = lax.fori_loop(0, layout.tiles, one_tile, (jnp.zeros_like(lines[0]), *carry))
        divisors = ti.divisors(line, norm, layout.batch)
        lines = lax.dynamic_update_index_in_dim(lines, divisors, jnp.minimum(number, PASSES - 1), 0)
        return lines, *carry

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
