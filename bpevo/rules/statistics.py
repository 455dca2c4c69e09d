"""Running statistics, factor 0.9, bias-corrected by the step: the first step uses exactly its own batch.

State keeps m = EMA of E[x] and the variance v - m² with v = EMA of E[x²], E over the sample axis. The variance is
updated by its own recursion, which is algebraically the same and cannot cancel:
    m' = m + w (e - m),   var' = (1 - w) (var + w (e - m)²) + w (E[x²] - e²),   w = (1 - r) / (1 - r^t).
"""

import jax
import jax.numpy as jnp

DECAY = 0.9


def weight_of_step(step: jax.Array) -> jax.Array:
    """w for the 1-based `step`."""
    decay = jnp.float32(DECAY)  # rounded alike above and below, so that w is exactly 1 at the first step
    return (1 - decay) / (1 - decay**step)


def update(m: jax.Array, var: jax.Array, mean: jax.Array, spread: jax.Array | float, w: jax.Array):
    """New (m, var) from a batch's mean and variance (`spread`), all of one shape."""
    d = mean - m
    return m + w * d, (1 - w) * (var + w * d * d) + w * spread
