"""The linear maps under the layers: forward product and the two gradients, written by hand and hashable (static)."""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.layers import convolution


class Linear(Protocol):
    """X, K -> Y and its two adjoints."""

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array: ...

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array: ...

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class DenseMap:
    """[B, I] · [I, O]."""

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        return b @ w.T

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return x.T @ b


@dataclasses.dataclass(frozen=True)
class PooledDenseMap:
    """The mean over positions, then a matrix product: [B, H, W, I] -> [B, I] · [I, O]."""

    size: tuple[int, ...]  # H, W

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.mean(x, (1, 2)) @ w

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        share = (b @ w.T) / (self.size[0] * self.size[1])
        return jnp.broadcast_to(share[:, None, None], (b.shape[0], *self.size, w.shape[0]))

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(x, (1, 2)).T @ b


@dataclasses.dataclass(frozen=True)
class ConvMap:
    """[B, H, W, I] * [kh, kw, I, O]."""

    size: tuple[int, ...]  # H, W
    kernel: tuple[int, ...]
    window: convolution.Window

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return convolution.conv(x, w, self.window)

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        return convolution.conv_input_gradient(b, w, self.size, self.window)

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return convolution.conv_weight_gradient(x, b, self.kernel, self.window)


def over_devices(gradient: jax.Array, value: jax.Array) -> jax.Array:
    """The gradient of a value; inside `jax.shard_map`, of one that is the same on all devices, the sum of theirs."""
    axes = jax.typeof(gradient).vma - jax.typeof(value).vma
    return lax.psum(gradient, tuple(axes)) if axes else gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def apply(linear: Linear, x: jax.Array, w: jax.Array) -> jax.Array:
    """The linear map with its standard gradients."""
    return linear.forward(x, w)


def _forward(linear: Linear, x: jax.Array, w: jax.Array):
    return linear.forward(x, w), (x, w)


def _backward(linear: Linear, residuals, b: jax.Array):
    x, w = residuals
    return over_devices(linear.input_gradient(b, w), x), over_devices(linear.weight_gradient(x, b), w)


apply.defvjp(_forward, _backward)
