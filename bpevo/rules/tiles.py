"""The interpreter's machine on tiles: a program's values stay in fast memory from its first instruction to its last.

A tile is the whole batch times some features of a unit's values of type X, as matrices [B, M]. What an instruction does is
chosen inside a Pallas kernel, so that neither the host nor the memory of the device has a part in it. Statistics and column
norms are local to a tile. What needs all tiles (norms of entries, rows and matrices) ends a *pass*: each tile stores one line
of partial results, [B], the lines of all tiles are reduced between two passes, and the next pass computes again up to there and
goes on. `takes` says which programs fit: values of type X alone, at most PASSES - 1 such norms.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from bpevo.rules import formulas, statistics
from bpevo.rules import program as p
from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, UNARIES, Affine
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode
from bpevo.rules.program import Program
from bpevo.rules.types import BASES
from bpevo.rules.unit import State, Unit, UnitShapes

PASSES = 4  # 99 % of random equations have at most three norms that need all tiles
_X = BASES.index("X")
_COL, _ELEM, _ROW = (p.AXES.index(axis) for axis in ("col", "elem", "row"))
_LARGEST_FROM, _TWO, _NINF = (p.ORDERS.index(order) for order in ("inf", "2", "ninf"))


def takes(program: Program) -> bool:
    """Whether the machine on tiles runs this program (of NumPy arrays); InterpretedRule runs every one."""
    known, live = p.codes(), range(int(program.length))
    fits = all(
        not program.feedback[t]
        and known.combines[program.combine[t]] != p.MULTIPLY
        and _is_x(known.loads[program.load[t]])
        and all(program.base[t, i] == _X for i in range(int(program.turns[t])))
        for t in live
    )
    return fits and int(_barriers(program).sum()) < PASSES


def _is_x(load: str) -> bool:
    return load in (p.ACCUMULATOR, p.NOTHING) or OPERANDS[load].base == "X"


def _barriers(program: Program) -> Any:
    """shape=[..., T, 2], bool: the functions that end a pass. Of NumPy or traced arrays, stacked or not."""
    axis, of_sums = program.detail[..., 1], program.detail[..., 2]
    turns = np.arange(2) < program.turns[..., None]
    live = (np.arange(program.turns.shape[-1]) < program.length[..., None])[..., None]
    norm = program.function == p.codes().functions.index(p.NORM)
    return turns & live & norm & ~((axis == _COL) & (of_sums == 0))


def _elementwise(node: Expression) -> bool:
    """Whether a formula needs of each entry only that entry of other operands of type X."""
    match node:
        case OperandNode():
            return OPERANDS[node.name].base == "X"
        case UnaryNode():
            entry = UNARIES[node.name]
            return bool(entry.fn or entry.affine) and _elementwise(node.x)
        case BinaryNode():
            binary = BINARIES[node.name]
            return _elementwise(node.left) and (
                binary.structure == "left" or bool(binary.fn) and _elementwise(node.right)
            )
    return False


@functools.cache
def _stored(registered) -> list[str]:
    """Operands of type X that are arrays to the kernel; it makes the others of them."""
    del registered
    of_x = [name for name, operand in OPERANDS.items() if operand.base == "X"]
    return [name for name in of_x if (node := formulas.definition(name)) is None or not _elementwise(node)]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shapes of the kernel's blocks."""

    batch: int  # B
    features: int  # M
    tile: int  # m, features of a tile; the last one may reach beyond M

    @property
    def tiles(self) -> int:
        return -(-self.features // self.tile)

    @property
    def padded(self) -> int:
        return self.tiles * self.tile


class _Scalars:
    """A program's numbers in two small arrays, [T, …] int32 and float32, read one at a time inside the kernel."""

    INTEGERS = {
        "load": 1,
        "turns": 1,
        "function": 2,
        "average": 2,
        "detail": 6,
        "combine": 1,
        "length": 1,
        "barriers": 1,
    }
    FLOATS = {"constant": 2, "affine": 5, "weight": 1, "uses": 1}

    def __init__(self, slot, integers, floats, keys):
        self._slot, self._integers, self._floats, self._keys = slot, integers, floats, keys

    @classmethod
    def pack(cls, program: Program, state: State) -> tuple[jax.Array, jax.Array]:
        """Of one program and its state."""
        t = program.load.shape[0]
        uses = statistics.uses(state)
        weight = statistics.weight_of_step(state["step"] / uses + 1)
        whole = {"length": program.length, "barriers": jnp.sum(_barriers(program)), "weight": weight, "uses": uses}

        def columns(fields: dict[str, int], dtype) -> jax.Array:
            values = [
                jnp.broadcast_to(whole[n], (t, 1)) if n in whole else jnp.reshape(getattr(program, n), (t, width))
                for n, width in fields.items()
            ]
            return jnp.concatenate([jnp.asarray(v, dtype) for v in values], 1)

        return columns(cls.INTEGERS, jnp.int32), columns(cls.FLOATS, jnp.float32)

    def integer(self, name: str, t=0, i=0):
        return self._integers[self._slot, t, _place(self.INTEGERS, name) + i]

    def real(self, name: str, t=0, i=0):
        return self._floats[self._slot, t, _place(self.FLOATS, name) + i]

    def key(self, number) -> tuple[jax.Array, jax.Array]:
        """The two words of the key of a draw."""
        return self._keys[self._slot, number, 0], self._keys[self._slot, number, 1]


def _place(fields: dict[str, int], name: str) -> int:
    names = list(fields)
    return sum(fields[n] for n in names[: names.index(name)])


class _InReferences:
    """A tile's rows of state in a kernel's references, [rows, 2, m]: nothing of them is carried."""

    def __init__(self, old, new):
        self._old, self._new = old, new

    def start(self):
        def keep(row, _):  # a row at a time: some backends take blocks of powers of two alone
            self._new[row, 0, :], self._new[row, 1, :] = self.old(row)

        lax.fori_loop(0, self._old.shape[0], keep, None)
        return ()

    def old(self, row) -> tuple[jax.Array, jax.Array]:
        return self._old[row, 0, :], self._old[row, 1, :]

    def write(self, rows, row, really, mean, var):
        for k, x in enumerate((mean, var)):
            self._new[row, k, :] = jnp.where(really, x, self._new[row, k, :])
        return rows


class _Carried:
    """A tile's rows of state as a value, [rows, 2, m]."""

    def __init__(self, rows: jax.Array):
        self._rows = rows

    def start(self) -> jax.Array:
        return self._rows

    def old(self, row) -> tuple[jax.Array, jax.Array]:
        return tuple(lax.dynamic_index_in_dim(self._rows, row, keepdims=False))

    def write(self, rows, row, really, mean, var) -> jax.Array:
        before = lax.dynamic_index_in_dim(rows, row, keepdims=False)
        return lax.dynamic_update_index_in_dim(rows, jnp.where(really, jnp.stack([mean, var]), before), row, 0)


class _Tile:
    """One pass of one program over one tile. Values are [B, m]."""

    def __init__(self, layout: Layout, number, tile, scalars: _Scalars, stored: Mapping[str, Any], rows, lines):
        """`stored` [B, m] and `lines` [PASSES, B] are references; `rows` holds the state; `number` is of the pass."""
        self._layout, self._number, self._tile, self._scalars = layout, number, tile, scalars
        self._stored, self._rows, self._lines = stored, rows, lines
        self._codes = p.codes()
        self._shape = layout.batch, layout.tile

    def run(self) -> tuple[jax.Array, jax.Array, Any]:
        """The signal and the new rows, right in the last pass, and this tile's line of the norm that ends the pass, if one does."""
        length = self._scalars.integer("length")
        value, line = jnp.zeros(self._shape, jnp.float32), jnp.zeros(self._shape[:1], jnp.float32)
        start = jnp.int32(0), value, line, jnp.int32(0), self._rows.start()
        # `barrier` counts the norms that were passed; beyond `number` the pass is over.
        _, accumulator, line, _, rows = lax.while_loop(
            lambda c: (c[0] < length) & (c[3] <= self._number), self._instruction, start
        )
        return accumulator, line, rows

    def _instruction(self, carry):
        t, accumulator, line, barrier, rows = carry
        value = _switch(self._scalars.integer("load", t), self._loads(accumulator))
        turns = self._scalars.integer("turns", t)
        _, value, line, barrier, rows = lax.while_loop(
            lambda c: (c[0] < turns) & (c[3] <= self._number),
            functools.partial(self._function, t),
            (jnp.int32(0), value, line, barrier, rows),
        )
        affine = Affine(
            self._scalars.real("affine", t, 0) > 0, *(self._scalars.real("affine", t, i) for i in range(1, 5))
        )
        value = affine(value)
        combines = [lambda: value, lambda: accumulator]  # a product is none of ours
        combines += [functools.partial(b.fn, accumulator, value) for b in BINARIES.values() if b.fn]
        return t + 1, _switch(self._scalars.integer("combine", t), combines), line, barrier, rows

    def _loads(self, accumulator: jax.Array) -> list[Callable[[], jax.Array]]:
        def operand(name: str) -> jax.Array:
            if name in self._stored:
                return self._stored[name][...]
            node = formulas.definition(name)
            assert node is not None
            return formulas.value(None, node, lambda n: operand(n.name), None)  # type: ignore[arg-type]

        zeros = lambda: jnp.zeros(self._shape, jnp.float32)  # noqa: E731
        known = [functools.partial(operand, name) if OPERANDS[name].base == "X" else zeros for name in OPERANDS]
        return [lambda: accumulator, zeros, *known]

    def _function(self, t, carry):
        i, value, line, barrier, rows = carry
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

        # Another function writes row 0 as it is: a write in a branch would let all rows pass through it.
        rows = self._rows.write(rows, row, takes_statistic, mean, var)
        return i + 1, value, line, barrier + passed, rows

    # What instructions do.

    def _indices(self) -> tuple[jax.Array, jax.Array]:
        rows = lax.broadcasted_iota(jnp.int32, self._shape, 0)
        return rows, self._tile * self._layout.tile + lax.broadcasted_iota(jnp.int32, self._shape, 1)

    def _noise(self, value: jax.Array, c, average, noise: p.Noise) -> jax.Array:
        """As jax.random.uniform of the key folded by the draw's number: entry i depends on the key and i alone."""
        rows, columns = self._indices()
        entry = jnp.where(average, 0 * rows, rows * self._layout.features) + columns
        uniform = _uniform(self._scalars.key(noise.number), entry.astype(jnp.uint32))
        return _switch(noise.which, [lambda e=e: e.fn(value, c, uniform) for e in self._codes.noisy])

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
        counts = (~average | (axis == _ROW) | (rows == 0)) & (columns < self._layout.features)
        nothing, least = jnp.zeros_like(size), jnp.full_like(size, -jnp.inf)
        size = jnp.where(counts, size, jnp.where(largest, least, nothing))

        def lines(axis_: int) -> jax.Array:
            return lax.cond(largest, lambda: jnp.max(size, axis_), lambda: jnp.sum(size, axis_))

        def local():
            norms = _finished(lines(0), order)
            return value / (norms + EPSILON)[None], line, 0 * barrier

        def divide():
            return value / self._lines[barrier, :][:, None], line, 0 * barrier + 1

        def at_once():  # no other tile takes part
            return value / _divisors(partial()[None], norm)[:, None], line, 0 * barrier

        def of_columns() -> jax.Array:
            sums = lines(0)
            sums = jnp.where(of_sums == p.SMALLEST, -sums, sums)
            return jnp.full_like(line, jnp.max(jnp.where(columns < self._layout.features, sums[None], least)))

        def partial() -> jax.Array:
            """A line for each sample; of column sums one number, their largest or (as a negative) smallest."""
            return lax.cond(axis == _COL, of_columns, lambda: lines(1))

        def end():
            return value, partial(), 0 * barrier + self._number + 1

        alone = self._layout.tiles == 1
        beyond = at_once if alone else lambda: lax.cond(barrier < self._number, divide, end)
        return lax.cond((axis == _COL) & (of_sums == 0), local, beyond)

    def _statistic(self, value: jax.Array, average, what, line, passed, m: jax.Array, var: jax.Array):
        uses, batch = self._scalars.real("uses"), self._layout.batch
        mean = jnp.sum(value, 0) / batch
        spread = jnp.sum((value - mean[None]) ** 2, 0) / batch
        mean, spread = (
            jnp.where(average, jnp.max(value, 0), mean),
            jnp.where(average, 0.0, spread),
        )  # of an average all rows are one
        m, var = statistics.update(m / uses, var / uses, mean, spread, self._scalars.real("weight"))

        def taken(statistic) -> jax.Array:
            if statistic.average:
                return jnp.broadcast_to(statistic.average(m, var)[None], self._shape)
            return (value - m[None]) / statistic.divisor(m, var)[None]

        return _switch(what, [lambda s=s: taken(s) for s in self._codes.statistics]), line, passed, m, var


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


def _uniform(key: tuple[jax.Array, jax.Array], entry: jax.Array) -> jax.Array:
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


def _norms(program: Program) -> p.Norm:
    """The norms that end a pass, shape=[PASSES] each."""
    ends = _barriers(program).reshape(-1)
    hit = ends & (jnp.cumsum(ends) - 1 == jnp.arange(PASSES)[:, None])
    details = jnp.sum(jnp.where(hit[..., None], program.detail.reshape(-1, 3), 0), 1)
    return p.Norm(*details.T)


def _divisors(partial: jax.Array, norm: p.Norm) -> jax.Array:
    """What a norm divides by, for each sample: [tiles, B] -> [B]."""
    order, axis, of_sums = norm
    largest = (order >= _LARGEST_FROM) | (axis == _COL)
    r = jnp.where(largest, jnp.max(partial, 0), jnp.sum(partial, 0))
    over_rows = jnp.where(largest, jnp.max(r), jnp.sum(r))
    r = _finished(jnp.where(axis == _ELEM, over_rows, r), order)
    of_lines = jnp.where(of_sums == p.LARGEST, jnp.max(r), jnp.min(r))
    of_columns = jnp.where(of_sums == p.LARGEST, jnp.max(partial), -jnp.max(partial))
    r = jnp.where(of_sums == 0, r, jnp.where(axis == _COL, of_columns, of_lines))
    return r + EPSILON


@dataclasses.dataclass(frozen=True)
class Backend:
    """How a platform runs the kernel."""

    interpret: bool = False
    tile: int = 64  # features
    options: Any = None  # compiler_params
    loop: bool = False
    scalars: Any = None  # the memory that holds programs, where it is one of its own


@dataclasses.dataclass(frozen=True)
class _View:
    """Features `start` to `start + width` of an array [..., M], read where it is indexed."""

    array: jax.Array
    start: Any
    width: int

    def __getitem__(self, index) -> jax.Array:
        shape = self.array.shape
        scalars = () if index is Ellipsis else index[:-1]
        starts = [*scalars, *[0] * (len(shape) - 1 - len(scalars)), self.start]
        sizes = [*[1] * len(scalars), *shape[len(scalars) : -1], self.width]
        return lax.dynamic_slice(self.array, starts, sizes).reshape(sizes[len(scalars) :])


def _loop(backend, program, state, keys, stored):
    """`machine` for one slot without a kernel: a loop over tiles, for CPUs."""
    batch, features = next(iter(stored.values())).shape
    layout = Layout(batch, features, min(backend.tile, features))
    assert layout.padded == features
    integers, floats = _Scalars.pack(program, state)
    scalars = _Scalars(0, integers[None], floats[None], keys[None])
    norms, m = _norms(program), layout.tile

    def one_tile(number, lines, j):
        views = {name: _View(x, j * m, m) for name, x in stored.items()}
        old = _Carried(lax.dynamic_slice_in_dim(state["small"], j * m, m, 2))
        return _Tile(layout, number, j, scalars, views, old, lines).run()

    if layout.tiles == 1:
        signal, _, rows = one_tile(0, None, 0)
        return signal, rows

    def one_pass(number, carry):
        def next_tile(j, carry):
            signal, partial, rows = carry
            tile, line, new = one_tile(number, lines, j)
            signal = lax.dynamic_update_slice_in_dim(signal, tile, j * m, 1)
            rows = lax.dynamic_update_slice_in_dim(rows, new, j * m, 2)
            return signal, lax.dynamic_update_index_in_dim(partial, line, j, 0), rows

        lines, *results = carry
        results = lax.fori_loop(0, layout.tiles, next_tile, tuple(results))
        norm = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, number, 0, False), norms)
        return lax.dynamic_update_index_in_dim(lines, _divisors(results[1], norm), number, 0), *results

    carry = (
        jnp.ones((PASSES, batch)),
        jnp.zeros((batch, features)),
        jnp.zeros((layout.tiles, batch)),
        state["small"],
    )
    _, signal, _, rows = lax.fori_loop(0, 1 + jnp.sum(_barriers(program)), one_pass, carry)
    return signal, rows


