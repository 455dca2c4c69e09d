"""One candidate's training: initialisation and one epoch of steps with its evaluation, as pure functions.

`epoch` is written for a single candidate; bpevo.training.slots runs it for many. Everything random comes from the
candidate's own seed and step, so a result depends neither on its slot nor on its neighbours.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import lax

from bpevo import data, layers, models
from bpevo.rules import Rule, compile
from bpevo.training import alignment
from bpevo.training.settings import DTYPES, TrainingSettings
from bpevo.training.transforms import transformed

REASONS = ("", "loss not finite", "signal not finite", "weight not finite")


@struct.dataclass(kw_only=True)
class Examples:
    """A split on the device. Evaluation arrays are padded to whole batches with label -1."""

    train_images: chex.Array  # shape=[N, H, W, C], uint8, or [N, ...], float32
    train_labels: chex.Array  # shape=[N], int32
    eval_images: chex.Array  # shape=[E, B, H, W, C], uint8
    eval_labels: chex.Array  # shape=[E, B], int32
    held_out: chex.Array  # shape=[E, B], bool: those that only orders with `held_out` are evaluated on
    mean: chex.Array  # shape=[H, W, C], float32


@struct.dataclass(kw_only=True)
class Order:
    """What a slot has to do in this epoch. Scalars, or [K] when stacked."""

    rule: Any  # a Rule; its leaves are data
    seed: Any  # uint32: the run's root seed
    replicate: Any  # int32: training seed = fold_in(root, replicate)
    learning_rate: Any  # float32
    epoch: Any  # int32, 0 starts afresh
    active: Any  # bool
    held_out: Any  # bool: evaluate on the examples that are held out, else on the others
    transform: Any = None  # int32, index into the task's transforms; None: it knows none


@struct.dataclass(kw_only=True)
class TrainingState:
    """What a training carries from step to step. With a leading axis [K] in the slots."""

    params: Any  # collection of the model, as are the next two; float32
    batch_stats: Any
    rule_state: Any  # layers.OVERWRITE
    optimizer: Any  # of optax
    reason: jax.Array  # shape=(), int32, index into REASONS


@struct.dataclass(kw_only=True)
class Metrics:
    """What an epoch measured; float32 scalars. Training values are means over its steps."""

    train_loss: jax.Array
    train_accuracy: jax.Array
    gradient_norm: jax.Array
    eval_loss: jax.Array
    eval_accuracy: jax.Array
    reason: jax.Array  # int32
    alignment: Any = None  # shape=[L, 2], per unit cosine and norm ratio of evolved and true signal; None: not measured


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What every candidate trains on: the functions of one training under `settings` on data of one shape.

    Raises ValueError if a batch is larger than the training set.

    >>> task = Task(settings=TrainingSettings(model="mlp-8", batch_size=32), classes=10, examples=100, flip=False, pad=0)
    >>> task.steps_per_epoch
    3
    """

    settings: TrainingSettings
    classes: int
    examples: int  # N
    flip: bool  # augmentation: left to right
    pad: int  # zeros on every side before a random crop
    measure_alignment: bool = False  # after each epoch, on a fixed batch: costs three backward passes
    transforms: tuple[
        str, ...
    ] = ()  # of the parameter gradient: what a training may choose, names of TRANSFORMS or GRAFTED

    def __post_init__(self):
        if self.examples < self.settings.batch_size:
            raise ValueError(
                f"batch_size={self.settings.batch_size} is larger than the training set of {self.examples} examples"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.examples // self.settings.batch_size

    def _model(self, rule: Rule | None):
        return models.by_name(self.settings.model, self.classes, rule, DTYPES[self.settings.compute_dtype])

    def _variables(self, rule: Rule, key: jax.Array, images: jax.Array) -> dict[str, Any]:
        keys = {"params": jax.random.fold_in(key, 0), "feedback": jax.random.fold_in(key, 1)}
        return dict(self._model(rule).init(keys, images, train=False))

    def _start(self, variables: dict[str, Any], rate: Any = 1.0) -> TrainingState:
        params = variables["params"]
        return TrainingState(
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            rule_state=variables.get(layers.OVERWRITE, {}),
            optimizer=self.settings.make_optimizer().init(params, rate),
            reason=jnp.int32(0),
        )

    def _apply(
        self, rule: Rule | None, state: TrainingState, feedback: Any, x: jax.Array, *, train: bool, key: jax.Array
    ):
        """(logits, next batch_stats) of the network with `rule`, or with standard gradients where it is None."""
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        if rule is not None:
            variables |= {layers.OVERWRITE: state.rule_state, layers.FEEDBACK: feedback}
        mutable = ["batch_stats"] if train else []
        logits, updated = self._model(rule).apply(variables, x, train=train, mutable=mutable, rngs={"noise": key})
        return logits, updated.get("batch_stats", {})

    def blank(self, rule: Rule, image_shape: tuple[int, ...]) -> Any:
        """Shapes and dtypes of a TrainingState, nothing computed."""
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)

        def start(images):
            return self._start(self._variables(rule, prng_key(0), images))

        return jax.eval_shape(start, images)

    def bytes_needed(self, rule: Rule, image_shape: tuple[int, ...]) -> tuple[int, int]:
        """Bytes of a candidate's state, and of what a step keeps for its backward pass: read off shapes, nothing computed."""

        def kept(images, labels):
            variables = self._variables(rule, prng_key(0), images[:1])
            state, feedback = self._start(variables), variables.get(layers.FEEDBACK, {})

            def loss(params):
                now = state.replace(params=params)
                return mean_loss(self._apply(rule, now, feedback, images, train=True, key=prng_key(0))[0], labels)

            return jax.vjp(loss, state.params)[1]

        batch = self.settings.batch_size
        images = jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32)
        residuals = jax.eval_shape(kept, images, jax.ShapeDtypeStruct((batch,), jnp.int32))
        return _bytes(self.blank(rule, image_shape)), _bytes(residuals)

    def epoch(
        self, order: Order, state: TrainingState, examples: Examples, loops: bool = False
    ) -> tuple[TrainingState, Metrics]:
        """One epoch of training and one evaluation; an inactive order changes nothing.

        With `loops` what may not happen is a loop of one turn or none, not a branch: on a CPU a branch copies all of the state.
        """

        measured = jnp.zeros((len(self.units(order.rule, examples.mean.shape)), 2)) if self.measure_alignment else None
        nothing = _metrics((jnp.float32(0),) * 5, jnp.int32(0), measured)
        where = functools.partial(_where, loops)
        return where(order.active, lambda both: self._epoch(order, both[0], examples, where), (state, nothing))

    def _epoch(
        self, order: Order, state: TrainingState, examples: Examples, where: Callable
    ) -> tuple[TrainingState, Metrics]:
        key = jax.random.fold_in(prng_key(order.seed), order.replicate)
        images = jnp.zeros((1, *examples.mean.shape), jnp.float32)
        variables = functools.partial(self._variables, order.rule, key, images)
        state = where(order.epoch == 0, lambda _: self._start(variables(), order.learning_rate), state)
        feedback = variables().get(layers.FEEDBACK, {})

        batch = self.settings.batch_size
        shuffle, augment, noise = (jax.random.fold_in(key, 2 + i) for i in range(3))
        first = order.epoch * self.steps_per_epoch
        shuffled = jax.random.permutation(jax.random.fold_in(shuffle, order.epoch), self.examples)
        batches = shuffled[: self.steps_per_epoch * batch].reshape(-1, batch)
        factor = self.settings.learning_rate_factor(self.settings.epochs * self.steps_per_epoch)

        def step(carry, xs):
            state, sums = carry
            t, indices = xs

            def train(carry):
                state, _ = carry
                x = data.normalise(examples.train_images[indices], examples.mean)
                x = data.augment(jax.random.fold_in(augment, t), x, self.flip, self.pad)
                rate = order.learning_rate * factor(t)
                key = jax.random.fold_in(noise, t)
                return self._step(order, feedback, state, x, examples.train_labels[indices], rate, key)

            state, values = where(state.reason == 0, train, (state, jnp.zeros(3)))
            return (state, sums + values), None

        (state, sums), _ = lax.scan(step, (state, jnp.zeros(3)), (first + jnp.arange(self.steps_per_epoch), batches))
        loss, accuracy = lax.cond(
            state.reason == 0,
            lambda: self._evaluate(order, feedback, state, examples),
            lambda: (jnp.float32(0), jnp.float32(0)),
        )
        measured = self._alignment(order.rule, feedback, state, examples) if self.measure_alignment else None
        values = (*(sums / self.steps_per_epoch), loss, accuracy)
        return state, _metrics(values, state.reason, measured)

    def _step(self, order: Order, feedback, state: TrainingState, x, labels, rate, key):
        """One optimizer step; returns the state and [loss, accuracy, gradient norm]."""

        def objective(params, rule_state):
            now = state.replace(params=params, rule_state=rule_state)
            logits, batch_stats = self._apply(order.rule, now, feedback, x, train=True, key=key)
            return mean_loss(logits, labels), (jnp.mean(jnp.argmax(logits, -1) == labels), batch_stats)

        with_aux = jax.value_and_grad(objective, (0, 1), has_aux=True)
        (loss, (accuracy, batch_stats)), (gradient, rule_state) = with_aux(state.params, state.rule_state)
        norm = optax.tree.norm(gradient)
        if order.transform is not None:

            def standard(params):
                return mean_loss(self._apply(None, state.replace(params=params), {}, x, train=True, key=key)[0], labels)

            true = functools.partial(jax.grad(standard), state.params)
            gradient = transformed(("", *self.transforms), order.transform, gradient, state.params, true)
        params, optimizer = self.settings.make_optimizer().update(gradient, state.optimizer, state.params, rate)
        finite = jnp.isfinite(jnp.stack([loss, norm, optax.tree.norm(params)]))
        # The first of REASONS that is not finite; 0 if all are.
        reason = jnp.where(jnp.all(finite), 0, 1 + jnp.argmin(finite)).astype(jnp.int32)
        values = jnp.stack([loss, accuracy.astype(jnp.float32), norm])
        state = TrainingState(
            params=params, batch_stats=batch_stats, rule_state=rule_state, optimizer=optimizer, reason=reason
        )
        return state, values

    def units(self, rule: Rule, image_shape: tuple[int, ...]) -> list[str]:
        """Names of the rule-driven units, in forward order."""
        names: list[str] = []

        def record(images):
            names.extend(alignment.recorded(self._recording(rule, images)))

        jax.eval_shape(record, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
        return names

    def _recording(self, rule: Rule, images: jax.Array) -> Any:
        """A blank state of the rule where it records its signals."""
        return self._variables(alignment.Recording(rule), prng_key(0), images)[layers.OVERWRITE]

    def _alignment(self, rule, feedback, state: TrainingState, examples: Examples) -> jax.Array:
        """[L, 2] on the first batch of the training set, not augmented, in training mode."""
        batch = self.settings.batch_size
        x, labels = data.normalise(examples.train_images[:batch], examples.mean), examples.train_labels[:batch]

        def loss(rule, rule_state):
            now, recording = state.replace(rule_state=rule_state), alignment.Recording(rule)
            return mean_loss(self._apply(recording, now, feedback, x, train=True, key=prng_key(0))[0], labels)

        backprop = compile("g")
        blank = self._recording(rule, x)
        evolved = alignment.signals(functools.partial(loss, rule), alignment.recording(state.rule_state, blank))
        true = alignment.signals(functools.partial(loss, backprop), self._recording(backprop, x))
        return alignment.compare(evolved, true, list(alignment.recorded(blank)))

    def _evaluate(self, order: Order, feedback, state: TrainingState, examples: Examples):
        """Mean loss and accuracy on the order's evaluation examples, batch norm with running averages."""

        def batch(sums, xs):
            images, labels, real = xs
            x = data.normalise(images, examples.mean)
            logits, _ = self._apply(order.rule, state, feedback, x, train=False, key=prng_key(0))
            losses = cross_entropies(logits, jnp.maximum(labels, 0))
            right = (jnp.argmax(logits, -1) == labels) & real
            return sums + jnp.stack([jnp.sum(jnp.where(real, losses, 0.0)), jnp.sum(right)]), None

        real = (examples.eval_labels >= 0) & (examples.held_out == order.held_out)
        sums, _ = lax.scan(batch, jnp.zeros(2), (examples.eval_images, examples.eval_labels, real))
        return tuple(sums / jnp.maximum(jnp.sum(real), 1))


def _where(loop: bool, really: jax.Array, change: Callable, value: Any) -> Any:
    """`change(value)` or, where not `really`, the value."""
    if loop:
        return lax.fori_loop(0, really.astype(jnp.int32), lambda _, value: change(value), value)
    return lax.cond(really, change, lambda value: value, value)


def prng_key(seed: chex.Numeric) -> jax.Array:
    """A key of Threefry, whatever generator is jax's default: others give numbers that depend on a slot's neighbours."""
    return jax.random.key(seed, impl="threefry2x32")


def cross_entropies(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[B], float32, of logits [B, C] and labels [B]."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def mean_loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The one loss: what is trained, and whose gradient at the logits is b_L."""
    return jnp.mean(cross_entropies(logits, labels))


def _metrics(values: Iterable[jax.Array], reason: jax.Array, measured: jax.Array | None) -> Metrics:
    names = ("train_loss", "train_accuracy", "gradient_norm", "eval_loss", "eval_accuracy")
    return Metrics(**dict(zip(names, values, strict=True)), reason=reason, alignment=measured)


def _bytes(shapes: Any) -> int:
    arrays = [x for x in jax.tree.leaves(shapes) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
    return sum(x.size * x.dtype.itemsize for x in arrays)


def to_examples(split: data.Split, batch_size: int, held_out: int = 0) -> Examples:
    """Host arrays of a split, ready for the device.

    Args:
      split: uint8 images [N, H, W, C] or float32 [N, ...], and labels [N].
      batch_size: of the evaluation; at most its number of examples is used.
      held_out: so many of the evaluation examples, the last ones, are for trainings with `held_out` alone.

    Raises:
      AssertionError: the arrays are of other shapes or types.
    """
    floats = split.train_images.dtype != np.uint8
    chex.assert_type([split.train_images, split.eval_images], np.float32 if floats else np.uint8)
    if not floats:
        chex.assert_rank(split.train_images, 4)
    chex.assert_equal_rank([split.train_images, split.eval_images])
    chex.assert_equal_shape_suffix([split.train_images, split.eval_images], split.train_images.ndim - 1)
    chex.assert_shape(split.train_labels, split.train_images.shape[:1])
    chex.assert_shape(split.eval_labels, split.eval_images.shape[:1])
    count = len(split.eval_labels)
    batch = min(batch_size, count)
    padding = -count % batch
    images = np.concatenate([split.eval_images, split.eval_images[:1].repeat(padding, 0)])
    labels = np.concatenate([split.eval_labels, np.full(padding, -1, np.int32)]).astype(np.int32)
    return Examples(
        train_images=split.train_images,
        train_labels=split.train_labels.astype(np.int32),
        eval_images=images.reshape(-1, batch, *images.shape[1:]),
        eval_labels=labels.reshape(-1, batch),
        held_out=(np.arange(len(labels)) >= count - held_out).reshape(-1, batch),
        mean=data.per_pixel_mean(split.train_images),
    )
