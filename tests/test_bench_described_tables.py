"""Tables of described programs by hand, from programs, compilers and devices that are made up."""

import dataclasses
import io
import pathlib
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from test_bench_targets import HERE

from bpevo import rules
from bpevo.bench import described, described_table, engines, targets
from bpevo.bench.accounting import Counts, Habits
from bpevo.rules import InterpretedRule, TiledRule, compile
from bpevo.runs import RunError
from bpevo.training.graphs import COMMAND_BUFFERS

SETTING = engines.Setting("tiny", "mlp-8-8", 8, 1, 16, 2)
MIB = 2**20


@pytest.fixture
def here(monkeypatch):
    """A device of this machine as a target by any name, with peaks that are made up."""
    monkeypatch.setitem(targets.ACCELERATORS, "here", HERE)
    monkeypatch.setattr(targets, "described", lambda name: jax.devices()[:1])


def device(platform: str) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, device_kind="NVIDIA H100 80GB HBM3")


def equations(*texts: str) -> list[rules.Equation]:
    return [rules.parse(text).to_equation(3) for text in texts]


def made(
    temporaries: float = 3 * MIB, memory: float = 5 * MIB, seconds=1.25, processor=10.0, steps=7
) -> described.Program:
    return described.Program(
        SimpleNamespace(written=lambda steps: (steps, 2)), steps, 2, temporaries, memory, seconds, processor
    )


@pytest.mark.parametrize(("size", "flip", "pad"), [(8, False, 0), (31, False, 0), (32, True, 4), (33, False, 0)])
def test_a_described_search_trains_on_shapes_of_45_000_examples(size, flip, pad):
    task, examples = described.task(engines.Setting("some", "mlp-8", size, 3, 16, 2, "bfloat16"))
    assert (task.examples, task.steps_per_epoch, task.classes, task.flip, task.pad) == (45_000, 2812, 10, flip, pad)
    settings = task.settings
    assert (settings.model, settings.batch_size, settings.epochs, settings.compute_dtype) == (
        "mlp-8",
        16,
        50,
        "bfloat16",
    )
    image, batches = (size, size, 3), 313  # 312 of 16 and one of 8
    assert jax.tree.map(lambda x: (x.shape, x.dtype.name), vars(examples), is_leaf=lambda x: hasattr(x, "dtype")) == {
        "train_images": ((45_000, *image), "uint8"),
        "train_labels": ((45_000,), "int32"),
        "eval_images": ((batches, 16, *image), "uint8"),
        "eval_labels": ((batches, 16), "int32"),
        "held_out": ((batches, 16), "bool"),
        "mean": (image, "float32"),
    }


def test_graphs_are_asked_for_on_a_gpu_where_jax_knows_them(monkeypatch):
    monkeypatch.setattr(described, "LEAST", jax.__version_info__)
    assert described.options([device("gpu")]) == COMMAND_BUFFERS
    assert described.options([device("tpu"), device("gpu")]) == described.options([device("cpu")]) == {}
    monkeypatch.setattr(described, "LEAST", (*jax.__version_info__, 0))  # the next one
    assert described.options([device("gpu")]) == {}


EPOCH = """%leaf (p: s32[]) -> s32[] {
  ROOT %p = s32[] parameter(0)
}
%body (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %n = s32[] negate(%p)
  %d = s32[] conditional(%n, %p), branch_computations={%leaf, %leaf}
  ROOT %c = s32[] conditional(%n, %p), branch_computations={%leaf, %leaf}
}
%never (p: s32[]) -> pred[] {
  ROOT %q = pred[] parameter(0)
}
ENTRY %main (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %w = s32[] while(%p), condition=%never, body=%body, backend_config={"known_trip_count":{"n":"2812"}}
}
"""


