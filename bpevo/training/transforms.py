"""What may be done to the loss gradient before weight decay and momentum: controls of the rules, and grafting.

A rule changes the signal inside the backward pass; these change the parameter gradient after it. A training chooses
one by name, so that they share the program, the slots and the tuning of the rules they are compared with.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpevo.rules.components import EPSILON

CLIP_NORM = 1.0
GRAFTED = "grafted"  # no function of the gradient alone: a second backward pass gives the lengths


def block_normalised(gradient: Any, params: Any) -> Any:
    """Each layer's gradient (its kernel and bias, or scale and offset) over its Euclidean norm (1707.04822)."""
    del params

    def is_block(node) -> bool:
        return isinstance(node, dict) and not any(isinstance(child, dict) for child in node.values())

    def normalise(block):
        norm = optax.tree.norm(block) + EPSILON
        return jax.tree.map(lambda g: g / norm, block)

    return jax.tree.map(normalise, gradient, is_leaf=is_block)


def clip_global_norm(gradient: Any, params: Any) -> Any:
    """The whole gradient scaled down to the norm `CLIP_NORM` where it is longer (1211.5063)."""
    del params
    norm = optax.tree.norm(gradient)
    return jax.tree.map(lambda g: g * (CLIP_NORM / jnp.maximum(norm, CLIP_NORM)), gradient)


def lars(gradient: Any, params: Any) -> Any:
    """Each tensor's gradient in the length of the tensor itself, as LARS scales it (1708.03888).

    A tensor of zeros, as a bias at the start, and a gradient of zeros stay as they are.
    """

    def scaled(g, w):
        direction, norm = unit_and_norm(g)
        length = jnp.linalg.norm(w)
        return jnp.where((norm > 0) & (length > 0), direction * length, g)

    return jax.tree.map(scaled, gradient, params)


def graft(gradient: Any, true: Any) -> Any:
    """Each tensor's direction from `gradient`, its length from `true` (2002.11803); zeros stay zeros."""
    return jax.tree.map(lambda g, t: unit_and_norm(g)[0] * unit_and_norm(t)[1], gradient, true)


def unit_and_norm(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An array over its Euclidean norm, and the norm; squares of entries beyond 1e19 would leave the range of float32."""
    largest = jnp.max(jnp.abs(x))
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.linalg.norm(x)
    return x / jnp.where(norm > 0, norm, 1), largest * norm


# An extension point: name -> function of the gradient's and the parameters' pytrees. The empty name is the gradient as it is.
#     TRANSFORMS["sign"] = lambda gradient, params: jax.tree.map(jnp.sign, gradient)
#     Task(…, transforms=("sign",)); Training(equation, 0.1, transform="sign")
TRANSFORMS: dict[str, Callable[[Any, Any], Any]] = {
    "": lambda gradient, params: gradient,
    "block_normalised": block_normalised,
    "clip_global_norm": clip_global_norm,
    "lars": lars,
}


def transformed(names: Sequence[str], index: jax.Array, gradient: Any, params: Any, true: Callable[[], Any]) -> Any:
    """`gradient` under the transform `names[index]`; `true` gives backprop's and is called for GRAFTED alone."""

    def branch(name: str) -> Callable[[], Any]:
        if name == GRAFTED:
            return lambda: graft(gradient, true())
        return lambda: TRANSFORMS[name](gradient, params)

    return lax.switch(index, [branch(name) for name in names])
