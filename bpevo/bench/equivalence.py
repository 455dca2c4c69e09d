"""How honest the search's duplicates are: `python -m bpevo.bench.equivalence --equations=20000`.

Draws random feasible equations, or with `--mutations` makes every single mutation of the named rules, asks
`SameFunction` about each in turn, and judges every merge of two different programs on networks that train
(bpevo.bench.networks). For comparison it does the same with the digest of the first release.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence

from bpevo.command.jax_setup import configure_jax  # isort: skip (sets the log level before jax loads)
import jax
import numpy as np
from absl import app, flags
from rich.console import Console

from bpevo.bench import networks
from bpevo.bench.engines import equations as random_equations
from bpevo.bench.first_release import digest
from bpevo.command import process
from bpevo.evolution import Proposal, SameFunction, SearchSpace
from bpevo.evolution.space import feasible
from bpevo.rules import NAMED, Equation, RuleSyntaxError, assemble, parse
from bpevo.runs.provenance import versions

Merge = tuple[int, int]  # places of a duplicate and of what it is a duplicate of
Judge = Callable[[Equation], list[np.ndarray]]


def define_flags() -> None:
    flags.DEFINE_integer("equations", 20_000, "Random feasible equations.", lower_bound=0)
    flags.DEFINE_integer("seed", 1, "Of the random equations.")
    flags.DEFINE_bool("mutations", True, "Also every single mutation of every named rule.")


def distinct(found: Sequence[Equation]) -> list[Equation]:
    """The first equation of every program: what differs in idle genes alone needs no judge."""
    first: dict[bytes, Equation] = {}
    for equation in found:
        program = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(assemble(equation)))
        first.setdefault(program, equation)
    return list(first.values())


def mutations(names: Sequence[str] = tuple(NAMED)) -> list[Equation]:
    """The named rules that are chains, padded as a search pads them, and all their feasible single mutations."""
    space, found = SearchSpace(), []
    for text in dict.fromkeys(NAMED[name] for name in names):
        try:
            chain = parse(text).to_equation(space.max_parts)
        except RuleSyntaxError:  # a tree, which no search trains
            continue
        padded = space.padded(np.random.default_rng(0), chain)
        found += [padded, *filter(feasible, space.neighbours(padded))]
    return found


@dataclasses.dataclass(frozen=True)
class Merges:
    """What a test of duplicates merged, and the processor time that each equation took, in seconds."""

    merges: list[Merge]
    seconds: np.ndarray  # shape=[number of equations]


def by_function(found: Sequence[Equation]) -> Merges:
    """As a search does: what is no duplicate becomes a proposal."""
    duplicates, merges, seconds = SameFunction(), [], []
    duplicates.key(found[0])  # compiles
    for i, equation in enumerate(found):
        start = time.process_time()
        key = duplicates.key(equation)
        first = duplicates.find(equation, key)
        if first is None:
            duplicates.add(Proposal(id=i, equation=equation, key=key))
        else:
            merges.append((i, first))
        seconds.append(time.process_time() - start)
    return Merges(merges, np.array(seconds))


def by_digest(found: Sequence[Equation]) -> Merges:
    """As the first release did."""
    first: dict[str, int] = {}
    merges, seconds = [], []
    digest(found[0])
    for i, equation in enumerate(found):
        start = time.process_time()
        j = first.setdefault(digest(equation), i)
        if i != j:
            merges.append((i, j))
        seconds.append(time.process_time() - start)
    return Merges(merges, np.array(seconds))


def judged(found: Sequence[Equation], merges: Sequence[Merge], judges: Sequence[Judge]) -> dict[Merge, float]:
    """How far the two rules of each merge are apart; the largest over the judges, or the first that is different."""
    distances = {}
    for first in sorted({j for _, j in merges}):
        references = [judge(found[first]) for judge in judges]
        for i in sorted(i for i, j in set(merges) if j == first):
            farthest = 0.0
            for judge, reference in zip(judges, references, strict=True):
                farthest = max(farthest, networks.distance(judge(found[i]), reference))
                if farthest > networks.DIFFERENT:
                    break
            distances[i, first] = farthest
    return distances


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Merges of different programs; `lost`: what the first release merged truly and is no duplicate of anything now."""

    false: list[Merge]
    true: list[Merge]
    first_false: list[Merge]
    first_true: list[Merge]
    lost: list[Merge]


def verdict(now: Merges, first: Merges, distances: dict[Merge, float]) -> Verdict:
    def split(merges: list[Merge]) -> tuple[list[Merge], list[Merge]]:
        false = [m for m in merges if distances[m] > networks.DIFFERENT]
        return false, [m for m in merges if m not in set(false)]

    merged = {i for i, _ in now.merges}
    (false, true), (first_false, first_true) = split(now.merges), split(first.merges)
    return Verdict(false, true, first_false, first_true, [m for m in first_true if m[0] not in merged])


def _report(console: Console, name: str, drawn: int, found: list[Equation], judges: Sequence[Judge]) -> None:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    now, first = by_function(found), by_digest(found)
    distances = judged(found, now.merges + first.merges, judges)
    v = verdict(now, first, distances)
    say(f"\n{name}: {drawn:,} equations, {len(found):,} different programs")
    say(f"  merged: {len(now.merges):,}, {len(v.false)} of them falsely")
    say(f"  by the first release: {len(first.merges):,}, {len(v.first_false)} of them falsely")
    kept = len(v.first_true) - len(v.lost)
    say(f"  of the {len(v.first_true)} true ones of these {kept} are kept ({kept / max(1, len(v.first_true)):.1%})")
    ms, at = 1e3 * now.seconds, sorted({i for i, _ in now.merges})
    say(
        f"  processor ms a proposal: mean {ms.mean():.2f}, median {np.median(ms):.2f}, 99 % below {np.quantile(ms, 0.99):.2f};"
        f" of a duplicate {ms[at].mean() if at else 0:.2f}"
    )
    for title, merges in (("false merge", v.false), ("lost", v.lost)):
        for i, j in merges:
            say(f"  {title} ({distances[i, j]:.1e}): {found[i]}  ||  {found[j]}")


def main(argv: list[str]) -> None:
    del argv
    configure_jax()
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(", ".join(f"{k} {v}" for k, v in versions().items()), highlight=False)
    console.print(*(f"judge: {n}" for n in networks.NETWORKS), sep="\n", highlight=False, soft_wrap=True)
    judges = [networks.Signals(n) for n in networks.NETWORKS]
    values = flags.FLAGS
    if values.equations:
        drawn = random_equations(values.equations, values.seed)
        _report(console, f"random equations of seed {values.seed}", len(drawn), distinct(drawn), judges)
    if values.mutations:
        drawn = mutations()
        _report(console, "named rules and their single mutations", len(drawn), distinct(drawn), judges)


if __name__ == "__main__":
    define_flags()
    app.run(main, flags_parser=process.parse_flags("bpevo.bench.equivalence"))
