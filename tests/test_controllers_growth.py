"""Controllers against their definitions, which visit every result each time; and their work as a run grows."""

import zlib
from collections.abc import Sequence

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from test_controllers import ALL, G
from test_evolution import equation

from bpevo.evolution import (
    CONTROLLERS,
    EvolutionSettings,
    Proposal,
    Result,
    Rung,
    SameText,
    SearchSpace,
    Trained,
    kinds,
)
from bpevo.evolution.space import feasible
from bpevo.rules import Equation


def defined_bar(references: Sequence[float], quantile: float) -> float | None:
    share = len(references) * (1 - quantile) + 1e-9
    if len(references) < 20 or share < 1:
        return None
    last = sorted(references, reverse=True)[int(share) - 1]
    too_many = sum(v >= last for v in references) > share
    return min(float(np.nextafter(last, 2)), 1.0) if too_many else last


@pytest.fixture(autouse=True)
def kinds_by_text(monkeypatch):
    """Kinds that cost nothing, in place of the probe's."""
    monkeypatch.setattr(kinds, "kind", made_up)


def made_up(e: Equation) -> str:
    number = zlib.crc32(str(e).encode())
    found = (kinds.NO_SIGNAL, kinds.PER_UNIT, kinds.OTHER)[number % 3]
    return ("reversed " if number % 5 == 0 else "") + found + (" + noise" if number % 7 < 3 else "")


def defined_parent(
    name: str, rng: np.random.Generator, ordered: list[Result], settings: EvolutionSettings
) -> Result | None:
    """The parent of a proposal by a controller's definition; `ordered` did not diverge, best first."""
    if name == "paper":
        elite, rest = ordered[: settings.elite_size], ordered[settings.elite_size :]
        if not elite:
            return None
        pool = elite if not rest or rng.random() < settings.elite_probability else rest
        return pool[int(rng.integers(len(pool)))]
    by_age = sorted(ordered, key=lambda r: r.id)
    first = 0
    if name == "aging":
        first = max(0, len(by_age) - settings.elite_size)
    if name == "niches":
        niches = [[r for r in by_age if kind in made_up(r.equation)] for kind in (kinds.PER_UNIT, kinds.OTHER)]
        niches = [niche for niche in niches if niche]
        by_age = niches[int(rng.integers(len(niches)))] if niches else []
    if not by_age:
        return None
    drawn = [by_age[i] for i in rng.integers(first, len(by_age), settings.tournament)]
    return next(r for r in ordered if r in drawn)


def defined(
    name: str,
    n: int,
    results: Sequence[Result],
    proposals: Sequence[Proposal],
    space: SearchSpace,
    settings: EvolutionSettings,
    initial: Sequence[Equation],
) -> Proposal:
    """Proposal n of the controller of that name."""
    rng = np.random.default_rng([settings.seed, n])
    confirming = [p for p in proposals if p.parent is not None and not p.changes]
    own = [p for p in proposals if p not in confirming]
    roots = [(p.id, e) for p, e in zip(own, initial, strict=False) if p.parent is None]
    first = {e: next((b for p in proposals for at, b in p.bars if at == e), -1.0) for e in range(EPOCHS + 1)}
    second = {p.parent: r.trained.accuracy for p in confirming for r in results if r.proposal == p}
    results = [r for r in results if r.proposal not in confirming]

    def rank(r: Result):
        """(rungs, accuracy, -id); None if it diverged."""
        t = r.trained
        for i, rung in enumerate(settings.rungs):
            if t.accuracy is not None and rung.epoch not in dict(r.proposal.bars) and len(t.curve) >= rung.epoch:
                at = t.curve[rung.epoch - 1]
                if at < first[rung.epoch]:
                    return i, at, -r.id
        if t.accuracy is None or second.get(r.id, 0.0) is None:
            return None
        return t.rungs, (t.accuracy + second[r.id]) / 2 if r.id in second else t.accuracy, -r.id

    ranks = {r.id: rank(r) for r in results}
    ordered = sorted((r for r in results if ranks[r.id]), key=lambda r: ranks[r.id], reverse=True)
    asked = {p.parent for p in confirming}
    open_ = [r for r in ordered if r.id not in asked and ranks[r.id][0] == len(settings.rungs)]
    if n % 11 == 10 and open_:
        return Proposal(id=n, equation=open_[0].equation, key=open_[0].proposal.key, parent=open_[0].id)
    bars = []
    for rung in settings.rungs:
        trainings = [r.trained for r in results if r.trained.accuracy is None or len(r.trained.curve) >= rung.epoch]
        least = defined_bar([0.0 if t.accuracy is None else t.curve[rung.epoch - 1] for t in trainings], rung.quantile)
        bars += [] if least is None else [(rung.epoch, least)]
    seen, infeasible, duplicates = {p.key for p in proposals}, 0, 0
    while True:
        parent, changes = None, []
        if len(own) < len(initial) and not infeasible + duplicates:
            e = space.padded(rng, initial[len(own)])
        else:
            early = name == "random" or (not initial and len(own) < settings.elite_size)
            chosen = None if early else defined_parent(name, rng, ordered, settings)
            if chosen:
                e, parent = chosen.equation, chosen.id
            elif early or not initial:
                e = space.random(rng)
            else:
                parent, e = roots[int(rng.integers(len(roots)))]
                e = space.padded(rng, e)
            if parent is not None:
                weights = np.asarray(settings.mutations, float)
                for _ in range(1 + int(rng.choice(len(weights), p=weights / weights.sum()))):
                    e, change = space.mutated(rng, e)
                    changes.append(change)
        if not feasible(e):
            infeasible += 1
        elif e.key in seen:
            duplicates += 1
        else:
            return Proposal(
                id=n, equation=e, key=e.key, parent=parent, changes=tuple(changes), bars=tuple(bars),
                infeasible=infeasible, duplicates=duplicates,
            )  # fmt: skip


