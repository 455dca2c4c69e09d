"""Slots as the host sees them: how many there are, the memory that they need, and what happens when a device fails."""

import dataclasses
import inspect
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import SETTINGS, make_task, make_trainer, training

from bpevo.rules import compile
from bpevo.training import DeviceLost, OutOfMemory, Trainer, slots
from bpevo.training.task import Metrics
from bpevo.training.trainer import _together


@pytest.fixture(scope="module")
def idle() -> Trainer:
    """Four slots whose programs are never compiled."""
    return make_trainer(4, devices=jax.devices()[:1])


def test_memory_a_slot_counts_donated_arrays_once(idle, monkeypatch):
    sizes = dict(argument_size_in_bytes=100, output_size_in_bytes=60, alias_size_in_bytes=50, temp_size_in_bytes=40)
    compiled = types.SimpleNamespace(memory_analysis=lambda: types.SimpleNamespace(**sizes))
    monkeypatch.setattr(idle, "compiled", lambda: compiled)
    assert idle.bytes_per_slot == (100 + 60 - 50 + 40) / 4
    monkeypatch.setattr(idle, "_devices", [None] * 2)
    assert idle.bytes_per_slot == 2 * (100 + 60 - 50 + 40) / 4
    compiled.memory_analysis = lambda: None
    assert idle.bytes_per_slot is None


def test_memory_is_estimated_from_states_and_from_activations_of_those_that_train_at_once(idle, monkeypatch):
    task = make_task()
    state, activations = task.bytes_needed(compile("g"), (4, 4, 1))
    assert state == 4 * (16 * 8 + 8 + 8 * 4 + 4 + 1)  # weights, biases and the reason
    double = make_task(dataclasses.replace(SETTINGS, batch_size=16)).bytes_needed(compile("g"), (4, 4, 1))
    assert double[0] == state and double[1] - activations >= 4 * 8 * (
        16 + 8
    )  # images and hidden layer of 8 examples more
    monkeypatch.setattr(idle, "bytes_needed", (10, 3))
    assert idle.bytes_estimated == 4 * 10 + 3
    monkeypatch.setattr("bpevo.training.trainer.default_lowering", lambda devices: "vmap")
    assert idle.bytes_estimated == 4 * 10 + 4 * 3


@pytest.fixture
def specialised(monkeypatch):
    """specialised(slots, fitting): a trainer of one rule, and so quick to make, on a device that so many slots fit in."""

    def make(capacity: int | None, fits: int | None = None) -> Trainer:
        monkeypatch.setattr("bpevo.training.trainer.fitting", lambda *_: fits)
        return make_trainer(capacity, rule=compile("g"), devices=jax.devices()[:1])

    return make


def test_by_default_there_are_four_slots_on_a_cpu_or_as_many_as_fit(specialised):
    defaults = {name: parameter.default for name, parameter in inspect.signature(Trainer).parameters.items()}
    assert (defaults["max_parts"], defaults["seed"]) == (3, 0)
    assert [specialised(None, fits).capacity for fits in (None, 3, 100)] == [4, 3, 4]
    assert specialised(7, 3).capacity == 7  # who asks for more may try


def test_half_the_slots_go_on_in_place_of_all_until_there_is_one(specialised):
    trainer = specialised(5)
    assert (trainer.occupancy, trainer.kernel, trainer.rule) == (0, None, compile("g"))
    trainer.start(3, training("g"))
    trainer.epochs_run, trainer.epochs_offered = 1, 5
    half = trainer.halved()
    assert (half.capacity, half.free, half.epochs_run, half.epochs_offered, half.occupancy) == (2, [0, 1], 1, 5, 0.2)
    one = half.halved()
    one.epochs_offered = 1
    assert (one.capacity, one.rule, one.occupancy) == (1, compile("g"), 1)
    with pytest.raises(
        OutOfMemory, match="not even one candidate fits in the device's memory; try a smaller --batch_size"
    ):
        one.halved()


def test_failures_of_a_device_are_told_in_one_line(idle, specialised):
    said = [str(specialised(4, fits)._explained(ValueError("RESOURCE_EXHAUSTED"))) for fits in (None, 1, 3)]
    assert said == [f"4 slots do not fit in the device's memory; try --slots={n}" for n in (2, 1, 2)]
    assert str(specialised(1)._explained(ValueError("RESOURCE_EXHAUSTED"))).endswith(
        "1 slots do not fit in the device's memory; try --slots=1"
    )
    for words, reason in (("INTERNAL: gone\nat 7", "INTERNAL: gone"), ("", "ValueError")):
        found = idle._explained(ValueError(words))
        assert isinstance(found, DeviceLost)
        assert str(found) == f"a device failed: {reason}; every finished training is kept, the same command continues"


