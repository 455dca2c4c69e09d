"""How far the evolved signal is from the true one: cosine and norm ratio of b_i^p in every unit.

The true signal is that of a backward pass of its own in which every unit has the rule `g`, at the same parameters, on the
same batch; not the rule's operand `g`, which is made from the evolved signal above. Signals are recorded in the state of
rules, whose "gradient" is its next value, so that networks know nothing of it: ours and those of `bpevo.evolve` alike.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.rules import Rule, Unit, UnitShapes
from bpevo.training.transforms import unit_and_norm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recorded:
    """State of a recording rule."""

    rule: Any  # the rule's own
    signal: jax.Array  # b_i^p of the last step


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recording:
    """A rule that keeps the signal that it sends down."""

    rule: Rule

    def init(self, shapes: UnitShapes) -> Recorded:
        return Recorded(self.rule.init(shapes), jnp.zeros(shapes.X, jnp.float32))

    def signal(self, unit: Unit, state: Recorded) -> tuple[jax.Array, Recorded]:
        signal, inner = self.rule.signal(unit, state.rule)
        return signal, Recorded(inner, signal)

    @property
    def needs_noise(self) -> bool:
        return self.rule.needs_noise

    @property
    def reads(self) -> frozenset[str]:
        return self.rule.reads

    @property
    def equation_is_data(self) -> bool:
        return self.rule.equation_is_data


def _is_recorded(node: Any) -> bool:
    return isinstance(node, Recorded)


def recorded(state: Mapping[str, Any], above: tuple[str, ...] = ()) -> dict[str, Recorded]:
    """What each unit recorded, by name, in the order in which the units were made: forward."""
    if "rule" in state:
        (found,) = filter(_is_recorded, jax.tree.leaves(state["rule"], is_leaf=_is_recorded))
        return {"/".join(above): found}
    inside = (recorded(entry, (*above, name)) for name, entry in state.items())
    return {name: found for units in inside for name, found in units.items()}


def recording(state: Mapping[str, Any], blank: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state of recording rules, `blank`, with everything else as in a `state` of the rules alone."""
    values = iter(jax.tree.leaves(state))

    def filled(node):
        if _is_recorded(node):
            return Recorded(jax.tree.map(lambda _: next(values), node.rule), node.signal)
        return next(values)

    return jax.tree.map(filled, blank, is_leaf=_is_recorded)


def signals(loss: Callable[[Any], jax.Array], state: Mapping[str, Any]) -> dict[str, jax.Array]:
    """b_i^p of each unit by name; `loss` is a function of a state of recording rules."""
    return {name: found.signal for name, found in recorded(jax.grad(loss)(state)).items()}


def compare(evolved: Mapping[str, jax.Array], true: Mapping[str, jax.Array], names: list[str]) -> jax.Array:
    """Cosine and norm ratio |evolved| / |true| of each unit: [L, 2], float32; 0 where a signal vanishes."""

    def pair(x: jax.Array, y: jax.Array) -> jax.Array:
        (x, a), (y, b) = (unit_and_norm(v.ravel().astype(jnp.float32)) for v in (x, y))
        return jnp.stack([jnp.vdot(x, y), jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0.0)])

    return jnp.stack([pair(evolved[name], true[name]) for name in names])
