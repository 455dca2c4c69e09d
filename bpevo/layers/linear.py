"""The linear maps under the layers: forward product and the two gradients, written by hand."""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.layers import convolution, varying


class Linear(Protocol):
    """X, K -> Y and its two adjoints, computed in the dtype of their first argument. A pytree."""

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array: ...

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array: ...

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array: ...

    def own_gradient(self, x: jax.Array, b: jax.Array, w: jax.Array) -> "Linear | None":
        """By the arrays that the map itself holds, such as a gate; None if there are none."""

    def in_float32(self) -> "Linear":
        """The same map for a rule, whose arithmetic is float32 whatever the network's."""


class _OfAnyDtype:
    def own_gradient(self, x, b, w):
        return None

    def in_float32(self):
        return self


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class DenseMap(_OfAnyDtype):
    """[B, …, I] · [I, O]."""

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w.astype(x.dtype)

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        return b @ w.T

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return x.reshape(-1, x.shape[-1]).T @ b.reshape(-1, b.shape[-1])


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class PooledDenseMap(_OfAnyDtype):
    """The mean over positions, then a matrix product: [B, H, W, I] -> [B, I] · [I, O]."""

    size: tuple[int, ...]  # H, W

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.mean(x, (1, 2)) @ w.astype(x.dtype)

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        share = (b @ w.T) / (self.size[0] * self.size[1])
        return jnp.broadcast_to(share[:, None, None], (b.shape[0], *self.size, w.shape[0]))

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.mean(x, (1, 2)).T @ b


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ConvMap(_OfAnyDtype):
    """[B, …, H, W, I] * [kh, kw, I, O]."""

    size: tuple[int, ...]  # H, W
    kernel: tuple[int, ...]
    window: convolution.Window

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        y = convolution.conv(_joined(x), w.astype(x.dtype), self.window)
        return y.reshape(*x.shape[:-3], *y.shape[1:])

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        x = convolution.conv_input_gradient(_joined(b), w, self.size, self.window)
        return x.reshape(*b.shape[:-3], *x.shape[1:])

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return convolution.conv_weight_gradient(_joined(x), _joined(b), self.kernel, self.window)


def _joined(images: jax.Array) -> jax.Array:
    """[B, …, H, W, I] as [B · …, H, W, I]."""
    return images.reshape(-1, *images.shape[-3:])


def over_devices(gradient: jax.Array, value: jax.Array) -> jax.Array:
    """The gradient of a value; inside `jax.shard_map`, of one that is the same on all devices, the sum of theirs."""
    axes = tuple(a for a in varying.axes(gradient) if a not in varying.axes(value))
    return lax.psum(gradient, axes) if axes else gradient


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
