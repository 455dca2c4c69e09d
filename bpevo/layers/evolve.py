"""A rule on any JAX network: a function transformation, as `jax.grad` is one."""

import dataclasses
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.layers.constants import Initializer, draw_constants, logits_shape
from bpevo.layers.discovery import Depends, Discovery, Found, LeftAlone
from bpevo.layers.evaluation import Evaluation, starting_state
from bpevo.layers.graph import Trace, is_float
from bpevo.layers.traced_map import front
from bpevo.layers.unit import as_rule, check_not_empty
from bpevo.rules import OPERANDS, Rule, UnitShapes

_TRACING = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)


@dataclasses.dataclass(frozen=True)
class UnitInfo:
    """A unit of a network, for `where=`: [activation, linear map] with the weight at `path`; shapes with samples first."""

    path: str  # of the weight in the parameters; #2 and so on where the same weight is used again
    activation: str
    hp: tuple[int, ...]  # [B, …, I]
    hp_next: tuple[int, ...]  # [B, …, O]
    kernel: tuple[int, ...]  # [inputs…, O]
    loops: tuple[int, ...]  # lengths of the loops around it: it stands for so many units


@dataclasses.dataclass(frozen=True)
class Units(Sequence):
    """What a rule was put on, in forward order, and `left_alone`: (what, why)."""

    found: tuple[UnitInfo, ...]
    left_alone: tuple[LeftAlone, ...]

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index):
        return self.found[index]

    def __str__(self) -> str:
        rows = [["unit", "activation", "hp", "hp_next", "kernel"]]
        for u in self.found:
            loops = "".join(f"{n} x " for n in u.loops)
            rows.append([loops + u.path, u.activation, *(str(list(s)) for s in (u.hp, u.hp_next, u.kernel))])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        if self.left_alone:
            lines += ["left alone:", *(f"  {what}: {why}" for what, why in self.left_alone)]
        return "\n".join(lines)


