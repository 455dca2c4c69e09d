"""What a rule sees of a unit, and what a rule is.

A unit is [activation, linear map]: it maps h_i^p (`hp`) to h_{i+1}^p (`hp_next`). The linear map's products come as
functions so that this room knows neither dense layers nor convolutions.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

State = Any  # a rule's running statistics for one unit: a pytree of float32 arrays


@dataclasses.dataclass(frozen=True)
class UnitShapes:
    """Shapes of a unit's values, the sample axis first."""

    X: tuple[int, ...]  # [B, (H, W,) I]
    Y: tuple[int, ...]  # [B, (H', W',) O]
    Z: tuple[int, ...]  # [B, C], or [B, T…, C] with position axes that X shares
    K: tuple[int, ...]  # [(kh, kw,) I, O]

    @property
    def F(self) -> tuple[int, ...]:  # noqa: N802 (the type's name)
        """[C, …]: all of a sample of X, or, where Z has positions, one position."""
        return (self.Z[-1], *self.X[len(self.Z) - 1 :])

    def of(self, base: str) -> tuple[int, ...]:
        return getattr(self, base)

    def matrix(self, base: str) -> tuple[int, int]:
        """Rows and columns of the matrix form."""
        shape = self.of(base)
        split = -1 if base == "K" else 1
        return math.prod(shape[:split]), math.prod(shape[split:])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Values:
    """The values of one unit in one backward pass, float32 in their native shapes; the letters are those of UnitShapes."""

    hp: jax.Array  # X
    h: jax.Array  # X
    dh: jax.Array  # X, ∂h/∂hp
    hp_next: jax.Array  # Y
    b_next: jax.Array  # Y, the signal from above
    b_L: jax.Array  # Z  # noqa: N815 (the paper's name)
    W: jax.Array  # K
    constants: Mapping[
        str, jax.Array
    ]  # R and S (K), R_L (F) and whatever else is drawn; may lack what the rule does not read

    def read(self, name: str) -> jax.Array:
        """The value of an operand that has no formula."""
        return self.constants[name] if name in self.constants else getattr(self, name)


@dataclasses.dataclass(frozen=True)
class Unit:
    """One unit in one backward pass: its values, its linear map and a key for noise."""

    values: Values
    forward: Callable[[jax.Array, jax.Array], jax.Array]  # X, K -> Y
    backward: Callable[[jax.Array, jax.Array], jax.Array]  # Y, K -> X, the product with the transposed weight
    key: jax.Array | None = None  # noise of this unit and step; None where the rule draws none

    @property
    def shapes(self) -> UnitShapes:
        v = self.values
        return UnitShapes(v.hp.shape, v.hp_next.shape, v.b_L.shape, v.W.shape)

    def product(self, activation: jax.Array, name: str, weight: jax.Array) -> jax.Array:
        """The product `name` of bpevo.rules.types.PRODUCTS: X·K, Y·Kᵀ, Z·F or X·Fᵀ."""
        if name == "XK":
            return self.forward(activation, weight)
        if name == "YK":
            return self.backward(activation, weight)
        if name == "ZF":
            return jnp.tensordot(activation, weight, 1)
        axes = tuple(range(1, weight.ndim))
        return jnp.tensordot(activation, weight, (tuple(a - weight.ndim for a in axes), axes))


class Rule(Protocol):
    """An extension point: whatever has these members can be the `rule` of a layer.

    A rule is a pytree: what is data in it may be traced and mapped. `CompiledRule` and `InterpretedRule` are the package's;
    neither needs to be derived from.
    """

    def init(self, shapes: UnitShapes) -> State:
        """Fresh running statistics for a unit: a pytree of float32 arrays, `{}` if there are none.

        What a unit gets at the next step is the sum of the next states of all its uses in a step: a rule with a state of its
        own counts them as bpevo.rules.statistics does.
        """

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        """b_i^p, float32 in the shape of `unit.values.hp`, and the next state, of the same structure and shapes."""

    @property
    def needs_noise(self) -> bool:
        """Whether `unit.key` must be a key, fresh each step."""

    @property
    def reads(self) -> frozenset[str]:
        """Names of the unit's values that it may read (no operands by formula): which constants to draw, and "b_L"."""

    @property
    def equation_is_data(self) -> bool:
        """Whether the equation is in the leaves: then it is mapped over candidates one by one, never vectorised."""
