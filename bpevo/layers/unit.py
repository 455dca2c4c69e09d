"""The unit [activation, linear map] whose backward signal is a rule's.

`unit` is a custom_vjp. Its weight and bias gradients are always the standard ones for the signal that arrives; the
gradient of `hp` is what the rule says. The *carrier*, a zero array shaped like the logits, passes through every unit
and is added to the logits at the top, so its cotangent is b_L in every unit. The "gradient" of `state` is the rule's
next state: whoever takes the gradient stores it instead of feeding it to an optimizer (Flax's
`_overwrite_with_gradient` convention). So it is with the constants: their next value is their value.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from bpevo.layers import varying
from bpevo.layers.linear import Linear, over_devices
from bpevo.rules import Equation, Expression, Rule, Unit, Values, compile

Activation = Callable[[jax.Array], jax.Array]


def identity(x: jax.Array) -> jax.Array:
    return x


@functools.lru_cache(256)
def check_elementwise(activation: Activation, rank: int) -> None:
    """Raises ValueError unless the activation of arrays of that rank acts element by element.

    Tried on a small array: its Jacobian must be diagonal, J v = (J 1) ⊙ v. What cannot be tried so, such as a function of
    one fixed shape, is let through.
    """

    def tried(x, v, ones):
        y, slope = jax.jvp(activation, (x,), (ones,))
        return y, slope, jax.jvp(activation, (x,), (v,))[1]

    x, v = np.random.default_rng(0).uniform(-2, 2, (2, *(2,) * (rank - 1), 4)).astype(np.float32)
    try:
        with jax.ensure_compile_time_eval():
            y, slope, along = jax.device_get(jax.jit(tried)(x, v, np.ones_like(x)))  # one program, not one an operation
            fits = y.shape == x.shape and np.allclose(along, slope * v, 1e-3, 1e-5, equal_nan=True)
    except Exception:  # whatever the user's function raises here, it will raise or not when it is called
        return
    if not fits:
        name = getattr(activation, "__name__", repr(activation))
        raise ValueError(
            f"the activation {name} does not act element by element, so it has no derivative dh of its own per entry: use one "
            "that does, such as nn.relu or nn.tanh, and apply this one outside of the layer"
        )


def as_rule(rule: Any) -> Rule:
    """The rule of what `rule=` was given: a Rule, a text, a name, an Expression, an Equation or a function. Raises ValueError."""
    if hasattr(rule, "signal"):
        return rule
    if isinstance(rule, str | Expression | Equation) or (callable(rule) and not isinstance(rule, type)):
        return compile(rule)
    raise ValueError(
        f"rule= takes a Rule, a text or a name such as 'unit_fro(g)' or 'fa', or a function of a unit's values, not {rule!r}"
    )


def check_not_empty(where: str, x: tuple[int, ...], kernel: tuple[int, ...]) -> None:
    """Raises ValueError where there is no sample, position or feature to train on."""
    if 0 in x or 0 in kernel:
        raise ValueError(
            f"{where} cannot train on nothing: x has the shape {x} and the kernel {kernel}; skip empty batches"
        )


class Weights(NamedTuple):
    kernel: jax.Array  # K
    bias: jax.Array | None  # [O] or what else broadcasts against hp_next


Constants = Mapping[str, jax.Array]  # operands that are drawn once a run, as far as the rule reads them


def along_features(bias: jax.Array, y: jax.Array) -> jax.Array:
    """A bias with as many axes as `y` has, its own the last, in the dtype of `y`."""
    return bias.astype(y.dtype).reshape((1,) * (y.ndim - bias.ndim) + bias.shape)


def _apply(linear: Linear, activation: Activation, hp: jax.Array, weights: Weights) -> jax.Array:
    y = linear.forward(activation(hp), weights.kernel)
    return y if weights.bias is None else y + along_features(weights.bias, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def unit(
    linear: Linear,
    activation: Activation,
    where: str,
    rule: Rule,
    hp: jax.Array,
    carrier: jax.Array,
    weights: Weights,
    constants: Constants,
    state,
    key: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(hp_next, carrier). `activation` must act element by element; compute dtype is that of `hp`.

    Its gradient raises ValueError, with the unit's name `where`, if the rule reads b_L and the carrier reaches no logits, or
    if it draws noise and `key` is None.
    """
    hp_next = _apply(linear, activation, hp, weights)
    return hp_next, _beside(carrier, hp_next)


