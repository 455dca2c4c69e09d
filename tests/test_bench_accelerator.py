"""An accelerator is measured row by row into a file that later calls complete."""

import dataclasses
import json
import os
import time
import types

import numpy as np
import pytest
from rich.console import Console

from bpevo.bench import accelerator, engines
from bpevo.bench.accelerator import Case
from bpevo.training.kernel import Found

MACHINE = {"jax": "0.12.0", "device": "1 x NVIDIA H100 80GB HBM3"}
FIGURES = {
    "step": 0.002, "spread": 0.01, "compile": 60.0, "bytes": 3.35e9, "flops": 49.45e9, "decisions": "in CUDA graphs",
    "repeatable": True, "memory": 2**30, "estimated": 2**29, "counted": 2**28,
}  # fmt: skip
WANTED = [c for c in accelerator.cases(("wrn-16-2",), (1, 4)) if c.engine != "kernel"][:6]  # of float32


@pytest.fixture
def machine(monkeypatch):
    """A stand-in for processes of their own: what was measured, and what the next measurement gives and takes."""
    state = {"versions": MACHINE, "measured": [], "figures": FIGURES, "takes": 60.0, "now": 0.0}

    def apart(seconds, function, *arguments):
        if function is accelerator.versions:
            state["asked"] = seconds
            return state["versions"]
        state["measured"].append(arguments[0])
        state["now"] += min(seconds, state["takes"])
        unfinished = {"error": f"not finished in {seconds:.0f} s", "seconds": seconds}
        return unfinished if state["takes"] > seconds else state["figures"]

    monkeypatch.setattr(accelerator, "apart", apart)
    monkeypatch.setattr(accelerator.time, "monotonic", lambda: state["now"])
    return state


def fill(path, minutes: float, wanted=WANTED) -> list[dict]:
    return accelerator.fill(path, wanted, minutes, 20, lambda text: None)


def test_the_rows_that_tell_most_come_first():
    rows = accelerator.cases()
    first = ("1 backprop", "1 specialised", "1 interpreter", "1 kernel", "4 backprop")
    assert [str(row) for row in rows[:5]] == [f"wrn-16-2 float32 K = {rest}" for rest in first]
    assert len(set(rows)) == len(rows) and {row.slots for row in rows} == {1, 4, 16}
    keys = [
        ("float32", "bfloat16").index(row.compute_dtype) * 2 + ("wrn-16-2", "wrn-10-1").index(row.setting)
        for row in rows
    ]
    assert keys == sorted(keys)
    assert max(row.slots for row in rows if row.engine == "specialised") == 4  # a program each


def test_each_row_is_stored_at_once_and_a_later_call_fills_the_rest(tmp_path, machine):
    path = tmp_path / "runs" / "rows.json"
    fill(path, 2.5)
    assert machine["measured"] == WANTED[:3] and len(json.loads(path.read_text())) == 3
    machine["takes"] = 10.0
    rows = fill(path, 10)
    assert machine["measured"] == [*WANTED[:3], *WANTED[2:]]  # the third had been cut off
    assert [Case(**row["case"]) for row in rows] == WANTED and all(row["step"] == 0.002 for row in rows)
    assert fill(path, 10) == rows and len(machine["measured"]) == 7


def test_a_row_that_was_cut_off_waits_for_a_call_with_more_time_for_it(tmp_path, machine):
    path, machine["takes"] = tmp_path / "rows.json", 1e9
    assert fill(path, 5)[0]["seconds"] == 300
    fill(path, 4)
    assert machine["measured"] == WANTED[:2]  # the next one is tried instead
    fill(path, 6)
    assert machine["measured"] == [*WANTED[:2], WANTED[0]]


def test_a_row_that_failed_says_why_and_the_next_is_measured(tmp_path, machine):
    path, machine["figures"] = tmp_path / "rows.json", {"error": "RESOURCE_EXHAUSTED: no memory"}
    rows = fill(path, 100)
    assert len(rows) == len(WANTED) and {row["error"] for row in rows} == {"RESOURCE_EXHAUSTED: no memory"}
    fill(path, 100)
    assert len(machine["measured"]) == len(WANTED)


