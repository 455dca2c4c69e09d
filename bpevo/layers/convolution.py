"""Convolution and its two gradients, NHWC activations and HWIO kernels, with explicit padding.

XLA's CPU backend turns autodiff's convolution gradients into fast kernels only outside of loops, so on CPU both gradients
are written as forward convolutions in its own layout; elsewhere both are left to the backend. Mapping over candidates'
kernels (`jax.vmap`) would become a grouped convolution, which has no good gradient kernel on any platform: `custom_vmap`
unrolls it into separate convolutions instead, and the weight gradient into batched matrix products.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import lax

from bpevo.layers.varying import struct

_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Window(NamedTuple):
    """Static geometry: strides and explicit ((top, bottom), (left, right)) padding."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], tuple[int, int]]


def window(size: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...], padding: str) -> Window:
    """The Window of "SAME" or "VALID" padding for an input of `size` = (H, W)."""
    (top, bottom), (left, right) = lax.padtype_to_pads(size, kernel, strides, padding)
    return Window(strides, ((top, bottom), (left, right)))


def _unrolled(function):
    """Batching rule: one call per candidate, so that every candidate gets the single-candidate lowering."""

    @functools.cache
    def build(*static):
        call = jax.custom_batching.custom_vmap(functools.partial(function, *static))

        @call.def_vmap
        def rule(axis_size, in_batched, *args):
            def pick(i):
                return [a[i] if batched else a for a, batched in zip(args, in_batched, strict=True)]

            return jnp.stack([call(*pick(i)) for i in range(axis_size)]), True

        return call

    return build


def _small(size: tuple[int, ...], kernel: tuple[int, ...], channels: int) -> bool:
    """Where matrix products over slices beat XLA's CPU convolution (measured by `python -m bpevo.bench --convolutions`)."""
    return kernel == (1, 1) or channels <= 4 or min(size) < max(kernel)


def _slices(geometry: Window, x: jax.Array, kernel: tuple[int, ...], size: tuple[int, ...]) -> list[jax.Array]:
    """For each kernel position, the inputs it meets: kh·kw arrays [B, H', W', I] with `size` = (H', W')."""
    pads = ((0, 0, 0), *((*both, 0) for both in geometry.padding), (0, 0, 0))
    padded = lax.pad(x, jnp.zeros((), x.dtype), pads)
    sh, sw = geometry.strides

    def at(i: int, j: int) -> jax.Array:
        stop = (padded.shape[0], i + (size[0] - 1) * sh + 1, j + (size[1] - 1) * sw + 1, padded.shape[3])
        return lax.slice(padded, (0, i, j, 0), stop, (1, sh, sw, 1))

    return [at(i, j) for i in range(kernel[0]) for j in range(kernel[1])]


