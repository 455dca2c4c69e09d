"""A real accelerator, measured in as many minutes as there are: rows in order of worth, each stored at once, so that a later
call fills the rest. Every row has a process of its own: its compilation, its peak of memory and its crash are its alone.
"""

import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from bpevo.bench import engines, sample, targets
from bpevo.bench.accounting import Account
from bpevo.command.jax_setup import configure_jax
from bpevo.rules import Equation, Expression, assemble, compile, takes
from bpevo.runs.provenance import versions
from bpevo.training import Trainer, Training
from bpevo.training.kernel import kernel_of
from bpevo.training.slots import default_lowering

ENGINES = ("backprop", "specialised", "interpreter", "kernel")
CAPACITIES = (1, 4, 16)
MOST_SPECIALISED = 4  # a program each
STEPS = 20  # of an epoch: what an epoch does beside its steps counts little
REPEATS = 5
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. `specialised` are so many programs of one slot, for the equations that the others have as data."""

    setting: str
    compute_dtype: str
    slots: int
    engine: str

    def __str__(self) -> str:
        return f"{self.setting} {self.compute_dtype} K = {self.slots} {self.engine}"


def cases(settings: Sequence[str] = ("wrn-16-2", "wrn-10-1"), slots: Sequence[int] = CAPACITIES) -> list[Case]:
    """All rows, what tells most first."""
    return [
        Case(setting, dtype, k, engine)
        for dtype in ("float32", "bfloat16")
        for setting in settings
        for k in slots
        for engine in ENGINES
        if engine != "specialised" or k <= MOST_SPECIALISED
    ]


def measure(case: Case, steps: int = STEPS) -> dict[str, Any]:
    """The figures of a row, on the first device of this process; times in seconds, a slot's step each."""
    cache = tempfile.TemporaryDirectory()  # what runs is compiled once; its text is read from here
    jax.config.update("jax_compilation_cache_dir", cache.name)
    setting = dataclasses.replace(engines.SETTINGS[case.setting], compute_dtype=case.compute_dtype, steps=steps)
    device = jax.local_devices()[0]
    task, examples = engines.workload(setting, 10_000)
    equations = [e for e in engines.equations(2 * case.slots) if takes(assemble(e))][: case.slots]
    begin = time.perf_counter()
    make = functools.partial(Trainer, task, examples, devices=[device])
    orders: list[list[Equation | Expression]]
    if case.engine in ("interpreter", "kernel"):
        lowering = default_lowering([device]) if case.engine == "interpreter" else None  # beside no kernel
        trainers, orders = [make(capacity=case.slots, lowering=lowering)], [list(equations)]
        if case.engine == "kernel" and not trainers[0].kernel:
            return {"error": kernel_of(device).said}
    elif case.engine == "backprop":
        rule = compile("g")
        trainers, orders = [make(capacity=case.slots, rule=rule)], [[rule.expression] * case.slots]
    else:
        rules = [compile(e) for e in equations]
        trainers, orders = [make(capacity=1, rule=rule) for rule in rules], [[rule.expression] for rule in rules]

    def start() -> None:
        for trainer, mine in zip(trainers, orders, strict=True):
            for k, equation in enumerate(mine):
                trainer.stop(k)
                trainer.start(k, Training(equation, 1e-6))

    def epoch() -> None:
        for trainer in trainers:
            trainer.advance()

    def states() -> list[np.ndarray]:
        return [x for trainer in trainers for k in range(trainer.capacity) for x in trainer.state(k)]

    start()
    epoch()
    first, once = time.perf_counter() - begin, states()
    start()
    epoch()
    twice = states()
    seconds, spread = engines.timed(epoch, REPEATS)
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    habits = sample.habits(sample.groups(equations, case.slots)[0])
    counts = [Account(trainer.compiled().as_text() or "").turn(steps, habits) for trainer in trainers]
    each = steps * case.slots
    return {
        "step": seconds / each,
        "spread": spread,
        "compile": first - seconds,
        "bytes": sum(c.bytes for c in counts) / case.slots,
        "flops": sum(c.flops for c in counts) / case.slots,
        "decisions": trainers[0].graphs.said,
        "repeatable": all(np.array_equal(a, b, equal_nan=True) for a, b in zip(once, twice, strict=True)),
        "memory": None if memory is None else memory / case.slots,
        "estimated": sum(trainer.bytes_estimated for trainer in trainers) / case.slots,
        "counted": sum((trainer.bytes_per_slot or 0) * trainer.capacity for trainer in trainers) / case.slots,
    }


