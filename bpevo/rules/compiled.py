"""A rule specialised to one expression: plain traced code, the reference for speed and for correctness."""

import dataclasses

import jax
import jax.numpy as jnp

from bpevo.rules import expression as ex
from bpevo.rules import statistics
from bpevo.rules.components import BINARIES, EPSILON, OPERANDS, UNARIES
from bpevo.rules.equation import Equation
from bpevo.rules.text import parse
from bpevo.rules.types import WEIGHTS, Type, matrix, product
from bpevo.rules.unit import State, Unit, UnitShapes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CompiledRule:
    """A rule whose equation is fixed when a program is traced; a pytree without leaves."""

    expression: ex.Expression = dataclasses.field(metadata={"static": True})

    def init(self, shapes: UnitShapes) -> State:
        rows = [_average_shape(node.type, shapes) for node in _statistics(self.expression)]
        return {"m": [jnp.zeros(s) for s in rows], "var": [jnp.zeros(s) for s in rows], "step": jnp.zeros(())}

    def signal(self, unit: Unit, state: State) -> tuple[jax.Array, State]:
        return _Evaluation(unit, state).run(self.expression)

    @property
    def needs_noise(self) -> bool:
        return any(isinstance(n, ex.UnaryNode) and UNARIES[n.name].noisy for n in self.expression.walk())

    @property
    def operands(self) -> frozenset[str]:
        return frozenset(n.name for n in self.expression.walk() if isinstance(n, ex.OperandNode))

    def _repr_latex_(self) -> str:
        return self.expression._repr_latex_()

    def __str__(self) -> str:
        return str(self.expression)


def compile(expression: str | ex.Expression | Equation) -> CompiledRule:  # noqa: A001 (the product's name)
    """The rule of a text, a named rule, any feasible Expression tree or an Equation.

    Pass it as `rule=` to `bpevo.layers.Dense` or `Conv`. Raises RuleSyntaxError or InfeasibleEquation.
    """
    from bpevo.rules.named import resolve

    if isinstance(expression, Equation):
        expression = expression.to_expression()
    if isinstance(expression, ex.Expression):
        return CompiledRule(expression.check())
    return CompiledRule(resolve(expression) if isinstance(expression, str) else parse(expression))


def _is_statistic(node: ex.Expression) -> bool:
    if isinstance(node, ex.OperandNode):
        return bool(node.modifier)
    return isinstance(node, ex.UnaryNode) and UNARIES[node.name].structure == "whiten"


def _live(node: ex.Expression):
    """Nodes in order of evaluation, without what `left` ignores."""
    ignored = isinstance(node, ex.BinaryNode) and BINARIES[node.name].structure == "left"
    for child in node.children[:1] if ignored else node.children:
        yield from _live(child)
    yield node


def _statistics(expression: ex.Expression) -> list[ex.Expression]:
    return [node for node in _live(expression) if _is_statistic(node)]


def _average_shape(kind: Type, shapes: UnitShapes) -> tuple[int, ...]:
    return shapes.of(kind.base) if kind.base in WEIGHTS else (1, *shapes.of(kind.base)[1:])


