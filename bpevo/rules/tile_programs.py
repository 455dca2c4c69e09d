"""Programs for the machine on tiles: which it takes, what they read, and their numbers as a kernel gets them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpevo.rules import components, formulas, statistics
from bpevo.rules import program as p
from bpevo.rules.components import BINARIES, OPERANDS, UNARIES, Component
from bpevo.rules.expression import BinaryNode, Expression, OperandNode, UnaryNode
from bpevo.rules.program import Program
from bpevo.rules.types import BASES
from bpevo.rules.unit import State

PASSES = 4  # 99 % of random equations have at most three norms that need all tiles
_X = BASES.index("X")
_COL = p.AXES.index("col")


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
    return fits and int(barriers(program).sum()) < PASSES


def _is_x(load: str) -> bool:
    return load in (p.ACCUMULATOR, p.NOTHING) or OPERANDS[load].base == "X"


def _live(program: Program, function: str) -> Any:
    """shape=[T, 2], bool: where a program does this. Of NumPy or traced arrays."""
    runs = (np.arange(2) < program.turns[:, None]) & (np.arange(program.turns.shape[0]) < program.length)[:, None]
    return runs & (program.function == p.codes().functions.index(function))


def barriers(program: Program) -> Any:
    """shape=[T, 2], bool: the functions that end a pass."""
    of_columns = (program.detail[..., 1] == _COL) & (program.detail[..., 2] == 0)
    return _live(program, p.NORM) & ~of_columns


def _of_tile(node: Expression) -> bool:
    """Whether a tile of a formula's value needs only that tile of values of the unit, or b_L and that tile's columns of R_L."""
    match node:
        case OperandNode():
            return OPERANDS[node.name].base == "X"
        case UnaryNode():
            entry = UNARIES[node.name]
            return bool(entry.fn or entry.affine) and _of_tile(node.x)
        case BinaryNode(left=OperandNode(name="b_L"), right=OperandNode(name="R_L")):
            return BINARIES[node.name].structure == "product"
        case BinaryNode():
            binary = BINARIES[node.name]
            return _of_tile(node.left) and (binary.structure == "left" or bool(binary.fn) and _of_tile(node.right))
    return False


@functools.cache
def _made_of(registered: tuple[Component, ...]) -> dict[str, frozenset[str]]:
    """The arrays that every operand of type X needs: itself, or what its formula is made of."""
    assert registered == components.extensions()

    def arrays(name: str) -> frozenset[str]:
        node = formulas.definition(name)
        if node is None or not _of_tile(node):
            return frozenset([name])
        return frozenset().union(*(arrays(n.name) for n in formulas.live(node) if isinstance(n, OperandNode)))

    return {name: arrays(name) for name, operand in OPERANDS.items() if operand.base == "X"}


def made_of(load: str) -> frozenset[str]:
    """The arrays that a kernel reads where a program loads this."""
    return _made_of(components.extensions()).get(load, frozenset())


def stored() -> list[str]:
    """Operands that a kernel gets as arrays: [B, M], b_L [C, B] and R_L [C, M]; it makes all others of type X of them."""
    needed = frozenset().union(*_made_of(components.extensions()).values())
    return [name for name in OPERANDS if name in needed]


def used(program: Program) -> jax.Array:
    """shape=[len(stored())], int32: whether a program reads each of them."""
    table = np.array([[name in made_of(load) for name in stored()] for load in p.codes().loads])
    live = jnp.arange(program.load.shape[0]) < program.length
    return jnp.any(jnp.asarray(table)[program.load] & live[:, None], 0).astype(jnp.int32)


def reads_product(program: Program, name: str) -> Any:
    """Whether a program, or each of stacked ones, needs gh or fah, whatever it reads that is made of them. Of NumPy or traced
    arrays."""
    return program.uses[..., p.codes().products.index(name)] > 0


def reads_both_products(program: Program) -> Any:
    """Whether a program, or each of stacked ones, needs gh as well as fah, two products of one signal."""
    return reads_product(program, "gh") & reads_product(program, "fah")


class Scalars:
    """A program's numbers in two small arrays, [T, …] int32 and float32, read one at a time inside the kernel."""

    def __init__(self, slot, integers, floats, keys):
        self._slot, self._integers, self._floats, self._keys = slot, integers, floats, keys

    def integer(self, name: str, t=0, i=0):
        return self._integers[self._slot, t, _place(_integers(), name) + i]

    def real(self, name: str, t=0, i=0):
        return self._floats[self._slot, t, _place(_FLOATS, name) + i]

    def norm(self, number) -> p.Norm:
        """The norm that ends a pass."""
        return p.Norm(*(self.integer("norms", 0, 3 * number + k) for k in range(3)))

    def key(self, number) -> tuple[jax.Array, jax.Array]:
        """The two words of the key of a draw."""
        return self._keys[self._slot, number, 0], self._keys[self._slot, number, 1]


_FLOATS = {"constant": 2, "affine": 5, "weight": 1, "uses": 1}


def _integers() -> dict[str, int]:
    """Columns of the integers: of an instruction; and, the same in every line, of the program."""
    of_instruction = {"load": 1, "turns": 1, "function": 2, "average": 2, "detail": 6, "combine": 1}
    return of_instruction | {"length": 1, "ends": 1, "norms": 3 * PASSES, "used": len(stored()), "statistics": 1}


def _place(fields: dict[str, int], name: str) -> int:
    names = list(fields)
    return sum(fields[n] for n in names[: names.index(name)])


def norms(program: Program) -> jax.Array:
    """shape=[3 PASSES]: order, axis and of_sums of each norm that ends a pass."""
    ends = barriers(program).reshape(-1)
    hit = ends & (jnp.cumsum(ends) - 1 == jnp.arange(PASSES)[:, None])
    return jnp.sum(jnp.where(hit[..., None], program.detail.reshape(-1, 3), 0), 1).reshape(-1)


def pack(program: Program, state: State, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What `Scalars` reads, of one program, its state and the unit's key: int32 and float32 [T, …], uint32 [T, 2]."""
    t, uses = program.load.shape[0], statistics.uses(state)
    whole = {
        "length": program.length,
        "ends": jnp.sum(barriers(program)),
        "norms": norms(program),
        "used": used(program),
        "statistics": jnp.any(_live(program, p.STATISTIC)),
        "weight": statistics.weight_of_step(state["step"] / uses + 1),
        "uses": uses,
    }

    def columns(fields: dict[str, int], dtype) -> jax.Array:
        values = [
            jnp.broadcast_to(jnp.reshape(whole[n], -1), (t, width))
            if n in whole
            else jnp.reshape(getattr(program, n), (t, width))
            for n, width in fields.items()
        ]
        return jnp.concatenate([jnp.asarray(v, dtype) for v in values], 1)

    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(t))  # at most one draw an instruction
    return columns(_integers(), jnp.int32), columns(_FLOATS, jnp.float32), jax.random.key_data(keys)