@pytest.mark.parametrize(("platform", "decisions"), [("cpu", 0), ("gpu", 1), ("tpu", 0)])
def test_a_program_s_costs_are_those_of_a_slot(monkeypatch, platform, decisions):
    """Two slots on each of two devices; a step is a kernel and two conditionals, of which a GPU's host takes one."""
    seen = {}

    class Lowered:
        def compile(self, options):
            if platform == "gpu":
                folder = pathlib.Path(options["xla_dump_to"])
                (folder / "m.thunk_sequence_after_thunk_passes.txt").write_text("000: kConditional\n")
                (folder / "m.thunk_metadata.txt").write_text('thunk_metadata {\n profile_annotation: "c"\n}')
            else:
                assert options is None
            return self

        def as_text(self):
            return EPOCH

        def memory_analysis(self):
            sizes = dict(argument=1000, output=300, alias=100, temp=50)
            return SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})

    def lower(order, state, examples):
        seen["lowered"] = order, state, examples
        return Lowered()

    def slots(epoch, devices, lowering, options):
        seen["asked"] = len(devices), lowering, options
        return SimpleNamespace(lower=lower)

    walls, clocks = iter((10.0, 13.0)), iter((5.0, 7.5))
    clock = SimpleNamespace(perf_counter=lambda: next(walls), process_time=lambda: next(clocks))
    monkeypatch.setattr(described, "time", clock)
    monkeypatch.setattr(described, "slots", slots)
    monkeypatch.setattr(described, "shardings", lambda devices: (None, None))
    monkeypatch.setattr(described, "options", lambda devices: {"some": devices[0].platform})
    found = described.program(SETTING, compile("g"), 4, [device(platform)] * 2)
    assert seen["asked"] == (2, "vmap", {"some": platform})
    order, state, examples = seen["lowered"]
    assert order.seed.shape == (4,) and examples.train_images.shape == (45_000, 8, 8, 1)
    assert sorted(x.shape for x in jax.tree.leaves(state.params)) == [
        (4, 8),
        (4, 8),
        (4, 8, 8),
        (4, 8, 10),
        (4, 10),
        (4, 64, 8),
    ]
    assert (found.steps, found.slots, found.temporaries, found.memory) == (2812, 2, 25, 625)
    assert (found.seconds, found.processor_seconds) == (3, 2.5)
    assert found.counts() == Counts(bytes=4, kernels=0.5, branches=1, decisions=decisions / 2, guessed=1)


@dataclasses.dataclass(eq=False)
class Counted:
    """A program that moves a byte an instruction, two where it computes both products."""

    rule: rules.Rule

    def counts(self, habits: Habits) -> Counts:
        return Counts(bytes=habits.turns["instructions"] * (2 if getattr(self.rule, "both", False) else 1))


SAMPLED = ("g", "(W @ b_next.T).T * dh", "g + dh", "(fa + dh) * gh", "h * dh")  # instructions: 1, 3, 2, 3, 2


@pytest.mark.parametrize(
    ("platform", "kinds", "expected"),
    [
        ("cpu", [InterpretedRule], [("slots, K = 2, 2 groups", (2 + 2.5) / 2, 2.5), ("  the 3 rules", 2, 2)]),
        # The kernel takes no products; the fourth equation reads both gh and fah.
        (
            "tpu",
            [TiledRule] * 2,
            [("slots, K = 2, 4 equations in a kernel, 2 groups", 3.25, 5), ("  the 2 rules", 1.5, 1.5)],
        ),
    ],
)
def test_slots_are_counted_in_groups_of_what_they_take_and_for_the_specialised_rules(
    monkeypatch, platform, kinds, expected
):
    asked = []

    def program(setting, rule, capacity, devices):
        asked.append((type(rule), rule.program.load.shape, capacity, len(devices)))
        return Counted(rule)

    monkeypatch.setattr(described, "program", program)
    rows = described.in_slots(SETTING, 2, equations(*SAMPLED), 3, [device(platform)] * 2)
    assert [(row.name, row.mean.bytes, row.worst.bytes) for row in rows] == expected
    assert asked == [(rule, (6,), 2, 2) for rule in kinds]  # two instructions for each of three parts
    both = [[getattr(p.rule, "both", None) for p in row.programs] for row in rows]
    assert both == ([[False, True], [False]] if platform == "tpu" else [[None], [None]])
    assert len(described.in_slots(SETTING, 2, equations(*SAMPLED), 0, [device(platform)] * 2)) == 1
    [row] = described.beside(SETTING, equations(*SAMPLED), [device(platform)] * 2)
    assert (row.name, row.mean.bytes, row.worst.bytes) == ("interpreter, K = 1, 5 groups", pytest.approx(2.2), 3)
    assert asked[-1] == (InterpretedRule, (6,), 2, 2)


def test_backprop_and_specialised_rules_are_a_row_each(monkeypatch):
    """The last rule moves most, in both memories together."""
    moved = iter(
        [Counts(bytes=5), Counts(bytes=900), Counts(bytes=450, fast_bytes=480), Counts(bytes=600, fast_bytes=360)]
    )

    def program(setting, rule, capacity, devices):
        counts = next(moved)
        return SimpleNamespace(rule=rule, counts=lambda: counts)

    monkeypatch.setattr(described, "program", program)
    [row] = described.backprop(SETTING, 2, [])
    assert (row.name, row.mean, row.worst) == ("backprop, K = 2", Counts(bytes=5), Counts(bytes=5))
    [row] = described.specialised(SETTING, 2, equations("g", "h", "dh"), [])
    assert (row.name, row.worst) == ("specialised, K = 2, 3 rules", Counts(bytes=600, fast_bytes=360))
    assert (row.mean.bytes, row.mean.fast_bytes) == (pytest.approx(650), pytest.approx(280))
    assert [p.rule.reads for p in row.programs] == [compile(text).reads for text in ("g", "h", "dh")]
    assert described.specialised(SETTING, 2, [], []) == []


