"""Finding the units [activation, linear map] in a traced function.

A unit is where a product meets exactly one operand that is made of parameters alone. Its linear map is everything
linear between the activation and the product; its activation an element-wise function of one array, whatever its name.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from bpevo.layers.graph import (
    PRODUCTS,
    Atom,
    Constant,
    Graph,
    Node,
    Segment,
    Trace,
    has_products,
    inner_jaxprs,
    is_float,
)
from bpevo.layers.linear import ConvMap
from bpevo.layers.traced_map import MapPlan, Product

_ELEMENTWISE = """abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max
min mul ne neg nextafter not or pow real rem round rsqrt select_n sign sin sinh sqrt square sub tan tanh xor pvary"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())
AFFINE = frozenset(["add", "sub", "mul", "div", "neg", "convert_element_type", "copy"])  # of one array and numbers
LAYOUT = frozenset(["reshape", "transpose", "squeeze", "expand_dims", "convert_element_type", "copy", "pvary"])
# Linear in their first argument if the others hold no parameters.
_LINEAR = LAYOUT | {"broadcast_in_dim", "rev", "slice", "dynamic_slice", "gather", "cumsum", "neg", "div"}
_LINEAR |= {"reduce_sum", "reduce_window_sum", "reduce_precision", "sharding_constraint"}
# What multiplies a weight with a signal and is not taken apart.
_OPAQUE = frozenset(
    ["ragged_dot", "ragged_dot_general", "bcoo_dot_general", "scaled_matmul", "pallas_call", "ffi_call"]
)
_SMALL = frozenset(
    ["broadcast_in_dim", "convert_element_type", "iota", "reshape", "pvary"]
)  # of numbers: cheap to make again


class Depends(NamedTuple):
    """What a value is made of: names of parameters, or just whether (beside data), data, and arrays that the function holds."""

    parameters: frozenset[str]
    data: bool
    held: bool = False

    @property
    def is_weight(self) -> bool:
        return bool(self.parameters) and not (self.data or self.held)

    @property
    def is_signal(self) -> bool:
        return bool(self.parameters) and (self.data or self.held)


_FIXED = Depends(frozenset(), False)
_SOME = frozenset(["parameters"])


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """A unit at its place in the graph."""

    name: str
    parameters: tuple[str, ...]  # that the weight is made of
    weight: Segment  # from the parameters' value to the product's operand, by changes of layout
    bias: Segment | None
    source: int  # hp
    result: int  # hp_next
    activation: Segment
    activation_name: str
    plan: MapPlan
    loops: tuple[int, ...]  # lengths of the loops around it


class LeftAlone(NamedTuple):
    what: str
    why: str