def machine(
    backend: Backend, program: Program, state: State, keys: jax.Array, stored: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """(signals [K, B, M], next rows of state [K, rows, 2, M]) of K slots.

    Everything has a leading slot axis: `keys` [K, draws, 2] uint32, `stored` values [K, B, M].
    """
    slots, batch, features = next(iter(stored.values())).shape
    layout = Layout(batch, features, min(backend.tile, features))
    integers, floats = jax.vmap(_Scalars.pack)(program, state)
    norms = jax.vmap(_norms)(program)
    pad = [(0, 0), (0, 0), (0, layout.padded - features)]
    values = {name: jnp.pad(x, pad) for name, x in stored.items()} if layout.padded > features else stored
    rows = jnp.pad(state["small"], [(0, 0), *pad]) if layout.padded > features else state["small"]
    count = rows.shape[1]

    tile = pl.BlockSpec((None, batch, layout.tile), lambda k, j: (k, 0, j))
    state_tile = pl.BlockSpec((None, count, 2, layout.tile), lambda k, j: (k, 0, 0, j))
    partial_tile = pl.BlockSpec((None, None, 1, batch), lambda k, j: (k, j, 0, 0))
    lines_tile = pl.BlockSpec((None, PASSES, batch), lambda k, j: (k, 0, 0))

    def kernel(pass_number, integers, floats, keys, old, lines, *references):
        inputs, (signal, partial, new) = references[: len(values)], references[-3:]
        number, slot, j = pass_number[0], pl.program_id(0), pl.program_id(1)
        scalars = _Scalars(slot, integers, floats, keys)

        @pl.when(number <= scalars.integer("barriers"))
        def _():
            found = _Tile(layout, number, j, scalars, dict(zip(values, inputs, strict=True)), _InReferences(old, new), lines)
            signal[...], partial[0, :], _ = found.run()

    def scalar_spec(x):
        if backend.scalars is not None:
            return pl.BlockSpec(memory_space=backend.scalars)
        return pl.BlockSpec(x.shape, lambda k, j: (0,) * x.ndim)

    out = [
        jax.ShapeDtypeStruct((slots, batch, layout.padded), jnp.float32),
        jax.ShapeDtypeStruct((slots, layout.tiles, 1, batch), jnp.float32),
        jax.ShapeDtypeStruct(rows.shape, jnp.float32),
    ]

    def one_pass(number, carry):
        lines, *results = carry
        arguments = jnp.full(1, number, jnp.int32), integers, floats, keys, rows, lines, *values.values(), *results
        results = pl.pallas_call(
            kernel,
            grid=(slots, layout.tiles),
            in_specs=[
                *map(scalar_spec, arguments[:4]),
                state_tile,
                lines_tile,
                *[tile] * len(values),
                tile,
                partial_tile,
                state_tile,
            ],
            out_specs=[tile, partial_tile, state_tile],
            out_shape=out,
            input_output_aliases={len(arguments) - 3 + k: k for k in range(3)},
            interpret=backend.interpret,
            compiler_params=backend.options,
            name="rule_pass",
        )(*arguments)
        norm = jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, number, 1, False), norms)
        divisors = jax.vmap(_divisors)(results[1][:, :, 0], norm)
        return lax.dynamic_update_index_in_dim(lines, divisors, number, 1), *results

    carry = jnp.ones((slots, PASSES, batch), jnp.float32), *(jnp.zeros(s.shape, s.dtype) for s in out)
    if backend.interpret:
        passes = 1 + jnp.max(jax.vmap(lambda p: jnp.sum(_barriers(p)))(program))
        carry = lax.fori_loop(0, passes, one_pass, carry)
    else:  # no loop that the host would have to take part in
        for number in range(PASSES):
            carry = one_pass(number, carry)
    _, *results = carry
    return results[0][..., :features], results[2][..., :features]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledRule:
    """A rule whose equation is data, run by the machine on tiles. Agrees with InterpretedRule up to rounding.

    Args:
        program: From `assemble`, one that `takes` accepts; its leaves may be traced, and stacked over candidates.
    """

    program: Program
    backend: Backend = dataclasses.field(metadata={"static": True})

    needs_noise = True
    equation_is_data = False  # it may be vectorised: mapped slots are one axis of the kernel's grid

    @property
    def reads(self) -> frozenset[str]:
        return formulas.unit_values()

    def __str__(self) -> str:
        return "(an equation as data)"

    def init(self, shapes: UnitShapes) -> State:
        rows, _ = p.state_rows(self.program.load.shape[-1] // 2)
        small = jnp.zeros((rows, 2, shapes.matrix("X")[1]), jnp.float32)
        return {"small": small, "step": jnp.float32(0), "uses": jnp.float32(1)}

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        self.program.check()
        program, shape = jax.tree.map(jnp.asarray, self.program), unit.shapes.X
        found: dict[str, jax.Array] = {}

        def operand(name: str) -> jax.Array:
            if name not in found:
                made = formulas.definition(name) is not None
                found[name] = formulas.formula_value(unit, name, operand) if made else unit.values.read(name)
            return found[name]

        stored = {name: operand(name).reshape(unit.shapes.matrix("X")) for name in _stored(self.program.registered)}
        assert unit.key is not None
        draws = jnp.arange(program.load.shape[0])
        keys = jax.random.key_data(jax.vmap(lambda n: jax.random.fold_in(unit.key, n))(draws))
        signal, small = _slots(self.backend)(program, state, keys, stored)
        step = state["step"] / statistics.uses(state) + 1
        return signal.reshape(shape), {"small": small, "step": step, "uses": jnp.float32(1)}


@functools.cache
def _slots(backend: Backend):
    """The machine for one slot; under vmap, for all of them in one kernel."""

    @jax.custom_batching.custom_vmap
    def one(*arguments):
        if backend.loop:
            return _loop(backend, *arguments)
        signals, small = machine(backend, *jax.tree.map(lambda x: x[None], arguments))
        return signals[0], small[0]

    @one.def_vmap
    def many(size, batched, *arguments):
        each = jax.tree.map(lambda x, b: x if b else jnp.broadcast_to(x, (size, *x.shape)), arguments, tuple(batched))
        return machine(backend, *each), (True, True)

    return one
