"""The linear map of a unit that was found in a traced function: its products with any weight, forward and back."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpevo.layers import convolution
from bpevo.layers.graph import Node, Segment
from bpevo.layers.linear import ConvMap
from bpevo.layers.varying import struct


class Product(NamedTuple):
    """A dot_general or convolution whose kernel has the form [inputs…, O]: all that is summed over, then all outputs."""

    node: Node
    side: int  # which operand is the weight
    permutation: tuple[int, ...]  # from the operand's axes to the kernel's, before outputs are joined
    permuted: tuple[int, ...]
    kernel: tuple[int, ...]  # K
    dtype: Any  # of the operand
    measured: ConvMap | None  # the lowering of bpevo.layers.convolution, where it has the shape

    @classmethod
    def of(cls, node: Node, side: int, x: Any, w: Any) -> "Product":
        """The product that a node computes of x and w, its operand `side` being the weight."""
        measured = None
        if node.name == "dot_general":
            contracting, batch = (axes[side] for axes in node.params["dimension_numbers"])
            free = [i for i in range(w.ndim) if i not in (*contracting, *batch)]
            permutation, summed = (*contracting, *batch, *free), len(contracting)
        else:
            outputs, inputs, *window = node.params["dimension_numbers"].rhs_spec
            permutation, summed = (*window, inputs, outputs), w.ndim - 1
            if side == 1 and _is_plain(node, x):
                geometry = convolution.Window(node.params["window_strides"], node.params["padding"])
                measured = ConvMap(x.shape[1:3], w.shape[:2], geometry)
        permuted = tuple(w.shape[i] for i in permutation)
        kernel = (*permuted[:summed], int(np.prod(permuted[summed:])))
        return cls(node, side, tuple(map(int, permutation)), permuted, kernel, w.dtype, measured)

    @property
    def has_samples(self) -> bool:
        """Whether anything of the activation is left that is neither summed over nor has weights of its own."""
        if self.node.name != "dot_general":
            return True
        contracting, batch = (axes[1 - self.side] for axes in self.node.params["dimension_numbers"])
        return self.node.equation.invars[1 - self.side].aval.ndim > len(contracting) + len(batch)

    def to_kernel(self, w: jax.Array) -> jax.Array:
        return jnp.transpose(w, self.permutation).reshape(self.kernel)

    def forward(self, x: jax.Array, kernel: jax.Array, float32: bool = False) -> jax.Array:
        if self.measured:
            return self.measured.forward(x, kernel.astype(x.dtype))
        w = jnp.transpose(kernel.reshape(self.permuted), [self.permutation.index(i) for i in range(len(self.permuted))])
        if float32:
            operands = (x, w) if self.side else (w, x)
            return self.node.equation.primitive.bind(*operands, **dict(self.node.params, preferred_element_type=None))
        w = w.astype(self.dtype)
        return self.node.run((x, w) if self.side else (w, x))[0]

    def input_gradient(self, b: jax.Array, kernel: jax.Array, shape: tuple[int, ...], float32: bool) -> jax.Array:
        if self.measured:
            return self.measured.input_gradient(b, kernel.astype(b.dtype))
        return _transpose(lambda x: self.forward(x, kernel, float32), shape, b.dtype, b)

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        if self.measured:
            return self.measured.weight_gradient(x, b)
        return _transpose(lambda w: self.forward(x, w), self.kernel, self.dtype, b)


def front(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape with an axis moved to the front."""
    return (shape[axis], *shape[:axis], *shape[axis + 1 :])


def _is_plain(node: Node, x: Any) -> bool:
    """Whether it is an NHWC convolution with an HWIO kernel, neither dilated nor grouped, of default precision."""
    p = node.params
    layout, preferred = p["dimension_numbers"], p["preferred_element_type"]
    return (
        (layout.lhs_spec, layout.rhs_spec, layout.out_spec) == ((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
        and set(p["lhs_dilation"] + p["rhs_dilation"]) == {1}
        and p["feature_group_count"] == 1
        and p["precision"] is None
        and (preferred is None or preferred == x.dtype)  # to NumPy, float64 equals None
        and min(n for pads in p["padding"] for n in pads) >= 0
    )


def _transpose(linear, shape: tuple[int, ...], dtype: Any, b: jax.Array) -> jax.Array:
    """The transpose, at b, of a linear function of one array of that shape and dtype."""
    return jax.linear_transpose(linear, struct(b, shape, dtype))(b)[0]


@dataclasses.dataclass(frozen=True, eq=False)
class MapPlan:
    """Activation's output h -> product -> hp_next before the bias; the sample axis moves to the front on both sides."""

    pre: Segment
    product: Product
    post: Segment
    h: jax.ShapeDtypeStruct
    operand: jax.ShapeDtypeStruct  # what meets the weight
    out: jax.ShapeDtypeStruct  # of the product
    y_shape: tuple[int, ...]
    h_axis: int
    y_axis: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TracedMap:
    """A Linear: its products in the network's dtypes, or as `in_float32` for a rule."""

    extras: tuple[jax.Array, ...]
    plan: MapPlan = dataclasses.field(metadata={"static": True})
    float32: bool = dataclasses.field(default=False, metadata={"static": True})

    def in_float32(self) -> "TracedMap":
        return dataclasses.replace(self, float32=True)

    def _pre(self, h: jax.Array) -> jax.Array:
        return self.plan.pre.run(jnp.moveaxis(h, 0, self.plan.h_axis), self.extras, self.float32)

    def _post(self, y: jax.Array) -> jax.Array:
        return jnp.moveaxis(self.plan.post.run(y, (), self.float32), self.plan.y_axis, 0)

    def forward(self, x: jax.Array, w: jax.Array) -> jax.Array:
        if (whole := self._for_all_samples(x, self.plan.h.shape[self.plan.h_axis])) is not None:
            return self.forward(whole, w)[:1]
        return self._post(self.plan.product.forward(self._pre(x), w, self.float32))

    def input_gradient(self, b: jax.Array, w: jax.Array) -> jax.Array:
        plan = self.plan
        if (whole := self._for_all_samples(b, plan.y_shape[plan.y_axis])) is not None:
            return self.input_gradient(whole, w)[:1]
        assert self.float32  # only rules ask
        b = self._post_transposed(b)
        b = plan.product.input_gradient(b, w, plan.operand.shape, self.float32)
        return _transpose(self._pre, front(plan.h.shape, plan.h_axis), jnp.float32, b)

    def weight_gradient(self, x: jax.Array, b: jax.Array) -> jax.Array:
        return self.plan.product.weight_gradient(self._pre(x), self._post_transposed(b))

    def own_gradient(self, x: jax.Array, b: jax.Array, w: jax.Array) -> "TracedMap | None":
        if not self.extras:
            return None

        def product(extras: tuple[jax.Array, ...]) -> jax.Array:
            return self.plan.product.forward(dataclasses.replace(self, extras=extras)._pre(x), w, self.float32)

        (extras,) = jax.vjp(product, self.extras)[1](self._post_transposed(b))
        return dataclasses.replace(self, extras=extras)

    def _post_transposed(self, b: jax.Array) -> jax.Array:
        out = self.plan.out
        return _transpose(self._post, out.shape, jnp.float32 if self.float32 else out.dtype, b)

    def _for_all_samples(self, average: jax.Array, samples: int) -> jax.Array | None:
        """A [1, ·] average repeated for every sample, for the graph's shapes are those of its trace."""
        if average.shape[0] == samples:
            return None
        return jnp.broadcast_to(average, (samples, *average.shape[1:]))
