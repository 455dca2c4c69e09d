"""CUDA graphs that hold conditionals and loops: the GPU takes the decisions that the host would have to take one by one."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LEAST = (0, 11, 2)  # of jax: an earlier one refuses the list, or aborts the process
# Complete: XLA replaces its own list by this one.
COMMAND_BUFFERS = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE,CONVOLUTION"
}


class Graphs(NamedTuple):
    """Whether programs of a device have their decisions in CUDA graphs."""

    options: Mapping[str, str]  # for XLA
    said: str  # in words; "" where it is no GPU


def graphs(device: jax.Device) -> Graphs:
    """What to compile for `device` with. On a GPU a small program is tried, once in a process."""
    return _tried(device) if device.platform == "gpu" else Graphs({}, "")


@functools.cache
def _tried(device: jax.Device) -> Graphs:
    if jax.__version_info__ < LEAST:
        least = ".".join(map(str, LEAST))
        return without(f"jax {jax.__version__} cannot, {least} and later can")
    try:
        with jax.default_device(device):
            found, expected = (np.asarray(_decide(options)) for options in (COMMAND_BUFFERS, {}))
    except Exception as error:  # whatever jax, XLA or the driver raises: trainings go on without
        return without((str(error).splitlines() or [type(error).__name__])[0])
    if not np.allclose(
        found, expected, 0, 0.02
    ):  # entries of at most 1; two compilations may choose other convolutions
        return without("a program computed other numbers with them")
    return Graphs(COMMAND_BUFFERS, "in CUDA graphs")


def without(reason: str) -> Graphs:
    return Graphs({}, f"by the host: {reason}")


def _decide(options: Mapping[str, str]) -> jax.Array:
    """A loop of unknown length around a switch, a convolution and its gradients: what slots consist of. It runs twice, as a
    graph is recorded at the first run and replayed at the next."""

    def branch(scale: float):
        def convolve(x, w):
            return lax.conv_general_dilated(x, w * scale, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def gradients(x, w):
            found = jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), (0, 1))(x, w)
            return jax.tree.map(lambda g: g / jnp.max(jnp.abs(g)), found)

        return lambda x, w: gradients(convolve(x, w), w)

    def many(x, w, turns):
        return lax.fori_loop(0, turns, lambda i, xw: lax.switch(i % 2, [branch(0.5), branch(0.25)], *xw), (x, w))[1]

    program = jax.jit(many, compiler_options=dict(options))
    x, w = (jnp.sin(jnp.arange(np.prod(s), dtype=jnp.float32)).reshape(s) for s in ((4, 8, 8, 16), (3, 3, 16, 16)))
    program(x, w, jnp.int32(2)).block_until_ready()
    return program(x, w, jnp.int32(3))