def test_what_a_compiler_refuses_is_told_and_the_rest_is_compiled(here, monkeypatch):
    def full(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 17 of 16 GiB\nmore")

    row = described.Row("slots", [], Counts(), Counts())
    monkeypatch.setattr(described, "backprop", full)
    monkeypatch.setattr(described, "in_slots", lambda *_: [row])
    found = list(described.measure(SETTING, "here", [1, 2], 0))
    assert found == [f for k in (1, 2) for f in (f"backprop, K = {k}: RESOURCE_EXHAUSTED: 17 of 16 GiB", row)]


def test_a_target_with_a_kernel_is_measured_for_slots_that_its_devices_share_and_beside_it(monkeypatch):
    def refuse(*_):
        raise jax.errors.JaxRuntimeError("")

    monkeypatch.setattr(targets, "described", lambda name: [device("tpu")] * 2)
    monkeypatch.setattr(described, "backprop", lambda setting, k, devices: [("backprop", k, len(devices))])
    monkeypatch.setattr(described, "specialised", lambda setting, k, rules, devices: [("specialised", k, len(rules))])
    monkeypatch.setattr(
        described, "in_slots", lambda setting, k, rules, first, devices: [("slots", k, len(rules), first)]
    )
    monkeypatch.setattr(described, "beside", refuse)
    assert list(described.measure(SETTING, "v5e:1x2", [1, 2, 3, 4], 5)) == [
        *[("backprop", 2, 2), ("specialised", 2, 5), ("slots", 2, 64, 5)],
        *[("backprop", 4, 2), ("specialised", 4, 5), ("slots", 4, 64, 5)],
        "interpreter, K = 1: refused",
    ]


def test_the_table_by_hand(here, monkeypatch):
    """Two groups on two devices: of counts the mean and the worst, of memory the most, of times the sum."""
    monkeypatch.setattr(targets, "described", lambda name: jax.devices()[:1] * 2)
    account = SimpleNamespace(written=lambda steps: (steps, 2))
    programs = [described.Program(account, 7, 2, 3 * 2**20, 5 * 2**20, 1.25, 10.0)]
    programs += [described.Program(account, 9, 2, 4 * 2**20, 4 * 2**20, 2.5, 20.0)]
    mean = Counts(
        bytes=4096 * 2**20, fast_bytes=0, flops=1e9, kernels=1234, branches=5, turns=6, decisions=7, collectives=3
    )
    rows = [
        described.Row("slots", programs, dataclasses.replace(mean, bytes=2048 * 2**20, guessed=0), mean),
        described.Row("others", programs[:1], dataclasses.replace(mean, guessed=2), mean),
    ]
    table = described_table._table(SETTING, "here", rows)
    shown = {str(c.header): list(c.cells) for c in table.columns}
    assert shown == {
        "per slot and step": ["slots", "others"],
        "MiB moved": ["2,048", "4,096"],
        "worst": ["4,096", "4,096"],
        "vs first": ["1.00x", "2.00x"],
        "kernels": ["1,234"] * 2,
        "written cond/loops": ["7/2"] * 2,
        "decisions": ["11"] * 2,
        "by the host": ["7"] * 2,
        "collectives": ["3"] * 2,
        "ms at least: memory, FLOPs": ["2147.484, 500.000", "4294.967, 500.000"],  # of 1 GB/s and 2 GFLOP/s
        "MiB temp": ["4", "3"],
        "MiB peak": ["5", "5"],
        "compile s (CPU s)": ["4 (30)", "1 (10)"],
    }
    assert table.caption == "2 decisions a step of unknown habits, taken as equally likely"


def test_the_table_of_one_tpu_by_hand(monkeypatch):
    """What it moves on the chip is part of what is compared; the host takes no decision, nothing is exchanged."""
    monkeypatch.setattr(targets, "described", lambda name: [device("tpu")])
    first = Counts(bytes=1024 * MIB, fast_bytes=1024 * MIB, flops=98.5e9, kernels=10)
    second = dataclasses.replace(first, bytes=512 * MIB, fast_bytes=3584 * MIB)
    rows = [described.Row("backprop", [made()], first, first), described.Row("slots", [made()], second, first)]
    table = described_table._table(SETTING, "v5e", rows)
    shown = {str(c.header): list(c.cells) for c in table.columns}
    assert list(shown)[:6] == ["per slot and step", "MiB moved", "worst", "on the chip", "vs first", "kernels"]
    assert shown["on the chip"] == ["1,024", "3,584"] and shown["vs first"] == ["1.00x", "2.00x"]
    assert list(shown)[6:10] == ["written cond/loops", "decisions", "ms at least: memory, FLOPs", "MiB temp"]
    assert shown["ms at least: memory, FLOPs"] == ["1.311, 0.500", "0.656, 0.500"]  # of 819 GB/s and 197 TFLOP/s
    assert table.caption is None and [c.justify for c in table.columns] == ["left"] + ["right"] * 11
    assert table.title == (
        "mlp-8-8 8x8, batch 16, float32, compiled for v5e\n819 GB/s, 197 TFLOP/s a device (cloud.google.com/tpu/docs/v5e)"
    )


@pytest.mark.parametrize(
    ("options", "devices", "said"),
    [
        ({"a": "b"}, 1, "h100, decisions in CUDA graphs"),
        ({}, 1, f"h100, no CUDA graphs: jax {jax.__version__}"),
        ({"a": "b"}, 2, "h100, 2 devices, decisions in CUDA graphs"),
    ],
)
def test_a_gpu_s_title_says_who_decides(monkeypatch, options, devices, said):
    monkeypatch.setattr(targets, "described", lambda name: [device("gpu")])
    monkeypatch.setattr(described, "options", lambda devices: options)
    setting = dataclasses.replace(SETTING, compute_dtype="bfloat16")
    assert described_table._title(setting, "h100", devices) == (
        f"mlp-8-8 8x8, batch 16, bfloat16, compiled for {said}\n"
        "3,350 GB/s, 989 TFLOP/s a device (NVIDIA H100 data sheet, SXM, without sparsity)"
    )


def test_a_sample_s_habits_are_told_without_what_never_happens():
    known = rules.program.codes()

    def shares(names, **some):
        return tuple(some.get(name or "replace", 0.0) for name in names)

    branches = {"load": shares(known.loads, g=0.75, dh=0.25), "combine": shares(known.combines, replace=0.5, add=0.5)}
    branches |= {"draw": (0.0, 0.0), "mirror": (0.25, 0.75), "multiply": (0.0, 1.0)}
    habits = Habits(branches, {"instructions": 2.5, "functions": 0.126})
    assert described_table._explained(habits) == (
        "sample: the first 64 feasible random equations of seed 0 in groups of K, each with its weights;\n"
        "the weights of all:\n"
        "turns: instructions 2.50, functions 0.13\n"
        "load: g 0.750 dh 0.250\n"
        "combine: replace 0.500 add 0.500\n"
        "mirror: 0 0.250 1 0.750\n"
        "multiply: 1 1.000"
    )


def test_targets_are_told_as_they_come_and_one_that_compiles_nothing_has_no_table(here, monkeypatch):
    mean, worst = Counts(bytes=2048 * MIB, flops=1e9), Counts(bytes=4096 * MIB)
    row = described.Row("  slots [K = 2]", [made(), made(1, 2, 3, 4, 9)], mean, worst)
    found = {"here": [row, "others: [full] 17 of 16 GiB"], "there": ["slots: refused"]}
    monkeypatch.setattr(described, "measure", lambda setting, name, capacities, first: iter(found[name]))
    monkeypatch.setattr(described, "SAMPLE", 3)
    console = Console(width=250, record=True, file=io.StringIO())
    figures = described_table.tell(SETTING, ["here", "there"], [2], 1, console)
    lines = console.export_text().splitlines()
    assert lines[:2] == ["here: slots [K = 2]: 2,048 MiB a step", "here: others: [full] 17 of 16 GiB"]
    assert sum("compiled for" in line for line in lines) == 1 and "there: slots: refused" in lines
    asked = [str(e) for e in engines.equations(3)]
    assert "; ".join(asked) in " ".join(lines) and figures["sample"] == asked
    assert sorted(figures["weights"]) == ["branches", "kernels", "turns"]
    assert figures["compiled"] == {
        "here": [
            {
                "name": "slots [K = 2]",
                "mean": dataclasses.asdict(mean),
                "worst": dataclasses.asdict(worst),
                "written": (7, 2),
                "temporaries": [3 * MIB, 1],
                "memory": [5 * MIB, 2],
                "seconds": [1.25, 3],
                "processor_seconds": [10.0, 4],
            }
        ],
        "there": [],
    }


def test_nothing_is_compiled_if_a_target_is_missing(here, monkeypatch):
    def describe(name):
        if name == "there":
            raise RunError("no there")

    measured = []
    monkeypatch.setattr(targets, "described", describe)
    monkeypatch.setattr(described, "measure", lambda *given: measured.append(given) or [])
    with pytest.raises(RunError, match="no there"):
        described_table.tell(SETTING, ["here", "there"], [2], 1, Console(file=io.StringIO()))
    assert not measured
