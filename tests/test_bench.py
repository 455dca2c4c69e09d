"""The benchmark's engines train the same work and count what they compile; figures themselves are not judged."""

import collections
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_runs import REPOSITORY

from bpevo import models
from bpevo.bench import convolutions, engines, proposals, start
from bpevo.bench.start import Compilations
from bpevo.evolution import Rung
from bpevo.rules import InterpretedRule, compile

SETTING = engines.Setting("tiny", "mlp-8", 8, 1, 16, 2)


@pytest.fixture
def clock(monkeypatch):
    """Sets the times that a module reads, one after the other."""

    def set_(*seconds, module=engines):
        times = iter(seconds)
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(times)))

    return set_


@pytest.fixture(scope="module")
def rules():
    return engines.equations(4)


def test_equations_are_reproducible_feasible_and_distinct(rules):
    assert [str(e) for e in engines.equations(4)] == [str(e) for e in rules]
    assert len({e.key for e in rules}) == 4 and all(engines.feasible(e) for e in rules)
    assert [e.key for e in engines.equations(2, 0)] == [e.key for e in rules[:2]]  # of seed 0
    assert [e.key for e in engines.equations(2, 1)] != [e.key for e in rules[:2]]


def test_the_settings_are_those_of_the_notes():
    found = {
        s.name: (s.model, s.size, s.channels, s.batch, s.steps, s.compute_dtype) for s in engines.SETTINGS.values()
    }
    assert found == {
        "digits": ("wrn-10-1", 8, 1, 64, 20, "float32"),
        "wrn-10-1": ("wrn-10-1", 32, 3, 128, 2, "float32"),
        "wrn-16-2": ("wrn-16-2", 32, 3, 128, 1, "float32"),
        "tiny": ("mlp-8", 8, 1, 16, 2, "float32"),
    }


@pytest.mark.parametrize(("size", "flip", "pad"), [(8, False, 0), (31, False, 0), (32, True, 4), (33, False, 0)])
def test_an_epoch_has_the_steps_of_the_setting_and_images_of_cifars_size_are_augmented(size, flip, pad):
    task, examples = engines.workload(engines.Setting("some", "mlp-8", size, 3, 20, 5, "bfloat16"))
    assert (task.steps_per_epoch, task.examples, task.classes, task.flip, task.pad) == (5, 100, 10, flip, pad)
    assert (task.settings.model, task.settings.batch_size, task.settings.epochs) == ("mlp-8", 20, 1)
    assert task.settings.compute_dtype == "bfloat16"
    assert examples.train_images.shape == (100, size, size, 3) and examples.eval_images.shape == (1, 20, size, size, 3)
    assert (np.min(examples.train_images), np.max(examples.train_images)) == (0, 255)
    assert set(np.asarray(examples.train_labels).tolist()) == set(range(10))
    np.testing.assert_array_equal(examples.eval_labels[0], examples.train_labels[:20])


def test_a_call_takes_the_median_of_its_repeats(clock):
    clock(10, 11, 20, 24, 30, 32)
    assert engines.timed(lambda: 0, 3) == (2, (4 - 1) / 2)


def test_the_peak_is_that_of_a_large_matrix_product(monkeypatch):
    """Of 4 seconds, with matrices of 4 rows instead of those that are asked for."""
    asked = []

    def timed(call, repeats):
        np.testing.assert_array_equal(call(), np.full((4, 4), 4))
        asked.append(repeats)
        return 4.0, 0.5

    monkeypatch.setattr(engines, "jnp", SimpleNamespace(ones=lambda shape: asked.append(shape) or jnp.ones((4, 4))))
    monkeypatch.setattr(engines, "timed", timed)
    assert engines.peak_flops() == 2 * 2048**3 / 4
    assert asked == [(2048, 2048), 5]


def test_equations_take_the_slots_in_turn_and_the_time_of_a_second_epoch_is_no_compilation(rules, clock, monkeypatch):
    """A trainer that rounds up: of the 15 seconds to the end of the first epoch another one takes 4."""
    told = []

    class Slots:
        capacity, bytes_per_slot = 4, 77.0

        def __init__(self, task, examples, capacity):
            told.append((capacity, task.settings.epochs))

        def start(self, slot, training):
            told.append((slot, training.equation, training.learning_rate))

        def advance(self):
            told.append("epoch")

    monkeypatch.setattr(engines, "Trainer", Slots)
    clock(10, 25, 30, 34)
    way = engines.interpreted(SETTING, 3, rules[:2])
    started = [(k, rules[k % 2], 1e-6) for k in range(4)]
    assert told == [(3, 10_000), *started, "epoch", "epoch"]
    assert (way.name, way.steps, way.compile, way.programs, way.bytes_per_slot()) == ("slots, K = 4", 8, 11, 1, 77.0)


def test_an_engine_s_order_is_of_a_first_epoch_that_counts():
    order = engines.order_of(compile("g"))
    assert (order.epoch, order.replicate, order.active, order.held_out) == (0, 0, True, False)
    assert order.learning_rate == np.float32(1e-6)


