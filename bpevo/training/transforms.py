"""What may be done to the loss gradient before weight decay and momentum: the hand-made cousins of normalised rules.

A rule changes the signal inside the backward pass; these change the parameter gradient after it. A training chooses
one by name, so that they share the program, the slots and the tuning of the rules they are compared with.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bpevo.rules.components import EPSILON

CLIP_NORM = 1.0


def block_normalised(gradient: Any) -> Any:
    """Each layer's gradient (its kernel and bias, or scale and offset) over its Euclidean norm (1707.04822)."""

    def is_block(node) -> bool:
        return isinstance(node, dict) and not any(isinstance(child, dict) for child in node.values())

    def normalise(block):
        norm = optax.tree.norm(block) + EPSILON
        return jax.tree.map(lambda g: g / norm, block)

    return jax.tree.map(normalise, gradient, is_leaf=is_block)


def clip_global_norm(gradient: Any) -> Any:
    """The whole gradient scaled down to the norm `CLIP_NORM` where it is longer (1211.5063)."""
    norm = optax.tree.norm(gradient)
    return jax.tree.map(lambda g: g * (CLIP_NORM / jnp.maximum(norm, CLIP_NORM)), gradient)


# An extension point: name -> function of the gradient's pytree. The empty name is the gradient as it is.
#     TRANSFORMS["sign"] = lambda gradient: jax.tree.map(jnp.sign, gradient)
#     Training(equation, 0.1, transform="sign")
TRANSFORMS: dict[str, Callable[[Any], Any]] = {
    "": lambda gradient: gradient,
    "block_normalised": block_normalised,
    "clip_global_norm": clip_global_norm,
}


def transformed(index: jax.Array, gradient: Any) -> Any:
    """`gradient` under the transform of that index in TRANSFORMS."""
    return lax.switch(index, list(TRANSFORMS.values()), gradient)
