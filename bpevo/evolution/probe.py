"""Synthetic units on which rules are told apart: what a rule sends down where networks are, and where they may come.

One dense unit in three regimes, each of `STEPS` steps with running statistics of its own:

- "early": a network that begins to learn: signals of one size, well below 1 as in networks; features of very different
  size, some nearly always active; a sample that activates all of them.
- "late": one that has learnt: most samples send hardly any signal, some none, one a hundred times the others'; features
  that are dead, rarely active, or not read by the linear map (as positions that a strided convolution skips).
- "wide": entries of both signs from 1e-4 to 1e2, so that every constant of the language matters somewhere.

In the first two a feature changes at the last step for the first time, so normalised values reach ±20, far beyond what
the same batch alone allows.
"""

import functools
import zlib
from typing import Any

import jax
import numpy as np
from jax import lax

from bpevo.rules import (
    OPERANDS,
    CompiledRule,
    Expression,
    InterpretedRule,
    Rule,
    RuleSyntaxError,
    Unit,
    UnitShapes,
    Values,
    extensions,
)
from bpevo.rules.components import Component
from bpevo.rules.equation import DEFAULT_PARTS

MOST_PARTS = 8  # of a chain that is interpreted
REGIMES, STEPS = ("early", "late", "wide"), 5
# |bn| of one batch is below sqrt(BATCH - 1), so beyond 10. Primes: no norm of signs equals a constant of the language.
BATCH, INPUTS, OUTPUTS, CLASSES = 127, 17, 7, 3
SHAPES = UnitShapes((BATCH, INPUTS), (BATCH, OUTPUTS), (BATCH, CLASSES), (INPUTS, OUTPUTS))
_X, _Y, _Z = ((STEPS, *shape) for shape in (SHAPES.X, SHAPES.Y, SHAPES.Z))


def _wide(rng: np.random.Generator, shape: tuple[int, ...], zeros: float) -> np.ndarray:
    x = 10 ** rng.uniform(-4, 2, shape) * rng.choice([-1.0, 1.0], shape)
    return np.where(rng.random(shape) < zeros, 0, x)


def _activities(rng: np.random.Generator, regime: str) -> np.ndarray:
    """hp: features of different size and shift; sample 0 activates all of them, or none."""
    late = regime == "late"
    size = 10 ** rng.uniform(-1, 1, INPUTS)
    shift = rng.permutation(np.linspace(-4, 2, INPUTS) if late else np.linspace(-1.5, 5, INPUTS))
    z = rng.standard_normal(_X) + shift
    z[:, 0] += -20 if late else 20
    if late:
        size[8], z[:, :, 8] = 0.02, rng.standard_normal((STEPS, BATCH))  # the norm of its column is below 1
        z[:, 11:15] = np.where(shift < -1, -8, z[:, 11:15])  # those that send next to nothing, see below
        z[:, :, [3, 6, 7, 10]] = -8 + 0.3 * rng.standard_normal((STEPS, BATCH, 4))  # dead, but for
        z[:, 9, 7] = 1.0  # a single sample
        z[-1, 7, [3, 6]] = 1.0  # and the last step
    else:
        z[:, :, 6] = 8 + rng.standard_normal((STEPS, BATCH))
        z[-1, 7, 6] = -1.0
    return size * z


def _signals(rng: np.random.Generator, regime: str) -> tuple[np.ndarray, np.ndarray]:
    """b_next and b_L. The late b_L is large, lest the ε of norms tell apart what no network does."""
    b_next, b_l = rng.standard_normal(_Y), rng.standard_normal(_Z)
    if regime == "early":
        return 3e-3 * b_next, 3e-3 * b_l
    size, size_l = 10 ** rng.uniform(-9, -3, (STEPS, BATCH, 1)), 10 ** rng.uniform(-1, -0.5, (STEPS, BATCH, 1))
    size[:, 3], size[:, 5], size[:, 9] = 1.2e-2, 0, 1e-9
    size_l[:, 11:15, 0] = [1e-7, 1e-8, 1e-9, 0]
    b_l[:, 20:28], size_l[:, 20:28] = np.sign(b_l[:, 20:28]), 2.5  # a few that are far from learnt
    size_l[2] *= 1e-2  # a batch without them: far below the running deviation
    b_next = b_next * size
    b_next[:, :, 0] = 0
    b_next[:, :, 1] *= 1e-3
    return b_next, b_l * size_l


