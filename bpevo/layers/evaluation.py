"""Running a traced function with its units in place.

The carrier runs through all units and joins the outputs at the end, so that every unit's backward pass runs, whatever
the loss reads, and hands on b_L where the rule reads it.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from bpevo.layers.discovery import Found, scan_split
from bpevo.layers.graph import Atom, Constant, Graph, Node, Trace, is_float
from bpevo.layers.linear import ConvMap, apply
from bpevo.layers.traced_map import TracedMap
from bpevo.layers.unit import Weights, unit
from bpevo.layers.varying import axes, vary, vary_state
from bpevo.rules import Rule, Unit, UnitShapes, statistics
from bpevo.rules.unit import State

Values = dict[int, Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WithNoise:
    """A rule that keeps its source of noise in its state: a key as 16-bit words in float32, fresh each step."""

    rule: Rule

    def init(self, shapes: UnitShapes) -> State:
        raise NotImplementedError("a state with noise starts from a key: starting_state")

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        key, following = jax.random.split(_key(state["noise"] / statistics.uses(state)))
        signal, rule_state = self.rule.signal(dataclasses.replace(unit, key=key), state["rule"])
        noise = _words(jax.random.key_data(following))
        return signal, {"rule": rule_state, "noise": noise, "uses": jnp.ones_like(state["uses"])}

    needs_noise = False

    @property
    def reads(self) -> frozenset[str]:
        return self.rule.reads

    @property
    def equation_is_data(self) -> bool:
        return self.rule.equation_is_data


def starting_state(rule: Rule, key: jax.Array, shapes: UnitShapes) -> State:
    """The state of a rule in a unit, with its source of noise if it draws any."""
    state = rule.init(shapes)
    noise = _words(jax.random.bits(key, (2,), jnp.uint32))
    return {"rule": state, "noise": noise, "uses": jnp.float32(1)} if rule.needs_noise else state


def _words(data: jax.Array) -> jax.Array:
    return jnp.stack([data >> 16, data & 0xFFFF]).astype(jnp.float32).ravel()


def _key(words: jax.Array) -> jax.Array:
    high, low = words.astype(jnp.uint32).reshape(2, 2)
    return jax.random.wrap_key_data(high << 16 | low, impl="threefry2x32")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _joined(logits: int | None, over, outputs: tuple[jax.Array, ...], carrier: jax.Array) -> tuple[jax.Array, ...]:
    """The outputs. The carrier's cotangent is that of the logits, `outputs[logits]`, or zero."""
    return outputs


def _joined_backward(logits, over, carrier, cotangents):
    b_L = jnp.zeros_like(carrier) if logits is None else cotangents[logits].astype(carrier.dtype)  # noqa: N806
    return cotangents, vary(b_L, over)


_joined.defvjp(lambda logits, over, outputs, carrier: (outputs, carrier), _joined_backward)


@jax.custom_vjp
def _kept(carrier: jax.Array, state: State) -> jax.Array:
    """The carrier; the "gradient" of the state, which belongs to units that do not run, is the state."""
    return carrier


_kept.defvjp(lambda carrier, state: (carrier, state), lambda state, b: (b, state))


@jax.custom_vjp
def _of_uses(constants: State, uses: jax.Array) -> State:
    """What several uses of a state in one step gave as its next value, their sum, divided by their number."""
    return jax.tree.map(lambda c: c / statistics.uses({"uses": uses}), constants)


_of_uses.defvjp(
    lambda constants, uses: (_of_uses(constants, uses), uses), lambda uses, b: (b, jnp.ones_like(uses) + 0 * uses)
)


