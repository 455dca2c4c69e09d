"""Optimizers by name: those of OPTIMIZERS, and every one of `optax` and `optax.contrib` that fits a training here.

One fits if its update needs gradients and parameters only and its learning rate may be a traced value. That is found out by
trying, nothing is computed. A text may give arguments: `adam:b1=0.9,b2=0.95`.
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

# An extension point: name -> what makes of (decayed) gradients a direction; the learning rate comes after it.
#     OPTIMIZERS["ademamix"] = optax.contrib.scale_by_ademamix
#     TrainingSettings(optimizer="ademamix")
OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.identity,
    "momentum": lambda: optax.trace(0.9),
    "adam": optax.scale_by_adam,  # 1412.6980
}


class Optimizer(Protocol):
    """What a training does with gradients."""

    def init(self, params: Any, rate: jax.Array) -> Any:
        """The state at the start; `rate` is the peak learning rate."""

    def update(self, gradient: Any, state: Any, params: Any, rate: jax.Array) -> tuple[Any, Any]:
        """(next parameters, next state)."""


def optimizer_named(text: str, weight_decay: float) -> Optimizer:
    """The optimizer that a text names.

    Args:
      text: a name, or a name and arguments: `sgd`, `adamw`, `adam:b1=0.9,b2=0.95`. A name of OPTIMIZERS is that one, unless the
        text gives arguments that it does not take: `sgd:momentum=0.9,nesterov=True` is optax's.
      weight_decay: on kernels. An optimizer of optax that has decay of its own with a mask (`weight_decay` and `mask`) decays
        so, decoupled as it says; for every other one the L2 gradient, a multiple of the weight, is added to the gradient.

    Raises:
      ValueError: there is no such optimizer, it takes no such arguments, or it does not fit.
    """
    name, colon, rest = text.partition(":")
    arguments = _arguments(text, rest) if colon else {}
    if name in OPTIMIZERS and set(arguments) <= set(inspect.signature(OPTIMIZERS[name]).parameters):
        optimizer = _Directed(functools.partial(OPTIMIZERS[name], **arguments), weight_decay)
        if arguments:
            _try(text, name, optimizer)
        return optimizer
    return _of_optax(text, name, tuple(arguments.items()), weight_decay)


def is_kernel(params: Any) -> Any:
    """True where weight decay applies: parameters of two axes or more that are not called bias or scale, as some of more
    axes are (of attention's heads, of layers in a scan)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, p: p.ndim >= 2 and jax.tree_util.keystr(path[-1:], simple=True) not in ("bias", "scale"), params
    )


@dataclasses.dataclass(frozen=True)
class _Directed:
    """The learning rate times a direction that an entry of OPTIMIZERS makes of L2-decayed gradients."""

    make: Callable[[], optax.GradientTransformation]
    weight_decay: float

    @property
    def _chain(self) -> optax.GradientTransformation:
        return optax.chain(optax.add_decayed_weights(self.weight_decay, mask=is_kernel), self.make())

    def init(self, params, rate):
        return self._chain.init(params)

    def update(self, gradient, state, params, rate):
        direction, state = self._chain.update(gradient, state, params)
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), state


@dataclasses.dataclass(frozen=True)
class _Optax:
    """An optimizer of optax, made anew for every traced learning rate: some do more with it than to scale their update."""

    make: Callable[..., optax.GradientTransformation]  # of the learning rate
    l2: float
    decoupled: float = 0.0  # decay beside its update, of one that would decay a part of the kernels

    def _chain(self, rate) -> optax.GradientTransformation:
        made = self.make(learning_rate=rate)
        made = optax.chain(optax.add_decayed_weights(self.l2, mask=is_kernel), made) if self.l2 else made
        if not self.decoupled:
            return made
        return optax.chain(made, optax.add_decayed_weights(-rate * self.decoupled, mask=is_kernel))

    def init(self, params, rate):
        return self._chain(rate).init(params)

    def update(self, gradient, state, params, rate):
        updates, state = self._chain(rate).update(gradient, state, params)
        chex.assert_trees_all_equal_shapes(updates, params)  # else they would be broadcast
        return optax.apply_updates(params, updates), state


def _known() -> dict[str, Callable]:
    """The functions of optax that make something of a learning rate, but for the pieces `scale_by_…`."""
    found: dict[str, Callable] = {}
    for module in (optax, optax.contrib):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            takes = inspect.signature(function).parameters
            if "learning_rate" in takes and not name.startswith(("_", "scale_by_")):
                found.setdefault(name, function)
    return found


