"""A rule specialised to one expression: plain traced code, the reference for speed and for correctness."""

import dataclasses
from collections.abc import Callable
from typing import overload

import jax
import jax.numpy as jnp

from bpevo.rules import expression as ex
from bpevo.rules import formulas, statistics
from bpevo.rules.components import STATISTICS, UNARIES, Statistic
from bpevo.rules.drawing import Drawing
from bpevo.rules.equation import Equation
from bpevo.rules.named import resolve
from bpevo.rules.own import FunctionRule, UnitView
from bpevo.rules.types import WEIGHTS, Type
from bpevo.rules.unit import State, Unit, UnitShapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompiledRule:
    """A rule whose equation is fixed when a program is traced; a pytree without leaves.

    Args:
        expression: A feasible tree; `compile` makes the rule of a text and checks it.

    >>> rule = compile("unit_fro(g) + (0.5*g)")
    >>> print(rule)
    unit_fro(g) + (0.5*g)
    >>> sorted(rule.reads), rule.needs_noise
    (['W', 'b_next', 'dh'], False)
    """

    expression: ex.Expression = dataclasses.field(metadata={"static": True})

    equation_is_data = False

    def init(self, shapes: UnitShapes) -> State:
        rows = [_average_shape(kind, shapes) for kind in _statistics(self.expression)]
        if not rows:
            return {}
        m, var = ([jnp.zeros(s, jnp.float32) for s in rows] for _ in range(2))
        return {"m": m, "var": var, "step": jnp.float32(0), "uses": jnp.float32(1)}

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        return _Evaluation(unit, state).run(self.expression)

    @property
    def needs_noise(self) -> bool:
        return any(isinstance(n, ex.UnaryNode) and UNARIES[n.name].noisy for n in self.expression.walk())

    @property
    def reads(self) -> frozenset[str]:
        operands = (n.name for n in self.expression.walk() if isinstance(n, ex.OperandNode))
        return frozenset().union(*map(formulas.reads, operands))

    def draw(self) -> Drawing:
        """A picture of what feeds b_i^p; a notebook shows it, `.save("rule.svg")` writes it."""
        return self.expression.draw()

    def _repr_latex_(self) -> str:
        return self.expression._repr_latex_()

    def __str__(self) -> str:
        return str(self.expression)


@overload
def compile(expression: str | ex.Expression | Equation | CompiledRule) -> CompiledRule: ...
@overload
def compile(expression: Callable[[UnitView], jax.Array] | FunctionRule) -> FunctionRule: ...
def compile(expression):  # noqa: A001 (the product's name)
    """The rule of an equation, for `rule=` of the layers.

    Args:
        expression: A text, the name of a rule (bpevo.rules.NAMED), any feasible Expression tree, an Equation, or a
            function of a unit's values (bpevo.rules.UnitView) such as `lambda u: u.backward(u.b_next, u.R) * u.dh`; a rule
            that was made of one of these stays as it is.

    Returns:
        The rule.

    Raises:
        ValueError: The function cannot be computed, or its result is no signal.
        RuleSyntaxError: The text is no equation of the language.
        InfeasibleEquation: Its shapes do not fit.

    >>> print(compile("feedback_alignment"))
    fa
    >>> compile("g + W")
    Traceback (most recent call last):
    ...
    bpevo.rules.types.InfeasibleEquation: in g + W: + needs two operands of one shape but got [B, I] and [I, O]; \
g is [B, I], W is [I, O]
    """
    if isinstance(expression, CompiledRule | FunctionRule):
        return expression
    if isinstance(expression, Equation):
        expression = expression.to_expression()
    if isinstance(expression, ex.Expression):
        return CompiledRule(expression.check())
    if callable(expression) and not isinstance(expression, type):
        rule = FunctionRule(expression)
        _ = rule.reads  # what is wrong with the function is said here
        return rule
    return CompiledRule(resolve(expression))


def _statistics(expression: ex.Expression) -> list[Type]:
    """Types of what running statistics are taken of, in order of evaluation."""
    types = []
    for node in formulas.live(expression):
        if isinstance(node, ex.OperandNode) and node.statistic:
            types.append(ex.OperandNode(node.name).type)
        elif isinstance(node, ex.UnaryNode) and UNARIES[node.name].statistic:
            types.append(node.x.type)
    return types


def _average_shape(kind: Type, shapes: UnitShapes) -> tuple[int, ...]:
    return shapes.of(kind.base) if kind.base in WEIGHTS else (1, *shapes.of(kind.base)[1:])


class _Evaluation:
    """One pass over the tree. Running state and noise are numbered in order of evaluation."""

    def __init__(self, unit: Unit, state: State):
        self._unit, self._old = unit, state
        if state:  # else the rule takes no statistics
            self._uses = statistics.uses(state)
            self._step = state["step"] / self._uses + 1
        self._m: list[jax.Array] = []
        self._var: list[jax.Array] = []
        self._noises = 0
        self._cache: dict[str, jax.Array] = {}

    def run(self, expression: ex.Expression) -> tuple[jax.Array, State]:
        value = formulas.value(self._unit, expression, self._leaf, self._stateful)
        value = jnp.broadcast_to(value, self._unit.shapes.X)
        if not self._old:
            return value, {}
        return value, {"m": self._m, "var": self._var, "step": self._step, "uses": jnp.float32(1)}

    def _leaf(self, node: ex.OperandNode) -> jax.Array:
        x = self._operand(node.name)
        return self._statistic(x, ex.OperandNode(node.name).type, STATISTICS[node.statistic]) if node.statistic else x

    def _operand(self, name: str) -> jax.Array:
        if formulas.definition(name) is None:
            return self._unit.values.read(name)
        if name not in self._cache:
            self._cache[name] = formulas.formula_value(self._unit, name, self._operand)
        return self._cache[name]

    def _stateful(self, node: ex.UnaryNode, x: jax.Array) -> jax.Array:
        entry = UNARIES[node.name]
        if entry.statistic:
            return self._statistic(x, node.x.type, entry.statistic)
        assert entry.fn is not None and self._unit.key is not None
        key = jax.random.fold_in(self._unit.key, self._noises)
        self._noises += 1
        uniform = jax.random.uniform(key, (x.size,), jnp.float32).reshape(x.shape)
        return entry.fn(x, jnp.float32(node.constant), uniform)

    def _statistic(self, x: jax.Array, kind: Type, statistic: Statistic) -> jax.Array:
        mean, spread = (
            (x, 0.0)
            if kind.base in WEIGHTS or kind.average
            else (jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True))
        )
        index = len(self._m)
        w = statistics.weight_of_step(self._step)
        m, var = (self._old[name][index] / self._uses for name in ("m", "var"))
        m, var = statistics.update(m, var, mean, spread, w)
        self._m.append(m)
        self._var.append(var)
        if statistic.average:
            return statistic.average(m, var)
        assert statistic.divisor is not None
        return (x - m) / statistic.divisor(m, var)
