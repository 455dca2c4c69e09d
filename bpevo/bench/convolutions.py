"""Lowerings of a convolution and its gradients inside a loop, as in training, for each shape of a Wide ResNet."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.bench.engines import Setting, timed
from bpevo.layers import convolution as c

LOOP = 10

Shape = tuple[int, int, int, int, int]  # size, kernel, stride, in, out


def shapes(setting: Setting) -> list[Shape]:
    """Distinct convolutions of `setting.model`, in order."""
    depth, width = map(int, setting.model.split("-")[1:])
    found, size, before = [(setting.size, 3, 1, setting.channels, 16)], setting.size, 16
    for group, channels in enumerate((16, 32, 64)):
        features, stride = channels * width, 2 if group else 1
        found.append((size, 3, stride, before, features))
        if before != features:
            found.append((size, 1, stride, before, features))
        size = -(-size // stride)
        found.append((size, 3, 1, features, features))
        before = features
    return list(dict.fromkeys(found))


def _lowerings(shape: Shape, batch: int) -> dict[str, dict[str, tuple[Callable, tuple]]]:
    size, kernel, stride, ins, outs = shape
    k, whole = (kernel, kernel), (size, size)
    geometry = c.window(whole, k, (stride, stride), "SAME")
    half = -(-size // stride)
    x = jnp.ones((batch, size, size, ins))
    w, b = jnp.ones((*k, ins, outs)), jnp.ones((batch, half, half, outs))
    columns = functools.partial(c._columns, geometry, k)

    def transposed_columns(b, w):
        return jax.linear_transpose(columns, x)(b @ w.reshape(-1, outs).T)[0]

    def column_gradient(x, b):
        return columns(x).reshape(-1, kernel * kernel * ins).T @ b.reshape(-1, outs)

    def sliced_gradient(x, b):
        return jnp.stack([jnp.einsum("bhwi,bhwo->io", s, b) for s in c._slices(geometry, x, k, b.shape[1:3])])

    def autodiff(argument: int):
        native = functools.partial(c._native, geometry)

        def gradient(b, other):
            if argument == 0:
                return jax.linear_transpose(lambda x: native(x, other), x)(b)[0]
            return jax.linear_transpose(lambda w: native(other, w), w)(b)[0]

        return gradient

    return {
        "forward": {
            "convolution": (functools.partial(c._native, geometry), (x, w)),
            "columns": (lambda x, w: columns(x) @ w.reshape(-1, outs), (x, w)),
            "chosen": (lambda x, w: c.conv(x, w, geometry), (x, w)),
        },
        "input gradient": {
            "autodiff": (autodiff(0), (b, w)),
            "columns": (transposed_columns, (b, w)),
            "chosen": (lambda b, w: c.conv_input_gradient(b, w, whole, geometry), (b, w)),
        },
        "weight gradient": {
            "autodiff": (autodiff(1), (b, x)),
            "columns": (column_gradient, (x, b)),
            "slices": (sliced_gradient, (x, b)),
            "chosen": (lambda x, b: c.conv_weight_gradient(x, b, k, geometry), (x, b)),
        },
    }


def measure(shape: Shape, batch: int, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each lowering of each operation, inside a scan."""

    def milliseconds(function: Callable, arguments: tuple) -> float:
        @jax.jit
        def run(*arguments):
            def body(carry, _):
                # The carry enters the arguments, so that nothing moves out of the loop; the sum uses all of the result.
                return jnp.sum(function(*(a + carry for a in arguments))) * 1e-20, None

            return lax.scan(body, jnp.float32(0), None, length=LOOP)[0]

        jax.block_until_ready(run(*arguments))
        return 1e3 * timed(lambda: run(*arguments), repeats)[0] / LOOP

    return {
        operation: {name: milliseconds(*call) for name, call in calls.items()}
        for operation, calls in _lowerings(shape, batch).items()
    }
