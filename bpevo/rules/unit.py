"""What a rule sees of a unit, and what a rule is.

A unit is [activation, linear map]: it maps h_i^p (`hp`) to h_{i+1}^p (`hp_next`). The linear map's products come as
functions so that this room knows neither dense layers nor convolutions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp

State = Any  # a rule's running statistics for one unit: a pytree of float32 arrays


@dataclasses.dataclass(frozen=True)
class UnitShapes:
    """Shapes of a unit's values, the sample axis first."""

    X: tuple[int, ...]  # [B, (H, W,) I]
    Y: tuple[int, ...]  # [B, (H', W',) O]
    Z: tuple[int, ...]  # [B, C]
    K: tuple[int, ...]  # [(kh, kw,) I, O]

    @property
    def F(self) -> tuple[int, ...]:  # noqa: N802 (the type's name)
        return (self.Z[1], *self.X[1:])

    def of(self, base: str) -> tuple[int, ...]:
        return getattr(self, base)

    def matrix(self, base: str) -> tuple[int, int]:
        """Rows and columns of the matrix form."""
        shape = self.of(base)
        split = -1 if base == "K" else 1
        rows, columns = 1, 1
        for n in shape[:split]:
            rows *= n
        for n in shape[split:]:
            columns *= n
        return rows, columns


@dataclasses.dataclass(frozen=True)
class Unit:
    """The values of one unit in one backward pass, float32 in their native shapes, and its linear map."""

    hp: jax.Array  # X
    h: jax.Array  # X
    dh: jax.Array  # X, ∂h/∂hp
    hp_next: jax.Array  # Y
    b_next: jax.Array  # Y, the signal from above
    b_L: jax.Array  # Z  # noqa: N815 (the paper's name)
    W: jax.Array  # K
    R: jax.Array  # K
    S: jax.Array  # K
    R_L: jax.Array  # F
    forward: Callable[[jax.Array, jax.Array], jax.Array]  # X, K -> Y
    backward: Callable[[jax.Array, jax.Array], jax.Array]  # Y, K -> X, the product with the transposed weight
    key: jax.Array | None  # noise of this unit and step

    @property
    def shapes(self) -> UnitShapes:
        return UnitShapes(self.hp.shape, self.hp_next.shape, self.b_L.shape, self.W.shape)

    def product(self, activation: jax.Array, name: str, weight: jax.Array) -> jax.Array:
        """The product `name` of bpevo.rules.types.PRODUCTS: X·K, Y·Kᵀ, Z·F or X·Fᵀ."""
        if name == "XK":
            return self.forward(activation, weight)
        if name == "YK":
            return self.backward(activation, weight)
        if name == "ZF":
            return jnp.tensordot(activation, weight, 1)
        axes = tuple(range(1, activation.ndim))
        return jnp.tensordot(activation, weight, (axes, axes))


class Rule(Protocol):
    """A backward equation ready to run. Rules are pytrees: what is data in them may be traced and mapped."""

    def init(self, shapes: UnitShapes) -> State:
        """Fresh running statistics for a unit."""

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        """b_i^p, float32 in the shape of `unit.hp`, and the next state."""

    @property
    def needs_noise(self) -> bool: ...

    @property
    def operands(self) -> frozenset[str]:
        """Names of the operands it may read."""
