"""The unit [activation, linear map] whose backward signal is a rule's.

`unit` is a custom_vjp. Its weight and bias gradients are always the standard ones for the signal that arrives; the
gradient of `hp` is what the rule says. The *carrier*, a zero array shaped like the logits, passes through every unit
and is added to the logits at the top, so its cotangent is b_L in every unit. The "gradient" of `state` is the rule's
next state: whoever takes the gradient stores it instead of feeding it to an optimizer (Flax's
`_overwrite_with_gradient` convention). So it is with the constants: their next value is their value.
"""

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from bpevo.layers.linear import Linear
from bpevo.rules import Rule, Unit, Values

Activation = Callable[[jax.Array], jax.Array]


class Weights(NamedTuple):
    kernel: jax.Array  # K, float32
    bias: jax.Array | None  # float32, [O] or what else broadcasts against hp_next


Constants = Mapping[str, jax.Array]  # operands that are drawn once a run, as far as the rule reads them


def _apply(linear: Linear, activation: Activation, hp: jax.Array, weights: Weights) -> jax.Array:
    y = linear.forward(activation(hp), weights.kernel)
    return y if weights.bias is None else y + weights.bias.astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def unit(
    linear: Linear,
    activation: Activation,
    rule: Rule,
    hp: jax.Array,
    carrier: jax.Array,
    weights: Weights,
    constants: Constants,
    state,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(hp_next, carrier). `activation` must act element by element; compute dtype is that of `hp`."""
    return _apply(linear, activation, hp, weights), carrier


def _forward(linear, activation, rule, hp, carrier, weights, constants, state, key):
    hp_next = _apply(linear, activation, hp, weights)
    return (hp_next, carrier), (linear, rule, hp, hp_next, weights, constants, state, key)


def _backward(activation, residuals, cotangents):
    linear, rule, hp, hp_next, weights, constants, state, key = residuals
    b_next, b_L = cotangents  # noqa: N806 (the paper's name)
    h, dh = jax.jvp(activation, (hp,), (jnp.ones_like(hp),))
    kernel_gradient = linear.weight_gradient(h, b_next).astype(weights.kernel.dtype)
    bias_gradient = None if weights.bias is None else _bias_gradient(b_next, weights.bias)
    values = Values(
        hp=hp, h=h, dh=dh, hp_next=hp_next, b_next=b_next, b_L=b_L, W=weights.kernel, constants=constants
    )  # fmt: skip
    values = jax.tree.map(lambda v: v.astype(jnp.float32), values)
    signal, state = _signal(rule.equation_is_data)(linear.in_float32(), rule, values, state, key)
    chex.assert_equal_shape([signal, hp])
    weight_gradients = Weights(kernel_gradient, bias_gradient)
    return None, None, signal.astype(hp.dtype), b_L, weight_gradients, constants, state, None


unit.defvjp(_forward, _backward)


def _bias_gradient(b_next: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum over the axes along which the bias is broadcast."""
    new = b_next.ndim - bias.ndim
    axes = (i for i, n in enumerate(b_next.shape) if i < new or bias.shape[i - new] != n)
    return jnp.sum(b_next, tuple(axes), dtype=bias.dtype).reshape(bias.shape)


@functools.cache
def _signal(one_by_one: bool):
    """The rule's signal; where the equation is data it is mapped, never vectorised: its switches stay branches."""

    def signal(linear, rule, values, state, key):
        return rule.signal(Unit(values, linear.forward, linear.input_gradient, key), state)

    if not one_by_one:
        return signal
    mapped = jax.custom_batching.custom_vmap(signal)

    @mapped.def_vmap
    def batching(axis_size, in_batched, *args):
        leaves, structure = jax.tree.flatten(args)
        batched = jax.tree.leaves(in_batched)

        def one(slices):
            rest = iter(slices)
            return mapped(
                *jax.tree.unflatten(structure, [next(rest) if b else x for x, b in zip(leaves, batched, strict=True)])
            )

        out = lax.map(one, [x for x, b in zip(leaves, batched, strict=True) if b])
        return out, jax.tree.map(lambda _: True, out)

    return mapped
