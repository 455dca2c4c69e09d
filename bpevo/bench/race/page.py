"""The report of a race: one page without references to any other, and its tables in Markdown."""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import bpevo.bench.race as protocol_text
from bpevo.bench.race import statistics
from bpevo.bench.race.protocol import ARMS, FRACTIONS, FRESH, REFERENCES
from bpevo.bench.race.running import BACKPROP
from bpevo.evaluation.significance import Summary, summary
from bpevo.evolution import CONTROLLERS
from bpevo.evolution.kinds import kind
from bpevo.report import drawing, page
from bpevo.report.tables import code, probability
from bpevo.rules import parse, without_idle

Results = Mapping[tuple[str, int], Any]  # (arm, seed) -> what bpevo.bench.race.running.run gives
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f")
COLUMNS = ("arm", "equations", *(f"1/{1 / f:.0f}" for f in FRACTIONS[:-1]), "all", "search %", "at edge")
COMPARED = ("arm", "vs backprop", "vs paper", "p", "vs random", "p", "reaches paper's end at")
FINALS, DRAWN = 10, 3  # the best final rules, and how many are images too: the page stays small
FINAL_COLUMNS = ("rule", "kind", "arm", "seed", "accuracy %")
UNSEEN_COLUMNS = ("final rules on", "arm", "accuracy %", "vs backprop", "diverged")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race:
    """The results of a data set, of those of its search seeds that every arm has finished."""

    name: str
    budget: float  # slot-epochs
    planned: int  # search seeds
    arms: Sequence[str]  # that race; backprop is none
    results: Results  # also others, of a race with more seeds or arms

    @property
    def seeds(self) -> list[int]:
        every = (*self.arms, BACKPROP)
        return [seed for seed in range(self.planned) if all((arm, seed) in self.results for arm in every)]

    def values(self, arm: str) -> np.ndarray:
        """[seeds, points], %."""
        points = [self.results[arm, seed]["points"] for seed in self.seeds]
        return np.array([[statistics.value(p["score"]["fresh"]) for p in of_seed] for of_seed in points])

    def final(self, arm: str) -> dict[int, float]:
        return dict(zip(self.seeds, self.values(arm)[:, -1].tolist(), strict=True))

    def unseen(self, arm: str) -> dict[str, list[Sequence[float | None]]]:
        """Accuracies on new seeds by place, for each search seed; a search that found nothing has none."""
        found: dict[str, list[Sequence[float | None]]] = {}
        for seed in self.seeds:
            for place, score in self.results[arm, seed]["unseen"].items():
                found.setdefault(place, []).append(score["fresh"])
        return found

    def comparisons(self) -> list[statistics.Comparison]:
        references = [name for name in REFERENCES if name in self.arms]
        return statistics.comparisons({arm: self.final(arm) for arm in self.arms}, references)


def _number(s: Summary, sign: str = "") -> str:
    return f"{s.mean:{sign}.2f}" if s.n < 2 else f"{s.mean:{sign}.2f} ± {s.margin:.2f}"


def _share(share: float) -> str:
    return "never" if math.isinf(share) else f"≤ {share:.3g}" if share <= FRACTIONS[0] else f"{share:.2g}"


def rows(race: Race) -> list[list[str]]:
    """The texts of COLUMNS for every arm, and for backprop."""
    made = []
    for arm in (*race.arms, BACKPROP):
        points = [race.results[arm, seed]["points"][-1] for seed in race.seeds]
        curve = [_number(summary(column.tolist())) for column in race.values(arm).T]
        edge = f"{np.mean([p['score']['at_edge'] for p in points]):.0%}"
        equations, own = (np.mean([p[name] for p in points]) for name in ("equations", "search"))
        searched = [f"{equations:,.0f}", f"{100 * own:.2f}"] if arm != BACKPROP else ["", ""]
        made.append([arm, searched[0], *curve, searched[1], edge])
    return made


def compared_rows(race: Race) -> list[list[str]]:
    """The texts of COMPARED for every arm."""
    found, backprop = {(c.arm, c.reference): c for c in race.comparisons()}, race.values(BACKPROP)
    made = []
    for arm in race.arms:
        values = race.values(arm)
        cells = [arm, _number(summary((values - backprop)[:, -1].tolist()), "+")]
        for reference in REFERENCES:
            c = found.get((arm, reference))
            cells += [_number(c.difference.pairs, "+"), probability(c.p)] if c else ["", ""]
        saved = ""
        if "paper" in race.arms:
            s = statistics.savings(FRACTIONS, values, race.values("paper"))
            saved = f"{_share(s.share)} ({_share(s.low)} to {_share(s.high)})"
        made.append([*cells, saved])
    return made


def unseen_rows(race: Race) -> list[list[str]]:
    """The texts of UNSEEN_COLUMNS."""
    of_backprop, made = race.unseen(BACKPROP), []
    for place in of_backprop:
        for arm in (*race.arms, BACKPROP):
            fresh = race.unseen(arm).get(place, [])
            if not fresh:
                continue
            values = [statistics.value(f) for f in fresh]
            by_seed = {s: statistics.value(f) for s, f in zip(race.seeds, of_backprop[place], strict=True)}
            found = [s for s in race.seeds if place in race.results[arm, s]["unseen"]]
            pairs = [v - by_seed[s] for s, v in zip(found, values, strict=True)]
            share = np.mean([statistics.diverged(f) for f in fresh])
            cells = [_number(summary(values)), "" if arm == BACKPROP else _number(summary(pairs), "+"), f"{share:.0%}"]
            made.append([place, arm, *cells])
    return made


