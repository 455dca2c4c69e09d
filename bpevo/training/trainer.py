"""Trainer: K slots on the local devices, seen from the host."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bpevo.rules import Equation, InterpretedRule, assemble, blank_program
from bpevo.training.candidate import REASONS, Candidate, Examples, Metrics, Order
from bpevo.training.slots import shardings, slots


@dataclasses.dataclass(frozen=True)
class Training:
    """One training to run: an equation, its learning rate and the replicate that fixes its seed."""

    equation: Equation
    learning_rate: float
    replicate: int = 0


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """One epoch of one slot. `reason` is empty, or says why the candidate diverged."""

    epoch: int  # 1-based
    train_loss: float
    train_accuracy: float
    gradient_norm: float
    eval_loss: float
    eval_accuracy: float
    reason: str


class OutOfMemory(RuntimeError):
    """The slots do not fit on the device."""


class Trainer:
    """Trains up to `capacity` candidates at once, an epoch at a time. One compiled program, whatever the equations."""

    def __init__(
        self,
        candidate: Candidate,
        examples: Examples,
        capacity: int,
        max_parts: int = 3,
        seed: int = 0,
        devices: Sequence[jax.Device] | None = None,
        lowering: str | None = None,
    ):
        """`capacity` is rounded up to a multiple of the number of devices. Raises OutOfMemory."""
        self._devices = list(devices or jax.local_devices())
        if capacity < len(self._devices):
            self._devices = self._devices[:capacity]
        self.capacity = -(-capacity // len(self._devices)) * len(self._devices)
        self.candidate, self.max_parts = candidate, max_parts
        rule = InterpretedRule(blank_program(max_parts))
        order = Order(rule, np.uint32(seed), np.int32(0), np.float32(0), np.int32(0), np.bool_(False))
        self._orders = jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], self.capacity, 0), order)
        self._sharded, replicated = shardings(self._devices)
        self._program = slots(candidate.epoch, self._devices, lowering)
        shapes = candidate.blank(order.rule, examples.mean.shape)
        try:
            self._examples = jax.device_put(examples, replicated)
            allocate = functools.partial(_zeros, shapes, self.capacity)
            self._states = jax.jit(allocate, out_shardings=self._sharded)()
        except jax.errors.JaxRuntimeError as error:
            raise _explained(error, self.capacity) from error
        self.epochs_run = self.epochs_offered = 0

    @property
    def bytes_per_slot(self) -> float:
        """Device memory that a slot's state takes; activations come on top."""
        return sum(x.nbytes for x in jax.tree.leaves(self._states)) / self.capacity

    @property
    def free(self) -> list[int]:
        return [int(k) for k in np.flatnonzero(~self._orders.active)]

    @property
    def occupancy(self) -> float:
        """Share of the slots' epochs that trained something."""
        return self.epochs_run / max(1, self.epochs_offered)

    def start(self, slot: int, training: Training) -> None:
        """Begins a training in a free slot."""
        program = assemble(training.equation)
        for mine, theirs in zip(self._orders.rule.program, program, strict=True):
            mine[slot] = theirs
        self._orders.replicate[slot] = training.replicate
        self._orders.learning_rate[slot] = training.learning_rate
        self._orders.epoch[slot], self._orders.active[slot] = 0, True

    def stop(self, slot: int) -> None:
        """Frees a slot."""
        self._orders.active[slot] = False

    def advance(self) -> dict[int, EpochResult]:
        """Trains every busy slot for an epoch. A slot that diverged or reached its last epoch is free afterwards."""
        busy = [int(k) for k in np.flatnonzero(self._orders.active)]
        if not busy:
            return {}
        metrics = self._run()
        self.epochs_run += len(busy)
        self.epochs_offered += self.capacity
        results = {}
        for k in busy:
            self._orders.epoch[k] += 1
            values = [float(v[k]) for v in metrics[:-1]]
            results[k] = EpochResult(int(self._orders.epoch[k]), *values, REASONS[int(metrics.reason[k])])
            if results[k].reason or results[k].epoch >= self.candidate.settings.epochs:
                self.stop(k)
        return results

    def _run(self) -> Metrics:
        orders = jax.device_put(jax.tree.map(np.array, self._orders), self._sharded)
        try:
            with jax.transfer_guard("disallow"):
                self._states, metrics = self._program(orders, self._states, self._examples)
            return jax.device_get(metrics)
        except jax.errors.JaxRuntimeError as error:
            raise _explained(error, self.capacity) from error


def _zeros(shapes, capacity: int):
    return jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)


def _explained(error: Exception, capacity: int) -> Exception:
    if "RESOURCE_EXHAUSTED" not in str(error):
        return error
    return OutOfMemory(f"{capacity} slots do not fit in the device's memory; try --slots={max(1, capacity // 2)}")
