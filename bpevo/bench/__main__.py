"""Benchmarks: `python -m bpevo.bench --setting=digits`, `--start`, `--convolutions`, `--controller=1000,100000`,
`--head=100000`, `--compile_for=h100,v5e`, `--accelerator --minutes=10`, `--json=FILE`.

Ratios within one run count, not absolute times. (a) the slots, equations as data, for several K; (b) a program per
equation; (c) the naive search, a fresh jit per equation, one by one; (d) plain Flax layers, backprop only; (e) PyTorch,
backprop only, where it is installed.
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import tempfile
import time

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
import jax
from absl import app, flags
from rich.console import Console
from rich.table import Table

from bpevo.bench import accelerator, convolutions, described_table, engines, head, proposals, start, targets
from bpevo.command import process
from bpevo.evolution import CONTROLLERS
from bpevo.runs import RunError
from bpevo.runs.provenance import versions
from bpevo.training import DTYPES, Trainer, Training
from bpevo.training.graphs import graphs
from bpevo.workers import Job, LocalWorkers, Stage


def define_flags() -> None:
    flags.DEFINE_enum("setting", "digits", tuple(engines.SETTINGS), "Network and image size.")
    flags.DEFINE_enum("compute_dtype", "float32", tuple(DTYPES), "Of the network, in (a) to (d).")
    flags.DEFINE_list("slots", ["1", "2", "4", "8", "16"], "Numbers of slots K.")
    flags.DEFINE_integer("specialised", 8, "Equations with a program of their own.")
    flags.DEFINE_integer("naive", 3, "Equations that the naive search trains, to be scaled.", lower_bound=2)
    flags.DEFINE_list("throughput", [], "Numbers of equations to search from a cold start, against the naive search.")
    flags.DEFINE_integer("steps", 60, "Steps of each training in that comparison; of an epoch with --accelerator (20).")
    flags.DEFINE_integer("repeats", 5, "Timed calls, engines in turn; the median counts.", lower_bound=1)
    flags.DEFINE_bool("start", False, "Measure a cold and a warm start instead.")
    flags.DEFINE_bool("convolutions", False, "Measure the convolution lowerings instead.")
    flags.DEFINE_list("controller", [], "Measure a proposal after so many results instead.")
    flags.DEFINE_integer(
        "head",
        None,
        "Measure the head of a pool of 500 workers in a search of so many trainings instead.",
        lower_bound=3000,
    )
    flags.DEFINE_list(
        "compile_for", [], "Compile for these devices, which need not be there, and count: h100, v5e, v5e:2x2."
    )
    flags.DEFINE_bool("accelerator", False, "Measure this machine's accelerator, what tells most first, into --json.")
    flags.DEFINE_float(
        "minutes", 10.0, "Time for --accelerator; the same command goes on where it ended.", lower_bound=0.1
    )
    for name in ("slots", "throughput", "controller"):
        flags.register_validator(name, lambda texts: all(t.isdigit() and int(t) for t in texts), "write numbers from 1")
    flags.DEFINE_string("json", None, "Also write the figures to this file.")


def _table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    return table


def _engines(setting: engines.Setting, console: Console) -> dict:
    values = flags.FLAGS
    rules = engines.equations(max(values.specialised, max(map(int, values.slots))))
    plain, flop = engines.plain(setting)
    ways = [plain, *(engines.interpreted(setting, int(k), rules) for k in values.slots)]
    if importlib.util.find_spec("torch") and setting.model.startswith("wrn"):
        from bpevo.bench import torch_backprop  # (e), where it is installed

        ways.append(torch_backprop.way(setting))
    if values.specialised:
        ways.append(engines.specialised(setting, rules[: values.specialised]))
    timings, peak = engines.measured(ways, values.repeats), engines.peak_flops()
    best = timings[-1] if values.specialised else None
    rows = [engines.cells(t, timings[0], best, setting, flop / peak) for t in timings]
    said = graphs(jax.local_devices()[0]).said
    decisions = f", decisions {said}" if said else ""
    console.print(
        _table(
            f"{setting.model}, batch {setting.batch}, per candidate-step, n = {values.repeats}{decisions}",
            list(engines.COLUMNS),
            rows,
        )
    )
    return {"engines": [dataclasses.asdict(t) for t in timings], "flop_per_step": flop, "peak_flops": peak}


def _throughput(setting: engines.Setting, console: Console) -> dict:
    """Whole searches from a cold start, all compilation counted, against the naive one, scaled from a few equations."""
    values = flags.FLAGS
    setting = dataclasses.replace(setting, steps=values.steps)
    sizes = [int(n) for n in values.throughput]
    naive, deviation = engines.naive(setting, engines.equations(values.naive, seed=1))
    figures, rows, compilations = [], [], start.Compilations()
    for size in sizes:
        jax.clear_caches()
        compiled = compilations.count
        begin = time.perf_counter()
        task, examples = engines.workload(setting)
        trainer = Trainer(task, examples, capacity=8)
        workers = LocalWorkers(trainer)
        for equation in engines.equations(size, seed=1):
            training = Training(equation, 1e-6)
            workers.submit(Job(stage=Stage.SEARCH, subject=str(equation), training=training))
        while not workers.idle:
            workers.poll()
        seconds, programs = time.perf_counter() - begin, compilations.count - compiled
        figures.append({"equations": size, "seconds": seconds, "occupancy": trainer.occupancy, "programs": programs})
        ratio = f"{size * naive / seconds:.1f}x"
        rows.append([f"{size:,}", f"{seconds:.0f}", f"{size * naive:.0f}", ratio, str(programs)])
    console.print(
        _table(
            f"search from a cold start, {values.steps} steps of batch {setting.batch} each; "
            f"naive: {naive:.1f} ± {deviation:.1f} s an equation (n = {values.naive}), scaled",
            ["equations", "slots, s", "naive, s", "ratio", "programs"],
            rows,
        )
    )
    return {"naive_seconds_per_equation": naive, "naive_deviation": deviation, "searches": figures}


def _start(setting: engines.Setting, console: Console) -> dict:
    with tempfile.TemporaryDirectory() as cache:
        figures = start.measure(setting.name, cache)
    columns = ["trace", "lower", "compile", "epoch", "total"]
    rows = [[name, *(f"{figures[name].get(c, 0.0):.1f}" for c in columns)] for name in figures]
    console.print(
        _table(
            f"start of a search with {setting.model}, 8 slots: seconds to the first results", ["start", *columns], rows
        )
    )
    return {"start": figures}


def _convolutions(setting: engines.Setting, console: Console) -> dict:
    rows, figures = [], []
    for shape in convolutions.shapes(setting):
        measured = convolutions.measure(shape, setting.batch, flags.FLAGS.repeats)
        figures.append({"shape": shape, "milliseconds": measured})
        for operation, times in measured.items():
            best = min(times.values())
            size, kernel, stride, ins, outs = shape
            name = f"{size}x{size} {kernel}x{kernel}/{stride} {ins}-{outs}"
            rows.append([name, operation, ", ".join(f"{n} {t:.2f} ({t / best:.1f}x)" for n, t in times.items())])
    console.print(
        _table("convolution lowerings inside a loop, ms (over the best)", ["shape", "operation", "lowerings"], rows)
    )
    return {"convolutions": figures}


def _controller(console: Console) -> dict:
    """Processor time of a proposal, for each controller and size of the run."""
    sizes = [int(n) for n in flags.FLAGS.controller]
    figures = {name: [proposals.measure(name, n) for n in sizes] for name in CONTROLLERS}
    rows = [
        [name, f"{n:,}", f"{1e3 * t:.2f}", f"{t / times[0]:.2f}x"]
        for name, times in figures.items()
        for n, t in zip(sizes, times, strict=True)
    ]
    columns = ["controller", "results", "ms a proposal", f"vs {sizes[0]:,}"]
    console.print(_table(f"processor time, mean of {proposals.ASKED}", columns, rows))
    return {"proposal_seconds": {name: dict(zip(sizes, times, strict=True)) for name, times in figures.items()}}


def _head(console: Console) -> dict:
    """Everything that a head does for a search on a simulated pool, by stretches of the run."""
    plan = head.plan(flags.FLAGS.head, head.WORKERS, head.SLOTS)

    def said(figures: head.Figures) -> None:
        console.print(f"{figures.results:,} results: {figures.milliseconds:.2f} ms each", highlight=False)

    with tempfile.TemporaryDirectory() as folder:
        found = head.measure(plan, pathlib.Path(folder), head.fleet(head.WORKERS, head.SLOTS), head.WORKERS, said)
    rows = [
        [
            f"{f.results:,}",
            f"{f.drawn:,}",
            *(f"{t:.2f}" for t in (f.milliseconds, f.controller, f.database, f.disk)),
            f"{f.memory / 2**20:,.0f}",
            f"{f.per_hour:,.0f}",
            f"{f.deaths:,}",
            f"{f.reissued:,}",
        ]
        for f in found
    ]
    columns = [
        "results",
        "drawn",
        "ms a result",
        "ms a draw",
        "database",
        "disk",
        "peak MiB",
        "an hour",
        "deaths",
        "begun again",
    ]
    title = (
        f"{head.WORKERS} simulated workers x {head.SLOTS} slots, lag {plan.lag:,}; since the line before: processor time of "
        "the head for a result, of it a draw and the database, and what a result waits for the disk; each training once"
    )
    console.print(_table(title, columns, rows))
    return {"head": [dataclasses.asdict(f) for f in found]}


def main(argv: list[str]) -> None:
    del argv
    if flags.FLAGS.accelerator:  # its rows have processes of their own, and the device to themselves
        return _accelerator()
    if flags.FLAGS.compile_for:
        targets.quiet()
    try:
        configure_jax()
        _measure(Console(width=None if sys.stdout.isatty() else 220 if flags.FLAGS.compile_for else 150))
    except RunError as error:
        sys.exit(process.fail("bpevo.bench", error))


def _accelerator() -> None:
    values = flags.FLAGS
    settings = [values.setting] if values["setting"].present else ["wrn-16-2", "wrn-10-1"]
    capacities = list(map(int, values.slots)) if values["slots"].present else accelerator.CAPACITIES
    steps = values.steps if values["steps"].present else accelerator.STEPS
    path = pathlib.Path(values.json or "runs/accelerator.json")
    console = Console(width=None if sys.stdout.isatty() else 200)
    accelerator.tell(path, accelerator.cases(settings, capacities), values.minutes, steps, console)


def _measure(console: Console) -> None:
    values = flags.FLAGS
    jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
    console.print(", ".join(f"{k} {v}" for k, v in versions().items()), highlight=False)
    setting = dataclasses.replace(engines.SETTINGS[values.setting], compute_dtype=values.compute_dtype)
    if values.compile_for:
        capacities = [int(k) for k in values.slots] if values["slots"].present else [4]
        first = values.specialised if values["specialised"].present else 4
        figures = described_table.tell(setting, values.compile_for, capacities, first, console)
    elif values.controller:
        figures = _controller(console)
    elif values.head:
        figures = _head(console)
    elif values.convolutions:
        figures = _convolutions(setting, console)
    elif values.start:
        figures = _start(setting, console)
    else:
        figures = _engines(setting, console) if values.slots else {}
        if values.throughput:
            figures |= _throughput(setting, console)
    if values.json:
        text = json.dumps({"versions": versions(), "setting": dataclasses.asdict(setting), **figures}, indent=1)
        pathlib.Path(values.json).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=process.parse_flags("bpevo.bench"))