def _beside(carrier: jax.Array, hp_next: jax.Array) -> jax.Array:
    """The carrier, under vmap one for each mapped use: else its cotangent were the sum of theirs. Costs nothing compiled."""
    return jnp.where(jnp.isnan(jnp.ravel(hp_next)[0]), carrier, carrier)


def _forward(linear, activation, where, *primals):
    linear, rule, hp, carrier, weights, *rest = jax.custom_derivatives.custom_vjp_primal_tree_values((linear, *primals))
    hp_next = _apply(linear, activation, hp, weights)
    return (hp_next, _beside(carrier, hp_next)), (linear, rule, hp, hp_next, weights, *rest)


def _backward(activation, where, residuals, cotangents):
    linear, rule, hp, hp_next, weights, constants, old, key = residuals
    if "b_L" in rule.reads and isinstance(cotangents[1], SymbolicZero):  # known when traced: nothing depends on it
        raise ValueError(
            f"the rule {rule} of {where} needs the signal at the logits, but the carrier that the layer returned does not "
            "reach them: pass it on to the next layer, and add it to the logits at the end, logits + carrier"
        )
    if rule.needs_noise and key is None:
        raise ValueError(
            f"the rule {rule} of {where} draws noise: call apply with rngs={{'noise': key}}, fresh each step"
        )
    b_next, b_L = map(_instantiated, cotangents)  # noqa: N806 (the paper's name)
    h, dh = jax.jvp(activation, (hp,), (jnp.ones_like(hp),))
    kernel_gradient = linear.weight_gradient(h, b_next).astype(weights.kernel.dtype)
    bias_gradient = None if weights.bias is None else _bias_gradient(b_next, weights.bias)
    values = Values(
        hp=hp, h=h, dh=dh, hp_next=hp_next, b_next=b_next, b_L=b_L, W=weights.kernel, constants=constants
    )  # fmt: skip
    values = jax.tree.map(lambda v: v.astype(jnp.float32), values)
    values, state = varying.vary((values, old), varying.axes((values, old)))
    signal, state = _signal(rule.equation_is_data)(linear.in_float32(), rule, values, state, key)
    chex.assert_equal_shape([signal, hp])
    # Under vmap, a state that is the same for all mapped uses would count once: let it depend on them. Costs nothing compiled.
    each = jnp.stack([jnp.ravel(v)[0] for v in (values.hp, values.b_next, values.b_L, values.W, signal)])
    state = jax.tree.map(lambda s: jnp.where(jnp.any(jnp.isnan(each)), s, s), state)
    gradients = Weights(over_devices(kernel_gradient, weights.kernel), bias_gradient)
    state = jax.tree.map(over_devices, state, old)
    own = linear.own_gradient(h, b_next, weights.kernel)
    return own, None, signal.astype(hp.dtype), b_L, gradients, constants, state, None


unit.defvjp(_forward, _backward, symbolic_zeros=True)


def _instantiated(cotangent: Any) -> jax.Array:
    zero = isinstance(cotangent, SymbolicZero)
    return jnp.zeros(cotangent.shape, cotangent.dtype) if zero else cotangent


def _bias_gradient(b_next: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum over the axes along which the bias is broadcast."""
    new = b_next.ndim - bias.ndim
    axes = (i for i, n in enumerate(b_next.shape) if i < new or bias.shape[i - new] != n)
    return over_devices(jnp.sum(b_next, tuple(axes), dtype=bias.dtype).reshape(bias.shape), bias)


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