def _values(seed: int, number: int) -> dict[str, Any]:
    """Values and `reads` [INPUTS] of a regime, each with a leading axis of steps."""
    regime, rng = REGIMES[number], np.random.default_rng([seed, number])
    constants = {}
    for o in OPERANDS.values():
        if o.draw:  # by its name alone: it does not depend on what else is registered
            own, shape = np.random.default_rng([seed, number, zlib.crc32(o.name.encode())]), SHAPES.of(o.base)
            if o.paper and regime == "wide":
                x = _wide(own, shape, 0.0)
            else:
                draw: Any = o.draw  # here of NumPy's arrays
                x = np.asarray(draw(own.standard_normal(shape).astype(np.float32), 0.5))
            constants[o.name] = np.repeat(x[None], STEPS, 0)
    if regime == "wide":
        hp, b_next, b_l, hp_next = (_wide(rng, shape, 0.1) for shape in (_X, _Y, _Z, _Y))
        w = _wide(rng, (STEPS, *SHAPES.K), 0.0)
    else:
        hp, (b_next, b_l), hp_next = _activities(rng, regime), _signals(rng, regime), rng.standard_normal(_Y)
        w = 0.5 * rng.standard_normal(SHAPES.K) + 0.02 * rng.standard_normal((STEPS, *SHAPES.K))
    reads = np.ones((STEPS, INPUTS))
    if regime == "late":
        reads[:, [3, 10, 12]] = 0
    arrays: dict[str, Any] = {"hp": hp, "h": np.maximum(hp, 0), "dh": hp > 0, "hp_next": hp_next}
    arrays |= {"b_next": b_next, "b_L": b_l, "W": w, "constants": constants}
    return {"values": Values(**arrays), "reads": reads}


@functools.cache
def _operands(seed: int, registered: tuple[Component, ...]):
    """The values of all regimes: leaves [regimes, STEPS, ...], on the probe's device, with these components registered."""
    assert registered == extensions()
    stacked = jax.tree.map(lambda *x: np.stack(x).astype(np.float32), *(_values(seed, i) for i in range(len(REGIMES))))
    return jax.device_put(stacked, _device())


@jax.jit
def _run(rule: Rule, operands, seed) -> jax.Array:
    def step(state, xs):
        key, at = xs
        reads = at["reads"]
        unit = Unit(at["values"], lambda x, k: (x * reads) @ k, lambda y, k: (y @ k.T) * reads, key)
        signal, state = rule.signal(unit, state)
        return state, signal

    def regime(xs):
        return lax.scan(step, rule.init(SHAPES), xs)[1]

    keys = jax.random.split(jax.random.key(seed), (len(REGIMES), STEPS))
    return lax.map(regime, (keys, operands)).reshape(-1, BATCH, INPUTS)


@functools.cache
def _device() -> jax.Device:
    """A CPU, since an accelerator is busy training, unless JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def signals(rule: Rule, seed: int) -> np.ndarray:
    """What `rule` sends down on the operands of `seed`: float64 [regimes · STEPS, BATCH, INPUTS].

    What is not finite has a large number of its own instead. All equations of one length, as InterpretedRule, run in one
    compiled program, whatever the seed.
    """
    with jax.default_device(_device()):
        signal = _run(rule, _operands(seed, extensions()), np.uint32(seed))
    return np.nan_to_num(np.asarray(signal, np.float64), nan=1e39, posinf=2e39, neginf=-2e39)


def rule(expression: Expression) -> Rule:
    """An expression as `signals` takes it: chains of at most DEFAULT_PARTS parts share a program, so do longer ones of one
    length; any other expression compiles one."""
    try:
        parts = len(expression.to_equation(MOST_PARTS).to_parts())
    except RuleSyntaxError:  # no chain, or too long a one
        return CompiledRule(expression)
    return InterpretedRule.of(expression.to_equation(max(parts, DEFAULT_PARTS)))
