"""A rule whose equation is data, run on tiles."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.rules import formulas, statistics
from bpevo.rules.components import OPERANDS
from bpevo.rules.interpreter import InterpretedRule
from bpevo.rules.kernels import Kernel
from bpevo.rules.loops import Loop
from bpevo.rules.program import Program
from bpevo.rules.tile_programs import pack, reads_product, stored
from bpevo.rules.types import matrix
from bpevo.rules.unit import State, Unit, UnitShapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TiledRule:
    """A rule whose equation is data, run by the machine on tiles (bpevo.rules.tiles).

    Agrees with InterpretedRule up to rounding, and has its state. Under vmap all mapped units are one call of a kernel.

    Args:
        program: From `assemble`, one that `takes` accepts; its leaves may be traced, and stacked over candidates.
        kernel: How it runs.
        both: Whether some program of a kernel's call reads gh as well as fah. If none does, one product is computed for each
            program: with W or, where it reads fah, with R.
    """

    program: Program
    kernel: Kernel | Loop = dataclasses.field(metadata={"static": True})
    both: bool = dataclasses.field(default=True, metadata={"static": True})

    needs_noise = True

    @property
    def equation_is_data(self) -> bool:
        return isinstance(self.kernel, Loop)  # else there is nothing to map: the kernel has an axis of slots

    @property
    def reads(self) -> frozenset[str]:
        return formulas.unit_values()

    def __str__(self) -> str:
        return "(an equation as data)"

    def init(self, shapes: UnitShapes) -> State:
        return InterpretedRule(self.program).init(shapes)

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        self.program.check()
        program = jax.tree.map(jnp.asarray, self.program)
        if isinstance(self.kernel, Loop):
            signal, rows = self.kernel(unit, program, state)
        else:
            signal, rows = self._in_kernel(self.kernel, self.both, unit, program, state)
        step = state["step"] / statistics.uses(state) + 1
        return signal.reshape(unit.shapes.X), state | {"small": rows, "step": step, "uses": jnp.float32(1)}

    @staticmethod
    def _in_kernel(
        kernel: Kernel, both: bool, unit: Unit, program: Program, state: State
    ) -> tuple[jax.Array, jax.Array]:
        found: dict[str, jax.Array] = {}

        def operand(name: str) -> jax.Array:
            if name not in found:
                made = formulas.definition(name) is not None
                found[name] = formulas.formula_value(unit, name, operand) if made else unit.values.read(name)
            return found[name]

        def product(name: str, replaced: str, by: jax.Array) -> jax.Array:
            return formulas.formula_value(unit, name, lambda n: by if n == replaced else operand(n))

        if both:
            # XLA would make one dot of the two, of other rounding; a signal must not depend on a slot's neighbours.
            found["fah"] = product("fah", "b_next", lax.optimization_barrier(operand("b_next")))
        else:
            weight = jnp.where(reads_product(program, "fah"), operand("R"), operand("W"))
            found["gh"] = found["fah"] = product("gh", "W", weight)
        arrays = {name: matrix(operand(name), OPERANDS[name].base) for name in stored()}
        arrays["b_L"] = arrays["b_L"].T
        assert unit.key is not None
        return _over_slots(kernel)(pack(program, state, unit.key), state["small"], arrays)


@functools.cache
def _over_slots(kernel: Kernel):
    """The kernel for one slot; under vmap, called once for all of them."""

    @jax.custom_batching.custom_vmap
    def one(*arguments):
        return jax.tree.map(lambda x: x[0], kernel(*jax.tree.map(lambda x: x[None], arguments)))

    @one.def_vmap
    def all_of_them(slots, batched, *arguments):
        def stacked(x, is_batched):
            return x if is_batched else jnp.broadcast_to(x, (slots, *x.shape))

        out = kernel(*jax.tree.map(stacked, arguments, tuple(batched)))
        return out, jax.tree.map(lambda _: True, out)

    return one