def test_plain_flax_trains_for_the_steps_of_the_setting_and_counts_the_products(clock):
    """Of two layers: both forwards, the last backwards, both for their weights; biases leave zero by steps of 1e-6."""
    clock(1, 3.5)
    way, flops = engines.plain(SETTING)
    assert (way.name, way.steps, way.compile, way.programs) == ("plain Flax, backprop", 2, 2.5, 1)
    products = 2 * 16 * (2 * 64 * 8 + 3 * 8 * 10)
    assert products < flops < 1.5 * products
    bias = np.asarray(way.call()["params"]["Dense_1"]["bias"])
    assert 0 < np.abs(bias).max() < 2e-6


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
    slow, fast = engines.Timing("slow", [2.0], 0.0, 1), engines.Timing("fast", [5e-6], 0.0, 1)
    assert engines.cells(slow, slow, None, SETTING, 1.5)[1:8] == ["2000.00", "1.00x", "", "0%", "8", "0.3", "75%"]
    assert engines.cells(fast, fast, None, SETTING, 1.5)[6] == "102,564.1"  # 3600 s over 351 times 20 steps


def test_ways_are_timed_in_turn(clock):
    """Calls of four steps; a's take 4, 8 and 12 seconds, b's 8, 16 and 4."""
    calls = []
    clock(0, 4, 0, 8, 0, 8, 0, 16, 0, 12, 0, 4)
    known = engines.Way("a", lambda: calls.append("a"), 4, 0.5, 7, lambda: 9.0)
    assert engines.measured([known, engines.Way("b", lambda: calls.append("b"), 4, 1.5, 1)], 3) == [
        engines.Timing("a", (1, 2, 3), 0.5, 7, 9.0),
        engines.Timing("b", (2, 4, 1), 1.5, 1, None),
    ]
    assert calls == list("ababab")


def test_specialised_equations_have_a_program_each(rules, clock):
    """Each call is of two equations for two steps."""
    clock(10, 13.5, 0, 8, 0, 4)
    [timing] = engines.measured([engines.specialised(SETTING, rules[:2])], 2)
    assert timing == engines.Timing("specialised", (2, 1), 3.5, 2)


def test_the_convolutions_of_a_setting_are_its_distinct_shapes():
    """A stem; three groups, whose first block changes the number of channels and, but for the first group's, the size."""
    assert convolutions.shapes(engines.SETTINGS["digits"]) == [
        (8, 3, 1, 1, 16),
        (8, 3, 1, 16, 16),
        (8, 3, 2, 16, 32),
        (8, 1, 2, 16, 32),
        (4, 3, 1, 32, 32),
        (4, 3, 2, 32, 64),
        (4, 1, 2, 32, 64),
        (2, 3, 1, 64, 64),
    ]
    odd = convolutions.shapes(engines.Setting("odd", "wrn-16-2", 7, 3, 1, 1))
    assert odd[:4] == [(7, 3, 1, 3, 16), (7, 3, 1, 16, 32), (7, 1, 1, 16, 32), (7, 3, 1, 32, 32)]
    assert [shape[0] for shape in odd[4:]] == [7, 7, 4, 4, 4, 2]


def test_all_lowerings_of_an_operation_compute_the_same():
    rng, lowerings = np.random.default_rng(0), convolutions._lowerings((3, 3, 2, 3, 4), 2)
    shapes = ((2, 3, 3, 3), (2, 2, 2, 4), (3, 3, 3, 4))  # of what is convolved, of the result, of weights
    arrays = {shape: rng.normal(size=shape).astype(np.float32) for shape in shapes}
    calls = [
        (o, name, f, [arrays[a.shape] for a in given]) for o in lowerings for name, (f, given) in lowerings[o].items()
    ]
    results = jax.jit(lambda: [jnp.ravel(f(*given)) for _, _, f, given in calls])()
    found = {(operation, name): result for (operation, name, _, _), result in zip(calls, results, strict=True)}
    for (operation, name), result in found.items():
        np.testing.assert_allclose(result, found[operation, "chosen"], 1e-4, 1e-4, err_msg=f"{operation} {name}")
    assert {operation: list(named) for operation, named in lowerings.items()} == {
        "forward": ["convolution", "columns", "chosen"],
        "input gradient": ["autodiff", "columns", "chosen"],
        "weight gradient": ["autodiff", "columns", "slices", "chosen"],
    }


def test_a_lowering_is_timed_in_milliseconds_inside_a_loop_of_ten(monkeypatch):
    """0.02 seconds for all; what is run sums the products of its arguments, to which the sum before is added."""
    results = []

    def timed(call, repeats):
        results.append((float(call()), repeats))
        return 0.02, 0.5

    lowerings = {"forward": {"product": (lambda x, y: x * y, (jnp.full(3, 2e10), jnp.full(3, 4e10)))}}
    monkeypatch.setattr(convolutions, "_lowerings", lambda shape, batch: lowerings)
    monkeypatch.setattr(convolutions, "timed", timed)
    assert convolutions.measure((1, 1, 1, 1, 1), 2, 7) == {"forward": {"product": pytest.approx(2.0)}}
    assert results == [(pytest.approx(24.0), 7)]