def _child(pipe: Connection, function: Callable[..., Any], *arguments: Any) -> None:
    try:
        configure_jax()
        pipe.send(function(*arguments))
    except Exception as error:  # a row that fails says so and the next is measured
        pipe.send({"error": (str(error).splitlines() or [type(error).__name__])[0]})


def apart(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` returns in a process of its own; {"error": …} if it fails or needs longer."""
    spawn = multiprocessing.get_context("spawn")
    mine, its = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_child, args=(its, function, *arguments), daemon=True)
    process.start()
    its.close()
    try:
        if not mine.poll(seconds):
            return {"error": f"not finished in {seconds:.0f} s", "seconds": seconds}
        return mine.recv()
    except EOFError:
        process.join()
        return {"error": f"the process ended with code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def fill(
    path: pathlib.Path, wanted: Sequence[Case], minutes: float, steps: int, said: Callable[[str], None]
) -> list[dict]:
    """Measures the rows that the file lacks for these versions and this device, as far as the minutes go; returns its rows.

    Args:
      path: a JSON file, written anew after every row.
      wanted: in the order of measuring.
      minutes: a row that is still running then ends; it is measured again by a call that has more time for it.
      steps: of a measured epoch.
      said: gets a line for every row.
    """
    end = time.monotonic() + 60 * minutes
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    machine = apart(60 * minutes, versions)
    if "error" in machine:
        said(f"no device: {machine['error']}")
        return []
    rows: dict[Case, dict] = {_key(row): row for row in stored if row["machine"] == machine}
    others = [row for row in stored if row["machine"] != machine]
    for case in wanted:
        left = end - time.monotonic()
        known = rows.get(case)
        if left <= 0 or (known and known.get("seconds", left) >= left):
            continue
        figures = apart(left, measure, case, steps)
        rows[case] = {"case": dataclasses.asdict(case), "machine": machine, **figures}
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps([*others, *rows.values()], indent=1) + "\n", encoding="utf-8")
        os.replace(new, path)
        said(f"{case}: {figures.get('error') or format(1e3 * figures['step'], '.2f') + ' ms'}")
    return [rows[case] for case in wanted if case in rows]


def _key(row: dict) -> Case:
    return Case(**row["case"])


def tell(path: pathlib.Path, wanted: Sequence[Case], minutes: float, steps: int, console: Console) -> None:
    """Fills the file and prints its rows of this machine."""
    rows = fill(path, wanted, minutes, steps, lambda text: console.print(text, highlight=False, markup=False))
    if not rows:
        return
    machine = rows[0]["machine"]
    count, _, kind = machine["device"].partition(" x ")
    peak = targets.of_kind(kind)
    source = f"of peak: {peak.source}" if peak else "its published peak is not known here"
    console.print(", ".join(f"{k} {v}" for k, v in machine.items()), highlight=False)
    columns = (
        "case",
        "ms/step",
        "spread",
        "vs backprop",
        "MiB moved",
        "of bandwidth",
        "of FLOP/s",
        "compile s",
        "repeatable",
    )
    table = Table(*columns, "peak MiB", "estimated", "counted", title=f"one of {count} {kind}, a slot's step; {source}")
    table.title_justify = "left"
    backprop = [row for row in rows if _key(row).engine == "backprop" and "step" in row]
    plain = {dataclasses.replace(_key(row), engine=""): row["step"] for row in backprop}
    for row in rows:
        case = _key(row)
        if "error" in row:
            table.add_row(str(case), row["error"])
            continue
        base = plain.get(dataclasses.replace(case, engine=""))
        memory, flops = peak.bounds(row["bytes"], row["flops"], case.compute_dtype) if peak else (None, None)
        table.add_row(
            str(case),
            f"{1e3 * row['step']:.2f}",
            f"{row['spread']:.0%}",
            f"{row['step'] / base:.2f}x" if base else "",
            f"{row['bytes'] / MIB:,.1f}",
            *("" if t is None else f"{t / row['step']:.0%}" for t in (memory, flops)),
            f"{row['compile']:.1f}",
            "yes" if row["repeatable"] else "no",
            *("" if row[n] is None else f"{row[n] / MIB:,.1f}" for n in ("memory", "estimated", "counted")),
        )
    console.print(table)
    for said in dict.fromkeys(row["decisions"] for row in rows if row.get("decisions")):
        console.print(f"decisions are taken {said}", highlight=False, markup=False)
    missing = len(wanted) - len(rows)
    if missing:
        console.print(f"{missing} rows are still missing: the same command goes on; stored in {path}", highlight=False)
