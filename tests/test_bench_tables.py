"""What `python -m bpevo.bench` prints, by hand from figures that are made up."""

import functools
import io
import json
import pathlib
import sys
from types import SimpleNamespace

import pytest
from absl import flags
from rich.console import Console

from bpevo.bench import __main__ as command
from bpevo.bench import accelerator, convolutions, described_table, engines, head, proposals, start, targets
from bpevo.runs import RunError

SETTING = engines.Setting("tiny", "mlp-8", 8, 1, 16, 2)


@pytest.fixture
def shown(monkeypatch):
    """Runs a measurement of the command under these flags; its lines with the cells of a table, and what it returns."""

    def run(measure, *arguments, **values):
        console = Console(width=250, record=True, file=io.StringIO())
        monkeypatch.setattr(command.flags, "FLAGS", SimpleNamespace(**values))
        figures = measure(*arguments, console)
        lines = console.export_text().splitlines()
        cells = [[cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")] for line in lines]
        return [row for row in cells if len(row) > 1], "\n".join(lines), figures

    return run


def test_a_proposals_time_is_shown_in_milliseconds_and_against_the_smallest_run(shown, monkeypatch):
    monkeypatch.setattr(command, "CONTROLLERS", ("paper", "aging"))
    seconds = {("paper", 1000): 0.0004, ("paper", 20000): 1.2, ("aging", 1000): 0.0002, ("aging", 20000): 0.0001}
    monkeypatch.setattr(proposals, "measure", lambda name, size: seconds[name, size])
    rows, text, figures = shown(command._controller, controller=["1000", "20000"])
    assert rows == [
        ["controller", "results", "ms a proposal", "vs 1,000"],
        ["paper", "1,000", "0.40", "1.00x"],
        ["paper", "20,000", "1200.00", "3000.00x"],
        ["aging", "1,000", "0.20", "1.00x"],
        ["aging", "20,000", "0.10", "0.50x"],
    ]
    assert "mean of 200" in text
    assert figures == {
        "proposal_seconds": {"paper": {1000: 0.0004, 20000: 1.2}, "aging": {1000: 0.0002, 20000: 0.0001}}
    }


def test_convolutions_are_compared_with_the_fastest_of_their_kind(shown, monkeypatch):
    measured = {
        "input gradient": {"autodiff": 0.6, "columns": 0.2},
        "weight gradient": {"autodiff": 1.0, "slices": 2.5},
    }
    asked = []
    monkeypatch.setattr(convolutions, "shapes", lambda setting: [(8, 3, 2, 16, 32)])
    monkeypatch.setattr(convolutions, "measure", lambda *given: asked.append(given) or measured)
    rows, _, figures = shown(command._convolutions, SETTING, repeats=4)
    assert rows[1:] == [
        ["8x8 3x3/2 16-32", "input gradient", "autodiff 0.60 (3.0x), columns 0.20 (1.0x)"],
        ["8x8 3x3/2 16-32", "weight gradient", "autodiff 1.00 (1.0x), slices 2.50 (2.5x)"],
    ]
    assert asked == [((8, 3, 2, 16, 32), 16, 4)]
    assert figures == {"convolutions": [{"shape": (8, 3, 2, 16, 32), "milliseconds": measured}]}


def test_a_start_is_shown_by_stages(shown, monkeypatch):
    found = {
        "cold": {"trace": 1.26, "lower": 0.5, "compile": 20.04, "epoch": 0.3, "total": 22.1},
        "warm": {"total": 6.0},
    }
    monkeypatch.setattr(start, "measure", lambda name, cache: found)
    rows, text, figures = shown(command._start, SETTING)
    assert rows == [
        ["start", "trace", "lower", "compile", "epoch", "total"],
        ["cold", "1.3", "0.5", "20.0", "0.3", "22.1"],
        ["warm", "0.0", "0.0", "0.0", "0.0", "6.0"],
    ]
    assert "mlp-8, 8 slots" in text and figures == {"start": found}


def test_a_search_is_compared_with_the_naive_one_that_is_scaled(shown, monkeypatch):
    """Both train the same equations; a search ends when its workers are idle."""
    submitted, clock, compiled, made, alone = [], iter((100.0, 104.0, 200.0, 225.0)), iter((3, 5, 5, 6)), [], []

    class Workers:
        def __init__(self, trainer):
            self.left = 2
            made.append(self)

        def submit(self, job):
            submitted.append(job.training)

        @property
        def idle(self):
            return not self.left

        def poll(self):
            self.left -= 1

    class Compilations:
        @property
        def count(self):
            return next(compiled)

    def naive(setting, rules):
        alone.extend(rules)
        return 2.0 * len(rules), 0.25 * setting.steps

    monkeypatch.setattr(engines, "naive", naive)
    monkeypatch.setattr(command, "Trainer", lambda task, examples, capacity: SimpleNamespace(occupancy=capacity / 16))
    monkeypatch.setattr(command, "LocalWorkers", Workers)
    monkeypatch.setattr(start, "Compilations", Compilations)
    monkeypatch.setattr(command.time, "perf_counter", lambda: next(clock))
    rows, text, figures = shown(command._throughput, SETTING, throughput=["4", "10"], steps=6, naive=3)
    assert rows == [
        ["equations", "slots, s", "naive, s", "ratio", "programs"],
        ["4", "4", "24", "6.0x", "2"],
        ["10", "25", "60", "2.4x", "1"],
    ]
    assert "6 steps of batch 16 each" in text and "naive: 6.0 ± 1.5 s an equation (n = 3)" in text
    assert len(submitted) == 14 and [w.left for w in made] == [0, 0]
    trained = [training.equation for training in submitted]
    assert trained[:3] == trained[4:7] == alone and {training.learning_rate for training in submitted} == {1e-6}
    assert (figures["naive_seconds_per_equation"], figures["naive_deviation"]) == (6.0, 1.5)
    assert figures["searches"][0] == {"equations": 4, "seconds": 4.0, "occupancy": 0.5, "programs": 2}
    assert figures["searches"][1] == {"equations": 10, "seconds": 25.0, "occupancy": 0.5, "programs": 1}


def test_a_pools_head_is_shown_by_stretches_of_the_run(shown, monkeypatch):
    stretch = head.Figures(
        results=20_000, drawn=12_345, milliseconds=6.444, controller=1.5, database=0.126, disk=0.05, memory=3 * 2**29,
        per_hour=51_234.5, deaths=48, reissued=1_000,
    )  # fmt: skip
    asked = []

    def measure(plan, folder, fleet, workers, said):
        asked.append(workers)
        said(stretch)
        return [stretch]

    monkeypatch.setattr(head, "measure", measure)
    rows, text, figures = shown(command._head, head=3000)
    assert rows[1:] == [["20,000", "12,345", "6.44", "1.50", "0.13", "0.05", "1,536", "51,234", "48", "1,000"]]
    assert rows[0][:3] == ["results", "drawn", "ms a result"] and "20,000 results: 6.44 ms each" in text
    assert asked == [head.WORKERS] and figures["head"][0]["deaths"] == 48


@pytest.mark.parametrize("specialised", [2, 0])
@pytest.mark.parametrize(("model", "torch"), [("mlp-8", True), ("wrn-10-1", True), ("wrn-10-1", False)])
def test_engines_are_compared_on_as_many_equations_as_they_need(shown, monkeypatch, specialised, model, torch):
    """7 FLOPs at a peak of 350 a second take 20 ms; PyTorch, where it is, runs a Wide ResNet."""
    timings = {
        "plain": engines.Timing("plain", [0.05], 1.0, 1),
        ("slots", 1): engines.Timing("slots, K = 1", [0.1], 2.0, 1),
        ("slots", 4): engines.Timing("slots, K = 4", [0.2], 3.0, 1, 2**21),
        "torch": engines.Timing("PyTorch", [0.04], 0.0, 0),
        "specialised": engines.Timing("specialised", [0.125], 4.0, 2),
    }
    asked = []
    monkeypatch.setattr(engines, "equations", lambda count: list(range(count)))
    monkeypatch.setattr(engines, "plain", lambda setting: ("plain", 7.0))
    monkeypatch.setattr(engines, "interpreted", lambda setting, k, rules: asked.append((k, rules)) or ("slots", k))
    monkeypatch.setattr(engines, "specialised", lambda setting, rules: asked.append(rules) or "specialised")
    monkeypatch.setattr(engines, "measured", lambda ways, repeats: asked.append(repeats) or [timings[w] for w in ways])
    monkeypatch.setattr(engines, "peak_flops", lambda: 350.0)
    monkeypatch.setattr(command, "graphs", lambda device: SimpleNamespace(said="by the host: old"))
    found = SimpleNamespace(find_spec=lambda name: name == "torch" and torch)
    monkeypatch.setattr(command, "importlib", SimpleNamespace(util=found))
    monkeypatch.setitem(sys.modules, "bpevo.bench.torch_backprop", SimpleNamespace(way=lambda setting: "torch"))
    setting = engines.Setting("some", model, 8, 1, 16, 2)
    rows, text, figures = shown(command._engines, setting, slots=["1", "4"], specialised=specialised, repeats=3)
    assert f"{model}, batch 16, per candidate-step, n = 3, decisions by the host: old" in text
    assert asked == [(1, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), *([[0, 1]] if specialised else []), 3]
    other = {"torch": torch and model == "wrn-10-1", "specialised": bool(specialised)}
    names = [n for n in timings if other.get(n, True)]
    assert [row[:4] for row in rows] == [
        list(engines.COLUMNS[:4]),
        *(
            [
                timings[n].name,
                f"{1e3 * timings[n].step:.2f}",
                f"{timings[n].step / 0.05:.2f}x",
                vs if specialised else "",
            ]
            for n, vs in zip(timings, ("0.40x", "0.80x", "1.60x", "0.32x", "1.00x"), strict=True)
            if n in names
        ),
    ]
    assert rows[1][7:] == ["40%", "1.0", "1", ""] and rows[3][7:] == ["10%", "3.0", "1", "2"]
    assert (figures["flop_per_step"], figures["peak_flops"]) == (7.0, 350.0)
    assert [f["name"] for f in figures["engines"]] == [timings[n].name for n in names]
    assert figures["engines"][0] == {
        "name": "plain", "steps": [0.05], "compile": 1.0, "programs": 1, "bytes_per_slot": None
    }  # fmt: skip


@pytest.mark.parametrize(("slots", "specialised", "equations"), [("2", 5, 5), ("5", 2, 5)])
def test_slots_get_as_many_equations_as_the_most_that_anything_needs(shown, monkeypatch, slots, specialised, equations):
    asked = []
    monkeypatch.setattr(engines, "equations", lambda count: asked.append(count) or [])
    monkeypatch.setattr(engines, "plain", lambda setting: (None, 1.0))
    for name in ("interpreted", "specialised"):
        monkeypatch.setattr(engines, name, lambda *given: None)
    monkeypatch.setattr(engines, "measured", lambda ways, repeats: [engines.Timing("some", [1.0], 1.0, 1)] * len(ways))
    monkeypatch.setattr(engines, "peak_flops", lambda: 1.0)
    rows, text, _ = shown(command._engines, SETTING, slots=[slots], specialised=specialised, repeats=1)
    assert asked == [equations] and len(rows) == 4 and "decisions" not in text


@pytest.fixture
def given(monkeypatch):
    """Parses arguments with the command's flags, in a set of their own."""

    def parse(*arguments):
        values = flags.FlagValues()
        names = [name for name in dir(flags) if name.startswith("DEFINE_") or name == "register_validator"]
        own = {name: functools.partial(getattr(flags, name), flag_values=values) for name in names}
        monkeypatch.setattr(command, "flags", SimpleNamespace(FLAGS=values, **own))
        command.define_flags()
        values(["bench", *arguments])
        return values

    return parse


def test_flags_have_the_defaults_that_the_help_shows(given):
    assert given().flag_values_dict() == {
        "setting": "digits", "compute_dtype": "float32", "slots": ["1", "2", "4", "8", "16"], "specialised": 8, "naive": 3,
        "throughput": [], "steps": 60, "repeats": 5, "start": False, "convolutions": False, "controller": [], "head": None,
        "compile_for": [], "accelerator": False, "minutes": 10.0, "json": None,
    }  # fmt: skip
    least = given("--naive=2", "--repeats=1", "--head=3000", "--minutes=0.1", "--slots=", "--throughput=1,10")
    assert (least.naive, least.repeats, least.head, least.minutes, least.slots) == (2, 1, 3000, 0.1, [])


@pytest.mark.parametrize(
    "argument",
    ["--naive=1", "--repeats=0", "--head=2999", "--minutes=0.09", "--slots=0", "--slots=1,x", "--throughput=-3"]
    + ["--controller=2,0", "--setting=none", "--compute_dtype=int8"],
)  # fmt: skip
def test_a_flag_s_value_that_makes_no_sense_is_refused(given, argument):
    with pytest.raises(flags.IllegalFlagValueError):
        given(argument)


def test_the_command_sets_jax_up_before_it_measures_and_is_as_wide_as_its_tables(given, monkeypatch, capsys):
    seen, terminal = [], [False]
    monkeypatch.setattr(command, "configure_jax", lambda: seen.append("jax"))
    monkeypatch.setattr(targets, "quiet", lambda: seen.append("quiet"))
    monkeypatch.setattr(command, "_measure", lambda console: seen.append(console.width))
    stream = SimpleNamespace(isatty=lambda: terminal[0])
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdout=stream, exit=sys.exit))
    monkeypatch.setenv("COLUMNS", "97")
    for arguments, wide in (((), False), (("--compile_for=v5e",), False), ((), True)):
        terminal[0] = wide
        given(*arguments)
        assert command.main(["bench"]) is None
    assert seen == ["jax", 150, "quiet", "jax", 220, "jax", 97]

    def refuse(console):
        raise RunError("no such target")

    monkeypatch.setattr(command, "_measure", refuse)
    with pytest.raises(SystemExit) as exit_:
        command.main(["bench"])
    assert exit_.value.code == 2 and "bpevo.bench: no such target" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ("runs/accelerator.json", ["wrn-16-2", "wrn-10-1"], accelerator.CAPACITIES, 10.0, accelerator.STEPS)),
        (
            ("--setting=tiny", "--slots=2,4", "--steps=7", "--json=x.json", "--minutes=0.5"),
            ("x.json", ["tiny"], [2, 4], 0.5, 7),
        ),
    ],
)
def test_an_accelerator_is_measured_by_other_defaults(given, monkeypatch, arguments, expected):
    told = []
    monkeypatch.setattr(command, "configure_jax", lambda: told.append("jax"))  # is for processes of their own
    monkeypatch.setattr(accelerator, "cases", lambda *given: given)
    monkeypatch.setattr(accelerator, "tell", lambda *given: told.append(given))
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: False)
    given("--accelerator", *arguments)
    command.main(["bench"])
    [(path, (settings, capacities), minutes, steps, console)] = told
    assert (path, settings, capacities, minutes, steps) == (pathlib.Path(expected[0]), *expected[1:])
    assert console.width == 200


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["engines tiny"]),
        (("--throughput=10",), ["engines tiny", "throughput tiny"]),
        (("--slots=", "--throughput=10"), ["throughput tiny"]),
        (("--slots=",), []),
        (("--start",), ["start tiny"]),
        (("--convolutions", "--start"), ["convolutions tiny"]),
        (("--head=3000", "--convolutions"), ["head"]),
        (("--controller=10", "--head=3000"), ["controller"]),
        (("--compile_for=v5e", "--controller=10"), ["tiny ['v5e'] [4] 4"]),
        (("--compile_for=v5e,h100", "--slots=2,8", "--specialised=0"), ["tiny ['v5e', 'h100'] [2, 8] 0"]),
    ],
)
def test_what_is_asked_for_is_measured_and_written(given, monkeypatch, tmp_path, arguments, expected):
    console, updates = Console(width=120, record=True, file=io.StringIO()), []
    for name in ("_engines", "_throughput", "_start", "_convolutions"):
        monkeypatch.setattr(command, name, lambda setting, _, name=name: {f"{name[1:]} {setting.name}": 1})
    for name in ("_controller", "_head"):
        monkeypatch.setattr(command, name, lambda _, name=name: {name[1:]: 1})
    monkeypatch.setattr(
        described_table, "tell", lambda setting, *told: {" ".join(map(str, [setting.name, *told[:-1]])): 1}
    )
    monkeypatch.setattr(command, "versions", lambda: {"jax": "1.2", "bpevo": "3"})
    config = SimpleNamespace(update=lambda *given: updates.append(given))
    monkeypatch.setattr(command, "jax", SimpleNamespace(config=config))
    given("--setting=tiny", "--compute_dtype=bfloat16", *arguments, f"--json={tmp_path / 'figures.json'}")
    command._measure(console)
    assert updates == [("jax_enable_compilation_cache", False)]
    assert console.export_text() == "jax 1.2, bpevo 3\n"
    found = json.loads((tmp_path / "figures.json").read_text())
    setting = dict(name="tiny", model="mlp-8", size=8, channels=1, batch=16, steps=2, compute_dtype="bfloat16")
    assert found == {"versions": {"jax": "1.2", "bpevo": "3"}, "setting": setting, **dict.fromkeys(expected, 1)}


def test_without_a_file_nothing_is_written(given, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "jax", SimpleNamespace(config=SimpleNamespace(update=lambda *given: None)))
    given("--slots=")
    command._measure(Console(width=120, file=io.StringIO()))
    assert not list(tmp_path.iterdir())