@pytest.mark.parametrize("words, kind", [("RESOURCE_EXHAUSTED", OutOfMemory), ("INTERNAL", DeviceLost)])
def test_a_device_that_fails_when_a_training_goes_on_is_told(idle, monkeypatch, words, kind):
    def failing(*_):
        raise jax.errors.JaxRuntimeError(words)

    monkeypatch.setattr(idle, "_place", failing)
    with pytest.raises(kind):
        idle.start(0, training("g"), 1, idle.state(0))
    idle.stop(0)


def test_the_program_that_is_looked_at_is_that_of_the_slots_in_the_kernel(idle, monkeypatch):
    def lowered(orders, states, examples):
        return types.SimpleNamespace(compile=lambda: type(orders.rule).__name__)

    monkeypatch.setattr(idle, "_programs", [None, types.SimpleNamespace(lower=lowered)])
    assert idle.compiled() == "TiledRule"
    monkeypatch.setattr(idle, "kernel", None)
    assert idle.compiled() == "InterpretedRule"


def test_the_figures_of_two_programs_are_each_right_in_their_slots():
    def metrics(start):
        values = np.arange(start, start + 3)
        names = ("train_loss", "train_accuracy", "gradient_norm", "eval_loss", "eval_accuracy", "reason")
        return Metrics(**dict.fromkeys(names, values), alignment=values[:, None, None] * np.ones((1, 2, 2)))

    masks = np.array([True, False, False]), np.array([False, False, True])
    both, found = _together((masks[0], metrics(10)), (masks[1], metrics(20)))
    assert both.tolist() == [True, False, True]
    for values in (found.train_loss, found.eval_accuracy, found.reason, found.alignment[:, 1, 0]):
        assert (values[0], values[2]) == (10, 22)


class Device:
    """A device that tells its memory."""

    def __init__(self, platform: str, **memory: int):
        self.platform, self._memory = platform, memory

    def memory_stats(self):
        return self._memory or None


def test_default_slots_are_a_number_a_device_or_what_fits_in_six_tenths_of_its_free_memory():
    assert [slots.most_slots([Device(p)] * n) for p, n in (("cpu", 1), ("cpu", 2), ("gpu", 1), ("tpu", 3))] == [
        4,
        8,
        16,
        48,
    ]
    needed = (30, 10)  # state and activations
    free = {"bytes_limit": 1000, "bytes_in_use": 200}
    assert slots.fitting(needed, [Device("gpu", **free)]) == 12  # of 40 each in 480
    assert slots.fitting(needed, [Device("gpu", **free)] * 2) == 24
    assert slots.fitting(needed, [Device("gpu", bytes_limit=1000)]) == 15
    assert slots.fitting(needed, [Device("cpu", **free)]) == 15  # of 30 each in 480 less 10
    assert slots.fitting(needed, [Device("gpu", bytes_limit=40)] * 3) == 3
    assert slots.fitting(needed, [Device("cpu")]) is slots.fitting(needed, [Device("gpu", bytes_in_use=7)]) is None


def test_slots_of_a_cpu_run_one_after_the_other_and_of_others_at_once():
    def step(order, state, shared):
        return state + order * shared, 10 * state

    here, values = jax.devices()[:1], (jnp.arange(3.0), jnp.ones(3), jnp.float32(2))
    assert slots.compiler_options(here) == {"xla_backend_optimization_level": 1}
    made = {how: slots.slots(step, here, how, donate=False) for how in (None, "map", "vmap")}
    made["gpu"] = slots.slots(step, [Device("gpu")], donate=False, options={})
    for how, run_all in made.items():
        assert ("stablehlo.while" in run_all.lower(*values).as_text()) == (how in (None, "map"))
        if how != "gpu":
            state, out = run_all(*values)
            assert (state.tolist(), out.tolist(), values[1].is_deleted()) == ([1, 3, 5], [10, 10, 10], False)
    slots.slots(step, here)(*values)
    assert values[1].is_deleted()
