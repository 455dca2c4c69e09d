"""Random equations as a sample of what slots run, and how often the interpreter takes each branch for them."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bpevo.bench.accounting import Habits, Parts
from bpevo.rules import Equation, Program, assemble, takes
from bpevo.rules import program as p
from bpevo.rules.tile_programs import PASSES, barriers, made_of, stored
from bpevo.rules.types import BASES, PRODUCTS


def groups(equations: Sequence[Equation], size: int) -> list[list[Program]]:
    """Programs in groups of `size`, as they would share the slots; what is left over is dropped."""
    programs = [assemble(e) for e in equations]
    return [programs[i : i + size] for i in range(0, len(programs) - size + 1, size)]


def habits(programs: Sequence[Program]) -> Habits:
    """What the interpreter does for `programs`, on average: shares and turns by its scopes (bpevo.rules.interpreter)."""
    known = p.codes()
    instructions = [(program, t) for program in programs for t in range(int(program.length))]
    functions = [(program, t, i) for program, t in instructions for i in range(int(program.turns[t]))]

    def where(kind: str) -> list[tuple[Program, int, int]]:
        return [(q, t, i) for q, t, i in functions if known.functions[q.function[t, i]] == kind]

    def reduced() -> Iterator[tuple[int, bool]]:
        """Which lines a norm has, and whether it is a maximum."""
        for q, t, i in where(p.NORM):
            norm, base = p.Norm(*q.detail[t, i]), int(q.base[t, i])
            which = 0 if norm.axis == 0 else 1 + (int(norm.axis) - 1) * len(BASES) + base
            yield which, norm.order >= p.ORDERS.index("inf")

    products = [(q, t) for q, t in instructions if known.combines[q.combine[t]] == p.MULTIPLY]
    noises, statistics = where(p.NOISE), where(p.STATISTIC)
    lines = 1 + 2 * len(BASES)
    bases = [q.base[t, i] for q, t, i in statistics]
    branches = {
        "load": _shares([q.load[t] for q, t in instructions], len(known.loads)),
        "function": _shares([q.function[t, i] for q, t, i in functions], len(known.functions)),
        "draw": _shares([(1 + q.base[t, i]) * (q.average[t, i] > 0) for q, t, i in noises], 4),
        "noise": _shares([p.Noise(*q.detail[t, i, :2]).which for q, t, i in noises], len(known.noisy)),
        "reduce": _shares([2 * which + largest for which, largest in reduced()], 2 * lines),
        "divide": _shares([which for which, _ in reduced()], lines),
        "moments": _shares(bases, len(BASES) - 1),
        "statistic": _shares(bases, len(BASES) - 1),
        "combine": _shares([q.combine[t] for q, t in instructions], len(known.combines)),
        "mirror": _shares([q.product[t, 1] for q, t in products], 2),
        "multiply": _shares([q.product[t, 0] for q, t in products], len(PRODUCTS)),
    }
    for k, name in enumerate(known.products):
        branches[f"compute_{name}"] = _shares([q.uses[k] for q in programs], 2)
    turns = {
        "instructions": len(instructions) / len(programs),
        "functions": len(functions) / max(1, len(instructions)),
        "feedback": sum(int(q.feedback[t]) for q, t in instructions) / max(1, len(instructions)),
    }
    return Habits(branches, turns, kernels(programs))


def kernels(programs: Sequence[Program]) -> dict[str, Parts]:
    """What the kernels of bpevo.rules.kernels move for `programs`, on average; of those that they take."""
    taken = [_Run(q) for q in programs if takes(q)]
    if not taken:
        return {}
    names, rows = stored(), p.state_rows(taken[0].program.load.shape[0] // 2)[0]

    def mean(figure: Callable[[_Run], float]) -> float:
        return sum(map(figure, taken)) / len(taken)

    def of_pass(n: int) -> Parts:
        """As bpevo.rules.kernels._passes: a load reads the arrays it needs, statistics read and write a row each."""
        reads = [sum(run.reads(name, n) for run in taken) / len(taken) for name in names]
        last = mean(lambda run: run.ends == n)
        read, written = (
            mean(lambda run: run.statistics(n) / rows),
            mean(lambda run: run.statistics(n) / rows * (run.ends == n)),
        )
        earlier = [0, 0] if n else []
        return Parts([1, 1, 1, 1, 1, read, *reads, *earlier], [last, mean(lambda run: run.ends >= n), written])

    def of_norm(n: int) -> Parts:
        ended = mean(lambda run: run.ends > n)
        return Parts([1, 1, ended, 0], [ended / PASSES])

    used = [sum((run.reads(name, run.ends) > 0) * (run.ends + 1) for run in taken) / len(taken) for name in names]
    state = mean(lambda run: (run.statistics(run.ends) > 0) * (run.ends + 1))
    of_state = mean(lambda run: run.statistics(run.ends) > 0)
    at_once = {"rule": Parts([1, 1, 1, state, *used], [1, of_state])}  # as _at_once: blocks of what a program reads
    passes = {f"rule_pass_{n}": of_pass(n) for n in range(PASSES)}
    return at_once | passes | {f"rule_norm_{n}": of_norm(n) for n in range(PASSES - 1)}


class _Run:
    """What a program does in each pass."""

    def __init__(self, program: Program):
        self.program = program
        self._after = [int(t) for t, _ in np.argwhere(np.asarray(barriers(program)))]  # instructions that end a pass

    @property
    def ends(self) -> int:
        return len(self._after)

    def _instructions(self, n: int) -> range:
        """Those of pass n; none after the last."""
        if n > self.ends:
            return range(0)
        return range(self._after[n] + 1 if n < self.ends else int(self.program.length))

    def reads(self, name: str, n: int) -> int:
        """How often pass n reads an array."""
        loads = [p.codes().loads[self.program.load[t]] for t in self._instructions(n)]
        return sum(name in made_of(load) for load in loads)

    def statistics(self, n: int) -> int:
        """How many pass n takes."""
        code = p.codes().functions.index(p.STATISTIC)
        return sum(
            self.program.function[t, i] == code
            for t in self._instructions(n)
            for i in range(int(self.program.turns[t]))
        )


def _shares(chosen: Sequence, count: int) -> tuple[float, ...]:
    """How often each branch was chosen; all zero if none ever is, where nothing depends on it."""
    numbers = np.bincount(np.asarray(chosen, int), minlength=count)
    return tuple((numbers / max(1, len(chosen))).tolist())