class Evolved:
    """A network whose units train with a rule; see `evolve`."""

    def __init__(self, apply, rule, where, logits, feedback_init):
        self.apply, self.where, self.logits, self.feedback_init = apply, where, logits, feedback_init
        self.rule = as_rule(rule)
        self.name = getattr(apply, "__qualname__", type(apply).__name__)
        as_data = self.rule.equation_is_data  # its text is not known
        self.rule_name = type(self.rule).__name__ if as_data else str(self.rule)
        self.last: Units | None = None

    def __call__(self, params: Any, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """What `apply` returns for these; the gradient by `params` is the rule's, that by `state` is its next value."""
        return _Plan(self, params, args, kwargs).run(state)

    def init(self, key: jax.Array, params: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state at the start.

        Args:
            key: For the constants R, S, R_L and for rules that draw noise.
            params: As for a call; shapes are enough (`jax.ShapeDtypeStruct`), also in `args`.
            *args: As for a call.
            **kwargs: As for a call.

        Returns:
            For every unit that needs it, by path: constants, running statistics and noise, float32 arrays.
        """
        return _Plan(self, params, args, kwargs).init(key)

    def units(self, params: Any, *args: Any, **kwargs: Any) -> Units:
        """The units of the network, printable; arguments as for `init`."""
        return _Plan(self, params, args, kwargs).listing

    def __repr__(self) -> str:
        head = f"evolve({self.name}, {self.rule_name})"
        return f"{head}: call it, or its units(…), to see the units" if self.last is None else f"{head}\n{self.last}"


def evolve(
    apply: Callable,
    rule: str | Rule,
    where: Callable[[UnitInfo], bool] | None = None,
    *,
    logits: Callable[[Any], Any] | None = None,
    feedback_init: Initializer | None = None,
) -> Evolved:
    """The network `apply` with a backward equation in place of backprop.

    The result computes what `apply` computes. Its gradients by the weights, and by what else its linear maps read (gates, mixing
    matrices), are the standard ones for the signal that arrives; the signal that a unit [activation, linear map] sends down to
    what its activation reads is the rule's.

    A unit is found wherever a product (matrix product or convolution) meets one operand that is made of parameters alone (or
    of a parameter and a mask that `apply` holds) and one that depends on parameters and data. To its linear map belongs what
    is linear between the activation and the product and reads no other parameters (flattening, mean pooling, padding,
    transposition, slices and gathers, factors and mixing matrices, dropout) and a bias added after it. Where something else
    stands between (max pooling, a sum of two, a concatenation, a scatter, a barrier, a norm) the unit's activation is the
    identity. A weight that is used twice makes two units.

    Args:
        apply: A function of parameters (a pytree of arrays, also a Flax collection, an `nnx.State` or an Equinox model) and
            further arguments. Arguments that are no arrays (flags, names) stay as they are.
        rule: The backward equation: a text, a name of `rules.NAMED`, or a rule.
        where: Which units get it, by path and shapes; by default all. The others keep backprop.
        logits: From what `apply` returns to its logits [B, …, C]; by default all of it or the first of a tuple.
        feedback_init: The law of R, and so the deviation of S, as a JAX initializer `(key, shape, dtype) -> array`; by
            default N(0, 2 / fan_in).

    Returns:
        A function `net(params, state, *args)`, with `net.init(key, params, *args)` for its state and
        `net.units(params, *args)` for what was found. The gradient by `state` is the next state: store it instead of
        feeding it to the optimizer. A network for one sample: evolve its `jax.vmap`, not the other way round.

    Raises:
        ValueError: When called: no unit is found; the rule reads b_L or R_L and there are no logits, or none for a unit;
            R_L is larger than 64 M entries.
        TypeError: `apply`, `where` or `logits` is no function. When called: `apply` needs values while it is traced, or a
            weight is made of integers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def network(params, x):
        ...     return jax.nn.relu(x @ params["hidden"]) @ params["out"]
        >>> params = {"hidden": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
        >>> x = jnp.ones((5, 3))
        >>> net = evolve(network, "feedback_alignment")
        >>> print(net.units(params, x))
        unit  activation  hp      hp_next  kernel
        out   relu        [5, 4]  [5, 2]   [4, 2]
        left alone:
          hidden: nothing with parameters lies below it
        >>> state = net.init(jax.random.key(0), params, x)
        >>> loss = lambda params, state: jnp.mean(net(params, state, x) ** 2)
        >>> gradient, state = jax.grad(loss, (0, 1))(params, state)
    """
    if not callable(apply):
        raise TypeError(f"bpevo.evolve takes a function of parameters and inputs, such as model.apply, not {apply!r}")
    for name, value, example in (
        ("where", where, "unit: unit.path != 'out'"),
        ("logits", logits, "out: out['logits']"),
    ):
        if value is not None and not callable(value):
            raise TypeError(f"{name}= takes a function, such as lambda {example}, not {value!r}")
    return Evolved(apply, rule, where, logits, feedback_init)


class _Plan:
    """One trace of the network: its units and what they need."""

    def __init__(self, net: Evolved, params: Any, args: tuple, kwargs: dict):
        self._net, self._rule = net, net.rule
        params = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, params)  # as jax.grad does
        leaves, tree = jax.tree.flatten((params, args, kwargs))
        _refuse_explicit_sharding(net, leaves)
        dynamic = [hasattr(x, "shape") and hasattr(x, "dtype") for x in leaves]
        self._values = [x for x, d in zip(leaves, dynamic, strict=True) if d]

        def flat(*arrays):
            rest = iter(arrays)
            merged = [next(rest) if d else x for x, d in zip(leaves, dynamic, strict=True)]
            params, args, kwargs = jax.tree.unflatten(tree, merged)
            return net.apply(params, *args, **kwargs)

        self._flat = flat
        # Operands of b_L's and R_L's types, and so the carrier, exist only where there are logits.
        self.reads_logits = any(OPERANDS[n].base in "ZF" for n in net.rule.reads if n in OPERANDS)
        paths = [_path(p) for p, _ in jax.tree.leaves_with_path(params)]
        self._names = [n for n, d in zip(paths, dynamic, strict=False) if d]
        self._trace = _traced(net, flat, self._values)
        self._logits = _logits_index(net, self._trace)
        if self._logits is None and self.reads_logits:
            raise ValueError(_no_logits(net, self._trace))
        weights = [Depends(frozenset([n]), False) for n in self._names]
        data = [Depends(frozenset(), True)] * (len(self._values) - len(weights))
        found = Discovery(self._trace, weights + data, _SampleAxes(self))
        self._convolutions = found.convolutions
        chosen, left = [], list(found.left_alone)
        for unit in found.units:
            if net.where is None or net.where(_info(unit)):
                chosen.append(unit)
            else:
                left.append(LeftAlone(unit.name, "where= does not choose it"))
        self._units = chosen
        self.listing = net.last = Units(tuple(map(_info, self._units)), tuple(left))
        self._refuse_wrong()

    @property
    def logits_shape(self) -> tuple[int, ...] | None:
        return None if self._logits is None else self._trace.outputs[self._logits].shape

    @property
    def samples(self) -> int:
        """The number of samples B: the first axis of the logits, else of what else comes out or goes in."""
        data = [v.shape for v in self._values[len(self._names) :]]
        return next((s[0] for s in [self.logits_shape, *self._returned(self._trace), *data] if s), 0)

    def _returned(self, trace: Trace) -> list[tuple[int, ...]]:
        """Shapes of the logits, or of all that comes out where there are none."""
        return [o.shape for o in (trace.outputs if self._logits is None else [trace.outputs[self._logits]])]

    def with_more_samples(self) -> Trace | None:
        """The same trace of twice as many samples; None if the function does not allow it or then does something else.

        They come in by a leading axis of the data, which need not be as long as the logits': it may be joined with others.
        So what is asked of it is that the first axis of what comes out grows with it.
        """
        data = range(len(self._names), len(self._values))
        before = next((s for s in self._returned(self._trace) if s), ())
        for length in dict.fromkeys([self.samples, *(self._values[i].shape[0] for i in data if self._values[i].shape)]):
            values = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in self._values]
            for i in data:
                if values[i].shape[:1] == (length,):
                    values[i] = jax.ShapeDtypeStruct((2 * length, *values[i].shape[1:]), values[i].dtype)
            try:
                other = Trace(self._flat, *values)
            except Exception:  # whatever the network raises for shapes that it was not made for
                continue
            after = next((s for s in self._returned(other) if s), ())
            if len(other.avals) == len(self._trace.avals) and (not before or after[0] != before[0]):
                return other
        return None

    def _refuse_wrong(self) -> None:
        if not self._units:
            raise ValueError(
                f"{self._net.name} has no unit for a rule: no product of a weight of its first argument with what depends on "
                f"that argument and on data\n{self.listing}"
            )
        dtypes = {n: v.dtype for n, v in zip(self._names, self._values, strict=False)}
        for unit in self._units:
            check_not_empty(unit.name, _info(unit).hp, _info(unit).kernel)
            for name in unit.parameters:
                if not jnp.issubdtype(dtypes[name], jnp.floating):
                    raise TypeError(
                        f"the parameter {name} is {dtypes[name]}, and a weight needs a gradient: pass what is not trained in "
                        "another argument than the first, or leave the unit out by where="
                    )
            if self._z(unit) is None:
                raise ValueError(
                    f"b_L does not reach the unit {unit.name}: its hp {list(_info(unit).hp)} has no sample axis of the logits "
                    f"{list(self.logits_shape or ())}; leave it out by where=, or take a rule without b_L and R_L"
                )

    def _z(self, unit: Found) -> tuple[int, ...] | None:
        """The shape of b_L for a unit; None if it does not reach it."""
        z = self.logits_shape
        return (1, 1) if z is None or not self.reads_logits else logits_shape(_info(unit).hp, z)

    def shapes(self, unit: Found) -> UnitShapes:
        info = _info(unit)
        return UnitShapes(info.hp, info.hp_next, self._z(unit) or (1, 1), info.kernel)

    def init(self, key: jax.Array) -> dict[str, Any]:
        state = {}
        for i, unit in enumerate(self._units):
            entry = self._init_unit(jax.random.fold_in(key, i), unit)
            if entry:
                state[unit.name] = entry
        return state

    def _init_unit(self, key: jax.Array, unit: Found) -> dict[str, Any]:
        def one(key):
            shapes, law = self.shapes(unit), self._net.feedback_init
            constants = draw_constants(jax.random.fold_in(key, 0), unit.name, self._rule.reads, shapes, law)
            rule_state = starting_state(self._rule, jax.random.fold_in(key, 1), shapes)
            entry = {"constants": constants, "uses": jnp.float32(1)} if constants else {}
            return entry | ({"rule": rule_state} if jax.tree.leaves(rule_state) else {})

        for length in reversed(unit.loops):
            one = _stacked(one, length)
        return one(key)

    def run(self, state: Mapping[str, Any]) -> Any:
        needed = jax.eval_shape(self.init, jax.random.key(0))
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)  # noqa: E731
        if shapes(dict(state)) != shapes(needed):
            raise ValueError(
                f"the state is not that of {self._net.name} with the rule {self._net.rule_name} on these shapes: make it by "
                "net.init(key, params, …)"
            )
        state = jax.tree.unflatten(jax.tree.structure(needed), jax.tree.leaves(state))  # of plain dicts
        logits = self._logits if self.reads_logits else None
        carrier = jnp.zeros((1, 1) if logits is None else self._trace.outputs[logits].shape, jnp.float32)
        evaluation = Evaluation(
            self._trace, self._units, self._rule, {u.name: self.shapes(u).Z for u in self._units}, self._convolutions
        )
        outputs = evaluation.run(self._values, state, carrier, logits)
        return jax.tree.unflatten(self._trace.tree, outputs)


class _SampleAxes:
    """Which axis of a value is that of samples: the one that grows with them.

    Where a network cannot be traced with more samples, the first axis as long as the logits' first.
    """

    def __init__(self, plan: _Plan):
        self._plan, self._trace = plan, plan._trace

    def __call__(self, value: int) -> int:
        shape = self._trace.shape(value)
        if self._more is None:
            return shape.index(self._plan.samples) if self._plan.samples in shape else 0
        more = self._more.shape(value)
        return next((i for i, (n, m) in enumerate(zip(shape, more, strict=True)) if n != m), 0)

    @functools.cached_property
    def _more(self) -> Trace | None:
        return self._plan.with_more_samples()


def _refuse_explicit_sharding(net: Evolved, leaves: list[Any]) -> None:
    """On explicit axes an array's type says how it lies, and a unit's constants and state, whole everywhere, have none."""
    for x in leaves:
        sharding = getattr(jax.typeof(x), "sharding", None) if isinstance(x, jax.Array) else None
        if sharding is None or not any(axis is not None for axis in sharding.spec):
            continue
        if jax.sharding.AxisType.Explicit in sharding.mesh.axis_types:
            raise TypeError(
                f"{net.name} was given an array {jax.typeof(x).str_short()} whose type says how it lies on a mesh: make the mesh "
                "with jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))"
            )


def _path(path) -> str:
    if len(path) > 1 and path[-1] == jax.tree_util.GetAttrKey("value"):  # of an nnx.Variable
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _info(unit: Found) -> UnitInfo:
    plan = unit.plan
    hp, hp_next = front(plan.h.shape, plan.h_axis), front(plan.y_shape, plan.y_axis)
    return UnitInfo(unit.name, unit.activation_name, hp, hp_next, plan.product.kernel, unit.loops)


def _stacked(init: Callable, length: int) -> Callable:
    return lambda key: jax.vmap(init)(jax.random.split(key, length))


def _traced(net: Evolved, flat: Callable, values: list[Any]) -> Trace:
    try:
        return Trace(flat, *values)
    except _TRACING as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
        place = f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else "unknown"
        raise TypeError(
            f"{net.name} needs the value of an array while it is traced, as for jax.jit: write it with jax.numpy, jax.lax.cond "
            f"and the like, or pass what is fixed as a Python value\n  {place}\n  {str(error).splitlines()[0]}"
        ) from None


def _logits_index(net: Evolved, trace: Trace) -> int | None:
    """Which output holds the logits; None if there are none."""
    numbers = jax.tree.unflatten(trace.tree, range(len(trace.outputs)))
    chosen = net.logits(numbers) if net.logits else numbers[0] if isinstance(numbers, tuple) and numbers else numbers
    if not isinstance(chosen, int):
        if net.logits:
            raise ValueError(f"logits= must choose one array of what {net.name} returns, not {chosen!r}")
        return None
    shape = trace.outputs[chosen]
    return chosen if shape.ndim and is_float(shape) else None


def _no_logits(net: Evolved, trace: Trace) -> str:
    returned = jax.tree.unflatten(trace.tree, [f"{o.dtype}{list(o.shape)}" for o in trace.outputs])
    return (
        f"the rule {net.rule_name} reads b_L or R_L, of the logits, but {net.name} returns no logits [B, …, C]; it returns "
        f"{returned}: transform the network, not its loss, and name the logits by logits=lambda out: …"
    )
