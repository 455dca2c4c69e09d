"""Wide ResNet (1605.07146) in pre-activation form; every block convolution and 1x1 shortcut is a unit [ReLU, Conv]."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bpevo import layers
from bpevo.rules import Rule


class WideResNet(nn.Module):
    """WRN-depth-width: maps images [B, H, W, C] float32 to logits [B, classes] float32.

    The stem convolution is a plain layer (nothing lies below it); the head is the unit [ReLU, mean pooling and Dense].
    Batch norm and residual sums keep their standard gradients.

    Args:
        depth: Number of layers, 6n + 4.
        width: Factor of the channels.
        classes: Number of logits.
        rule: Backward equation of the units, as of `layers.Dense`; None is standard backprop.
        dtype: Of the computation.

    Raises:
        ValueError: When called, unless depth = 6n + 4.

    >>> net, images = WideResNet(10, 1, classes=3), jnp.zeros((2, 8, 8, 1))
    >>> variables = jax.eval_shape(net.init, jax.random.key(0), images)
    >>> sum(kernel.ndim == 4 for kernel in jax.tree.leaves(variables["params"]))
    9
    """

    depth: int
    width: int
    classes: int = 10
    rule: Rule | str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"a Wide ResNet's depth is 6n + 4 (10, 16, 22, 28, …), not {self.depth}")
        if x.ndim != 4:
            raise ValueError(
                f"a Wide ResNet takes images [H, W, C], not samples of the shape {list(x.shape[1:])}; an MLP such as mlp-64-64 "
                "takes any"
            )

        def conv(x, carrier, features: int, kernel: int, stride: int):
            layer = layers.Conv(features, (kernel, kernel), stride, rule=self.rule, use_bias=False, dtype=self.dtype)
            return layer(x, carrier)

        def norm(x):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)

        carrier = layers.carrier(x.shape[0], self.classes)
        x = layers.Conv(16, use_bias=False, activation=None, dtype=self.dtype)(x)
        for group, channels in enumerate((16, 32, 64)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group and not block else 1
                features = channels * self.width
                hp = norm(x)
                y, carrier = conv(hp, carrier, features, 3, stride)
                y, carrier = conv(norm(y), carrier, features, 3, 1)
                if x.shape[-1] != features:
                    x, carrier = conv(hp, carrier, features, 1, stride)
                x = x + y
        head = layers.PooledDense(self.classes, self.rule, dtype=self.dtype, name="Dense_0")
        logits, carrier = head(norm(x), carrier)
        return logits.astype(jnp.float32) + carrier
