"""The operands that are drawn once for a unit and run: R, S, R_L and whatever else has a `draw`."""

import itertools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.rules import OPERANDS, UnitShapes

LARGEST_FEEDBACK = 64 * 2**20  # entries of R_L
Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]  # (key, shape, dtype) -> array


def draw_constants(
    key: jax.Array, where: str, reads: frozenset[str], shapes: UnitShapes, law: Initializer | None = None
) -> dict[str, jax.Array]:
    """Those that a rule reads, for the unit named `where`. R has the law of W, by default N(0, 2 / fan_in); S its deviation.

    The paper's come from one Gaussian draw, so that a unit compiles one generator; others depend on their name alone.
    Raises ValueError where R_L would be too large.
    """
    drawn = [o for o in OPERANDS.values() if o.draw and o.name in reads]
    if not drawn:
        return {}
    entries = math.prod(shapes.F)
    if any(o.base == "F" for o in drawn) and entries > LARGEST_FEEDBACK:
        raise ValueError(
            f"R_L of the unit {where} would map the logits {list(shapes.Z)} to hp {list(shapes.X)}: {entries / 1e6:,.0f} million "
            f"entries, more than {LARGEST_FEEDBACK / 1e6:,.0f} million; take a rule without R_L here, or leave the unit out by "
            "the where= of bpevo.evolve"
        )
    deviation: Any = (2.0 / math.prod(shapes.K[:-1])) ** 0.5
    own = {}
    if law is not None:
        own["R"] = law(jax.random.fold_in(key, 0), shapes.K, jnp.float32)
        deviation = jnp.std(own["R"])
    together = {o.name: math.prod(shapes.of(o.base)) for o in OPERANDS.values() if o.draw and o.paper}
    ends = itertools.accumulate(together.values())
    gaussian = jax.random.normal(key, (sum(together.values()),), jnp.float32)
    gaussians = {n: gaussian[end - together[n] : end] for n, end in zip(together, ends, strict=True)}
    for o in drawn:
        if not o.paper:
            named = jax.random.fold_in(key, zlib.crc32(o.name.encode()))
            gaussians[o.name] = jax.random.normal(named, shapes.of(o.base), jnp.float32)
    values = {
        o.name: o.draw(gaussians[o.name].reshape(shapes.of(o.base)), deviation).astype(jnp.float32)
        for o in drawn
        if o.draw
    }
    return {name: own.get(name, value) for name, value in values.items()}


def logits_shape(x: tuple[int, ...], logits: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape in which a unit with hp in the shape `x` gets b_L: [B, T…, C] where both share positions, else [B, ·].

    None where their samples differ.
    """
    if x[0] == logits[0]:
        shared = len(logits) > 2 and len(x) >= len(logits) and x[: len(logits) - 1] == logits[:-1]
        return logits if shared else (logits[0], math.prod(logits[1:]))
    return (x[0], logits[-1]) if x[0] == math.prod(logits[:-1]) else None
