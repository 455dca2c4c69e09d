"""How far the evolved signal is from the true one: cosine and norm ratio of b_i^p in every unit.

The true signal is that of a standard backward pass of its own, at the same parameters, on the same batch; not the rule's
operand `g`, which is made from the evolved signal above. Signals are read as gradients of zero probes that are added to
the units' inputs from outside (Flax's method interception), so that layers know nothing of it.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bpevo import layers
from bpevo.training.transforms import unit_and_norm

Probes = dict[str, jax.Array]  # unit -> zeros in the shape of its hp
_UNITS = (layers.Conv, layers.Dense, layers.PooledDense)


def _is_unit(context) -> bool:
    return isinstance(context.module, _UNITS) and context.method_name == "__call__"


def units(run: Callable[[], Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """Names (module paths) and hp's shapes of the rule-driven units, in forward order; `run` applies the model."""
    found: dict[str, jax.ShapeDtypeStruct] = {}

    def record(call, args, kwargs, context):
        if _is_unit(context) and context.module.rule is not None:
            found["/".join(context.module.path)] = jax.ShapeDtypeStruct(args[0].shape, args[0].dtype)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(run)
    return found


def signals(loss: Callable[[], jax.Array], probes: Probes) -> Probes:
    """b_i^p of each probed unit; `loss` applies the model."""

    def probed(probes: Probes) -> jax.Array:
        def add(call, args, kwargs, context):
            name = "/".join(context.module.path)
            if _is_unit(context) and name in probes:
                args = (args[0] + probes[name], *args[1:])
            return call(*args, **kwargs)

        with nn.intercept_methods(add):
            return loss()

    return jax.grad(probed)(probes)


def compare(evolved: Probes, true: Probes, names: list[str]) -> jax.Array:
    """Cosine and norm ratio |evolved| / |true| of each unit: [L, 2], float32; 0 where a signal vanishes."""

    def pair(x: jax.Array, y: jax.Array) -> jax.Array:
        (x, a), (y, b) = (unit_and_norm(v.ravel().astype(jnp.float32)) for v in (x, y))
        return jnp.stack([jnp.vdot(x, y), jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0.0)])

    return jnp.stack([pair(evolved[name], true[name]) for name in names])
