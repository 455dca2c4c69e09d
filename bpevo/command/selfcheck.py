"""Numerical self-check at the start of a run: releases of JAX have computed wrong numbers without a word."""

import jax
import jax.numpy as jnp
import numpy as np

from bpevo import models, rules
from bpevo.runs.database import RunError

# Release -> what it does; setup.cfg leaves them out too, but an environment can be forced.
BROKEN = {
    "0.10.0": "aborts while it compiles gradients on CPU, jax issue 39264",
    "0.10.1": "aborts while it compiles gradients on CPU, jax issue 39264",
    "0.10.2": "computes wrong numbers on CPU, jax issue 39103",
    "0.11.0": "computes wrong numbers on some GPUs, jax issue 40633",
    "0.11.1": "computes wrong numbers on some GPUs, jax issue 40633",
}
ROWS = 32_769  # from here on jax issue 39103 shows in float32


class SelfCheckError(RunError):
    """This environment computes wrong numbers."""


def check(version: str = jax.__version__) -> None:
    """Takes a second or two. Raises SelfCheckError, naming the fault."""
    if version in BROKEN:
        raise SelfCheckError(
            f"jax {version} {BROKEN[version]}: install another release, such as pip install --upgrade jax "
            "(--noselfcheck runs in spite of it)"
        )
    faults = [fault for fault in (_gradients(), _batched_products()) if fault]
    if faults:
        raise SelfCheckError(
            f"this environment computes wrong numbers: {'; '.join(faults)}; jax {version} on "
            f"{jax.local_devices()[0].device_kind}: install another release of jax or another driver "
            "(--noselfcheck runs in spite of it)"
        )


def _gradients() -> str:
    """A tiny network with a rule: the compiled gradient against the same operations one by one."""
    model = models.MLP((4,), classes=2, rule=rules.compile("unit_fro(g) + fa"))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8, 3)), jnp.float32)
    keys = {"params": jax.random.key(0), "feedback": jax.random.key(1)}
    shapes = jax.eval_shape(model.init, keys, x)
    variables = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), s.dtype), shapes)

    def loss(variables):
        logits = model.apply(variables, x)
        return jnp.vdot(logits, logits)

    def gradient(variables):
        return jax.grad(loss)(variables)["params"]

    compiled, eager = jax.device_get((jax.jit(gradient)(variables), gradient(variables)))
    agree = jax.tree.map(lambda a, b: bool(np.allclose(a, b, 1e-4, 1e-5)), compiled, eager)
    return "" if all(jax.tree.leaves(agree)) else "a compiled gradient differs from the same operations one by one"


def _batched_products() -> str:
    """jax issue 39103: a matrix product for each row and a reduction, with more rows than a thread takes."""
    x = np.stack([np.arange(ROWS), np.zeros(ROWS), np.zeros(ROWS)], 1).astype(np.float32)
    norms = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(x)
    right = np.allclose(norms, (x**2).sum(1), 1e-4)
    return "" if right else "a compiled product differs from the exact one"
