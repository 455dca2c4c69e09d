"""An accelerator is measured row by row into a file that later calls complete."""

import dataclasses
import json
import os
import time
import types

import pytest
from rich.console import Console

from bpevo.bench import accelerator
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


def test_rows_of_other_versions_or_devices_are_kept_and_not_counted(tmp_path, machine):
    path = tmp_path / "rows.json"
    fill(path, 100, WANTED[:1])
    machine["versions"] = MACHINE | {"jax": "0.13.0"}
    rows = fill(path, 100, WANTED[:1])
    assert len(machine["measured"]) == 2 and [row["machine"]["jax"] for row in rows] == ["0.13.0"]
    assert {row["machine"]["jax"] for row in json.loads(path.read_text())} == {"0.12.0", "0.13.0"}


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
