"""Trainer: K slots on the local devices, seen from the host."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from bpevo.rules import (
    CompiledRule,
    Equation,
    Expression,
    InterpretedRule,
    Kernel,
    TiledRule,
    assemble,
    blank_program,
    takes,
)
from bpevo.rules.loops import Loop
from bpevo.rules.tile_programs import reads_both_products
from bpevo.training.graphs import graphs, without
from bpevo.training.kernel import kernel_of
from bpevo.training.slots import default_lowering, fitting, most_slots, shardings, slots
from bpevo.training.task import REASONS, Examples, Metrics, Order, Task


@dataclasses.dataclass(frozen=True)
class Training:
    """One training to run: an equation, its learning rate and the replicate that fixes its seed."""

    equation: Equation | Expression  # an Expression only where the trainer is specialised to it
    learning_rate: float
    _: dataclasses.KW_ONLY
    replicate: int = 0
    transform: str = ""  # of the parameter gradient: one of the task's `transforms`, or none
    held_out: bool = False  # evaluated on the examples that are held out


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpochResult:
    """One epoch of one slot."""

    epoch: int  # 1-based
    train_loss: float
    train_accuracy: float
    gradient_norm: float
    eval_loss: float
    eval_accuracy: float
    reason: str = ""  # why the candidate diverged
    # Each unit's cosine and norm ratio of its evolved and true signal, where measured.
    alignment: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


class OutOfMemory(RuntimeError):
    """The slots do not fit on the device."""


class DeviceLost(RuntimeError):
    """A device failed while it trained; its slots' states are gone."""


