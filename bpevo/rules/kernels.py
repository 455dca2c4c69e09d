"""The machine on tiles as Pallas kernels: K slots in one call, whatever their programs.

A GPU runs its tiles in any order, so each pass is a kernel of its own and what a norm divides by is computed between them; a tile
reads what its program asks for and nothing else. A TPU core runs its tiles one after the other, so one kernel has all passes;
blocks are fetched ahead of time, so what a program does not read is mapped to a block that is there already. `interpret` runs
either on a CPU, for tests. Pallas is imported when there is a kernel.
"""

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.rules import tiles as ti
from bpevo.rules.tile_programs import PASSES, Scalars, stored

PLATFORMS = ("gpu", "tpu")
FLOATS = {"gpu": 4096, "tpu": 65536}  # of a tile: registers of a block of threads; a part of a core's fast memory


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How a platform runs the machine.

    Args:
        platform: "gpu" or "tpu".
        interpret: On whatever device there is, slowly.
        floats: Of a tile, at most, but for a batch that is larger.
    """

    platform: str
    interpret: bool = False
    floats: int = 0

    one_by_one = False  # all slots are one call

    def __post_init__(self):
        # Adds settings to jax, so that whatever was traced before is traced again: not in the middle of a program.
        importlib.import_module("jax.experimental.pallas")
        importlib.import_module(
            "jax.experimental.pallas.tpu" if self.platform == "tpu" else "jax.experimental.pallas.triton"
        )

    def layout(self, batch: int, features: int) -> ti.Layout:
        """The blocks of values [batch, features]."""
        most = max(1, (self.floats or FLOATS[self.platform]) // batch)
        if self.platform == "gpu":  # blocks are powers of two
            rows = _power(batch)
            return ti.Layout(batch, features, rows, min(_power(features), _power(most + 1) // 2))
        lanes = 1 if self.interpret else 128  # the last axis is laid out by so many
        return ti.Layout(batch, features, batch, features if features <= most else max(1, most // lanes) * lanes)

    def __call__(self, scalars: Sequence[jax.Array], rows: jax.Array, arrays: dict[str, jax.Array]):
        """Signals [K, B, M] and the next rows of state [K, rows, 2, at least M] of K slots.

        Everything has a leading slot axis: `scalars` of tile_programs.pack, `arrays` [K, B, M] of tile_programs.stored.
        """
        _, batch, features = next(iter(arrays.values())).shape
        layout = self.layout(batch, features)
        beyond = layout.tiles * layout.tile
        grow = [(0, 0), (0, layout.rows - batch), (0, beyond - features)]
        values = [_padded(arrays[name], grow) for name in stored()]
        own = _padded(rows[..., :features], [(0, 0), (0, 0), *grow[::2]])  # rows are as long as the longest type's
        run = _passes if self.platform == "gpu" else _at_once
        signals, own = run(layout, self.interpret, scalars, own, values)
        new = lax.dynamic_update_slice_in_dim(rows, own[..., :features], 0, 3)
        return signals[:, :batch, :features], new


def _power(n: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (n - 1).bit_length()


def _padded(x: jax.Array, grow: list[tuple[int, int]]) -> jax.Array:
    return jnp.pad(x, grow) if any(after for _, after in grow) else x


def _passes(layout: ti.Layout, interpret: bool, scalars: Sequence[jax.Array], rows: jax.Array, values: list[jax.Array]):
    """A kernel a pass, the same one."""
    from jax.experimental import pallas as pl

    (slots, count), integers = rows.shape[:2], scalars[0]
    tile = pl.BlockSpec((None, layout.rows, layout.tile), lambda k, j: (k, 0, j))
    line = pl.BlockSpec((None, None, 1, layout.rows), lambda k, j: (k, j, 0, 0))
    state = pl.BlockSpec((None, count, 2, layout.tile), lambda k, j: (k, 0, 0, j))
    lines = pl.BlockSpec((None, PASSES, layout.rows), lambda k, j: (k, 0, 0))

    def whole(x: jax.Array) -> Any:
        return pl.BlockSpec(x.shape, lambda k, j: (0,) * x.ndim)

    def kernel(which, integers, floats, keys, divisors, old, *references):
        inputs, (signal, partial, new) = references[: len(values)], references[-3:]
        number, k, j = which[0], pl.program_id(0), pl.program_id(1)
        program = Scalars(k, integers, floats, keys)
        ends = program.integer("ends")

        @pl.when(number <= ends)  # else what an earlier pass stored is right
        def _():
            arrays = dict(zip(stored(), inputs, strict=True))
            of_tile = ti.Tile(layout, number, j, program, arrays, ti.ReferencedRows(old, new, number == ends), divisors)
            value, partial[0, :], _ = of_tile.run()

            @pl.when(number == ends)
            def _():
                signal[...] = value

    def one_pass(number, carry):
        divisors, rows, signals, partial = carry
        before = jnp.full(1, number, jnp.int32), *scalars
        arguments = *before, divisors, rows, *values, signals, partial
        signals, partial, rows = pl.pallas_call(
            kernel,
            grid=(slots, layout.tiles),
            in_specs=[*map(whole, before), lines, state, *[tile] * len(values), tile, line],
            out_specs=[tile, line, state],
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (signals, partial, rows)],
            input_output_aliases={len(arguments) - 2: 0, len(arguments) - 1: 1, len(before) + 1: 2},
            interpret=interpret,
            compiler_params=None if interpret else _triton(),
            name="rule" if interpret else f"rule_pass_{number}",
        )(*arguments)
        after = jax.vmap(functools.partial(_after, layout, number))(integers, partial)
        return lax.dynamic_update_index_in_dim(divisors, after, number, 1), rows, signals, partial

    carry = (
        jnp.ones((slots, PASSES, layout.rows), jnp.float32),
        rows,
        jnp.zeros((slots, layout.rows, layout.tiles * layout.tile), jnp.float32),
        jnp.zeros((slots, layout.tiles, 1, layout.rows), jnp.float32),
    )
    if interpret:
        carry = lax.fori_loop(0, PASSES, one_pass, carry)
    else:  # no loop, which the host would take part in
        for number in range(PASSES):
            carry = one_pass(number, carry)
    return carry[2], carry[1]


def _after(layout: ti.Layout, number: int, integers: jax.Array, partial: jax.Array) -> jax.Array:
    """What the norm that ends a pass divides by."""
    norm = Scalars(0, integers[None], None, None).norm(number)
    return ti.divisors(ti.merged(partial[:, 0], norm), norm, layout.batch)


def _triton() -> Any:
    from jax.experimental.pallas import triton

    return triton.CompilerParams(num_warps=8, num_stages=1)


def _at_once(
    layout: ti.Layout, interpret: bool, scalars: Sequence[jax.Array], rows: jax.Array, values: list[jax.Array]
):
    """One kernel for all passes: slots, passes and tiles are its grid, from the outermost to the innermost."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    slots, count = rows.shape[:2]
    last = layout.tiles - 1

    def place(integers, k):
        return Scalars(k, integers, None, None)

    def reading(which: int):
        def index(k, n, j, integers, floats, keys):
            program = place(integers, k)
            wanted = (program.integer("used", 0, which) > 0) & (n <= program.integer("ends"))
            return k, 0, jnp.where(wanted, j, last)

        return index

    def of_state(k, n, j, integers, floats, keys):
        program = place(integers, k)
        return k, 0, 0, jnp.where((program.integer("statistics") > 0) & (n <= program.integer("ends")), j, last)

    def writing(k, n, j, integers, floats, keys):  # nothing leaves before the last pass
        ends = place(integers, k).integer("ends")
        return k, 0, jnp.where(n == ends, j, jnp.where(n < ends, 0, last))

    def writing_state(k, n, j, *scalars):
        program = place(scalars[0], k)
        _, _, tile = writing(k, n, j, *scalars)
        return k, 0, 0, jnp.where(program.integer("statistics") > 0, tile, last)

    def kernel(integers, floats, keys, old, *references):
        inputs, (signal, new, divisors, line) = references[: len(values)], references[-4:]
        k, number, j = (pl.program_id(axis) for axis in range(3))
        program = Scalars(k, integers, floats, keys)
        ends = program.integer("ends")

        @pl.when(number <= ends)
        def _():
            arrays = dict(zip(stored(), inputs, strict=True))

            @pl.when(number == ends)
            def _():
                new[...] = old[...]

            of_tile = ti.Tile(layout, number, j, program, arrays, ti.ReferencedRows(old, new, number == ends), divisors)
            value, found, _ = of_tile.run()

            # A block that does not leave yet stays as it is: new rows share the old ones' memory.
            @pl.when(number == ends)
            def _():
                signal[...] = value

            @pl.when(number < ends)
            def _():
                norm = program.norm(number)
                both = ti.merged(jnp.stack([line[0, :], found]), norm)
                line[0, :] = jnp.where(j == 0, found, both)

                @pl.when(j == last)
                def _():
                    divisors[number, :] = ti.divisors(line[0, :], norm, layout.batch)

    block, state = (None, layout.rows, layout.tile), (None, count, 2, layout.tile)
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(slots, PASSES, layout.tiles),
            in_specs=[pl.BlockSpec(state, of_state), *(pl.BlockSpec(block, reading(i)) for i in range(len(values)))],
            out_specs=[pl.BlockSpec(block, writing), pl.BlockSpec(state, writing_state)],
            scratch_shapes=[
                pltpu.VMEM((PASSES, layout.rows), jnp.float32),
                pltpu.VMEM((1, layout.rows), jnp.float32),
            ],
        ),
        out_shape=[jax.ShapeDtypeStruct(values[0].shape, jnp.float32), jax.ShapeDtypeStruct(rows.shape, jnp.float32)],
        input_output_aliases={len(scalars): 1},
        interpret=interpret,
        name="rule",
    )(*scalars, rows, *values)
