"""What `python -m bpevo.bench` prints, by hand from figures that are made up."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from bpevo.bench import __main__ as command
from bpevo.bench import convolutions, engines, head, proposals, start

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
    seconds = {("paper", 1000): 0.0004, ("paper", 20000): 0.001, ("aging", 1000): 0.0002, ("aging", 20000): 0.0001}
    monkeypatch.setattr(proposals, "measure", lambda name, size: seconds[name, size])
    rows, text, figures = shown(command._controller, controller=["1000", "20000"])
    assert rows == [
        ["controller", "results", "ms a proposal", "vs 1,000"],
        ["paper", "1,000", "0.40", "1.00x"],
        ["paper", "20,000", "1.00", "2.50x"],
        ["aging", "1,000", "0.20", "1.00x"],
        ["aging", "20,000", "0.10", "0.50x"],
    ]
    assert f"mean of {proposals.ASKED}" in text
    assert figures == {
        "proposal_seconds": {"paper": {1000: 0.0004, 20000: 0.001}, "aging": {1000: 0.0002, 20000: 0.0001}}
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
    submitted, clock, compiled = [], iter((100.0, 104.0, 200.0, 225.0)), iter((3, 5, 5, 6))

    class Workers:
        def __init__(self, trainer):
            self.left = 2

        def submit(self, job):
            submitted.append(job.training.learning_rate)

        @property
        def idle(self):
            return not self.left

        def poll(self):
            self.left -= 1

    class Compilations:
        @property
        def count(self):
            return next(compiled)

    monkeypatch.setattr(engines, "naive", lambda setting, rules: (2.0 * len(rules), 0.25 * setting.steps))
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
    assert len(submitted) == 14
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