def _columns(geometry: Window, kernel: tuple[int, ...], x: jax.Array) -> jax.Array:
    """im2col: [B, H', W', kh·kw·I]."""
    sizes = zip(x.shape[1:3], kernel, geometry.strides, geometry.padding, strict=True)
    size = tuple((n + low + high - k) // s + 1 for n, k, s, (low, high) in sizes)
    return jnp.concatenate(_slices(geometry, x, kernel, size), -1)


def _native(geometry: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, w, geometry.strides, geometry.padding, dimension_numbers=_LAYOUT)


@_unrolled
def _conv(geometry: Window, x: jax.Array, w: jax.Array) -> jax.Array:
    def products(x: jax.Array, w: jax.Array) -> jax.Array:
        return _columns(geometry, w.shape[:2], x) @ w.reshape(-1, w.shape[-1])

    native = functools.partial(_native, geometry)
    cpu = products if _small(x.shape[1:3], w.shape[:2], w.shape[2]) else native
    return lax.platform_dependent(x, w, cpu=cpu, default=native)


@_unrolled
def _input_gradient(geometry: Window, size: tuple[int, ...], b: jax.Array, w: jax.Array) -> jax.Array:
    x = struct(b, (b.shape[0], *size, w.shape[2]), b.dtype)

    def forward(b: jax.Array, w: jax.Array) -> jax.Array:
        # Pad the dilated signal so that output position p receives every (q, k) with p = q·s + k - pad.
        pads = []
        for n, m, k, s, (low, _) in zip(
            size, b.shape[1:3], w.shape[:2], geometry.strides, geometry.padding, strict=True
        ):
            before = k - 1 - low
            pads.append((before, n + k - 1 - before - ((m - 1) * s + 1)))
        flipped = jnp.swapaxes(w[::-1, ::-1], 2, 3)
        return lax.conv_general_dilated(
            b, flipped, (1, 1), pads, lhs_dilation=geometry.strides, dimension_numbers=_LAYOUT
        )

    def products(b: jax.Array, w: jax.Array) -> jax.Array:
        columns = b @ w.reshape(-1, w.shape[-1]).T
        return jax.linear_transpose(functools.partial(_columns, geometry, w.shape[:2]), x)(columns)[0]

    def backend(b: jax.Array, w: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda x: _native(geometry, x, w), x)(b)[0]

    cpu = products if _small(b.shape[1:3], w.shape[:2], w.shape[3]) else forward
    return lax.platform_dependent(b, w, cpu=cpu, default=backend)


@functools.cache
def _weight_gradient(geometry: Window, kernel: tuple[int, ...]):
    def sliced(x: jax.Array, b: jax.Array) -> jax.Array:
        products = [jnp.einsum("bhwi,bhwo->io", s, b) for s in _slices(geometry, x, kernel, b.shape[1:3])]
        return jnp.stack(products).reshape(*kernel, x.shape[-1], b.shape[-1])

    def forward(x: jax.Array, b: jax.Array) -> jax.Array:
        # Samples are summed over as channels are, and each input channel is an image that the signal's image is laid over.
        size, pads = b.shape[1:3], []
        for axis, (n, m, k, s, (low, _)) in enumerate(
            zip(x.shape[1:3], size, kernel, geometry.strides, geometry.padding, strict=True), start=1
        ):
            met = (m - 1) * s + k - low  # rows of x that any position meets, and padding
            x = lax.slice_in_dim(x, 0, min(n, met), axis=axis)
            pads.append((low, max(0, met - n)))
        images, signal = jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(b, (1, 2, 0, 3))
        products = lax.conv_general_dilated(
            images, signal, (1, 1), pads, rhs_dilation=geometry.strides, dimension_numbers=_LAYOUT
        )
        return jnp.transpose(products, (1, 2, 0, 3))

    cpu = sliced if kernel == (1, 1) else forward

    def backend(x: jax.Array, b: jax.Array) -> jax.Array:
        w = struct(b, (*kernel, x.shape[-1], b.shape[-1]), x.dtype)
        return jax.linear_transpose(lambda w: _native(geometry, x, w), w)(b)[0]

    @jax.custom_batching.custom_vmap
    def call(x: jax.Array, b: jax.Array) -> jax.Array:
        return lax.platform_dependent(x, b, cpu=cpu, default=backend)

    @call.def_vmap
    def rule(axis_size, in_batched, x, b):
        return jax.vmap(sliced, [0 if batched else None for batched in in_batched])(x, b), True

    return call


def conv(x: jax.Array, w: jax.Array, geometry: Window) -> jax.Array:
    """[B, H, W, I], [kh, kw, I, O] -> [B, H', W', O]."""
    chex.assert_rank([x, w], 4)
    return _conv(geometry)(x, w)


def conv_input_gradient(b: jax.Array, w: jax.Array, size: tuple[int, ...], geometry: Window) -> jax.Array:
    """[B, H', W', O], [kh, kw, I, O] -> [B, H, W, I] with `size` = (H, W)."""
    chex.assert_rank([b, w], 4)
    return _input_gradient(geometry, size)(b, w)


def conv_weight_gradient(x: jax.Array, b: jax.Array, kernel: tuple[int, ...], geometry: Window) -> jax.Array:
    """[B, H, W, I], [B, H', W', O] -> [kh, kw, I, O]."""
    chex.assert_rank([x, b], 4)
    return _weight_gradient(geometry, kernel)(x, b)
