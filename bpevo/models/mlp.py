"""A multilayer perceptron of rule-driven units."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bpevo import layers
from bpevo.rules import Rule


class MLP(nn.Module):
    """A multilayer perceptron: maps [B, ...] float32 to logits [B, classes] float32.

    The first Dense is a plain layer, each further one a unit [ReLU, Dense].

    Args:
        hidden: Sizes of the hidden layers, at least one.
        classes: Number of logits.
        rule: Backward equation of the units, as of `layers.Dense`; None is standard backprop.
        dtype: Of the computation.

    Raises:
        ValueError: When called, unless `hidden` is a sequence of sizes.

    >>> import bpevo
    >>> net = MLP((8,), classes=3, rule=bpevo.rules.compile("unit_fro(g)"))
    >>> variables = net.init(jax.random.key(0), jnp.zeros((2, 5)))
    >>> net.apply(variables, jnp.zeros((2, 5))).shape
    (2, 3)
    """

    hidden: Sequence[int]
    classes: int = 10
    rule: Rule | str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        del train
        if not isinstance(self.hidden, Sequence) or isinstance(self.hidden, str) or not self.hidden:
            raise ValueError(
                f"MLP takes the sizes of its hidden layers as a tuple, such as (64, 64), not {self.hidden!r}"
            )
        carrier = layers.carrier(x.shape[0], self.classes)
        x = layers.Dense(self.hidden[0], activation=None, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        for features in (*self.hidden[1:], self.classes):
            x, carrier = layers.Dense(features, self.rule, dtype=self.dtype)(x, carrier)
        return x.astype(jnp.float32) + carrier
