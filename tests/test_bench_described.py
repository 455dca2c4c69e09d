"""Programs compiled for devices that are not there; the quick ones for a TPU run with `-m compilers` where its compiler is."""

import collections
import dataclasses
import importlib.util
import pathlib
import subprocess
import sys

import jax
import pytest
from rich.console import Console
from test_bench_targets import HERE

from bpevo.bench import described, described_table, engines, targets
from bpevo.bench.accounting import Counts
from bpevo.rules import InterpretedRule, compile

SETTING = engines.Setting("tiny", "mlp-8-8", 8, 1, 16, 2)


@pytest.fixture
def here(monkeypatch):
    """The CPU as a target by the name `here`, with peaks that are made up, and a small sample."""
    monkeypatch.setitem(targets.ACCELERATORS, "here", HERE)
    monkeypatch.setattr(targets, "described", lambda name: jax.devices()[:1])
    monkeypatch.setattr(described, "SAMPLE", 4)
    monkeypatch.setattr(described, "EXAMPLES", 97 * SETTING.batch)  # steps: a number that nothing else has


def test_the_command_tells_it_in_one_line():
    command = [sys.executable, "-m", "bpevo.bench", "--compile_for=v5e,v9"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("bpevo.bench: ")


def test_backprop_s_products_are_those_of_the_network_and_it_decides_nothing(here):
    """Three dense layers: all forwards, the hidden two backwards, all for their weights."""
    made = described.program(SETTING, compile("g"), 2, jax.devices()[:1])
    counts, batch = made.counts(), SETTING.batch
    first, hidden, head = 64 * 8, 8 * 8, 8 * 10
    assert counts.flops == 2 * batch * (2 * first + 3 * hidden + 3 * head)
    assert (
        counts.branches == counts.turns == counts.guessed == 0
        and counts.kernels > 10
        and made.memory > made.temporaries > 0
    )


@pytest.mark.slow
def test_the_table_shows_every_program_and_what_it_compares(here):
    console = Console(width=250, record=True)
    figures = described_table.tell(dataclasses.replace(SETTING, model="mlp-8"), ["here"], [2], 2, console)
    text = console.export_text()
    rows = {row["name"]: row for row in figures["compiled"]["here"]}
    assert list(rows) == ["backprop, K = 2", "specialised, K = 2, 2 rules", "slots, K = 2, 2 groups", "the 2 rules"]
    slots, same = rows["slots, K = 2, 2 groups"], rows["the 2 rules"]
    assert slots["worst"]["bytes"] >= slots["mean"]["bytes"] > rows["backprop, K = 2"]["mean"]["bytes"]
    assert slots["mean"]["guessed"] == slots["mean"]["decisions"] == 0  # a CPU's decisions are no host's
    assert slots["mean"]["branches"] > 5 and slots["written"][0] > 5
    groups = (slots["worst"]["bytes"], 2 * slots["mean"]["bytes"] - slots["worst"]["bytes"])
    assert same["mean"]["bytes"] == pytest.approx(min(groups, key=lambda g: abs(g - same["mean"]["bytes"])))
    assert all(f"{row['mean']['bytes'] / 2**20:,.0f} MiB a step" in text for row in rows.values())
    assert "the first 4 feasible random equations of seed 0" in text and str(engines.equations(4)[3]) in " ".join(
        text.split()
    )
    assert "1 GB/s" in text and "made up" in text
    assert figures["weights"]["turns"]["instructions"] == pytest.approx(slots_instructions(4))


def slots_instructions(count: int) -> float:
    programs = [InterpretedRule.of(e).program for e in engines.equations(count)]
    return sum(int(p.length) for p in programs) / count


def needs(plugin: str):
    missing = importlib.util.find_spec(plugin) is None
    return [pytest.mark.compilers, pytest.mark.skipif(missing, reason=f"{plugin} is not installed")]


TELL = """
from bpevo.bench import described, engines, sample, targets
targets.quiet()
from bpevo.rules import InterpretedRule, Kernel, TiledRule, assemble, blank_program, takes
setting = engines.Setting("tiny", "mlp-8", 8, 1, 16, 2)
target, capacity, in_kernel = {target!r}, {capacity}, {in_kernel}
devices = targets.described(target)
rule = TiledRule(blank_program(3), Kernel(devices[0].platform)) if in_kernel else InterpretedRule(blank_program(3))
made = described.program(setting, rule, capacity, devices)
counts = made.counts(sample.habits(sample.groups([e for e in engines.equations(4) if takes(assemble(e))], 4)[0]))
print(len(devices), made.slots, made.account.written(made.steps), counts)
"""


def compiled(target: str, capacity: int, in_kernel: bool) -> tuple[int, int, tuple[int, int], Counts]:
    """(devices, slots of each, conditionals and loops in the text, a slot's step), from a process of its own."""
    command = [sys.executable, "-c", TELL.format(target=target, capacity=capacity, in_kernel=in_kernel)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    devices, slots, first, second, rest = done.stdout.split(maxsplit=4)
    fields = {
        f.name: float(rest.split(f"{f.name}=")[1].split(",")[0].rstrip(")\n")) for f in dataclasses.fields(Counts)
    }
    return int(devices), int(slots), (int(first.strip("(,")), int(second.rstrip(")"))), Counts(**fields)


TPU, GPU = needs("libtpu"), needs("jax_cuda12_plugin")


@pytest.mark.parametrize(
    ("target", "capacity"),
    [
        pytest.param("v5e", 2, marks=TPU),
        pytest.param("v5e:2x2", 8, marks=TPU),
        pytest.param("h100", 2, marks=GPU),
    ],
)
def test_slots_in_a_kernel_decide_nothing_and_exchange_nothing(target, capacity):
    devices, slots, written, counts = compiled(target, capacity, in_kernel=True)
    assert devices * slots == capacity and counts.collectives == 0
    assert written == (0, 0) and counts.branches == counts.turns == counts.decisions == counts.guessed == 0
    assert counts.bytes + counts.fast_bytes > 1e4 and counts.flops > 0


@pytest.mark.parametrize("target", [pytest.param("v5e", marks=TPU)])
def test_what_stands_beside_the_kernel_compiles_for_a_tpu(target):
    _, _, (conditionals, _), counts = compiled(target, 1, in_kernel=False)
    assert conditionals > 5 and counts.branches > 5 and counts.guessed == 0 and counts.flops > 0


@pytest.mark.parametrize("target", [pytest.param("h100", marks=GPU)])
@pytest.mark.skipif(jax.__version_info__ < (0, 11, 2), reason="needs graphs that hold loops")
def test_on_an_h100_every_decision_that_depends_on_data_is_in_a_graph(target):
    _, _, (conditionals, _), counts = compiled(target, 2, in_kernel=False)
    assert conditionals > 5 and counts.branches > 5 and counts.turns > 1 and counts.guessed == 0
    assert counts.decisions == 0


BARS = """
from bpevo.bench import described, engines, targets
targets.quiet()
setting, equations = engines.SETTINGS[{setting!r}], engines.equations(described.SAMPLE)
devices = targets.described({target!r})
rows = [
    described.backprop(setting, 4, devices)[0],
    described.specialised(setting, 4, equations[:{rules}], devices)[0],
    described.in_slots(setting, 4, equations, 4, devices)[0],
]
for row in rows:
    print(row.mean.bytes + row.mean.fast_bytes, row.mean.kernels, row.mean.decisions, row.programs[0].temporaries)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "setting"),
    [
        pytest.param("h100", "wrn-10-1", marks=GPU),
        pytest.param("h100", "wrn-16-2", marks=GPU),
        pytest.param("v5e", "wrn-10-1", marks=TPU),
    ],
)
def test_four_slots_of_random_equations_cost_little_more_than_specialised_rules_or_backprop(target, setting):
    """Against four specialised rules on a GPU, bytes and kernels; against backprop on a TPU, bytes and temporaries."""
    command = [sys.executable, "-c", BARS.format(target=target, setting=setting, rules=4 if target == "h100" else 1)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    backprop, specialised, slots = ([float(x) for x in line.split()] for line in done.stdout.splitlines())
    assert slots[2] == 0
    if target == "h100":
        assert slots[0] <= 1.5 * specialised[0] and slots[1] <= 1.5 * specialised[1]
    else:
        assert slots[0] <= 3 * backprop[0] and slots[3] <= 3 * backprop[3]


PRODUCTS = """
import collections, re
from bpevo.bench import described, engines, targets
targets.quiet()
from bpevo.rules import Kernel, TiledRule, blank_program
setting = engines.Setting("tiny", "mlp-8-8", 8, 1, 16, 2)
devices = targets.described({target!r})
texts, account = [], described.Account
described.Account = lambda text, host: texts.append(text) or account(text, host)
for both in (False, True):
    described.program(setting, TiledRule(blank_program(3), Kernel(devices[0].platform), both), 2, devices)
    print(*re.findall(r"= (\\S+?)(?:{{\\S*)? (?:dot|convolution)\\(", texts[-1]))
"""


@pytest.mark.parametrize("target", [pytest.param("v5e", marks=TPU), pytest.param("h100", marks=GPU)])
def test_a_second_product_leaves_the_others_as_they_are(target):
    """So a signal does not depend on what its neighbours read: on a GPU, XLA would make one product of the two."""
    command = [sys.executable, "-c", PRODUCTS.format(target=target)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    one, both = (collections.Counter(line.split()) for line in done.stdout.splitlines())
    assert one and not one - both and sorted((both - one).values()) == [2]  # of the second layer and the head