class Discovery:
    """The units of a trace whose inputs depend on what `inputs` says."""

    def __init__(self, trace: Trace, inputs: list[Depends], sample_axis: Callable[[int], int]):
        self.trace, self._sample_axis = trace, sample_axis
        self.depends: dict[int, Depends] = dict.fromkeys(trace.constants, Depends(frozenset(), False, True))
        self.units: list[Found] = []  # in forward order
        self.convolutions: dict[Node, ConvMap] = {}  # of weights, that have a measured lowering
        self.left_alone: list[LeftAlone] = []
        self._names: dict[str, int] = {}
        self._visit(trace.graph, inputs)
        self._find(trace.graph, ())

    def of(self, value: Atom) -> Depends:
        return _FIXED if isinstance(value, Constant) else self.depends[value]

    # Dependencies, in forward order.

    def _visit(self, graph: Graph, inputs: list[Depends]) -> list[Depends]:
        self.depends.update(zip(graph.inputs, inputs, strict=True))
        for node in graph.nodes:
            self.depends.update(zip(node.outputs, self._outputs(node), strict=True))
        return [self.of(v) for v in graph.outputs]

    def _outputs(self, node: Node) -> list[Depends]:
        given = [self.of(v) for v in node.inputs]
        if node.bodies and node.name == "scan":
            return self._scan(node, given)
        if node.bodies and node.name == "cond":
            branches = [self._visit(body, given[1:]) for body in node.bodies]
            return [_union(given[0], *outs) for outs in zip(*branches, strict=True)]
        if node.bodies:
            return self._visit(node.bodies[0], given)
        if node.name.startswith("random_"):  # a key may come with the parameters: what it draws is data
            return [Depends(frozenset(), True)] * len(node.outputs)
        if node.name == "stop_gradient":
            return [given[0]._replace(parameters=frozenset())]  # of a weight alone: a part of it that has no gradient
        return [_union(*given)] * len(node.outputs)

    def _scan(self, node: Node, given: list[Depends]) -> list[Depends]:
        constants, carried = scan_split(node)
        before, carry, xs = given[:constants], given[constants : constants + carried], given[constants + carried :]
        while True:
            outputs = self._visit(node.bodies[0], [*before, *carry, *xs])
            joined = [_union(a, b) for a, b in zip(carry, outputs, strict=False)]
            if joined == carry:
                return outputs
            carry = joined

    # Units.

    def _find(self, graph: Graph, loops: tuple[int, ...]) -> None:
        for node in graph.nodes:
            for body in node.bodies:
                self._find(body, (*loops, node.params["length"]) if node.name == "scan" else loops)
            if not node.bodies:
                self._consider(node, loops)

    def _consider(self, node: Node, loops: tuple[int, ...]) -> None:
        given = [self.of(v) for v in node.inputs]
        if node.name not in PRODUCTS:
            hidden = node.name in _OPAQUE or any(map(has_products, inner_jaxprs(node.equation)))
            if hidden and (weights := [d for d in given if d.is_weight]) and any(d.is_signal for d in given):
                self._leave(_names(weights[0]), f"inside a {node.name}")
            return
        is_weight = [d.is_weight for d in given]
        if all(d.is_signal for d in given):
            is_weight = [self._is_masked(v) for v in node.inputs]
            if is_weight[0] == is_weight[1]:
                shapes = " and ".join(str(list(self.trace.shape(v))) for v in node.inputs)
                self._leave(f"{node.name} of {shapes}", "a product of two activations")
        if is_weight[0] == is_weight[1]:
            return
        side = is_weight.index(True)
        weight, other = given[side], given[1 - side]
        if node.params.get("batch_group_count", 1) != 1:
            self._leave(_names(weight), "a convolution with batch groups")
            return
        if not all(is_float(self._aval(v)) for v in (*node.inputs, *node.outputs)):
            self._leave(_names(weight), "not a product of real numbers")
            return
        product = Product.of(node, side, *(self._aval(node.inputs[i]) for i in (1 - side, side)))
        if product.measured:
            self.convolutions[node] = product.measured
        if not other.is_signal:
            self._leave(_names(weight), "nothing with parameters lies below it")
        elif not product.has_samples:
            self._leave(_names(weight), "one sample at a time, no axis of samples: use jax.vmap instead of a loop")
        else:
            self.units.append(self._found(node, product, weight, loops))

    def _is_masked(self, value: Atom) -> bool:
        """Whether it is a weight, element by element with arrays that the function holds: a mask, a part that is not trained."""
        assert isinstance(value, int)
        node = self.trace.producers.get(self._unconverted(value).source)
        if node is None or node.name not in ELEMENTWISE or self.of(value).data:
            return False
        given = [self.of(v) for v in node.inputs]
        return any(d.is_weight for d in given) and not any(d.is_signal for d in given)

    def _leave(self, what: str, why: str) -> None:
        self.left_alone.append(LeftAlone(what, why))

    def _found(self, node: Node, product: Product, weight: Depends, loops: tuple[int, ...]) -> Found:
        path = _names(weight)
        count = self._names[path] = self._names.get(path, 0) + 1
        x, w = node.inputs if product.side else node.inputs[::-1]
        assert isinstance(x, int) and isinstance(w, int)  # numbers are neither signals nor weights
        pre = self._linear_chain(x)
        activation = self._activation(pre.source)
        if not activation.nodes:
            pre = _without_first_transpositions(pre)
            activation = Segment((), pre.source, pre.source)
        post, bias, result = self._after(node.outputs[0])
        avals = self.trace.avals
        plan = MapPlan(
            pre=pre,
            product=product,
            post=post,
            h=_struct(avals[pre.source]),
            operand=_struct(avals[x]),
            out=_struct(avals[node.outputs[0]]),
            y_shape=self.trace.shape(result),
            h_axis=self._sample_axis(pre.source),
            y_axis=self._sample_axis(result),
        )
        return Found(
            name=path if count == 1 else f"{path}#{count}",
            parameters=tuple(sorted(weight.parameters)),
            weight=self._unconverted(w),
            bias=None if bias is None else self._unconverted(bias),
            source=activation.source,
            result=result,
            activation=activation,
            activation_name=_activation_name(activation.nodes),
            plan=plan,
            loops=loops,
        )

    def _unconverted(self, weight: int) -> Segment:
        """Back to where a weight's layout and precision were last something else."""
        nodes: list[Node] = []
        at: Any = weight
        while (node := self.trace.producers.get(at)) and node.name in LAYOUT and is_float(self._aval(node.inputs[0])):
            nodes.insert(0, node)
            at = node.inputs[0]
        return Segment(tuple(nodes), at, weight)

    def _linear_chain(self, operand: int) -> Segment:
        """Back from a product's operand while what made it is linear in one array and reads no parameters otherwise."""
        nodes: list[Node] = []
        extras: list[int] = []
        at: Any = operand
        while (node := self.trace.producers.get(at)) and (main := self._linear_in(node)) is not None:
            if not self.trace.shape(node.inputs[main]):  # a number has no samples
                break
            others = [v for i, v in enumerate(node.inputs) if i != main]
            inside = [self._small(v) for v in others]
            extras += [v for v, s in zip(others, inside, strict=True) if s is None and not isinstance(v, Constant)]
            nodes = [*(n for s in inside if s for n in s), node, *nodes]
            at = node.inputs[main]
        return Segment(_unique(nodes), at, operand, tuple(dict.fromkeys(extras)))

    def _linear_in(self, node: Node) -> int | None:
        """Which of its inputs an operation is linear in, all others without parameters; None if there is none."""
        signals = [i for i, v in enumerate(node.inputs) if self.of(v).is_signal]
        if len(signals) != 1 or any(self.of(v).is_weight for v in node.inputs):
            return None
        main, name = signals[0], node.name
        if not all(is_float(self._aval(v)) for v in (node.inputs[main], node.outputs[0])):
            return None
        others = [v for i, v in enumerate(node.inputs) if i != main]
        linear = (
            (name in _LINEAR and main == 0)
            or name in ("mul", *PRODUCTS)
            or (name == "pad" and main == 0 and self._is_zero(others[0]))
            or (name == "select_n" and main > 0 and all(map(self._is_zero, others[1:])))
        )
        return main if linear else None

    def _aval(self, value: Atom):
        return self.trace.avals[value] if isinstance(value, int) else value.value

    def _is_zero(self, value: Atom) -> bool:
        if isinstance(value, Constant):
            return not np.any(value.value)
        node = self.trace.producers.get(value)
        return node is not None and node.name in _SMALL - {"iota"} and self._is_zero(node.inputs[0])

    def _small(self, value: Atom) -> list[Node] | None:
        """The operations that make a value from numbers alone, if they are few and cheap; [] for a number."""
        if isinstance(value, Constant):
            return []
        node = self.trace.producers.get(value)
        if node is None or node.name not in _SMALL:
            return None
        inside = [self._small(v) for v in node.inputs]
        return None if any(s is None for s in inside) else [*(n for s in inside for n in s or ()), node]

    def _activation(self, h: int) -> Segment:
        """The element-wise function of one array that made `h`; the identity if there is none."""
        nodes: list[Node] = []
        best, reached = (h, 0), h  # what the activation starts from and how many nodes it has so far
        nonlinear, frontier = False, {h}
        while True:
            last = max(frontier)  # numbers grow in the order of execution
            node = self.trace.producers.get(last)
            signals = self._elementwise_in(node) if node is not None else None
            if signals is None:
                break
            assert node is not None
            made = [n for v in node.inputs if v not in signals for n in self._small(v) or ()]
            nodes += [node, *reversed(made)]
            frontier = frontier - {last} | set(signals)
            nonlinear |= len(signals) > 1 or node.name not in AFFINE
            if len(frontier) == 1:
                (reached,) = frontier
                if nonlinear and is_float(self._aval(reached)):
                    best, nonlinear = (reached, len(nodes)), False
        source, count = best
        return Segment(_unique(sorted(nodes[:count], key=lambda n: n.outputs[0])), source, h)

    def _elementwise_in(self, node: Node) -> list[int] | None:
        """The arrays of the output's shape that an element-wise operation reads, if all else that it reads are numbers."""
        if node.name not in ELEMENTWISE and not (node.name == "custom_jvp_call" and _is_elementwise(node.equation)):
            return None
        shape = self.trace.shape(node.outputs[0])
        signals = []
        for value in node.inputs:
            if self.of(value).is_signal:
                if self.trace.shape(value) != shape or isinstance(value, Constant):
                    return None
                signals.append(value)
            elif self._small(value) is None:
                return None
        return signals or None

    def _after(self, product: int) -> tuple[Segment, int | None, int]:
        """From a product through changes of layout to the sum with a bias, the bias, the sum; nothing if there is none."""
        nodes: list[Node] = []
        at = product
        while len(uses := self.trace.uses.get(at, [])) == 1 and (node := uses[0]) is not None:
            if node.name == "add" and is_float(self._aval(node.outputs[0])):
                other = node.inputs[1] if node.inputs[0] == at else node.inputs[0]
                same = self.trace.shape(node.outputs[0]) == self.trace.shape(at)
                if same and self.of(other).is_weight and not isinstance(other, Constant):
                    return Segment(tuple(nodes), product, at), other, node.outputs[0]
                break
            if node.name not in LAYOUT:
                break
            nodes.append(node)
            at = node.outputs[0]
        return Segment((), product, product), None, product