def test_each_row_says_how_it_went_and_time_that_is_over_is_over(tmp_path, machine):
    said, path = [], tmp_path / "rows.json"
    accelerator.fill(path, WANTED, 2, 20, said.append)  # of a minute each
    assert machine["asked"] == 120 and machine["measured"] == WANTED[:2]
    machine["figures"], machine["takes"] = {"error": "no memory"}, 30.0
    accelerator.fill(path, WANTED[:3], 1, 20, said.append)
    assert said == [
        "wrn-16-2 float32 K = 1 backprop: 2.00 ms",
        "wrn-16-2 float32 K = 1 specialised: 2.00 ms",
        "wrn-16-2 float32 K = 1 interpreter: no memory",
    ]
    assert path.read_text().startswith('[\n {\n  "case": {\n') and not path.with_name("rows.json.new").exists()


def test_without_a_device_nothing_is_measured(tmp_path, machine):
    machine["versions"], said = {"error": "jax finds no device"}, []
    assert accelerator.fill(tmp_path / "rows.json", WANTED, 2, 20, said.append) == []
    assert said == ["no device: jax finds no device"] and not machine["measured"] and not list(tmp_path.iterdir())
    console = Console(width=100, record=True)
    accelerator.tell(tmp_path / "rows.json", WANTED, 2, 20, console)
    assert console.export_text() == "no device: jax finds no device\n"


def test_rows_of_other_versions_or_devices_are_kept_and_not_counted(tmp_path, machine):
    path = tmp_path / "rows.json"
    fill(path, 100, WANTED[:1])
    machine["versions"] = MACHINE | {"jax": "0.13.0"}
    rows = fill(path, 100, WANTED[:1])
    assert len(machine["measured"]) == 2 and [row["machine"]["jax"] for row in rows] == ["0.13.0"]
    assert [row["machine"]["jax"] for row in json.loads(path.read_text())] == ["0.12.0", "0.13.0"]
    fill(path, 100, WANTED[:2])
    assert [row["machine"]["jax"] for row in json.loads(path.read_text())] == ["0.12.0", "0.13.0", "0.13.0"]


def test_the_table_says_what_share_of_the_peaks_a_row_reaches(tmp_path, machine):
    console = Console(width=250, record=True)
    machine["takes"] = 60.0
    accelerator.tell(tmp_path / "rows.json", WANTED, 2, 20, console)
    text = console.export_text()
    row = next(line for line in text.splitlines() if "K = 1 specialised" in line and "│" in line)
    # 3.35 GB at 3,350 GB/s take 1 of the 2 ms; 49.45 GFLOP at 494.5 TFLOP/s a tenth of one.
    assert [cell.strip() for cell in row.split("│")[2:-1]] == [
        "2.00", "1%", "1.00x", "3,194.8", "50%", "5%", "60.0", "yes", "1,024.0", "512.0", "256.0",
    ]  # fmt: skip
    assert "decisions are taken in CUDA graphs" in text and "4 rows are still missing" in text and "data sheet" in text


