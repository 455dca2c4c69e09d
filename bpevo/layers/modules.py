"""Flax layers that train with any backward equation."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bpevo.layers import convolution
from bpevo.layers.constants import Initializer, draw_constants, logits_shape
from bpevo.layers.linear import ConvMap, DenseMap, Linear, PooledDenseMap, apply
from bpevo.layers.unit import (
    Activation,
    Weights,
    along_features,
    as_rule,
    check_elementwise,
    check_not_empty,
    identity,
    unit,
)
from bpevo.rules import OPERANDS, Rule, UnitShapes

OVERWRITE = "_overwrite_with_gradient"  # collection whose gradient is its next value (Flax's convention)
FEEDBACK = "feedback"  # collection of R, S, R_L and whatever else is drawn


class _RuleLayer(nn.Module):
    """Shared by Dense and Conv: parameters, feedback constants, rule state."""

    def _run(self, linear: Linear, x: jax.Array, carrier: jax.Array | None, kernel_shape: tuple[int, ...]):
        rule = None if self.rule is None else as_rule(self.rule)
        name, activation = type(self).__name__, self.activation or identity
        if rule is not None or 0 in kernel_shape:
            check_not_empty(name, x.shape, kernel_shape)
        he = nn.initializers.normal((2.0 / math.prod(kernel_shape[:-1])) ** 0.5)
        kernel = self.param("kernel", self.kernel_init or he, kernel_shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, kernel_shape[-1:], self.param_dtype) if self.use_bias else None
        dtype = self.dtype or (x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32)
        x = x.astype(dtype)
        if rule is None:
            y = apply(linear, activation(x), kernel.astype(dtype))
            y = y if bias is None else y + along_features(bias, y)
            return y if carrier is None else (y, carrier)

        check_elementwise(activation, x.ndim)
        reads = rule.reads
        if carrier is None and "b_L" in reads:
            raise ValueError(
                f"the rule {rule} needs the signal at the logits: pass a carrier (bpevo.layers.carrier) through the "
                f"layers as {name}(…)(x, carrier) and add it to the logits"
            )
        z = jnp.zeros((x.shape[0], 1), jnp.float32) if carrier is None else carrier
        z_shape = logits_shape(x.shape, z.shape) if z.ndim > 1 else None
        if z_shape is None:
            raise ValueError(
                f"{name} got x {list(x.shape)} and a carrier {list(z.shape)}: a carrier has the shape of the logits, [B, …, C], "
                "and the samples of x"
            )
        hp_next = jax.eval_shape(linear.forward, x, jax.ShapeDtypeStruct(kernel_shape, dtype))
        shapes = UnitShapes(x.shape, hp_next.shape, z_shape, kernel_shape)

        where, weights = "/".join(self.path) or name, Weights(kernel, bias)
        constants, state = self._constants(where, reads, shapes), {}
        if jax.tree.leaves(jax.eval_shape(lambda: rule.init(shapes))):
            state = self.variable(OVERWRITE, "rule", lambda: rule.init(shapes)).value
        noise = rule.needs_noise and self.has_rng("noise") and not self.is_initializing()
        key = self.make_rng("noise") if noise else None
        y, b_L = unit(  # noqa: N806 (the paper's name)
            linear, activation, where, rule, x, z.reshape(z_shape), weights, constants, state, key
        )
        return y if carrier is None else (y, b_L.reshape(z.shape))

    def _constants(self, where: str, reads: frozenset[str], shapes: UnitShapes) -> dict[str, jax.Array]:
        """The drawn operands that the rule reads."""
        needed = [o.name for o in OPERANDS.values() if o.draw and o.name in reads]
        drawn: dict[str, jax.Array] = {}
        if needed and self.is_initializing():
            # Folded in once more, so that R differs from W even if both streams start from one key.
            key = jax.random.fold_in(self.make_rng(FEEDBACK), 1)
            drawn = draw_constants(key, where, reads, shapes, self.kernel_init)
        return {name: self.variable(FEEDBACK, name, lambda n=name: drawn[n]).value for name in needed}


class Dense(_RuleLayer):
    """The unit [activation, x @ kernel + bias] with the backward signal of a rule.

    Calls map x [B, …, I] to [B, …, O], or (x, carrier [B, …, C]) to ([B, …, O], carrier). To a rule the first axis is that of
    samples, a row of its matrices; where x and carrier share further axes, positions, b_L and R_L are those of a position.

    Args:
        features: O.
        rule: What the layer below gets for a signal: a Rule, the text of an equation or the name of a rule; None is standard
            backprop.
        activation: Acts on x, element by element; None is the identity.
        use_bias: Whether there is a bias.
        dtype: Of the computation; None: that of x. Rules compute in float32.
        param_dtype: Of kernel and bias.
        kernel_init: Initial law of the kernel, and of R; None: N(0, 2/fan_in).
        bias_init: Initial law of the bias.

    Raises:
        ValueError: When called: x is not [B, …, I] or empty; the activation is not element by element; the rule is no equation;
            it reads b_L and there is no carrier, or one of other samples; R_L would be too large. When the gradient is taken:
            it reads b_L and the carrier was not added to the logits, or it draws noise and apply got no key.

    >>> import bpevo
    >>> layer = Dense(3, bpevo.rules.compile("unit_fro(g)"))
    >>> x = jnp.ones((2, 4))
    >>> variables = layer.init(jax.random.key(0), x)
    >>> signal = jax.grad(lambda x: jnp.sum(layer.apply(variables, x)))(x)
    >>> print(f"{jnp.linalg.norm(signal):.4f}")
    1.0000
    """

    features: int
    rule: Rule | str | None = None
    activation: Activation | None = nn.relu
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, carrier: jax.Array | None = None):
        if x.ndim < 2:
            raise ValueError(f"Dense needs [B, …, I] but got shape {x.shape}")
        return self._run(DenseMap(), x, carrier, (x.shape[-1], self.features))


class PooledDense(Dense):
    """The unit [activation, mean over positions and Dense]: a convolutional network's head.

    Calls map x [B, H, W, I] to [B, O], or (x, carrier) to (…, carrier); Args and Raises as of `Dense`.

    >>> layer, x = PooledDense(3), jnp.ones((2, 5, 5, 4))
    >>> layer.init_with_output(jax.random.key(0), x)[0].shape
    (2, 3)
    """

    @nn.compact
    def __call__(self, x: jax.Array, carrier: jax.Array | None = None):
        if x.ndim != 4:
            raise ValueError(f"PooledDense needs [B, H, W, I] but got shape {x.shape}")
        return self._run(PooledDenseMap(x.shape[1:3]), x, carrier, (x.shape[-1], self.features))


def _pair(numbers: int | Sequence[int]) -> tuple[int, ...]:
    return (numbers, numbers) if isinstance(numbers, int) else tuple(numbers)


class Conv(_RuleLayer):
    """The unit [activation, convolution] with the backward signal of a rule.

    Calls map x [B, …, H, W, I] to [B, …, H', W', O], or (x, carrier) to (…, carrier).

    Args:
        features: O.
        kernel_size: One number, or (kh, kw).
        strides: One number, or one for each axis.
        padding: "SAME" or "VALID".
        rule, activation, use_bias, dtype, param_dtype, kernel_init, bias_init: As of `Dense`.

    Raises:
        ValueError: When called: x is not [B, …, H, W, I], or as `Dense`.

    >>> layer, x = Conv(3, (5, 5), strides=2), jnp.ones((2, 8, 8, 1))
    >>> layer.init_with_output(jax.random.key(0), x)[0].shape
    (2, 4, 4, 3)
    """

    features: int
    kernel_size: int | Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: str = "SAME"
    rule: Rule | str | None = None
    activation: Activation | None = nn.relu
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: Initializer | None = None
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array, carrier: jax.Array | None = None):
        if x.ndim < 4:
            raise ValueError(f"Conv needs [B, …, H, W, I] but got shape {x.shape}")
        if self.padding not in ("SAME", "VALID"):
            raise ValueError(f"padding must be 'SAME' or 'VALID', not {self.padding!r}")
        size, strides, kernel = x.shape[-3:-1], _pair(self.strides), _pair(self.kernel_size)
        linear = ConvMap(size, kernel, convolution.window(size, kernel, strides, self.padding))
        return self._run(linear, x, carrier, (*kernel, x.shape[-1], self.features))


def carrier(*logits: int) -> jax.Array:
    """A zero carrier, which brings b_L to every unit: pass it from bottom to top and add it to the logits.

    Args:
        *logits: Their shape: B, C, or with positions B, …, C.

    Returns:
        Zeros in that shape, float32.

    >>> import bpevo
    >>> class Net(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         c = carrier(x.shape[0], 3)
    ...         x, c = Dense(8, bpevo.rules.compile("dfa"))(x, c)
    ...         x, c = Dense(3, bpevo.rules.compile("dfa"))(x, c)
    ...         return x + c
    >>> Net().init_with_output(jax.random.key(0), jnp.ones((2, 4)))[0].shape
    (2, 3)
    """
    return jnp.zeros(logits, jnp.float32)
