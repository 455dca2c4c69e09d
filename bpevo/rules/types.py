"""The symbolic types of values in a backward equation, one table for dense layers and convolutions.

Shape letters: B batch, I inputs and O outputs of the unit's linear map (for a convolution all but the
sample axis are joined), C classes. Symbols decide, never numbers: I = O = 16 is still a mismatch.
"""

import dataclasses

import jax
import jax.numpy as jnp


class RuleSyntaxError(ValueError):
    """The text is no expression of the language."""


class InfeasibleEquation(ValueError):  # noqa: N818 (the name is part of the product)
    """The expression is well formed but its shapes do not fit."""


BASES = ("X", "Y", "Z", "K", "F")
WEIGHTS = ("K", "F")  # no sample axis
_DIMENSIONS = {"X": ("B", "I"), "Y": ("B", "O"), "Z": ("B", "C"), "K": ("I", "O"), "F": ("C", "I")}
# name: (activation, weight, weight is transposed, result)
PRODUCTS = {
    "XK": ("X", "K", False, "Y"),
    "YK": ("Y", "K", True, "X"),
    "ZF": ("Z", "F", False, "X"),
    "XF": ("X", "F", True, "Z"),
}


@dataclasses.dataclass(frozen=True)
class Type:
    """A base (X, Y, Z activations; K, F weights), whether it is a [1, ·] sample average, and a lazy transposition."""

    base: str
    average: bool = False
    transposed: bool = False

    @property
    def dimensions(self) -> tuple[str, str]:
        rows, columns = _DIMENSIONS[self.base]
        rows = "1" if self.average else rows
        return (columns, rows) if self.transposed else (rows, columns)

    def __str__(self) -> str:
        return f"[{', '.join(self.dimensions)}]"

    def transpose(self) -> "Type":
        return dataclasses.replace(self, transposed=not self.transposed)

    def mean(self) -> "Type":
        """The type of a running mean or deviation: an average over samples; weights keep their shape."""
        return self if self.base in WEIGHTS else dataclasses.replace(self, average=True)


SIGNAL = Type("X")  # what an equation must result in: [B, I]


def elementwise(a: Type, b: Type, symbol: str) -> Type:
    """Result type of the element-wise binary function that is written with `symbol`; raises InfeasibleEquation."""
    if (a.base, a.transposed) != (b.base, b.transposed):
        raise InfeasibleEquation(f"{symbol} needs two operands of one shape but got {a} and {b}")
    return dataclasses.replace(a, average=a.average and b.average)


@dataclasses.dataclass(frozen=True)
class Product:
    """How to compute a matrix product: the activation on the left or, mirrored, transposed on the right."""

    result: Type
    name: str  # of PRODUCTS
    mirrored: bool  # (K' X') computed as (X K)'


def product(a: Type, b: Type) -> Product:
    """Result type of `a @ b`; raises InfeasibleEquation. A product with a weight is the unit's (transposed) linear map."""
    mirrored = a.base in WEIGHTS
    activation, weight = (b, a) if mirrored else (a, b)
    name = activation.base + weight.base
    if name in PRODUCTS and activation.transposed == mirrored:
        _, _, weight_transposed, result = PRODUCTS[name]
        if weight.transposed == (weight_transposed != mirrored):
            return Product(Type(result, activation.average, mirrored), name, mirrored)
    inner = "" if a.dimensions[1] != b.dimensions[0] else " (only products of an activation with a weight exist)"
    raise InfeasibleEquation(f"the matrix product @ cannot join {a} and {b}{inner}")


def matrix(value: jax.Array, base: str) -> jax.Array:
    """The matrix form: activations [B, H·W·C], kernels [kh·kw·I, O], R_L [C, H·W·I]."""
    if base == "K":
        return jnp.reshape(value, (-1, value.shape[-1]))
    return jnp.reshape(value, (value.shape[0], -1))