def scan_split(node: Node) -> tuple[int, int]:
    """Numbers of constants and of carried values of a scan."""
    params = node.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # jax 0.12
    return len(constants), len(carry)


def _union(*given: Depends) -> Depends:
    parameters = frozenset().union(*(d.parameters for d in given))
    data, held = any(d.data for d in given), any(d.held for d in given)
    return Depends(_SOME if parameters and data else parameters, data, held)


def _struct(aval) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


def _names(weight: Depends) -> str:
    return " + ".join(sorted(weight.parameters))


def _unique(nodes) -> tuple[Node, ...]:
    return tuple(dict.fromkeys(nodes))


def _is_elementwise(equation) -> bool:
    def inside(jaxpr) -> bool:
        for e in jaxpr.eqns:
            if inner := inner_jaxprs(e):
                if not all(map(inside, inner)):
                    return False
            elif e.primitive.name not in ELEMENTWISE | _SMALL:
                return False
        return True

    shapes = {v.aval.shape for v in (*equation.invars, *equation.outvars)} - {()}
    return len(shapes) <= 1 and len(equation.outvars) == 1 and all(map(inside, inner_jaxprs(equation)))


def _without_first_transpositions(pre: Segment) -> Segment:
    """An identity has no layout of its own: its hp keeps that in which it is used, with positions before features."""
    nodes, source = pre.nodes, pre.source
    while nodes and nodes[0].name == "transpose":
        nodes, source = nodes[1:], nodes[0].outputs[0]
    return Segment(nodes, source, pre.target, pre.extras)


def _activation_name(nodes: tuple[Node, ...]) -> str:
    """That of the function that was called, else of the operations."""
    if not nodes:
        return "identity"
    calls = {n.call for n in nodes}
    if len(calls) == 1 and "" not in calls:
        return calls.pop()
    return "+".join(dict.fromkeys(n.call or n.name for n in nodes if n.name not in _SMALL))