def test_a_start_is_measured_up_to_its_first_results(clock, monkeypatch):
    """20 seconds to the end of the first epoch, 7 for the second; jax tells of what it compiles in each."""
    listeners, keys, told = [], [], []

    class Slots:
        capacity = 4  # as many as fit

        def __init__(self, task, examples, capacity):
            told.append((task.settings.model, task.settings.epochs, capacity))

        def start(self, slot, training):
            told.append((slot, training.equation, training.learning_rate))

        def advance(self):
            for event, seconds in (("trace", 1.0), ("trace", 0.5), ("compile", 4.0)):
                listeners[0](start.STAGES[event], seconds, fun_name="f")
            listeners[0]("/jax/another", 100.0)

    monitoring = SimpleNamespace(register_event_duration_secs_listener=listeners.append)
    config = SimpleNamespace(update=lambda *given: told.append(given))
    monkeypatch.setattr(start, "jax", SimpleNamespace(config=config, monitoring=monitoring))
    monkeypatch.setattr(start, "configure_jax", lambda: None)
    monkeypatch.setattr(start, "Trainer", Slots)
    monkeypatch.setattr(start, "SameFunction", lambda: SimpleNamespace(key=keys.append))
    clock(10, 30, 40, 47, module=start)
    found = start._first_results("tiny", "cache")
    assert found == {"trace": 3.0, "lower": 0.0, "compile": 8.0, "epoch": 7, "total": 20}
    equations = engines.equations(4)
    assert told == [
        ("jax_compilation_cache_dir", "cache"),
        ("mlp-8", 2, 8),
        *((k, equation, 1e-6) for k, equation in enumerate(equations)),
    ]
    assert keys == equations


def test_a_cold_and_a_warm_start_have_a_process_each_and_one_cache(monkeypatch):
    pools = []

    class Pool:
        def __init__(self, workers, mp_context):
            pools.append((workers, mp_context.get_start_method()))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def submit(self, function, *given):
            return SimpleNamespace(result=lambda: (function, *given, len(pools)))

    monkeypatch.setattr(start.concurrent.futures, "ProcessPoolExecutor", Pool)
    first = start._first_results
    assert start.measure("tiny", "a") == {"cold": (first, "tiny", "a", 1), "warm": (first, "tiny", "a", 2)}
    assert pools == [(1, "spawn")] * 2


def test_a_proposal_is_timed_after_the_results_that_are_made_up(monkeypatch):
    """The clock here is the number of results: 200 more are told, each asked for."""
    told, adopted, asked = [], [], []

    class Watched:
        def __init__(self, space, settings, networks, duplicates):
            assert settings.rungs == (Rung(1, 0.5), Rung(2, 0.5))

        def adopt(self, proposal):
            adopted.append(proposal)

        def tell(self, result):
            told.append(result)

        def ask(self):
            asked.append(len(told))

    monkeypatch.setattr(proposals, "CONTROLLERS", {"watched": Watched})
    assert proposals.measure("watched", 12, lambda: float(len(told))) == 1.0
    assert adopted == [r.proposal for r in told[:12]] and asked == list(range(12, 212))
    assert [r.proposal.id for r in told] == list(range(212)) and len({r.proposal.key for r in told}) == 212
    assert [r.trained.rungs for r in told[:5]] == [0, 1, 2, 0, 1] and told[0].proposal.bars == ((1, 0.0), (2, 0.0))
    assert all(r.trained.accuracy == r.trained.curve[-1] and len(r.trained.curve) == 3 for r in told)
    assert [r.proposal.equation for r in told[:112]] == [*engines.equations(100), *engines.equations(12)]


def test_a_controller_s_proposal_takes_the_mean_of_200():
    times = iter((1.0, 5.0))
    assert proposals.measure("aging", 20, lambda: next(times)) == 4 / 200


def test_plain_flax_halves_the_size_in_the_first_block_of_the_second_and_third_group():
    """A stem and, in each group, two blocks of two convolutions; a shortcut where the number of channels changes."""
    model = engines.plain_network(engines.Setting("some", "wrn-16-1", 8, 1, 2, 1))

    def run(x):
        made = model.init(jax.random.key(0), x)
        return model.apply(made, x, capture_intermediates=True, mutable=True)[1]

    seen = jax.eval_shape(run, jnp.zeros((2, 8, 8, 1)))["intermediates"]
    found = collections.Counter(seen[name]["__call__"][0].shape[1:] for name in seen if name.startswith("Conv"))
    assert found == {(8, 8, 16): 1 + 4, (4, 4, 32): 4 + 1, (2, 2, 64): 4 + 1}


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
