"""The machine on tiles as Pallas kernels: K slots in one call, whatever their programs.

A GPU runs its tiles in any order, so each pass is a kernel of its own and what a norm divides by is computed between them; a tile
reads what its program asks for and nothing else. A TPU core runs its tiles one after the other, so one kernel has all passes;
blocks are fetched ahead of time, so what a program does not read is mapped to a block that is there already. `interpret` runs
either on a CPU, for tests. Pallas is imported when there is a kernel.
"""

import dataclasses
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

        Everything has a leading slot axis: `scalars` of tile_programs.pack, `arrays` of tile_programs.stored.
        """
        _, batch, features = arrays["hp"].shape
        layout = self.layout(batch, features)
        none, below, beside = (0, 0), (0, layout.rows - batch), (0, layout.tiles * layout.tile - features)
        grow = {"b_L": (none, none, below), "R_L": (none, none, beside)}
        values = [_padded(arrays[name], grow.get(name, (none, below, beside))) for name in stored()]
        own = _padded(rows[..., :features], (none, none, none, beside))  # rows are as long as the longest type's
        run = _passes if self.platform == "gpu" else _at_once
        signals, own = run(layout, self.interpret, scalars, own, values)
        new = lax.dynamic_update_slice_in_dim(rows, own[..., :features], 0, 3)
        return signals[:, :batch, :features], new


def _power(n: int) -> int:
    """The least power of two that is not smaller."""
    return 1 << (n - 1).bit_length()


def _padded(x: jax.Array, grow: Sequence[tuple[int, int]]) -> jax.Array:
    return jnp.pad(x, grow) if any(after for _, after in grow) else x


def _block(layout: ti.Layout, name: str, shape: Sequence[int]) -> tuple[int, int]:
    """A tile's part of a stored array [K, …]."""
    return {"b_L": (shape[1], layout.rows), "R_L": (shape[1], layout.tile)}.get(name, (layout.rows, layout.tile))