def test_the_table_of_a_device_without_published_peaks_and_with_a_row_that_failed(tmp_path, machine, monkeypatch):
    machine["versions"] = {"jax": "0.12.0", "device": "2 x Mystery"}
    figures = iter(
        [
            {"error": "no memory"},
            FIGURES | {"memory": None, "repeatable": False, "decisions": ""},
            FIGURES | {"step": 0.004, "decisions": ""},
            FIGURES | {"step": 0.005, "decisions": "one by one"},
        ]
    )
    monkeypatch.setattr(
        accelerator, "apart", lambda seconds, f, *_: machine["versions"] if f is accelerator.versions else next(figures)
    )
    wanted = [Case("wrn-16-2", dtype, k, engine) for dtype, k, engine in (
        ("float32", 1, "kernel"), ("float32", 4, "backprop"), ("float32", 4, "interpreter"), ("bfloat16", 4, "interpreter"),
    )]  # fmt: skip
    console = Console(width=250, record=True)
    accelerator.tell(tmp_path / "rows.json", wanted, 2, 20, console)
    lines = console.export_text().splitlines()
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")] == [
        ["wrn-16-2 float32 K = 1 kernel", "no memory", *[""] * 10],
        [
            "wrn-16-2 float32 K = 4 backprop",
            "2.00",
            "1%",
            "1.00x",
            "3,194.8",
            "",
            "",
            "60.0",
            "no",
            "",
            "512.0",
            "256.0",
        ],
        [
            "wrn-16-2 float32 K = 4 interpreter",
            "4.00",
            "1%",
            "2.00x",
            "3,194.8",
            "",
            "",
            "60.0",
            "yes",
            "1,024.0",
            "512.0",
            "256.0",
        ],
        [
            "wrn-16-2 bfloat16 K = 4 interpreter",
            "5.00",
            "1%",
            "",
            "3,194.8",
            "",
            "",
            "60.0",
            "yes",
            "1,024.0",
            "512.0",
            "256.0",
        ],
    ]
    said = [line.strip() for line in lines if line[:1] not in "│┃┏┡└"]
    assert said[4:] == [
        "jax 0.12.0, device 2 x Mystery",
        "one of 2 Mystery, a slot's step; its published peak is not known here",
        "decisions are taken one by one",
    ]


# A row, on trainers of which a test sees what they are asked for.


class Counted:
    kernel, bytes_estimated, bytes_per_slot = "a kernel", 800, 50
    graphs = types.SimpleNamespace(said="in CUDA graphs")

    def __init__(self, task, examples, *, devices, capacity, **how):
        self.capacity, self.how, self.done = capacity, how, []
        assert [d.kind for d in devices] == ["mine"] and task.settings.compute_dtype == "bfloat16"
        Counted.made.append(self)

    def stop(self, slot):
        self.done.append(("stop", slot))

    def start(self, slot, training):
        assert training.learning_rate == 1e-6
        self.done.append(("start", slot, str(training.equation)))

    def advance(self):
        self.done.append("advance")

    def state(self, slot):
        return (
            [np.array([np.nan, slot]), np.array(Counted.states.pop())] if Counted.states else [np.array([np.nan, slot])]
        )

    def compiled(self):
        return types.SimpleNamespace(as_text=lambda: "the program")


@pytest.fixture
def counted(monkeypatch):
    """The figures of 7 steps in bfloat16 by a clock, a device and an account that are made up."""
    device = types.SimpleNamespace(kind="mine", memory_stats=lambda: {"peak_bytes_in_use": 4096})
    Counted.made, Counted.states = [], []

    def account(text):
        assert text == "the program"
        return types.SimpleNamespace(
            turn=lambda steps, habits: types.SimpleNamespace(bytes=100 * steps, flops=10 * habits)
        )

    monkeypatch.setattr(accelerator, "Trainer", Counted)
    monkeypatch.setattr(accelerator, "default_lowering", lambda devices: f"lowered for {devices[0].kind}")
    monkeypatch.setattr(accelerator.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(accelerator.jax, "local_devices", lambda: [device, None])
    monkeypatch.setattr(accelerator.engines, "timed", lambda call, repeats: (1.4, repeats / 20))
    monkeypatch.setattr(accelerator, "Account", account)
    stand_in = types.SimpleNamespace(groups=lambda equations, k: [equations[:k], None], habits=len)
    monkeypatch.setattr(accelerator, "sample", stand_in)

    def measured(engine: str, slots: int) -> dict:
        clock = iter([100.0, 190.5])
        monkeypatch.setattr(accelerator, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))
        return accelerator.measure(Case("tiny", "bfloat16", slots, engine), 7)

    measured.device = device
    return measured


@pytest.mark.parametrize("engine, lowering", [("interpreter", "lowered for mine"), ("kernel", None)])
def test_the_figures_of_a_row_by_hand(counted, engine, lowering):
    assert counted(engine, 4) == {
        "step": pytest.approx(0.05), "spread": 0.25, "compile": pytest.approx(90.5 - 1.4), "bytes": 175.0, "flops": 10.0,
        "decisions": "in CUDA graphs", "repeatable": True, "memory": 1024.0, "estimated": 200.0, "counted": 50.0,
    }  # fmt: skip
    (trainer,) = Counted.made
    assert trainer.capacity == 4 and trainer.how == {"lowering": lowering}
    equations = [str(e) for e in engines.equations(8) if accelerator.takes(accelerator.assemble(e))][:4]
    begun = [step for k, text in enumerate(equations) for step in (("stop", k), ("start", k, text))]
    assert trainer.done == 2 * [*begun, "advance"] and len(set(equations)) == 4