@functools.lru_cache(64)
def _of_optax(text: str, name: str, arguments: tuple[tuple[str, Any], ...], weight_decay: float) -> _Optax:
    known = _known()
    if name in OPTIMIZERS and name not in known:
        raise ValueError(
            f"optimizer={text!r}: {name} takes {', '.join(inspect.signature(OPTIMIZERS[name]).parameters) or 'no arguments'}"
        )
    if name not in known:
        raise ValueError(_unknown(text, name, known))
    function, keys = known[name], inspect.signature(known[name]).parameters
    mask = next((m for m in ("mask", "weight_decay_mask") if m in keys), None)
    for key, _ in arguments:
        if key == "learning_rate" or key == mask or key.endswith("weight_decay"):
            own = "--weight_decay" if key != "learning_rate" else "--learning_rates"
            raise ValueError(f"optimizer={text!r}: {key} comes from {own}")
    given = dict(arguments)
    _check_keys(text, name, list(given), keys)
    decoupled = mask is not None and "weight_decay" in keys
    parts = "adam_weight_decay" in keys  # as Muon's, whose own decay is of its matrices alone
    if decoupled and not parts:
        given |= {"weight_decay": weight_decay, str(mask): is_kernel}
    make = functools.partial(function, **given)
    optimizer = _Optax(make, 0.0 if decoupled else weight_decay, weight_decay if parts else 0.0)
    _try(text, name, optimizer)
    return optimizer


def _try(text: str, name: str, optimizer: Optimizer) -> None:
    """Raises ValueError unless a step of the optimizer can be traced with gradients, parameters and a rate."""
    params = {
        "dense": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32), "bias": jax.ShapeDtypeStruct((2,), jnp.float32)},
        "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 4), jnp.float32)},
    }

    def steps(params, rate):
        state = optimizer.init(params, rate)
        return state, optimizer.update(params, state, params, rate)[1]

    try:
        state, following = jax.eval_shape(steps, params, jax.ShapeDtypeStruct((), jnp.float32))
    except Exception as error:  # whatever the optimizer raises where it misses something
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(
            f"optimizer={text!r} does not fit: its step must need gradients, parameters and a traced learning rate, nothing "
            f"else; {name} says: {lines[0]}"
        ) from error
    if any(isinstance(x, optax.contrib.ScheduleFreeState) for x in _parts(state)):
        raise ValueError(
            f"optimizer={text!r} does not fit: it evaluates other parameters than it trains (schedule_free_eval_params)"
        )
    if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise ValueError(f"optimizer={text!r} does not fit: it draws noise, the same for every seed of a training")
    if _shapes(state) != _shapes(following):
        raise ValueError(f"optimizer={text!r} does not fit: its state changes shape or dtype from step to step")


def _parts(state: Any) -> list[Any]:
    """A state and, where it is made of states, those."""
    return [state, *(p for x in state for p in _parts(x))] if isinstance(state, tuple) else [state]


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def _unknown(text: str, name: str, known: Mapping[str, Any]) -> str:
    there = next((m for m in (optax, optax.contrib) if callable(getattr(m, name, None))), None)
    if there is not None:
        return f"optimizer={text!r} does not fit: {there.__name__}.{name} takes no learning rate"
    names = [*OPTIMIZERS, *known]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return (
        f"optimizer must be one of {', '.join(OPTIMIZERS)}, or an optimizer of optax such as adamw, not {text!r}; the nearest is "
        f"{near!r}"
    )


def _arguments(text: str, rest: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in rest.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not key.isidentifier() or not equals or not value or key in found:
            raise ValueError(f"optimizer={text!r}: write NAME:KEY=VALUE,KEY=VALUE with each key once, not {item!r}")
        found[key] = _value(value)
    return found


def _value(text: str) -> Any:
    """A number, True, False or None; any other word is a text, such as a dtype's name."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _check_keys(text: str, name: str, keys: list[str], takes: Mapping[str, inspect.Parameter]) -> None:
    own = [k for k in takes if k != "learning_rate" and not k.endswith(("mask", "weight_decay"))]
    for key in keys:
        if key not in own:
            raise ValueError(f"optimizer={text!r}: {name} takes {', '.join(own) or 'no arguments'}, not {key}")
    missing = [k for k in own if takes[k].default is inspect.Parameter.empty and k not in keys]
    if missing:
        raise ValueError(f"optimizer={text!r}: {name} needs {', '.join(missing)}, as {name}:{missing[0]}=…")
