"""A multilayer perceptron of rule-driven units."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bpevo import layers
from bpevo.models.wide_resnet import identity
from bpevo.rules import Rule


class MLP(nn.Module):
    """Maps [B, ...] float32 to logits [B, classes] float32.

    The first Dense is a plain layer, each further one a unit [ReLU, Dense].
    """

    hidden: Sequence[int]
    classes: int = 10
    rule: Rule | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        del train
        carrier = layers.carrier(x.shape[0], self.classes)
        x = layers.Dense(self.hidden[0], activation=identity, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        for features in (*self.hidden[1:], self.classes):
            x, carrier = layers.Dense(features, self.rule, dtype=self.dtype)(x, carrier)
        return x.astype(jnp.float32) + carrier