def test_backprop_is_one_program_of_all_slots_and_the_specialised_are_one_of_each_equation(counted):
    counted.device.memory_stats = lambda: None
    found = counted("backprop", 2)
    assert found["memory"] is None and (found["bytes"], found["flops"], found["estimated"]) == (350.0, 10.0, 400.0)
    (trainer,) = Counted.made
    assert trainer.capacity == 2 and str(trainer.how["rule"].expression) == "g"
    assert [step[2] for step in trainer.done if step[0] == "start"] == ["g"] * 4
    Counted.made.clear()
    found = counted("specialised", 2)
    assert (found["bytes"], found["flops"], found["estimated"], found["counted"]) == (700.0, 20.0, 800.0, 50.0)
    assert [t.capacity for t in Counted.made] == [1, 1]
    texts = [str(t.how["rule"].expression) for t in Counted.made]
    assert [t.done for t in Counted.made] == [2 * [("stop", 0), ("start", 0, text), "advance"] for text in texts]


def test_a_row_whose_states_differ_the_second_time_is_not_repeatable_and_a_kernel_that_is_not_there_is_told(
    counted, monkeypatch
):
    Counted.states[:] = [3, 2, 1, 2]
    assert counted("interpreter", 2)["repeatable"] is False
    Counted.states[:] = [1, 2, 1, 2]
    monkeypatch.setattr(Counted, "bytes_per_slot", None)
    found = counted("interpreter", 2)
    assert found["repeatable"] is True and found["counted"] == 0


def test_a_failure_is_the_first_line_of_its_message_or_its_type(monkeypatch):
    sent, pipe = [], types.SimpleNamespace(send=lambda what: sent.append(what))
    monkeypatch.setattr(accelerator, "configure_jax", lambda: sent.append("jax"))

    def fails(*lines):
        raise RuntimeError("\n".join(lines))

    accelerator._child(pipe, max, 3, 4)
    accelerator._child(pipe, fails, "no room", "for this")
    accelerator._child(pipe, fails)
    assert sent == ["jax", 4, "jax", {"error": "no room"}, "jax", {"error": "RuntimeError"}]


def test_what_has_a_process_of_its_own_may_fail_end_or_hang():
    assert accelerator.apart(60, int, "seven")["error"].startswith("invalid literal for int()")
    assert accelerator.apart(60, os._exit, 3) == {"error": "the process ended with code 3"}
    begin = time.perf_counter()
    assert accelerator.apart(0.5, time.sleep, 600) == {"error": "not finished in 0 s", "seconds": 0.5}
    assert time.perf_counter() - begin < 300


def test_a_row_is_measured_on_whatever_is_here():
    case = Case("tiny", "float32", 2, "interpreter")
    row = accelerator.apart(500, accelerator.measure, case, 7)
    assert "error" not in row, row
    assert row["step"] > 0 and row["compile"] > 0 and row["repeatable"] is True and row["decisions"] == ""
    assert row["flops"] > 0 and row["bytes"] > 1e4 and 0 < row["estimated"] < 100 * row["counted"]
    assert dataclasses.asdict(case)["slots"] == 2 and json.dumps(row)


def test_a_device_whose_kernel_fails_says_so(monkeypatch):
    monkeypatch.setattr(accelerator.jax.config, "update", lambda *_: None)  # this process keeps its cache
    monkeypatch.setattr(accelerator, "Trainer", lambda *_, **__: types.SimpleNamespace(kernel=None))
    monkeypatch.setattr(accelerator, "kernel_of", lambda device: Found(None, "interpreted: no Triton"))
    found = accelerator.measure(Case("tiny", "float32", 1, "kernel"), 7)
    assert found == {"error": "interpreted: no Triton"}
