"""How a device runs equations as data: on tiles, in a kernel that computes there what it should or in a CPU's loop."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpevo.rules import Kernel, Rule, TiledRule, Unit, Values, assemble, compile, parse
from bpevo.rules.kernels import PLATFORMS
from bpevo.rules.loops import Loop
from bpevo.training.graphs import graphs

# Between them: a norm that ends a pass, lines, a statistic, noise, and an average.
TRIED = ("unit_fro(g) * sgn(bn(dh))", "mul_noise(unit_row1(fa), 0.1) + mean(dfa)", "min(unit_mat1(g), clip(h, 1.0))")

SHAPE, FLOATS = (16, 384), 2048  # of the trial's signals, and of a tile: three tiles on a GPU and on a TPU


class Found(NamedTuple):
    kernel: Kernel | Loop | None
    said: str  # in words; "" on a CPU, where slots are mapped and branches are real


def kernel_of(device: jax.Device) -> Found:
    """The kernel of a device's platform, or a CPU's loop. On an accelerator it is tried, once in a process."""
    return _tried(device) if device.platform in PLATFORMS else Found(Loop(), "")


@functools.cache
def _tried(device: jax.Device) -> Found:
    try:
        kernel = Kernel(device.platform)
        with jax.default_device(device):
            right = agrees(dataclasses.replace(kernel, floats=FLOATS), graphs(device).options)
    except Exception as error:  # whatever jax, the compiler or the driver raises: the interpreter runs every equation
        return Found(None, f"interpreted: {(str(error).splitlines() or [type(error).__name__])[0]}")
    return Found(kernel, "in a kernel") if right else Found(None, "interpreted: the kernel computed other numbers")


def agrees(kernel: Kernel, options: Mapping[str, str] | None = None) -> bool:
    """Whether two steps of three slots come out as specialised rules compute them; `options` are XLA's for the kernel."""
    programs = [assemble(parse(text).to_equation(3)) for text in TRIED]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *programs)
    with jax.default_matmul_precision("float32"):
        in_kernel = jax.vmap(lambda program: _two_steps(TiledRule(program, kernel)))
        found = jax.jit(in_kernel, compiler_options=dict(options or {}))(stacked)
        expected = [jax.jit(functools.partial(_two_steps, compile(text)))() for text in TRIED]
    return all(np.allclose(a, b, 1e-3, 1e-5) for a, b in zip(found, expected, strict=True))


def _two_steps(rule: Rule) -> jax.Array:
    """The second of two signals of a dense unit."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    (batch, inputs), outputs, classes = SHAPE, 8, 4
    hp = drawn(batch, inputs)
    values = Values(
        hp=hp, h=jax.nn.relu(hp), dh=(hp > 0).astype(jnp.float32), hp_next=drawn(batch, outputs),
        b_next=drawn(batch, outputs), b_L=drawn(batch, classes), W=drawn(inputs, outputs),
        constants={"R": drawn(inputs, outputs), "S": drawn(inputs, outputs), "R_L": drawn(classes, inputs)},
    )  # fmt: skip
    unit = Unit(values, jnp.matmul, lambda b, w: b @ w.T, jax.random.key(0, impl="threefry2x32"))
    _, state = rule.signal(unit, rule.init(unit.shapes))
    return rule.signal(unit, state)[0]
