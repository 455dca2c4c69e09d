"""Running statistics, factor 0.9, bias-corrected by the step: the first step uses exactly its own batch.

State keeps m = EMA of E[x] and the variance v - m² with v = EMA of E[x²], E over the sample axis. The variance is
updated by its own recursion, which is algebraically the same and cannot cancel:
    m' = m + w (e - m),   var' = (1 - w) (var + w (e - m)²) + w (E[x²] - e²),   w = (1 - r) / (1 - r^t).

A unit may be used n times in a step: a layer that is called twice, scanned or mapped with shared variables, micro-batches
or devices whose gradients are added. Each use gives a next state, and what arrives at the next step is their sum. A state
therefore carries `uses`, whose next value is always 1: the sum says n, and everything is divided by it. So the state of a
unit is the mean of the states of its uses. For m that is the EMA of the mean over all samples (of uses of equal size); the
variance has the variance within uses and, of that between the uses of one step, the share 1 - w. Means of states (as of
averaged gradients) come out the same, and a single use is divided by 1. A unit whose backward pass did not run gets zeros:
it starts afresh.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

DECAY = 0.9


def uses(state: Mapping[str, jax.Array]) -> jax.Array:
    """What to divide a state by, shape=()."""
    return jnp.where(state["uses"] > 0, state["uses"], 1.0)


def weight_of_step(step: jax.Array) -> jax.Array:
    """w for the 1-based `step`."""
    decay = jnp.float32(DECAY)  # rounded alike above and below, so that w is exactly 1 at the first step
    return (1 - decay) / (1 - decay**step)


def update(m: jax.Array, var: jax.Array, mean: jax.Array, spread: jax.Array | float, w: jax.Array):
    """New (m, var) from a batch's mean and variance (`spread`), all of one shape."""
    d = mean - m
    return m + w * d, (1 - w) * (var + w * d * d) + w * spread
