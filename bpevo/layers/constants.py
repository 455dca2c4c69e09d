"""The operands that are drawn once for a unit and run: R, S, R_L and whatever else has a `draw`."""

import itertools
import math
import zlib
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.rules import OPERANDS, UnitShapes


def draw_constants(key: jax.Array, reads: frozenset[str], deviation: Any, shapes: UnitShapes) -> dict[str, jax.Array]:
    """Those that a rule reads; `deviation`, a number, is that of W's initial law.

    The paper's come from one Gaussian draw, so that a unit compiles one generator; others depend on their name alone.
    """
    drawn = [o for o in OPERANDS.values() if o.draw and o.name in reads]
    if not drawn:
        return {}
    together = {o.name: math.prod(shapes.of(o.base)) for o in OPERANDS.values() if o.draw and o.paper}
    ends = itertools.accumulate(together.values())
    gaussian = jax.random.normal(key, (sum(together.values()),), jnp.float32)
    gaussians = {n: gaussian[end - together[n] : end] for n, end in zip(together, ends, strict=True)}
    for o in drawn:
        if not o.paper:
            own = jax.random.fold_in(key, zlib.crc32(o.name.encode()))
            gaussians[o.name] = jax.random.normal(own, shapes.of(o.base), jnp.float32)
    return {
        o.name: o.draw(gaussians[o.name].reshape(shapes.of(o.base)), deviation).astype(jnp.float32)
        for o in drawn
        if o.draw
    }