EPOCHS = 4


def history(rng: np.random.Generator, proposal: Proposal, rungs: Sequence[Rung]) -> Result:
    """How the training of a proposal might end: many ties, some diverge at any time, some stop at their bars."""
    curve = [float(rng.integers(8)) / 8 for _ in range(EPOCHS)]
    if rng.random() < 0.2:
        return Result(
            proposal=proposal, trained=Trained(accuracy=None, rungs=0, curve=tuple(curve[: rng.integers(EPOCHS + 1)]))
        )
    stops = [e for e, least in proposal.bars if curve[e - 1] < least]
    curve = curve[: stops[0]] if stops else curve
    survived = sum(r.epoch < stops[0] if stops else True for r in rungs)
    return Result(proposal=proposal, trained=Trained(accuracy=curve[-1], rungs=survived, curve=tuple(curve)))


@pytest.mark.parametrize("name", CONTROLLERS)
@hypothesis.given(
    st.integers(0, 2**16),
    st.integers(1, 12),
    st.sampled_from([0, 0.5, 0.7, 1]),
    st.integers(1, 6),
    st.sampled_from([(), (Rung(1, 0.5),), (Rung(1, 0.75), Rung(3, 0.3))]),
    st.integers(1, 15),
    st.sampled_from([(), ("g", "fa"), ("g", "g", "dh"), ("fa",) + 6 * ("g", "dh")]),
    st.booleans(),
)
@hypothesis.settings(max_examples=30)
def test_proposals_equal_their_definition(
    name, seed, elite_size, probability, tournament, rungs, lag, initial, interrupted
):
    """Whatever the results, with ties, divergence and rungs, and also in a session that continues another."""
    settings = EvolutionSettings(
        elite_size=elite_size,
        elite_probability=probability,
        tournament=tournament,
        mutations=(2, 1),
        rungs=rungs,
        seed=seed,
    )
    initial = [equation(t) for t in initial]
    make = CONTROLLERS[name]
    made = make(ALL, settings, initial, SameText())
    rng, results, proposals, told = np.random.default_rng(seed), [], [], 0
    for n in range(60):
        if interrupted and n in (30, 50):
            made, told = make(ALL, settings, initial, SameText()), 0
            for p in proposals:
                made.adopt(p)
        known = results[: max(0, n - lag + 1)]
        for r in known[told:]:
            made.tell(r)
        told = len(known)
        expected = defined(name, n, known, proposals, ALL, settings, initial)
        proposals.append(made.ask())
        assert proposals[-1] == expected
        results.append(history(rng, expected, rungs))


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_proposal_visits_as_many_results_after_3000_as_after_300(name):
    visits = []

    class Counted(Result):
        def __getattribute__(self, name):
            if not name.startswith("__"):
                visits.append(name)
            return super().__getattribute__(name)

    def counted(n: int) -> Counted:
        proposal = Proposal(id=n, equation=equations[n % 4], key=f"told {n}")
        training = Trained(accuracy=float(rng.random()), rungs=0, curve=(n / 4000,))
        return Counted(proposal=proposal, trained=training)

    rng, equations = np.random.default_rng(0), [equation(t) for t in ("g", "fa", "h", "dh * fa")]
    made = CONTROLLERS[name](ALL, EvolutionSettings(elite_size=200, rungs=(Rung(1, 0.5),)), (), SameText())
    asked, told = {}, []
    for n in range(3001):
        if n in (300, 3000):
            made.ask()  # the first bar of all comes with it, and ranks everything once more
            visits.clear()
            draws = [made.ask() for _ in range(20)]
            asked[n] = visits.count("id") / sum(1 + p.infeasible + p.duplicates for p in draws)
        if made.next_id <= n:
            made.adopt(Proposal(id=made.next_id, equation=G, key=f"earlier {n}"))
        visits.clear()
        made.tell(counted(n))
        told.append(len(visits))
    each = 0 if name == "random" else 1  # a draw reads its parent alone
    assert asked == {300: each, 3000: each}
    assert max(told[300:]) <= 20