class Evaluation:
    """Evaluates a trace with `units` in place; `b_L_shapes` says the shape of b_L in each by name.

    The `convolutions` that are no units have standard gradients, but in the lowering of bpevo.layers.convolution.
    """

    def __init__(
        self,
        trace: Trace,
        units: Sequence[Found],
        rule: Rule,
        b_L_shapes: Mapping[str, tuple[int, ...]],  # noqa: N803
        convolutions: Mapping[Node, ConvMap],
    ):
        self._trace, self._b_L_shapes, self._convolutions = trace, b_L_shapes, convolutions
        self._rule = WithNoise(rule) if rule.needs_noise else rule
        self._units = {trace.producers[u.result]: u for u in units}  # by the operation that a unit ends with

    def run(self, arguments: Sequence[Any], state: Mapping[str, State], carrier: jax.Array, logits: int | None):
        """The outputs of the traced function, a list."""
        over = self._over = axes([*arguments, *self._trace.constants.values()])
        state, carrier = vary_state(over, state) if over else state, vary(carrier, over)
        outputs, carrier = self._graph(self._trace.graph, arguments, state, carrier)
        floats = [i for i, x in enumerate(outputs) if is_float(jnp.asarray(x))]
        at = None if logits is None else floats.index(logits)
        joined = _joined(at, over, tuple(jnp.asarray(outputs[i]) for i in floats), carrier)
        for i, x in zip(floats, joined, strict=True):
            outputs[i] = x
        return outputs

    def _graph(self, graph: Graph, arguments, state, carrier) -> tuple[list[Any], jax.Array]:
        values: Values = self._trace.constants | dict(zip(graph.inputs, arguments, strict=True))

        def read(atom: Atom):
            return atom.value if isinstance(atom, Constant) else values[atom]

        live = self._live(graph)
        running = {name for node in live for name in self._names(node)}  # what else there is keeps its state
        if idle := {name: entry for name, entry in state.items() if name not in running}:
            carrier = _kept(carrier, idle)
        for node in live:
            if found := self._units.get(node):
                values[found.result], carrier = self._unit(found, values, state.get(found.name, {}), carrier)
            elif names := self._names(node):
                mine = {n: state[n] for n in names if n in state}
                outputs, carrier = self._body(node, list(map(read, node.inputs)), mine, carrier)
                values.update(zip(node.outputs, outputs, strict=True))
            elif measured := self._convolutions.get(node):
                x, w = vary(tuple(map(read, node.inputs)), self._over)
                values[node.outputs[0]] = apply(measured, x, w)
            else:
                values.update(zip(node.outputs, node.run(list(map(read, node.inputs))), strict=True))
        return list(map(read, graph.outputs)), carrier

    def _live(self, graph: Graph) -> list[Node]:
        """The operations to run: what a unit replaces is not needed, unless something else reads it."""
        needed, live = {v for v in graph.outputs if not isinstance(v, Constant)}, []
        for node in reversed(graph.nodes):
            if needed.isdisjoint(node.outputs) and not node.equation.effects:
                continue
            live.append(node)
            if found := self._units.get(node):
                needed |= {found.source, found.weight.source, *found.plan.pre.extras}
                needed |= {found.bias.source} if found.bias else set()
            else:
                needed |= {v for v in node.inputs if not isinstance(v, Constant)}
        return live[::-1]

    def _unit(self, found: Found, values: Values, state: State, carrier: jax.Array) -> tuple[jax.Array, jax.Array]:
        plan = found.plan

        def unconverted(segment):
            x = values[segment.source]
            return segment.run(x, (), float32=x.dtype != jnp.float64)

        def activation(hp: jax.Array) -> jax.Array:
            return jnp.moveaxis(found.activation.run(jnp.moveaxis(hp, 0, plan.h_axis)), plan.h_axis, 0)

        kernel = plan.product.to_kernel(unconverted(found.weight))
        bias = None if found.bias is None else unconverted(found.bias)
        if bias is not None and bias.ndim:  # a number has no axes
            bias = jnp.moveaxis(bias, plan.y_axis, 0)
        hp, extras = jnp.moveaxis(values[found.source], plan.h_axis, 0), tuple(values[v] for v in plan.pre.extras)
        hp, kernel, bias, extras = vary((hp, kernel, bias, extras), self._over)
        b_L = carrier.reshape(self._b_L_shapes[found.name])  # noqa: N806
        constants, rule_state = state.get("constants", {}), state.get("rule", {})
        constants = _of_uses(constants, state["uses"]) if constants else {}
        with jax.named_scope(found.name):
            y, b_L = unit(  # noqa: N806
                TracedMap(extras, plan),
                activation,
                found.name,
                self._rule,
                hp,
                b_L,
                Weights(kernel, bias),
                constants,
                rule_state,
                None,
            )
        return jnp.moveaxis(y, 0, plan.y_axis), b_L.reshape(carrier.shape)

    # Loops, branches, checkpoints.

    def _names(self, node: Node) -> list[str]:
        """The unit that an operation ends, or those in its bodies."""
        if node in self._units:
            return [self._units[node].name]
        return [name for body in node.bodies for inside in body.nodes for name in self._names(inside)]

    def _body(self, node: Node, values: list[Any], state, carrier) -> tuple[list[Any], jax.Array]:
        if node.name == "scan":
            return self._scan(node, values, state, carrier)
        if node.name == "cond":
            branches = [functools.partial(self._graph, body) for body in node.bodies]
            return lax.switch(values[0], branches, values[1:], state, carrier)

        def checkpointed(values, state, carrier):
            return self._graph(node.bodies[0], values, state, carrier)

        params = {k: node.params[k] for k in ("prevent_cse", "policy")}
        return jax.checkpoint(checkpointed, **params)(values, state, carrier)

    def _scan(self, node: Node, values: list[Any], state, carrier) -> tuple[list[Any], jax.Array]:
        constants, carried = scan_split(node)
        fixed, start, xs = values[:constants], values[constants : constants + carried], values[constants + carried :]

        def step(carry, slices):
            (carry, carrier), (x, state) = carry, slices
            outputs, carrier = self._graph(node.bodies[0], [*fixed, *carry, *x], state, carrier)
            return (outputs[:carried], carrier), outputs[carried:]

        loop = {k: node.params[k] for k in ("length", "reverse", "unroll")}
        (carry, carrier), ys = lax.scan(step, (start, carrier), (xs, state), **loop)
        return [*carry, *ys], carrier
