"""What rules would send down in networks that learn: the measure by which two rules are the same.

It is |a - b| / max(|a|, |b|) of a unit's signal at a step, with the same noise; above `DIFFERENT` in any unit and step
the two are different. Nothing here knows how a search finds duplicates: this judges it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from bpevo import data, layers, models
from bpevo.rules import Equation, InterpretedRule, Rule, assemble, compile

DIFFERENT = 1e-3


@dataclasses.dataclass(frozen=True)
class Network:
    """A model that learns the digits with backprop and SGD, looked at for some steps from each of `starts` on."""

    model: str
    learning_rate: float
    starts: tuple[int, ...]
    steps: int
    batch: int = 128


NETWORKS = (
    Network("mlp-32-24-32", 0.5, (0, 10, 50, 200, 800), 3),
    Network("wrn-10-1", 0.1, (0, 40, 200), 2),
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Shadow:
    """Backprop, whose state carries the signal that `rule` would have sent down instead."""

    rule: Rule

    needs_noise = True
    equation_is_data = False

    @property
    def reads(self) -> frozenset[str]:
        return self.rule.reads

    def init(self, shapes):
        return {"rule": self.rule.init(shapes), "signal": jnp.zeros(shapes.X)}

    def signal(self, unit, state):
        signal, inner = self.rule.signal(unit, state["rule"])
        backprop = compile("g")
        true, _ = backprop.signal(unit, backprop.init(unit.shapes))
        return true, {"rule": inner, "signal": signal}


class Signals:
    """equation -> its signals on `network`, [steps, ...] for every unit; running statistics go on over all steps."""

    def __init__(self, network: Network):
        self._network = network
        digits = data.load("digits")
        images = data.normalise(jnp.asarray(digits.train_images), data.per_pixel_mean(digits.train_images))
        self._seen = self._train(images, jnp.asarray(digits.train_labels))
        self._run = jax.jit(self._signals)

    def __call__(self, equation: Equation) -> list[np.ndarray]:
        return [np.asarray(x) for x in self._run(assemble(equation))]

    def _model(self, rule: Rule | None) -> models.Model:
        return models.by_name(self._network.model, 10, rule)

    def _loss(self, rule: Rule | None, variables, x, y, key=None):
        rngs = None if key is None else {"noise": key}
        logits, updated = self._model(rule).apply(variables, x, mutable=["batch_stats"], rngs=rngs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)), updated

    def _train(self, images: jax.Array, labels: jax.Array) -> Any:
        """(variables, images, labels) at the steps that are looked at, stacked."""
        network, rng, kept = self._network, np.random.default_rng(0), []
        seen = {start + i for start in network.starts for i in range(network.steps)}

        @jax.jit
        def step(variables, x, y):
            rest = {k: v for k, v in variables.items() if k != "params"}

            def loss(params):
                return self._loss(None, {"params": params, **rest}, x, y)

            gradient, updated = jax.grad(loss, has_aux=True)(variables["params"])
            params = jax.tree.map(lambda p, g: p - network.learning_rate * g, variables["params"], gradient)
            return {"params": params, **updated}

        variables = jax.jit(self._model(None).init)(jax.random.key(0), images[:1])
        for t in range(max(seen) + 1):
            batch = rng.choice(len(labels), network.batch, replace=False)
            x, y = images[batch], labels[batch]
            if t in seen:
                kept.append((variables, x, y))
            variables = step(variables, x, y)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *kept)

    def _signals(self, program) -> list[jax.Array]:
        rule = _Shadow(InterpretedRule(program))
        variables, images, labels = self._seen
        streams = {"params": jax.random.key(1), "feedback": jax.random.key(2)}
        fresh = self._model(rule).init(streams, images[0])
        feedback = {layers.FEEDBACK: fresh[layers.FEEDBACK]}

        def step(state, xs):
            key, variables, x, y = xs
            state = jax.grad(lambda s: self._loss(rule, variables | feedback | {layers.OVERWRITE: s}, x, y, key)[0])(
                state
            )
            return state, [unit["rule"]["signal"] for unit in state.values()]

        keys = jax.random.split(jax.random.key(3), len(images))
        return lax.scan(step, fresh[layers.OVERWRITE], (keys, variables, images, labels))[1]


def distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The measure's largest value over units and steps. Entries that are not finite are equal if they are the same."""
    return max(float(np.max(_distances(a, b))) for a, b in zip(one, other, strict=True))


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[steps]"""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (a, b))
    wild = ~(np.isfinite(a) & np.isfinite(b))
    apart = np.any(wild & ~((a == b) | (np.isnan(a) & np.isnan(b))), 1)
    a, b = np.where(wild, 0, a), np.where(wild, 0, b)
    largest = np.maximum(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    return np.where(apart, 1.0, np.linalg.norm(a - b, axis=1) / np.where(largest > 0, largest, 1))