def verdict(race: Race) -> list[str]:
    """In sentences. Who looks often enough sees a difference where there is none: nothing is said before all seeds are done."""
    count, said = len(race.seeds), []
    if count < race.planned:
        return [f"No verdict yet: {count} of {race.planned} search seeds are done."]
    for reference in REFERENCES:
        against = [c for c in race.comparisons() if c.reference == reference]
        better = [f"{c.arm} ({c.difference.pairs.mean:+.2f} points, p {probability(c.p)})" for c in against if c.better]
        if against:
            beaten = "; ".join(better) if better else "none of the arms"
            said.append(f"Better than {reference} at all of the budget over {count} search seeds: {beaten}.")
    if not said:
        said.append("No comparison: it needs two search seeds, and the arm paper or random.")
    return said


def curves(race: Race) -> Figure:
    """Accuracy on new seeds against the budget: means with bands, the 95 % t-intervals over search seeds."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axis = figure.add_subplot()
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    budgets = [race.budget * fraction for fraction in FRACTIONS]
    for arm in (*race.arms, BACKPROP):
        style: dict[str, Any] = {"color": "black", "linestyle": ":"}
        if arm != BACKPROP:
            of = ARMS[arm]
            style["color"] = _COLOURS[list(CONTROLLERS).index(of.controller) % len(_COLOURS)]
            style["linestyle"] = "-" if len(of.rates) > 1 else "--"
        points = [summary(column.tolist()) for column in race.values(arm).T]
        means = [s.mean for s in points]
        axis.plot(budgets, means, marker="o", markersize=3, linewidth=1.3, label=arm, **style)
        if len(race.seeds) > 1:
            low, high = [max(0, s.mean - s.margin) for s in points], [min(100, s.mean + s.margin) for s in points]
            axis.fill_between(budgets, low, high, color=style["color"], alpha=0.1)
    axis.set(xscale="log", xlabel="slot-epochs charged", ylabel="accuracy of the tuned top rule on new seeds, %")
    axis.set_xticks(budgets, [f"{b:,.0f}" for b in budgets])
    axis.xaxis.set_minor_locator(NullLocator())
    figure.legend(loc="outside lower center", ncols=4, fontsize="x-small", frameon=False)
    return figure


def _finals(race: Race) -> list[list[str]]:
    """The texts of FINAL_COLUMNS: final rules, the best on new seeds first."""
    found = []
    for arm in race.arms:
        for seed in race.seeds:
            p = race.results[arm, seed]["points"][-1]
            if p["rule"]:
                rule = without_idle(parse(p["rule"]))
                found.append((statistics.value(p["score"]["fresh"]), str(rule), kind(rule), arm, str(seed)))
    best = sorted(found, reverse=True)[:FINALS]
    return [[rule, kind, arm, seed, f"{value:.2f}"] for value, rule, kind, arm, seed in best]


def _markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"


def _title(race: Race) -> str:
    return f"{race.name}: {race.budget:,.0f} slot-epochs, {len(race.seeds)} search seeds"


def markdown(races: Sequence[Race], versions: str) -> str:
    parts = [f"# A race of controllers\n\n{versions}\n"]
    for race in races:
        sentences = "".join(f"- {s}\n" for s in verdict(race))
        finals = [[code(rule), *rest] for rule, *rest in _finals(race)]
        tables = (COLUMNS, rows(race)), (COMPARED, compared_rows(race)), (UNSEEN_COLUMNS, unseen_rows(race)), (
            FINAL_COLUMNS, finals,
        )  # fmt: skip
        parts.append(f"## {_title(race)}\n\n{sentences}\n" + "\n".join(_markdown(*table) for table in tables))
    return "\n".join(parts)


def report_html(races: Sequence[Race], versions: str) -> str:
    sections = [page.heading(1, "A race of controllers"), page.note(versions)]
    for race in races:
        with drawing.fixed_style():
            image = drawing.svg(curves(race))
        caption = f"Mean over search seeds of {FRESH} new seeds each, and 95 % t-intervals"
        sections += [page.heading(2, _title(race)), page.listing(verdict(race)), page.picture(image, caption)]
        for title, columns, cells in (
            ("Accuracy of the tuned top rule on new seeds, %, after parts of the budget", COLUMNS, rows(race)),
            ("At all of the budget, paired by search seed; p: Holm-corrected", COMPARED, compared_rows(race)),
            ("The final rules where the search never was", UNSEEN_COLUMNS, unseen_rows(race)),
        ):
            escaped = [("", [html.escape(c) for c in row]) for row in cells]
            sections += [page.heading(3, title), page.table(columns, escaped)]
        finals = []
        for place, (rule, *rest) in enumerate(_finals(race)):
            shown = page.equation(rule) if place < DRAWN else f"<code>{html.escape(rule)}</code>"
            finals.append(("", [shown, *map(html.escape, rest)]))
        title = "The final rules that did best, by a figure that flatters for being chosen by"
        sections += [page.heading(3, title), page.table(FINAL_COLUMNS, finals)]
    sections.append(page.heading(2, "What was measured"))
    sections += [page.paragraph(part.replace("**", "")) for part in (protocol_text.__doc__ or "").split("\n\n")]
    return page.page("A race of controllers", sections)
