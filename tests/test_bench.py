"""The benchmark's engines train the same work and count what they compile; figures themselves are not judged."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from test_runs import REPOSITORY

from bpevo import models
from bpevo.bench import convolutions, engines
from bpevo.bench.start import Compilations
from bpevo.rules import InterpretedRule

SETTING = engines.Setting("tiny", "mlp-8", 8, 1, 16, 2)


@pytest.fixture(scope="module")
def rules():
    return engines.equations(4)


def test_equations_are_reproducible_feasible_and_distinct(rules):
    assert [str(e) for e in engines.equations(4)] == [str(e) for e in rules]
    assert len({e.key for e in rules}) == 4 and all(engines.feasible(e) for e in rules)


def test_slots_are_one_program_and_take_more_memory_than_their_state(rules):
    compilations = Compilations()
    [timing] = engines.measured([engines.interpreted(SETTING, 2, rules)], 2)
    assert (timing.programs, timing.name) == (1, "slots, K = 2") and timing.step > 0 and timing.compile > 0
    assert (
        compilations.names["jit(many)"] == compilations.names["jit(_zeros)"] == 1
    )  # the epoch, and the allocation of states
    assert compilations.count <= 5  # and what tries the activation
    candidate, examples = engines.workload(SETTING)
    state, _ = candidate.bytes_needed(InterpretedRule.of(rules[0]), examples.mean.shape)
    assert state < timing.bytes_per_slot < 100 * state


def test_a_naive_search_compiles_a_program_for_each_equation(rules, monkeypatch):
    clock = iter((1.0, 3.0, 10.0, 14.0))  # two seconds for the first, four for the second
    monkeypatch.setattr(engines.time, "perf_counter", lambda: next(clock))
    compilations = Compilations()
    assert engines.naive(SETTING, rules[:2]) == (3.0, pytest.approx(2**0.5))
    assert compilations.names["jit(many)"] == 2


def test_the_table_by_hand():
    """A step of 5 ms, in its rounds 1, 1.25 and 1.5 times plain Flax's and twice as long as of specialised rules; 16 images
    in it; 7,020 of them are one of A1: 35.1 s; a fifth of peak."""
    timing, plain, specialised = (
        engines.Timing(name, steps, 3.25, 2, memory)
        for name, steps, memory in (
            ("slots, K = 2", (0.0049, 0.005, 0.0055), 3 * 2**20),
            ("plain", (0.0049, 0.004, 0.0055 / 1.5), None),
            ("specialised", (0.00245, 0.0025, 0.00275), None),
        )
    )
    own, base = (
        dict(zip(engines.COLUMNS, engines.cells(t, plain, specialised, SETTING, 0.001), strict=True))
        for t in (timing, plain)
    )
    assert own == {
        "engine": "slots, K = 2", "ms/step": "5.00", "vs plain": "1.25x", "vs specialised": "2.00x", "spread": "12%",
        "images/s": "3,200", "A1 sizes/h": "102.6", "of peak": "20%", "compile s": "3.2", "programs": "2", "peak MiB/slot": "3",
    }  # fmt: skip
    assert base["vs plain"] == "1.00x" and base["of peak"] == "25%" and base["peak MiB/slot"] == ""
    assert engines.cells(timing, plain, None, SETTING, 0.001)[3] == ""


def test_ways_are_timed_in_turn():
    calls = []
    ways = [engines.Way(name, functools.partial(calls.append, name), 4, 0.0, 1) for name in "ab"]
    timings = engines.measured(ways, 3)
    assert calls == list("ababab") and [len(t.steps) for t in timings] == [3, 3]


def test_specialised_equations_have_a_program_each(rules):
    [timing] = engines.measured([engines.specialised(SETTING, rules[:2])], 2)
    assert timing.programs == 2 and timing.step > 0


def test_every_convolution_lowering_of_a_setting_is_measured():
    shapes = convolutions.shapes(engines.SETTINGS["digits"])
    assert (8, 3, 1, 16, 16) in shapes and (4, 1, 2, 32, 64) in shapes
    measured = convolutions.measure((2, 3, 1, 3, 3), 2, 1)
    assert set(measured["weight gradient"]) == {"autodiff", "columns", "slices", "chosen"}
    assert all(t > 0 for times in measured.values() for t in times.values())


@pytest.mark.parametrize("name", engines.SETTINGS)
def test_plain_flax_trains_the_same_network(name):
    setting, shapes = engines.SETTINGS[name], []
    x = jnp.zeros((2, setting.size, setting.size, setting.channels))
    for network in (models.by_name(setting.model), engines.plain_network(setting)):
        made = jax.eval_shape(network.init, jax.random.key(0), x)
        shapes.append(sorted(leaf.shape for leaf in jax.tree.leaves(made["params"])))
    assert shapes[0] == shapes[1]


def test_the_command_measures_every_engine_that_is_asked_for():
    given = dict(setting="tiny", slots="1,2", specialised=1, repeats=1)
    command = [sys.executable, "-m", "bpevo.bench", *(f"--{name}={value}" for name, value in given.items())]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu", "COLUMNS": "200"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "mlp-8, batch 16, per candidate-step, n = 1" in done.stdout
    rows = [line.split("│")[1].strip() for line in done.stdout.splitlines() if line.startswith("│")]
    wanted = ["plain Flax, backprop", "slots, K = 1", "slots, K = 2", "specialised"]
    assert [name for name in rows if name in wanted] == wanted, done.stdout
