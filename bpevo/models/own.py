"""Networks of one's own, `--model=package.module:factory`: any Linen or NNX module, its units found by `bpevo.evolve`."""

import dataclasses
import functools
import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bpevo import layers
from bpevo.models.importing import attribute, first_line
from bpevo.rules import Rule

# Names of arguments of a network's call that say whether it is trained: with these it is, with those it is not.
_TRAINING, _EVALUATING = ("train", "training", "is_training"), ("deterministic", "use_running_average")


class _Network(Protocol):
    """A module as pure functions; `rest` is all that it keeps beside parameters, such as running averages."""

    def init(self, key: jax.Array, x: jax.Array) -> tuple[Any, Any]:
        """(params, rest)."""

    def apply(self, train: bool, params: Any, rest: Any, x: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        """(logits, next rest)."""


def _flags(module: Any, train: bool) -> dict[str, bool]:
    names = inspect.signature(module.__call__).parameters
    flags = dict.fromkeys(_TRAINING, train) | dict.fromkeys(_EVALUATING, not train)
    return {name: value for name, value in flags.items() if name in names}


@dataclasses.dataclass(frozen=True)
class _Linen:
    """Randomness (dropout) comes from one key: streams that are not given fall back to "params"."""

    module: nn.Module

    def init(self, key, x):
        variables = dict(self.module.init({"params": key}, x, **_flags(self.module, False)))
        return variables.pop("params", {}), variables

    def apply(self, train, params, rest, x, key):
        mutable = list(rest) if train else []
        variables = {"params": params, **rest}
        logits, updated = self.module.apply(
            variables, x, rngs={"params": key}, mutable=mutable, **_flags(self.module, train)
        )
        return logits, rest | dict(updated)


@dataclasses.dataclass(frozen=True)
class _NNX:
    """Called in the mode `train()` or `eval()`. Its generators start anew from the step's key, so they are no state."""

    build: Callable[[nnx.Rngs], nnx.Module]

    @staticmethod
    def _split(model: nnx.Module):
        return nnx.split(model, nnx.Param, nnx.RngState, ...)

    def init(self, key, x):
        _, params, _, rest = self._split(self.build(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def apply(self, train, params, rest, x, key):
        graph, *states = self._split(nnx.eval_shape(lambda: self.build(nnx.Rngs(0))))
        streams = jax.tree.leaves(states[1])
        values = [
            jax.random.fold_in(key, i) if jnp.issubdtype(s.dtype, jax.dtypes.prng_key) else jnp.zeros(s.shape, s.dtype)
            for i, s in enumerate(streams)
        ]
        states[1] = jax.tree.unflatten(jax.tree.structure(states[1]), values)
        for state, pure in ((states[0], params), (states[2], rest)):
            nnx.replace_by_pure_dict(state, pure)
        model: Any = nnx.merge(graph, *states)
        (model.train if train else model.eval)()
        logits = model(x, **_flags(model, train))
        return logits, nnx.to_pure_dict(self._split(model)[3])


@dataclasses.dataclass(frozen=True)
class Own:
    """A Model (bpevo.models.Model) of the user's network. The collection "batch_stats" holds all that it keeps beside
    parameters, `layers.OVERWRITE` what the rule keeps, constants included; the key "noise" is that of dropout."""

    name: str
    classes: int
    rule: Rule | str | None
    network: _Network

    def _evolved(self, train: bool) -> layers.Evolved:
        rule = self.rule
        assert rule is not None
        evolved = layers.evolve(functools.partial(self.network.apply, train), rule)
        evolved.name = self.name
        return evolved

    def init(self, rngs: Mapping[str, jax.Array], x: jax.Array, train: bool = False) -> dict[str, Any]:
        params, rest = self.network.init(rngs["params"], x)
        variables = {"params": params, "batch_stats": rest}
        if self.rule is not None:
            x = jnp.concatenate([x, x]) if len(x) == 1 else x  # so that the axis of samples can be told
            variables[layers.OVERWRITE] = self._evolved(True).init(rngs["feedback"], params, rest, x, jax.random.key(0))
        return variables

    def apply(self, variables: Mapping[str, Any], x: jax.Array, *, train: bool, mutable: Any = (), rngs: Any = None):
        """With `mutable` as in Flax, else the logits alone."""
        params, rest, key = variables["params"], variables["batch_stats"], (rngs or {}).get("noise", jax.random.key(0))
        if self.rule is None:
            logits, after = self.network.apply(train, params, rest, x, key)
        else:
            logits, after = self._evolved(train)(params, variables[layers.OVERWRITE], rest, x, key)
        logits = logits.astype(jnp.float32)
        return (logits, {"batch_stats": after} if train else {}) if mutable is not False else logits

    def fingerprint(self, shape: tuple[int, ...]) -> dict[str, int]:
        """Checksums of the parameters' paths, shapes and dtypes on samples of that shape, and of what is computed with them.

        Raises ValueError where the network cannot be trained: it fails, returns no logits, its parameters are no floats.
        """
        x, key = jax.ShapeDtypeStruct((3, *shape), jnp.float32), jax.random.key(0)
        given = f"float32 {list(x.shape)}"
        try:
            init, (params, rest) = jax.make_jaxpr(self.network.init, return_shape=True)(key, x)
            trained, (logits, after) = self._traced(True)(params, rest, x, key)
            evaluated, _ = self._traced(False)(params, rest, x, key)
        except Exception as error:  # whatever the user's network raises
            raise ValueError(f"--model={self.name} fails when it is traced on {given}: {first_line(error)}") from error
        leaves = jax.tree_util.tree_leaves_with_path(params)
        for path, leaf in leaves:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                where = jax.tree_util.keystr(path, simple=True, separator="/")
                raise ValueError(
                    f"--model={self.name}: its parameter {where} is {leaf.dtype}, and parameters are trained by gradients: keep "
                    "what is not trained in another collection or variable"
                )
        found = f"{logits.dtype} {list(logits.shape)}" if hasattr(logits, "shape") else type(logits).__name__
        if found.partition(" ")[2] != str([3, self.classes]) or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"--model={self.name} returns {found} for {given}, no logits {[3, self.classes]}: one number for each sample and "
                "class; a factory with an argument classes gets their number"
            )
        if jax.tree.map(jnp.shape, after) != jax.tree.map(jnp.shape, rest):
            raise ValueError(
                f"--model={self.name}: what it keeps beside parameters ({', '.join(rest) or 'nothing'}) changes its form "
                "while it trains"
            )
        text = repr([(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in leaves])
        code = "\n".join(map(_code, (init, trained, evaluated)))
        return {"model_crc32": zlib.crc32(text.encode()), "model_code_crc32": zlib.crc32(code.encode())}

    def _traced(self, train: bool) -> Callable:
        return jax.make_jaxpr(functools.partial(self.network.apply, train), return_shape=True)


def _code(traced: Any) -> str:
    """The operations of a trace, without addresses, and checksums of the arrays that it closes over."""
    arrays = [zlib.crc32(np.asarray(c).tobytes()) for c in traced.consts if jnp.issubdtype(c.dtype, jnp.number)]
    return f"{re.sub('0x[0-9a-f]+', '', str(traced.jaxpr))} {arrays}"


def own(name: str, classes: int, rule: Rule | str | None, dtype: Any) -> Own:
    """The network of the factory at `name`, `package.module:factory`.

    The factory is called with those of `classes` (the number of logits), `dtype` (of the computation) and `rngs` (an
    `nnx.Rngs`) that its signature has.

    Raises:
        ValueError: there is no such factory, it fails, or it returns no network that can be trained.
    """
    factory, written = attribute(name, "model"), f"--model={name}"
    if isinstance(factory, nn.Module | nnx.Module) or not callable(factory):
        raise ValueError(f"{written} is a {type(factory).__name__}: name a function that makes a network")
    try:
        made_by: Any = vars(factory).get("__init__", factory) if isinstance(factory, type) else factory
        takes = set(inspect.signature(made_by).parameters)
    except (TypeError, ValueError):
        takes = set()
    given = {k: v for k, v in {"classes": classes, "dtype": dtype}.items() if k in takes}
    if "dtype" not in takes and dtype != jnp.float32:
        raise ValueError(f"{written}: for --compute_dtype other than float32 its factory needs an argument dtype")

    def build(rngs: nnx.Rngs) -> Any:
        return factory(**given, **({"rngs": rngs} if "rngs" in takes else {}))

    try:
        made = nnx.eval_shape(lambda: build(nnx.Rngs(0))) if "rngs" in takes else build(nnx.Rngs(0))
    except Exception as error:  # whatever the user's factory raises
        raise ValueError(f"{written} fails: {first_line(error)}") from error
    if isinstance(made, nn.Module):
        return Own(name, classes, rule, _Linen(made))
    if not isinstance(made, nnx.Module):
        raise ValueError(f"{written} returns a {type(made).__name__}, no Linen or NNX module")
    if "rngs" not in takes:
        raise ValueError(
            f"{written}: a factory of an NNX module needs an argument rngs, the nnx.Rngs of its parameters, so that every seed "
            "starts from weights of its own"
        )
    return Own(name, classes, rule, _NNX(build))