class Trainer:
    """Trains up to `capacity` candidates at once, an epoch at a time. One compiled program, whatever the equations.

    >>> from bpevo import data, rules
    >>> from bpevo.training import Task, Trainer, Training, TrainingSettings, to_examples
    >>> split = data.train_validation_split(data.load("digits"), train_examples=64)
    >>> task = Task(settings=TrainingSettings(model="mlp-8", batch_size=32), classes=10, examples=64, flip=False, pad=0)
    >>> trainer = Trainer(task, to_examples(split, 32), capacity=2, devices=jax.devices()[:1])
    >>> trainer.start(0, Training(rules.parse("unit_fro(g)").to_equation(3), learning_rate=0.1))
    >>> trainer.free  # trainer.advance() trains an epoch and returns {0: EpochResult(...)}
    [1]
    """

    def __init__(
        self,
        task: Task,
        examples: Examples,
        *,
        capacity: int | None = None,
        max_parts: int = 3,
        seed: int = 0,
        devices: Sequence[jax.Device] | None = None,
        lowering: str | None = None,
        rule: CompiledRule | None = None,
        kernel: Kernel | Loop | None = None,
    ):
        """Places examples and empty slots on the devices; the first epoch compiles.

        Args:
          task: what every candidate trains on.
          examples: from `to_examples`.
          capacity: slots K, rounded up to a multiple of the number of devices; None: as many as fit, up to most_slots.
          max_parts: of the longest equation.
          seed: root of everything random.
          devices: all local ones where None.
          lowering: "map" or "vmap" (bpevo.training.slots); the device's default where None.
          rule: the program is specialised to it and trains nothing else.
          kernel: runs the equations that it takes, others train in a second program; where None the device's own, or none with
            a `lowering`.

        Raises:
          OutOfMemory: the slots do not fit.
          AssertionError: the examples are not those that `task` speaks of.
        """
        chex.assert_shape(examples.train_images, (task.examples, *examples.mean.shape))
        chex.assert_shape(examples.train_labels, (task.examples,))
        chex.assert_shape(examples.eval_images, (*examples.eval_labels.shape, *examples.mean.shape))
        self._remake = functools.partial(
            Trainer, task, examples, max_parts=max_parts, seed=seed, devices=devices, lowering=lowering, rule=rule,
            kernel=kernel,
        )  # fmt: skip
        self._devices = list(devices or jax.local_devices())
        blank = rule or InterpretedRule(blank_program(max_parts))
        self.bytes_needed = task.bytes_needed(blank, examples.mean.shape)  # (state, activations) of a candidate
        self._fitting = fitting(self.bytes_needed, self._devices)
        if capacity is None:
            most = most_slots(self._devices)
            capacity = min(most, self._fitting or most)
        if capacity < len(self._devices):
            self._devices = self._devices[:capacity]
        self.capacity = -(-capacity // len(self._devices)) * len(self._devices)
        self.task, self.max_parts = task, max_parts
        self.rule = rule
        order = Order(
            rule=blank,
            seed=np.uint32(seed),
            replicate=np.int32(0),
            learning_rate=np.float32(0),
            epoch=np.int32(0),
            active=np.bool_(False),
            held_out=np.bool_(False),
            transform=np.int32(0) if task.transforms else None,
        )
        self._orders = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], self.capacity, 0), order)
        self._sharded, replicated = shardings(self._devices)
        self._lowering = lowering
        if rule is None and lowering is None:
            kernel = kernel or kernel_of(self._devices[0]).kernel
        self.kernel = None if rule else kernel
        self._in_kernel = np.zeros(self.capacity, bool)  # slots whose equation it takes
        self._programs = self._make_programs()
        self.graphs = graphs(self._devices[0])
        # Until an epoch has run in graphs: the states that slots were given, as a failure loses those on the devices.
        self._given: dict[int, Sequence[np.ndarray]] | None = {} if self.graphs.options else None
        shapes = task.blank(order.rule, examples.mean.shape)
        self._place = jax.jit(_placed, donate_argnums=0, out_shardings=self._sharded)
        try:
            self._examples = jax.device_put(examples, replicated)
            self._allocate = jax.jit(functools.partial(_zeros, shapes, self.capacity), out_shardings=self._sharded)
            self._states = jax.block_until_ready(self._allocate())
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error) from error
        measured = task.measure_alignment
        self._units = task.units(order.rule, examples.mean.shape) if measured else []
        self.epochs_run = self.epochs_offered = 0

    def compiled(self) -> jax.stages.Compiled:
        """The program of an epoch, compiled for itself: XLA's account of it, and its text."""
        orders = self._placed_orders(self.kernel is not None, self._orders.active)
        return self._programs[-1].lower(orders, self._states, self._examples).compile()

    def _make_programs(self, options: Mapping[str, int | str] | None = None) -> list[jax.stages.Wrapped]:
        """The programs of an epoch: for the slots beside the kernel, and, where there is one, for those in it.

        Each is compiled when a slot first needs it. Beside the kernel slots train one after the other: there are few.
        """

        def make(lowering: str | None) -> jax.stages.Wrapped:
            mapped = (lowering or default_lowering(self._devices)) == "map"
            epoch = functools.partial(self.task.epoch, loops=mapped and self._devices[0].platform == "cpu")
            return slots(epoch, self._devices, lowering, options=options)

        return [make(self._lowering)] if self.kernel is None else [make("map"), make(self._lowering)]

    @property
    def bytes_per_slot(self) -> float | None:
        """Peak device memory of an epoch over the slots, by XLA's account of the program; None where it keeps none.

        Compiles the program if no epoch has run.
        """
        memory = self.compiled().memory_analysis()  # of one device
        if memory is None:
            return None
        needed = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return (needed + memory.temp_size_in_bytes) * len(self._devices) / self.capacity

    @property
    def devices(self) -> Sequence[jax.Device]:
        return self._devices

    @property
    def bytes_estimated(self) -> int:
        """Device memory of all slots, read off shapes: states, and the activations of those that train at the same moment."""
        state, activations = self.bytes_needed
        at_once = len(self._devices) if default_lowering(self._devices) == "map" else self.capacity
        return state * self.capacity + activations * at_once

    @property
    def free(self) -> list[int]:
        return [int(k) for k in np.flatnonzero(~self._orders.active)]

    @property
    def occupancy(self) -> float:
        """Share of the slots' epochs that trained something."""
        return self.epochs_run / max(1, self.epochs_offered)

    @property
    def state_shapes(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array of `state`."""
        return [(x.shape[1:], str(x.dtype)) for x in jax.tree.leaves(self._states)]

    def state(self, slot: int) -> list[np.ndarray]:
        """Copies of a busy slot's arrays: with them `start` continues the training elsewhere, bit for bit on CPU."""
        return [np.array(np.asarray(x)[slot]) for x in jax.tree.leaves(self._states)]

    def start(self, slot: int, training: Training, epoch: int = 0, state: Sequence[np.ndarray] = ()) -> None:
        """Begins a training in a free slot, or continues it after `epoch` epochs from the `state` that it then had.

        Raises DeviceLost or OutOfMemory.
        """
        if self.rule is None:
            assert isinstance(training.equation, Equation)
            program = assemble(training.equation)
            jax.tree.map(functools.partial(_write, slot), self._orders.rule.program, program)
            self._in_kernel[slot] = self.kernel is not None and takes(program)
        else:
            assert str(training.equation) == str(self.rule)
        if self._orders.transform is not None:
            self._orders.transform[slot] = ("", *self.task.transforms).index(training.transform)
        else:
            assert not training.transform
        self._orders.replicate[slot] = training.replicate
        self._orders.learning_rate[slot] = training.learning_rate
        self._orders.epoch[slot], self._orders.active[slot] = epoch, True
        self._orders.held_out[slot] = training.held_out
        if epoch:
            if self._given is not None:
                self._given[slot] = state
            try:
                self._put(slot, state)
            except jax.errors.JaxRuntimeError as error:
                raise self._explained(error) from error

    def _put(self, slot: int, state: Sequence[np.ndarray]) -> None:
        values = jax.tree.unflatten(jax.tree.structure(self._states), state)
        self._states = self._place(self._states, np.int32(slot), values)

    def stop(self, slot: int) -> None:
        """Frees a slot."""
        self._orders.active[slot] = False

    def advance(self, meanwhile: Callable[[], None] = lambda: None) -> dict[int, EpochResult]:
        """Trains every busy slot for an epoch; calls `meanwhile` while the devices work.

        A slot that diverged or reached its last epoch is free afterwards. Raises OutOfMemory or DeviceLost.
        """
        busy = [int(k) for k in np.flatnonzero(self._orders.active)]
        if not busy:
            return {}
        metrics = self._run(meanwhile)
        self.epochs_run += len(busy)
        self.epochs_offered += self.capacity
        results = {}
        for k in busy:
            self._orders.epoch[k] += 1
            pairs = [] if metrics.alignment is None else metrics.alignment[k].tolist()
            results[k] = EpochResult(
                epoch=int(self._orders.epoch[k]),
                train_loss=float(metrics.train_loss[k]),
                train_accuracy=float(metrics.train_accuracy[k]),
                gradient_norm=float(metrics.gradient_norm[k]),
                eval_loss=float(metrics.eval_loss[k]),
                eval_accuracy=float(metrics.eval_accuracy[k]),
                reason=REASONS[int(metrics.reason[k])],
                alignment={name: (cosine, ratio) for name, (cosine, ratio) in zip(self._units, pairs, strict=True)},
            )
            if results[k].reason or results[k].epoch >= self.task.settings.epochs:
                self.stop(k)
        return results

    def halved(self) -> "Trainer":
        """A trainer with half the slots, all free, in place of this one, whose device memory is given up.

        Raises OutOfMemory if there is one slot per device already.
        """
        if self.capacity <= len(self._devices):
            raise OutOfMemory(
                "not even one candidate fits in the device's memory; try a smaller --batch_size or --model"
            )
        self._states = self._examples = None
        trainer = self._remake(capacity=max(len(self._devices), self.capacity // 2))
        trainer.epochs_run, trainer.epochs_offered = self.epochs_run, self.epochs_offered
        return trainer

    def _explained(self, error: Exception) -> Exception:
        if "RESOURCE_EXHAUSTED" not in str(error):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return DeviceLost(f"a device failed: {reason}; every finished training is kept, the same command continues")
        half = max(1, self.capacity // 2)
        fits = min(half, self._fitting or half)
        return OutOfMemory(f"{self.capacity} slots do not fit in the device's memory; try --slots={fits}")

    def _run(self, meanwhile: Callable[[], None]) -> Metrics:
        found: list[tuple[np.ndarray, Metrics]] = []
        try:
            for in_kernel, program in enumerate(self._programs):
                mine = self._orders.active & (self._in_kernel == bool(in_kernel))
                if mine.any():
                    orders = self._placed_orders(bool(in_kernel), mine)
                    with jax.transfer_guard("disallow"):
                        self._states, metrics = program(orders, self._states, self._examples)
                    found.append((mine, metrics))
            meanwhile()
            together = functools.reduce(_together, [(mine, jax.device_get(metrics)) for mine, metrics in found])
            self._given = None
            return together[1]
        except jax.errors.JaxRuntimeError as error:
            failure = self._explained(error)
            if self._given is None or isinstance(failure, OutOfMemory):
                raise failure from error
            reason = (str(error).splitlines() or [type(error).__name__])[0]
        return self._run_without_graphs(reason, meanwhile)  # outside of the handler, which keeps the lost arrays alive

    def _run_without_graphs(self, reason: str, meanwhile: Callable[[], None]) -> Metrics:
        """The first epoch again, after it failed with graphs: not every convolution can be part of one."""
        given, self._given, self.graphs = self._given or {}, None, without(reason)
        warnings.warn(f"from now on the decisions of rules are taken {self.graphs.said}", RuntimeWarning, stacklevel=4)
        self._programs = self._make_programs(options={})
        try:
            self._states = self._allocate()
            for slot, state in given.items():
                self._put(slot, state)
        except jax.errors.JaxRuntimeError as error:
            raise self._explained(error) from error
        return self._run(meanwhile)

    def _placed_orders(self, in_kernel: bool, active: np.ndarray) -> Order:
        """A copy of the orders on the devices, for one of the programs."""
        orders = jax.tree.map(np.array, self._orders.replace(active=active))
        if in_kernel:
            assert self.kernel is not None
            # Under vmap every slot computes what any reads: a program where none reads both products, and one for the rest. Slots
            # that stand idle count by their last equation, or the end of a search, when few train, might compile the former.
            both = isinstance(self.kernel, Loop) or bool(
                np.any(reads_both_products(orders.rule.program) & self._in_kernel)
            )
            orders = orders.replace(rule=TiledRule(orders.rule.program, self.kernel, both))
        return jax.device_put(orders, self._sharded)


def _together(some: tuple[np.ndarray, Metrics], others: tuple[np.ndarray, Metrics]) -> tuple[np.ndarray, Metrics]:
    """The metrics of two sets of slots, each right in its own."""

    def chosen(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.where(others[0].reshape(-1, *[1] * (a.ndim - 1)), b, a)

    return some[0] | others[0], jax.tree.map(chosen, some[1], others[1])


def _zeros(shapes, capacity: int):
    return jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)


def _write(slot: int, mine: np.ndarray, theirs: np.ndarray) -> None:
    mine[slot] = theirs


def _placed(states, slot, values):
    return jax.tree.map(lambda s, v: s.at[slot].set(v), states, values)
