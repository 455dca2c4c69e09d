"""Tables of programs that were compiled for accelerators which are not there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from bpevo.bench import described, engines, sample, targets
from bpevo.bench.described import Row
from bpevo.rules import program as p

MIB = 2**20


def tell(
    setting: engines.Setting, names: Sequence[str], capacities: Sequence[int], first: int, console: Console
) -> dict[str, Any]:
    """Prints a table for each target, a line as soon as a program is compiled; returns all figures.

    Raises RunError if a target or its compiler is missing, before anything is compiled.
    """
    for name in names:
        targets.described(name)
    figures: dict[str, Any] = {}
    for name in names:
        rows: list[Row] = []
        for found in described.measure(setting, name, capacities, first):
            if isinstance(found, Row):
                rows.append(found)
            told = (
                found if isinstance(found, str) else f"{found.name.strip()}: {found.mean.bytes / MIB:,.0f} MiB a step"
            )
            console.print(f"{name}: {told}", highlight=False, markup=False)
        if rows:
            console.print(_table(setting, name, rows))
        figures[name] = [_figures(row) for row in rows]
    equations = engines.equations(described.SAMPLE)
    whole = sample.habits(sample.groups(equations, len(equations))[0])
    console.print(_explained(whole), highlight=False)
    console.print("; ".join(map(str, equations)), highlight=False, markup=False)
    return {"compiled": figures, "sample": list(map(str, equations)), "weights": dataclasses.asdict(whole)}


def _table(setting: engines.Setting, name: str, rows: Sequence[Row]) -> Table:
    accelerator, _ = targets.named(name)
    tpu, devices = accelerator.kind == "tpu", len(targets.described(name))
    table = Table(title=_title(setting, name, devices), title_justify="left")
    columns = {
        "per slot and step": lambda r: r.name,
        "MiB moved": lambda r: f"{r.mean.bytes / MIB:,.0f}",
        "worst": lambda r: f"{r.worst.bytes / MIB:,.0f}",
        "on the chip": lambda r: f"{r.mean.fast_bytes / MIB:,.0f}",
        "vs first": lambda r: f"{_moved(r) / _moved(rows[0]):.2f}x",
        "kernels": lambda r: f"{r.mean.kernels:,.0f}",
        "written cond/loops": lambda r: "/".join(map(str, r.programs[0].account.written(r.programs[0].steps))),
        "decisions": lambda r: f"{r.mean.branches + r.mean.turns:,.0f}",
        "by the host": lambda r: f"{r.mean.decisions:,.0f}",
        "collectives": lambda r: f"{r.mean.collectives:,.0f}",
        "ms at least: memory, FLOPs": lambda r: ", ".join(f"{1e3 * t:.3f}" for t in _bounds(r, name, setting)),
        "MiB temp": lambda r: f"{max(q.temporaries for q in r.programs) / MIB:,.0f}",
        "MiB peak": lambda r: f"{max(q.memory for q in r.programs) / MIB:,.0f}",
        "compile s (CPU s)": lambda r: (
            f"{sum(q.seconds for q in r.programs):.0f} ({sum(q.processor_seconds for q in r.programs):.0f})"
        ),
    }
    left_out = {"by the host"} if tpu else {"on the chip"}
    left_out |= {"collectives"} if devices == 1 else set()
    shown = {title: value for title, value in columns.items() if title not in left_out}
    for title in shown:
        table.add_column(title, justify="left" if title == "per slot and step" else "right")
    for row in rows:
        table.add_row(*(value(row) for value in shown.values()))
    guessed = max(r.mean.guessed for r in rows)
    table.caption = f"{guessed:.0f} decisions a step of unknown habits, taken as equally likely" if guessed else None
    return table


def _moved(row: Row) -> float:
    return row.mean.bytes + row.mean.fast_bytes


def _bounds(row: Row, name: str, setting: engines.Setting) -> tuple[float, float]:
    return targets.named(name)[0].bounds(row.mean.bytes, row.mean.flops, setting.compute_dtype)


def _title(setting: engines.Setting, name: str, devices: int) -> str:
    accelerator, _ = targets.named(name)
    peak = f"{accelerator.bandwidth / 1e9:,.0f} GB/s, {accelerator.flops[setting.compute_dtype] / 1e12:,.0f} TFLOP/s"
    described_devices = targets.described(name)
    graphs = (
        ""
        if accelerator.kind == "tpu"
        else (
            ", decisions in CUDA graphs"
            if described.options(described_devices)
            else f", no CUDA graphs: jax {jax.__version__}"
        )
    )
    number = "" if devices == 1 else f", {devices} devices"
    return (
        f"{setting.model} {setting.size}x{setting.size}, batch {setting.batch}, {setting.compute_dtype}, compiled for "
        f"{name}{number}{graphs}\n{peak} a device ({accelerator.source})"
    )


def _explained(habits: Any) -> str:
    """The sample and what it makes the interpreter do, in words."""
    known = p.codes()
    names = {"load": known.loads, "function": known.functions, "combine": [c or "replace" for c in known.combines]}

    def shares(scope: str, values: Sequence[float]) -> str:
        labels = names.get(scope, [str(k) for k in range(len(values))])
        return f"{scope}: " + " ".join(f"{n} {v:.3f}" for n, v in zip(labels, values, strict=True) if v)

    turns = ", ".join(f"{n} {v:.2f}" for n, v in habits.turns.items())
    lines = [shares(scope, values) for scope, values in habits.branches.items() if any(values)]
    return "\n".join(
        [
            f"sample: the first {described.SAMPLE} feasible random equations of seed 0 in groups of K, each with its weights;",
            "the weights of all:",
            f"turns: {turns}",
            *lines,
        ]
    )


def _figures(row: Row) -> dict[str, Any]:
    return {
        "name": row.name.strip(),
        "mean": dataclasses.asdict(row.mean),
        "worst": dataclasses.asdict(row.worst),
        "written": row.programs[0].account.written(row.programs[0].steps),
        "temporaries": [q.temporaries for q in row.programs],
        "memory": [q.memory for q in row.programs],
        "seconds": [q.seconds for q in row.programs],
        "processor_seconds": [q.processor_seconds for q in row.programs],
    }