def _passes(layout: ti.Layout, interpret: bool, scalars: Sequence[jax.Array], rows: jax.Array, values: list[jax.Array]):
    """A kernel a pass, the same one, and between them one for what the norms divide by."""
    from jax.experimental import pallas as pl

    (slots, count), chunk = rows.shape[:2], _chunk(layout)
    tile = pl.BlockSpec((None, layout.rows, layout.tile), lambda k, j: (k, 0, j))
    line = pl.BlockSpec((None, None, 1, layout.rows), lambda k, j: (k, j, 0, 0))
    state = pl.BlockSpec((None, count, 2, layout.tile), lambda k, j: (k, 0, 0, j))
    divided = pl.BlockSpec((None, PASSES, layout.rows), lambda k, j: (k, 0, 0))
    inputs = [
        pl.BlockSpec((None, *_block(layout, name, x.shape)), lambda k, j, of_tile=name != "b_L": (k, 0, j * of_tile))
        for name, x in zip(stored(), values, strict=True)
    ]
    made = [
        jax.ShapeDtypeStruct((slots, layout.rows, layout.tiles * layout.tile), jnp.float32),
        jax.ShapeDtypeStruct((slots, -(-layout.tiles // chunk) * chunk, 1, layout.rows), jnp.float32),
    ]

    def whole(x: jax.Array) -> Any:
        return pl.BlockSpec(x.shape, lambda k, j: (0,) * x.ndim)

    def kernel(which, integers, floats, keys, divisors, old, *references):
        (signal, partial, new), arrays = references[-3:], dict(zip(stored(), references, strict=False))
        number, k, j = which[0], pl.program_id(0), pl.program_id(1)
        program = Scalars(k, integers, floats, keys)
        ends = program.integer("ends")

        @pl.when(number <= ends)  # else what an earlier pass stored is right
        def _():
            of_tile = ti.Tile(layout, number, j, program, arrays, ti.ReferencedRows(old, new, number == ends), divisors)
            value, partial[0, :], _ = of_tile.run()

            @pl.when(number == ends)
            def _():
                signal[...] = value

    def one_pass(number, divisors, rows, *earlier):
        """`earlier` are the signals and lines of the passes before, which this one writes into; there are none at first."""
        before = jnp.full(1, number, jnp.int32), *scalars
        arguments = *before, divisors, rows, *values, *earlier
        aliases = {len(arguments) - 2: 0, len(arguments) - 1: 1} if earlier else {}
        return pl.pallas_call(
            kernel,
            grid=(slots, layout.tiles),
            in_specs=[*map(whole, before), divided, state, *inputs, *(tile, line)[: len(earlier)]],
            out_specs=[tile, line, state],
            out_shape=[*made, jax.ShapeDtypeStruct(rows.shape, rows.dtype)],
            input_output_aliases=aliases | {len(before) + 1: 2},
            interpret=interpret,
            compiler_params=None if interpret else _triton(),
            name="rule" if interpret else f"rule_pass_{number}",
        )(*arguments)

    def another(number, carry):
        divisors, rows, signals, partial = carry
        divisors = _divide(layout, interpret, number - 1, scalars[0], partial, divisors)
        signals, partial, rows = one_pass(number, divisors, rows, signals, partial)
        return divisors, rows, signals, partial

    divisors = jnp.ones((slots, PASSES, layout.rows), jnp.float32)
    signals, partial, rows = one_pass(0, divisors, rows)
    carry = divisors, rows, signals, partial
    if interpret:
        carry = lax.fori_loop(1, PASSES, another, carry)
    else:  # no loop, which the host would take part in
        for number in range(1, PASSES):
            carry = another(number, carry)
    return carry[2], carry[1]


def _chunk(layout: ti.Layout) -> int:
    """So many tiles' lines are read at once."""
    return min(_power(layout.tiles), max(1, 8192 // layout.rows))


def _divide(layout: ti.Layout, interpret: bool, number, integers: jax.Array, partial: jax.Array, divisors: jax.Array):
    """`divisors` [K, PASSES, rows] with those of the norm that ended pass `number`, of its tiles' lines [K, tiles, 1, rows]."""
    from jax.experimental import pallas as pl

    slots, chunk = partial.shape[0], _chunk(layout)
    divided = pl.BlockSpec((None, PASSES, layout.rows), lambda k: (k, 0, 0))

    def kernel(which, integers, lines, old, new):
        number, program = which[0], Scalars(pl.program_id(0), integers, None, None)
        norm = program.norm(number)

        def merge(i, line):
            found = lines[pl.ds(i * chunk, chunk), 0, :]
            real = i * chunk + lax.broadcasted_iota(jnp.int32, found.shape, 0) < layout.tiles
            return ti.joined(line, ti.merged(jnp.where(real, found, ti.nothing(norm, found)), norm), norm)

        @pl.when(number < program.integer("ends"))
        def _():
            start = ti.nothing(norm, jnp.zeros(layout.rows, jnp.float32))
            line = lax.fori_loop(0, lines.shape[0] // chunk, merge, start)
            new[number, :] = ti.divisors(line, norm, layout.batch)

    arguments = jnp.full(1, number, jnp.int32), integers, partial, divisors
    return pl.pallas_call(
        kernel,
        grid=(slots,),
        in_specs=[
            pl.BlockSpec((1,), lambda k: (0,)),
            pl.BlockSpec(integers.shape, lambda k: (0, 0, 0)),
            pl.BlockSpec((None, *partial.shape[1:]), lambda k: (k, 0, 0, 0)),
            divided,
        ],
        out_specs=divided,
        out_shape=jax.ShapeDtypeStruct(divisors.shape, divisors.dtype),
        input_output_aliases={3: 0},
        interpret=interpret,
        compiler_params=None if interpret else _triton(),
        name="rule" if interpret else f"rule_norm_{number}",
    )(*arguments)


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

    def reading(which: int, name: str):
        def index(k, n, j, integers, floats, keys):
            program = place(integers, k)
            wanted = (program.integer("used", 0, which) > 0) & (n <= program.integer("ends"))
            return k, 0, 0 if name == "b_L" else jnp.where(wanted, j, last)

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
                line[0, :] = jnp.where(j == 0, found, ti.joined(line[0, :], found, norm))

                @pl.when(j == last)
                def _():
                    divisors[number, :] = ti.divisors(line[0, :], norm, layout.batch)

    block, state = (None, layout.rows, layout.tile), (None, count, 2, layout.tile)
    inputs = [
        pl.BlockSpec((None, *_block(layout, name, x.shape)), reading(i, name))
        for i, (name, x) in enumerate(zip(stored(), values, strict=True))
    ]
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(slots, PASSES, layout.tiles),
            in_specs=[pl.BlockSpec(state, of_state), *inputs],
            out_specs=[pl.BlockSpec(block, writing), pl.BlockSpec(state, writing_state)],
            scratch_shapes=[
                pltpu.VMEM((PASSES, layout.rows), jnp.float32),
                pltpu.VMEM((1, layout.rows), jnp.float32),
            ],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((slots, layout.rows, layout.tiles * layout.tile), jnp.float32),
            jax.ShapeDtypeStruct(rows.shape, jnp.float32),
        ],
        input_output_aliases={len(scalars): 1},
        interpret=interpret,
        name="rule",
    )(*scalars, rows, *values)