class _Evaluation:
    """One pass over the tree. Running state and noise are numbered in order of evaluation."""

    def __init__(self, unit: Unit, state: State):
        self._unit, self._old = unit, state
        self._step = state["step"] + 1
        self._m: list[jax.Array] = []
        self._var: list[jax.Array] = []
        self._noises = 0
        self._cache: dict[str, jax.Array] = {}

    def run(self, expression: ex.Expression) -> tuple[jax.Array, State]:
        value = self._value(expression)
        shape = self._unit.shapes.X
        return jnp.broadcast_to(value, shape), {"m": self._m, "var": self._var, "step": self._step}

    def _value(self, node: ex.Expression) -> jax.Array:
        if isinstance(node, ex.OperandNode):
            x = self._operand(node.name)
            return self._statistic(x, Type(OPERANDS[node.name].base), node.modifier) if node.modifier else x
        if isinstance(node, ex.UnaryNode):
            return self._unary(node, self._value(node.x))
        assert isinstance(node, ex.BinaryNode)
        entry = BINARIES[node.name]
        left = self._value(node.left)
        if entry.structure == "left":
            return left
        right = self._value(node.right)
        if entry.structure == "product":
            p = product(node.left.type, node.right.type)
            activation, weight = (right, left) if p.mirrored else (left, right)
            return self._unit.product(activation, p.name, weight)
        assert entry.fn is not None
        return entry.fn(left, right)

    def _operand(self, name: str) -> jax.Array:
        if name not in self._cache:
            self._cache[name] = self._compute(name)
        return self._cache[name]

    def _compute(self, name: str) -> jax.Array:
        unit = self._unit
        match name:
            case "sgn_W":
                return jnp.sign(unit.W)
            case "gh":
                return unit.backward(unit.b_next, unit.W)
            case "fah":
                return unit.backward(unit.b_next, unit.R)
            case "dfah":
                return unit.product(unit.b_L, "ZF", unit.R_L)
            case "g" | "fa" | "dfa":
                return self._operand({"g": "gh", "fa": "fah", "dfa": "dfah"}[name]) * unit.dh
        return getattr(unit, name)

    def _unary(self, node: ex.UnaryNode, x: jax.Array) -> jax.Array:
        entry, kind = UNARIES[node.name], node.x.type
        c = jnp.float32(node.constant)
        if entry.structure == "transpose":
            return x
        if entry.structure == "whiten":
            return self._statistic(x, kind, "whiten")
        if entry.norm:
            return x / (jnp.reshape(_norm(x, kind, *entry.norm), _norm_shape(x, kind, entry.norm[1])) + EPSILON)
        if entry.line:
            return entry.line(c)(x)
        assert entry.fn is not None
        if entry.noisy:
            key = jax.random.fold_in(self._unit.key, self._noises)
            self._noises += 1
            return entry.fn(x, c, jax.random.uniform(key, (x.size,)).reshape(x.shape))
        return entry.fn(x, c)

    def _statistic(self, x: jax.Array, kind: Type, what: str) -> jax.Array:
        mean, spread = (
            (x, 0.0)
            if kind.base in WEIGHTS or kind.average
            else (jnp.mean(x, 0, keepdims=True), jnp.var(x, 0, keepdims=True))
        )
        index = len(self._m)
        w = statistics.weight_of_step(self._step)
        m, var = statistics.update(self._old["m"][index], self._old["var"][index], mean, spread, w)
        self._m.append(m)
        self._var.append(var)
        match what:
            case "mean":
                return m
            case "std":
                return jnp.sqrt(var)
        bn, whiten = statistics.divisors(m, var)
        return (x - m) / (bn if what == "bn" else whiten)


def _norm(x: jax.Array, kind: Type, order: str, axis: str) -> jax.Array:
    """The norm of the (transposed) matrix form: scalar, [1, columns] or [rows, 1] of the stored matrix."""
    x = jnp.abs(matrix(x, kind.base))
    if axis == "mat":
        # Largest column sum (1), largest (inf) or smallest (ninf) row sum; rows and columns swap when transposed.
        sums = jnp.sum(x, 0 if (order == "1") != kind.transposed else 1)
        return jnp.min(sums) if order == "ninf" else jnp.max(sums)
    over = {"elem": (0, 1), "col": (0,), "row": (1,)}[axis]
    if kind.transposed and axis != "elem":
        over = (1 - over[0],)
    match order:
        case "0":
            return jnp.sum(x != 0, over, dtype=x.dtype)
        case "1":
            return jnp.sum(x, over)
        case "2":
            return jnp.sqrt(jnp.sum(x * x, over))
        case "ninf":
            return jnp.min(x, over)
    return jnp.max(x, over)


def _norm_shape(x: jax.Array, kind: Type, axis: str) -> tuple[int, ...]:
    """Shape that lets `_norm` broadcast against the native value."""
    if axis in ("elem", "mat"):
        return (1,) * x.ndim
    per_row = (axis == "row") != kind.transposed
    split = x.ndim - 1 if kind.base == "K" else 1
    return tuple(n if (d < split) == per_row else 1 for d, n in enumerate(x.shape))
