"""Functional equivalence: rules that compute the same get the same key, whatever they look like.

The probe runs one dense and one convolution unit for 3 steps on fixed synthetic operands (entries from 1e-4 to 1e2,
zeros, both signs) and rounds the signals to 10 significant bits. Every equation runs through one compiled program.
"""

import functools
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bpevo.rules import Equation, InterpretedRule, Program, Unit, assemble

STEPS, BITS = 3, 10


def _entries(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = 10 ** rng.uniform(-4, 2, shape) * rng.choice([-1.0, 1.0], shape)
    return np.where(rng.random(shape) < 0.1, 0, x).astype(np.float32)


def _dense(rng: np.random.Generator) -> Unit:
    b, i, o, c = 4, 5, 6, 3
    hp, w = _entries(rng, STEPS, b, i), [_entries(rng, STEPS, i, o) for _ in range(3)]
    return Unit(
        hp, np.maximum(hp, 0), (hp > 0).astype(np.float32), _entries(rng, STEPS, b, o), _entries(rng, STEPS, b, o),
        _entries(rng, STEPS, b, c), w[0], *(np.repeat(x[:1], STEPS, 0) for x in w[1:]),
        np.repeat(_entries(rng, 1, c, i), STEPS, 0), lambda x, k: x @ k, lambda y, k: y @ k.T, None,
    )  # fmt: skip


def _convolution(rng: np.random.Generator) -> Unit:
    """A 2x2 convolution without padding, as matrix products over its four positions."""
    b, i, o, c = 3, 2, 3, 3
    hp, w = _entries(rng, STEPS, b, 3, 3, i), [_entries(rng, STEPS, 2, 2, i, o) for _ in range(3)]

    def forward(x, k):
        return sum(x[:, r : r + 2, s : s + 2] @ k[r, s] for r in range(2) for s in range(2))

    def backward(y, k):
        pads = [((0, 0), (r, 1 - r), (s, 1 - s), (0, 0)) for r in range(2) for s in range(2)]
        return sum(jnp.pad(y @ k[p // 2, p % 2].T, pad) for p, pad in enumerate(pads))

    return Unit(
        hp, np.maximum(hp, 0), (hp > 0).astype(np.float32), _entries(rng, STEPS, b, 2, 2, o), _entries(rng, STEPS, b, 2, 2, o),
        _entries(rng, STEPS, b, c), w[0], *(np.repeat(x[:1], STEPS, 0) for x in w[1:]),
        np.repeat(_entries(rng, 1, c, 3, 3, i), STEPS, 0), forward, backward, None,
    )  # fmt: skip


@functools.cache
def _probe():
    rng = np.random.default_rng(1808_02822)
    units = (_dense(rng), _convolution(rng))
    names = ("hp", "h", "dh", "hp_next", "b_next", "b_L", "W", "R", "S", "R_L")

    @jax.jit
    def run(program: Program):
        rule = InterpretedRule(program)
        signals = []
        for unit in units:
            values = tuple(jnp.asarray(getattr(unit, n)) for n in names)

            def step(state, xs, unit=unit):
                t, values = xs
                key = jax.random.fold_in(jax.random.key(0), t)
                signal, state = rule.signal(Unit(*values, unit.forward, unit.backward, key), state)
                return state, jnp.ravel(signal)

            shapes = Unit(*(v[0] for v in values), unit.forward, unit.backward, None).shapes
            signals.append(jnp.ravel(lax.scan(step, rule.init(shapes), (jnp.arange(STEPS), values))[1]))
        return jnp.concatenate(signals)

    return run


@functools.cache
def _device() -> jax.Device:
    """A CPU, since an accelerator is busy training, unless JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def functional_key(equation: Equation) -> str:
    """A digest of what the equation computes; raises InfeasibleEquation."""
    with jax.default_device(_device()):
        signal = np.asarray(_probe()(assemble(equation)), np.float64)
    mantissa, exponent = np.frexp(np.nan_to_num(signal, nan=1e300, posinf=1e301, neginf=-1e301))
    rounded = np.ldexp(np.round(mantissa * 2**BITS), exponent - BITS) + 0.0
    return hashlib.sha256(rounded.tobytes()).hexdigest()[:32]
