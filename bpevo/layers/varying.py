"""Inside `jax.shard_map` a type says over which mesh axes its value varies, and a custom gradient must have the type of
what it is the gradient of. So all that meets in a unit is made to vary over the same axes; outside of shard_map there are none.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def axes(tree: Any) -> tuple[str, ...]:
    """The mesh axes over which any of the arrays varies."""
    found: set[str] = set()
    for x in jax.tree.leaves(tree):
        kind = jax.typeof(x)
        kind = getattr(kind, "manual_axis_type", None) or kind
        found |= set(getattr(kind, "varying", ())) | set(getattr(kind, "vma", ()))
    return tuple(sorted(found))


def vary(tree: Any, over: tuple[str, ...]) -> Any:
    """Every array as one that varies over these axes."""

    def one(x):
        missing = tuple(a for a in over if a not in axes(x))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(one, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def vary_state(over: tuple[str, ...], state: Any) -> Any:
    """Likewise; the next state, which the gradient is, is the mean over the devices instead of the sum of a gradient."""
    return vary(state, over)


vary_state.defvjp(
    lambda over, state: (vary(state, over), None),
    lambda over, _, b: (jax.tree.map(lambda x: lax.pmean(x, over), b),),
)


def struct(like: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A shape and dtype that varies as `like` does."""
    return jax.eval_shape(lambda x: jnp.full(shape, x.ravel()[0].astype(dtype)), like)
