"""A traced function as a flat list of operations: calls are opened, loops and checkpoints hold graphs of their own."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PRODUCTS = ("dot_general", "conv_general_dilated")
_CALLS = ("jit", "pjit", "closed_call", "core_call")
_BODIES = ("scan", "cond", "remat2", "checkpoint")


class Constant(NamedTuple):
    """A number known when the function is traced."""

    value: Any


Atom = int | Constant


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One operation. Values are numbered; every number is written once."""

    equation: Any  # JaxprEqn
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    scope: str
    call: str = ""  # name of the innermost opened call, for an operation that is a function of its own its name
    bodies: tuple["Graph", ...] = ()  # of a scan, a checkpoint or the branches of a cond that hold products

    @property
    def name(self) -> str:
        return self.equation.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        return self.equation.params

    def run(self, values: Sequence[Any]) -> Sequence[Any]:
        primitive, params = self.equation.primitive, self.params
        scope = jax.named_scope(self.scope) if self.scope else contextlib.nullcontext()
        with scope, self.equation.ctx.manager:
            out = primitive.bind(*values, **primitive.get_bind_params(params))
        return out if primitive.multiple_results else [out]


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    nodes: list[Node]
    inputs: list[int]
    outputs: list[Atom]


class Trace:
    """The graph of `function(*arguments)`, whose leaves are arrays or their shapes."""

    def __init__(self, function: Callable, *arguments: Any):
        self._numbers = itertools.count()
        self.avals: dict[int, Any] = {}
        self.constants: dict[int, Any] = {}  # arrays that the function closes over
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
        self.outputs, self.tree = jax.tree.flatten(shapes)
        self.graph = self._graph(jaxpr)
        self.producers: dict[int, Node] = {}
        self.uses: dict[int, list[Node | None]] = {}  # None: an output
        self._index(self.graph)

    def shape(self, value: Atom) -> tuple[int, ...]:
        return np.shape(value.value) if isinstance(value, Constant) else self.avals[value].shape

    def _index(self, graph: Graph) -> None:
        for node in graph.nodes:
            self.producers.update(dict.fromkeys(node.outputs, node))
            for value in node.inputs:
                if not isinstance(value, Constant):
                    self.uses.setdefault(value, []).append(node)
            for body in node.bodies:
                self._index(body)
        for value in graph.outputs:
            if not isinstance(value, Constant):
                self.uses.setdefault(value, []).append(None)

    def _new(self, variable) -> int:
        number = next(self._numbers)
        self.avals[number] = variable.aval
        return number

    def _graph(self, jaxpr) -> Graph:
        inputs = [self._new(v) for v in getattr(jaxpr, "jaxpr", jaxpr).invars]
        nodes: list[Node] = []
        return Graph(nodes, inputs, self._open(jaxpr, inputs, nodes, ""))

    def _open(self, jaxpr, inputs: Sequence[Atom], nodes: list[Node], scope: str, call: str = "") -> list[Atom]:
        """Appends the operations of a (closed) jaxpr to `nodes`; returns its outputs."""
        consts = getattr(jaxpr, "consts", None) or ()
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        atoms: dict[Any, Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, const in zip(jaxpr.constvars, consts, strict=True):
            if not np.ndim(const) and not isinstance(const, jax.core.Tracer):
                atoms[variable] = Constant(const)  # a number, whatever it is kept in
                continue
            atoms[variable] = number = self._new(variable)
            self.constants[number] = const

        def read(v) -> Atom:
            return Constant(v.val) if hasattr(v, "val") else atoms[v]

        for equation in jaxpr.eqns:
            values = tuple(map(read, equation.invars))
            within = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
            name, inner = equation.primitive.name, inner_jaxprs(equation)
            outputs: list[Atom]
            if name in _CALLS and not _has_shardings(equation):
                outputs = self._open(inner[0], values, nodes, within, _call_name(equation))
            else:
                holds = name in _BODIES and any(map(has_products, inner))
                bodies = tuple(map(self._graph, inner)) if holds else ()
                numbers = tuple(self._new(v) for v in equation.outvars)
                nodes.append(Node(equation, values, numbers, within, call or _call_name(equation), bodies))
                outputs = list(numbers)
            atoms.update(zip(equation.outvars, outputs, strict=True))
        return list(map(read, jaxpr.outvars))


def inner_jaxprs(equation) -> list[Any]:
    """The functions among an operation's parameters; of a cond its branches in order."""
    found = []
    for value in equation.params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if hasattr(item, "eqns"):
                found.append(item)
    return found


def _call_name(equation) -> str:
    """The name of the function that a call or a `custom_jvp_call` stands for."""
    inner = inner_jaxprs(equation)
    if "name" in equation.params or equation.primitive.name != "custom_jvp_call" or not inner:
        return str(equation.params.get("name", ""))
    return _call_name(inner[0].eqns[0]) if inner[0].eqns else ""


def _has_shardings(equation) -> bool:
    """Whether a call says where its arguments or results lie."""
    params = equation.params
    stated = (*params.get("in_shardings", ()), *params.get("out_shardings", ()))
    return any(type(s).__name__ != "UnspecifiedValue" for s in stated)


def has_products(jaxpr) -> bool:
    return any(e.primitive.name in PRODUCTS or any(map(has_products, inner_jaxprs(e))) for e in jaxpr.eqns)


def is_float(value: Any) -> bool:
    return jnp.issubdtype(value.dtype, jnp.floating)


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A part of a graph as a function of one value; `extras` are further values that it reads."""

    nodes: tuple[Node, ...]  # in order
    source: int
    target: int
    extras: tuple[int, ...] = ()

    def run(self, x: jax.Array, extras: Sequence[jax.Array] = (), float32: bool = False) -> jax.Array:
        """In float32 conversions between floats are left out and every other float is converted."""
        values: dict[int, Any] = dict(zip(self.extras, extras, strict=True)) | {self.source: x}
        for node in self.nodes:
            read = [v.value if isinstance(v, Constant) else values[v] for v in node.inputs]
            if float32:
                read = [v.astype(jnp.float32) if is_float(v) else v for v in map(jnp.asarray, read)]
                if node.name == "convert_element_type" and jnp.issubdtype(node.params["new_dtype"], jnp.floating):
                    values[node.outputs[0]] = read[0].astype(jnp.float32)
                    continue
                if node.name in PRODUCTS:
                    params = dict(node.params, preferred_element_type=None)
                    values[node.outputs[0]] = node.equation.primitive.bind(*read, **params)
                    continue
            values.update(zip(node.outputs, node.run(read), strict=True))
        return values[self.target]
