"""The order of what was trained: the one meaning of "best" above the controller.

A rule is as fit as its fittest training: rungs survived, then accuracy, the mean of it and its confirmation's where there is
one. Ties between trainings of a rule go to the higher learning rate, between rules to the older proposal. Over several
networks its trainings count as one (bpevo.evolution.networks).
"""

import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from bpevo.evolution import ONE, Bars, Networks, best_rate, first_bars, fitness, standing
from bpevo.rules import NAMED, parse
from bpevo.runs.rows import Row, Rows
from bpevo.workers import Stage

_BACKPROP = parse(NAMED["backprop"]).key


def networks(settings: Mapping[str, Any]) -> Networks:
    """Those of the search with these settings."""
    if "fitness_over" not in settings:
        return ONE
    return Networks(names=tuple(settings["model"].split(";")), epochs=settings["epochs"], over=settings["fitness_over"])


def backprop_on(rows: Iterable[Row], on: Networks) -> list[float]:
    """The accuracy of tuned backprop on each network, from a search's controls; 0 where it diverged."""
    tried: dict[str, dict[float, list[float | None]]] = {name: {} for name in on.names}
    for row in rows:
        if row.stage == Stage.CONTROL and not row.members and parse(row.equation).key == _BACKPROP:
            tried[row.network][row.learning_rate] = [row.accuracy]
    best = {name: best_rate(found) for name, found in tried.items()}
    return [0.0 if rate is None else tried[name][rate][0] or 0.0 for name, rate in best.items()]


def joined(rows: Sequence[Row], on: Networks, backprop: Sequence[float]) -> Row:
    """What the trainings of a rule on several networks come to together.

    Args:
      rows: in the order of the networks, as many as there are, or fewer: the last one was stopped or diverged.
      on: the networks.
      backprop: from `backprop_on`.

    Returns:
      A row of no network: the last one's, with the fitness over all of them for an accuracy where nothing was stopped, and one
      curve after the other.
    """
    last = next((row for row in rows if row.status != "done"), rows[-1])
    if not on.several:
        return last
    accuracies = [row.accuracy for row in rows if row.accuracy is not None]
    return dataclasses.replace(
        last,
        learning_rate=rows[0].learning_rate,
        accuracy=on.fitness(accuracies, backprop) if last.status == "done" else last.accuracy,
        rungs=sum(row.rungs for row in rows),
        curve={name: [value for row in rows for value in row.curve[name]] for name in last.curve},
        seconds=sum(row.seconds for row in rows),
        network="",
        members=tuple(rows),
    )


def _together(rows: Rows, on: Networks) -> list[Row]:
    """What the trainings of each rule and each control come to, as far as they ended; of a control the fittest ones."""
    backprop, found = backprop_on(rows, on), []
    for stage in (Stage.CONTROL, Stage.SEARCH, Stage.CONFIRMATION):
        of_rule: dict[str, dict[str, Row]] = {}
        for name in on.names:
            for row in _fittest(rows.of(stage=stage, network=name)).values():
                of_rule.setdefault(row.equation, {})[name] = row
        for on_each in of_rule.values():
            parts = list(on_each.values())
            if len(parts) == len(on.names) or any(row.status != "done" for row in parts):
                found.append(joined(parts, on, backprop))
    return found


def judged(rows: Iterable[Row], bars: Mapping[int, Bars], rung_epochs: Sequence[int], on: Networks = ONE) -> Rows:
    """The rows as they rank: those whose proposal met no bar at a rung are held to the first one that came after it, and
    those that were confirmed have the mean accuracy. Over several networks what trainings of a rule or a control come to
    together follows them.

    Args:
      rows: of a search; others stay as they are.
      bars: of each proposal, by id.
      rung_epochs: epochs of the run's rungs, rising.
      on: the run's networks.
    """
    first, rows = first_bars(bars[i] for i in sorted(bars)), Rows(rows)
    if on.several:
        rows += _together(rows, on)
    confirmed = {row.equation: row for row in rows.of(stage=Stage.CONFIRMATION, network="")}

    def rank(row: Row) -> Row:
        if row.proposal is None or row.stage != Stage.SEARCH or row.network:
            return row
        second = confirmed.get(row.equation)
        curve = [math.nan if v is None else v for v in row.curve["eval_accuracy"]]  # comes with divergence alone
        accuracy, rungs = standing(
            row.accuracy,
            row.rungs,
            curve=curve,
            rung_epochs=rung_epochs,
            bars=bars[row.proposal],
            first=first,
            confirmations=[second.accuracy] if second else [],
        )
        members = tuple(map(_mean, row.members, second.members)) if second else row.members
        return dataclasses.replace(row, accuracy=accuracy, rungs=rungs, members=members)

    return Rows(map(rank, rows))


def _mean(row: Row, confirmation: Row) -> Row:
    if row.accuracy is None or confirmation.accuracy is None:
        return row
    return dataclasses.replace(row, accuracy=(row.accuracy + confirmation.accuracy) / 2)


def fittest(rows: Iterable[Row]) -> dict[str, Row]:
    """The fittest training of each rule or treatment, in order of their first; those of which all diverged are left out.
    Over several networks what its trainings come to together."""
    found = _fittest(row for row in rows if not row.network)
    return {text: row for text, row in found.items() if row.accuracy is not None}


def _fittest(rows: Iterable[Row]) -> dict[str, Row]:
    best: dict[str, Row] = {}
    for row in rows:
        old = best.setdefault(row.equation, row)
        best[row.equation] = max(old, row, key=lambda r: (fitness(r.accuracy, r.rungs), r.learning_rate))
    return best


def ranked(rows: Iterable[Row], without: Collection[str] = ()) -> Iterator[Row]:
    """The fittest training of each rule, best rule first; rules whose canonical key is in `without` are left out."""

    def order(row: Row):
        return fitness(row.accuracy, row.rungs), -(row.proposal or 0)

    for row in sorted(fittest(rows).values(), key=order, reverse=True):
        if not without or parse(row.equation).key not in without:
            yield row
