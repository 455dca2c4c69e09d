"""What a search will be, said at its start, and what it takes, said once epochs were trained."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpevo.evolution import budget
from bpevo.evolution.controllers import CONFIRM_EVERY
from bpevo.runs import Row
from bpevo.search import CONTROLS, Search, SearchPlan
from bpevo.training import Trainer

# A step moves about so many times the activations that it keeps for its backward pass (measured on CPU: 8 to 15).
MOVED = 10


class Forecast:
    """Says what a run is and estimates its time and memory. Early stopping makes a run shorter than said."""

    def __init__(self, plan: SearchPlan, trainers: Sequence[Trainer], say: Callable[[str], None]):
        """`trainers`: one a network."""
        self._plan, self._trainers, self._say = plan, trainers, say
        self._capacity = sum(trainer.capacity for trainer in trainers)
        self._begin: float | None = None
        self._epochs = 0

        rates, epochs, networks = len(plan.learning_rates), trainers[0].task.settings.epochs, len(plan.networks.names)
        self.equations = budget.equations(plan.max_evaluations, rates, networks)
        confirmations = self.equations // CONFIRM_EVERY
        beside = len(CONTROLS) * rates + (plan.top + len(CONTROLS)) * plan.repeats  # controls at first, and fresh seeds
        self.trainings = self.equations * plan.charge + networks * (confirmations + beside)
        of_equation = budget.epochs_of(rates, epochs, plan.trial_epochs)
        self.slot_epochs = networks * (self.equations * of_equation + (confirmations + beside) * epochs)

    def start(self) -> None:
        """The lines before anything compiles."""
        plan, trainer = self._plan, self._trainers[0]
        settings, devices = trainer.task.settings, trainer.devices
        equations = self.equations
        initial, elite_size = len(plan.initial), plan.evolution.elite_size
        bred = 0
        if plan.controller != "random":
            bred = budget.bred(equations, elite_size=elite_size, initial=initial, lag=plan.lag)
        rates = len(plan.learning_rates)
        self._say(
            f"{len(devices)} x {devices[0].device_kind}, {self._capacity} slots{self._of_networks()}; {equations:,} equations: "
            f"{equations - bred:,} {'initial' if initial else 'random'}, {bred:,} bred (N {elite_size:,}, lag {plan.lag:,}); "
            f"about {self.trainings:,} trainings with controls and fresh seeds ("
            + (f"trials of {plan.trial_epochs} epochs at {rates} learning rates" if rates > 1 else "1 learning rate")
            + f"), {self.slot_epochs:,} slot-epochs of {trainer.task.steps_per_epoch:,} steps of {settings.batch_size} examples"
        )
        idle = budget.idle_share(self._capacity, rates, plan.lag)
        if idle > 0:
            self._say(f"{idle:.0%} of the slots will stand idle: with lag {plan.lag} no more equations train at once")
        seconds = self.slot_epochs * self._epoch_estimate()
        memory = sum(trainer.bytes_estimated for trainer in self._trainers)
        self._say(
            f"about {_duration(seconds)} beside compilation and {_size(memory)} of device memory, by a rough "
            "estimate that is refined after the first epochs"
        )

    def _of_networks(self) -> str:
        networks = self._plan.networks
        return f" over {len(networks.names)} networks, fitness over the {networks.over}" if networks.several else ""

    def __call__(self, search: Search, rows: Sequence[Row]) -> None:
        """Watches a Search: says measured figures after its second epoch, for the first one compiles."""
        self._epochs += 1
        if self._epochs == 1:
            self._begin = time.monotonic()
        elif self._epochs == 2:
            assert self._begin is not None
            self._say(self.measured(time.monotonic() - self._begin, search.rows.slot_epochs))

    def measured(self, seconds: float, done: int) -> str:
        """From the time of an epoch of all slots and the slot-epochs of what has ended."""
        left = max(0.0, (self.slot_epochs - done) / self._capacity * seconds)
        memory = _in_use(self._trainers[0].devices)
        used = f", {_size(memory)} of device memory in use" if memory else ""
        return f"measured: {seconds:.2g} s an epoch of all slots, at most {_duration(left)} of training left{used}"

    def _epoch_estimate(self) -> float:
        """Seconds of one slot's epoch over the number of devices: memory moved over the bandwidth of a device."""
        trainers, devices = self._trainers, self._trainers[0].devices
        moved = statistics.fmean(MOVED * t.bytes_needed[1] * t.task.steps_per_epoch for t in trainers)
        return moved / _bandwidth(devices[0]) / len(devices)


def _bandwidth(device: jax.Device, count: int = 2**22) -> float:
    """Bytes a second that an element-wise operation reads and writes."""
    with jax.default_device(device):
        x, add = jnp.zeros(count), jax.jit(lambda x: x + 1)
        add(x).block_until_ready()
        times = []
        for _ in range(5):
            start = time.perf_counter()
            add(x).block_until_ready()
            times.append(time.perf_counter() - start)
    return 2 * 4 * count / min(times)


def _in_use(devices: Sequence[jax.Device]) -> int:
    """Peak bytes over all devices; 0 where they do not tell, as a CPU."""
    stats: list[Mapping[str, Any]] = [device.memory_stats() or {} for device in devices]
    return sum(s.get("peak_bytes_in_use", 0) for s in stats)


def _duration(seconds: float) -> str:
    """
    >>> _duration(40), _duration(600), _duration(90000), _duration(36e6)
    ('40 s', '10 min', '25 h', '10000 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _size(count: float) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"
