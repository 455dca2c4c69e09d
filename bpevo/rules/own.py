"""A rule of one's own: a Python function of a unit's values."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.rules import formulas
from bpevo.rules.components import OPERANDS
from bpevo.rules.unit import State, Unit, UnitShapes, Values


class UnitView:
    """What a function that is a rule gets: every operand of the language as an array, float32 in its native shape.

    `u.g`, `u.h`, `u.W`, `u.R` … are plain arrays for `jnp`. Products are the unit's own map: `u.forward(x, weight)` is the
    language's x @ weight and `u.backward(b, weight)` is b @ weight.T, for a convolution the convolution and its transpose.
    `u.key` is a key for noise, fresh each step. There are no running statistics: a rule with those is an equation or a class.
    """

    def __init__(self, unit: Unit):
        self._unit, self._asked = unit, set[str]()

    def __getattr__(self, name: str) -> jax.Array:
        if name.startswith("_") or name not in OPERANDS:
            raise AttributeError(f"a unit has no {name!r}; it has {', '.join(OPERANDS)}, forward, backward and key")
        self._asked |= formulas.reads(name)
        if formulas.definition(name) is None:
            return self._unit.values.read(name)
        return formulas.formula_value(self._unit, name, lambda n: getattr(self, n))

    @property
    def key(self) -> jax.Array | None:
        self._asked.add("key")
        return self._unit.key

    def forward(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """X [B, …, I], K [inputs…, O] -> Y [B, …, O]."""
        return self._unit.forward(x, weight)

    def backward(self, b: jax.Array, weight: jax.Array) -> jax.Array:
        """Y [B, …, O], K [inputs…, O] -> X [B, …, I]."""
        return self._unit.backward(b, weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionRule:
    """The rule of a function `u -> b_i^p`; `compile(function)` makes it.

    Args:
        function: Gets a `UnitView`; returns an array in the shape of `u.hp`. What it reads is found by running it once on
            the shapes of a small dense unit.
    """

    function: Callable[[UnitView], jax.Array] = dataclasses.field(metadata={"static": True})

    equation_is_data = False

    def init(self, shapes: UnitShapes) -> State:
        return {}

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        return self._run(UnitView(unit)), state

    def _run(self, view: UnitView) -> jax.Array:
        value, wanted = self.function(view), view._unit.values.hp.shape
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            raise ValueError(
                f"the rule {self} must return an array in the shape of hp, {list(wanted)}, not {type(value).__name__}"
            )
        if value.shape != wanted:
            raise ValueError(
                f"the rule {self} returned an array of the shape {list(value.shape)}, but the signal has that of hp, "
                f"{list(wanted)}; products are u.forward(x, weight) and u.backward(b, weight)"
            )
        return value.astype(jnp.float32)

    @property
    def needs_noise(self) -> bool:
        return "key" in _asked(self)

    @property
    def reads(self) -> frozenset[str]:
        return _asked(self) - {"key"}

    def __str__(self) -> str:
        return getattr(self.function, "__qualname__", type(self.function).__name__)


@functools.lru_cache(256)
def _asked(rule: FunctionRule) -> frozenset[str]:
    """What the function asks of a unit, by running it on shapes alone."""
    b, i, o, c = 2, 3, 4, 5
    shapes: dict[str, Any] = {"X": (b, i), "Y": (b, o), "Z": (b, c), "K": (i, o), "F": (c, i)}
    asked = set[str]()

    def run(arrays, key):
        constants = {n: arrays.pop(n) for n in list(arrays) if OPERANDS[n].draw}
        unit = Unit(Values(constants=constants, **arrays), lambda x, w: x @ w, lambda y, w: y @ w.T, key)
        view = UnitView(unit)
        try:
            return rule._run(view)
        finally:
            asked.update(view._asked)

    arrays = {n: jax.ShapeDtypeStruct(shapes[OPERANDS[n].base], jnp.float32) for n in formulas.unit_values()}
    try:
        jax.eval_shape(run, arrays, jax.eval_shape(lambda: jax.random.key(0)))
    except Exception as error:
        raise ValueError(
            f"the rule {rule} cannot be computed for a dense unit with {b} samples, {i} inputs, {o} outputs: "
            f"{type(error).__name__}: {error}"
        ) from error
    return frozenset(asked)
