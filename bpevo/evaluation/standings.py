"""The table of an evaluation: a row per treatment, with its tuned learning rate, test accuracy and what can be said of it.

A rule is a *find* only if it beats each control: its p-value is the largest of its one-sided paired t-tests against them,
Holm-corrected over the rules. Of a control's repetitions those that diverged are left out of the pairs, which favours the
control; one of which at most one did not diverge, or that diverged at every learning rate, is no hurdle. A rule of which
any repetition diverged is never a find and stands below all that never diverge. Where a comparison is not fair there is
no verdict: `Standing.unfair` says why.
"""

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bpevo.evaluation import significance
from bpevo.evaluation.evaluation import tried
from bpevo.evaluation.significance import LEVEL, Difference, Summary, paired, summary
from bpevo.evaluation.treatments import BACKPROP, controls, stored
from bpevo.evolution.kinds import kind
from bpevo.evolution.rates import at_edge, best_rate
from bpevo.rules import NAMED, PAPER, Expression
from bpevo.runs import Rows
from bpevo.workers import Stage

PAPER_SETUPS = ("a1", "a2", "a3", "b1")
PAPER_DATA = "cifar10"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """A row; accuracies in %."""

    text: str  # of the treatment
    role: str  # control, named, found
    kind: str  # of its rule, see bpevo.evolution.kinds; empty where the text is no treatment
    same: tuple[str, ...]  # texts that train alike and have no row of their own
    learning_rate: float | None  # None: diverged at every rate
    at_edge: bool  # more might lie beyond the rates that were tried
    tuning: dict[float, float]  # learning rate: mean validation accuracy; a training that diverged counts as 0
    selection: Summary | None  # fresh seeds, validation
    test: Summary | None
    diverged: int  # of the test trainings; they are in no mean
    difference: Difference | None  # of the test accuracies to backprop's
    hurdle: str  # the control against which a rule's p-value is largest
    over_hurdle: Difference | None
    p: float | None  # that the rule beats each control, corrected over the rules
    detectable: (
        float | None
    )  # where that is not significant: the difference to the hurdle that n seeds would have found
    p_worse: float | None  # that it lies below backprop, corrected over all rows
    unfair: str  # why there is no verdict; empty where the comparison is fair
    paper: str

    @property
    def name(self) -> str:
        """What people call backprop and the zero signal; empty for all else."""
        return name_of(self.text) if self.role == "control" else ""

    @property
    def validation(self) -> float | None:
        """Mean at the tuned rate, in the tuning."""
        return None if self.learning_rate is None else self.tuning[self.learning_rate]

    @property
    def find(self) -> bool:
        """Significantly better than each control: printed bold."""
        return self.p is not None and self.p < LEVEL

    @property
    def worse(self) -> bool:
        """Significantly worse than backprop."""
        return self.p_worse is not None and self.p_worse < LEVEL


def name_of(text: str) -> str:
    names = {NAMED[name]: name for name in ("backprop", "zero_signal")}
    return names.get(text, "")


def standings(rows: Rows, settings: Mapping[str, Any]) -> list[Standing]:
    """The table of an evaluation: its treatments as far as they are tuned, without ablations.

    Args:
      rows: of the evaluation's database, in any order.
      settings: of the evaluation, also of an old one: `controls`, `rules` and `found` name its treatments, `same` what trains
        like one of them; `learning_rates` its first grid; `scenario`, `optimizer` and `dataset` the paper's column.

    Returns:
      Tested treatments first, those of which a repetition diverged behind the others, best mean test accuracy first; then
      the others by validation.
    """
    hurdles = settings.get("controls") or [str(t) for t in controls(settings.get("optimizer", ""))]
    named, found = settings.get("rules", ()), settings.get("found", ())
    # What was tested stays, whatever is asked for now: the correction counts all that have looked at the test set.
    asked = {*hurdles, *named, *found, *(e.equation for e in rows.of(stage=Stage.TEST))}
    texts = dict.fromkeys(e.equation for e in rows.of(stage=Stage.TUNING) if e.equation in asked)
    measured = {text: rows.of(equation=text) for text in texts}
    rates = {rate for own in measured.values() for rate in tried(own, own[0].equation)}
    initial = tuple(settings.get("learning_rates", ())) or tuple(sorted(rates))
    trained = {text: _trained(text, own, initial) for text, own in measured.items()}

    backprop = trained.get(str(BACKPROP))
    differences = {
        text: paired(t.tested, backprop.tested)
        for text, t in trained.items()
        if text != str(BACKPROP) and backprop and not t.diverged
    }
    fair_to_backprop = backprop is not None and not backprop.unfair
    worse = _corrected({t: d.less for t, d in differences.items() if d and fair_to_backprop and not trained[t].unfair})
    finds = _against_controls(trained, hurdles)
    adjusted = _corrected({text: f.p for text, f in finds.items() if f.p is not None})
    levels = _levels({text: f.p for text, f in finds.items() if f.p is not None})
    same: dict[str, list[str]] = {}
    for text, first in settings.get("same", {}).items():
        same.setdefault(first, []).append(text)

    def standing(text: str, t: _Trained) -> Standing:
        find, p = finds.get(text, _Find()), adjusted.get(text)
        least = None
        if p is not None and p >= LEVEL and find.over:
            least = significance.detectable(find.over.pairs, levels[text])
        treatment = stored(text)
        return Standing(
            text=text,
            role="control" if text in hurdles else "named" if text in named else "found",
            kind=_kind(treatment.expression) if treatment else "",
            same=tuple(same.get(text, ())),
            learning_rate=t.rate,
            at_edge=t.at_edge,
            tuning={rate: statistics.mean(100 * (a or 0.0) for a in values) for rate, values in t.tried.items()},
            selection=summary(t.selected) if t.selected else None,
            test=summary(list(t.tested.values())) if t.tested else None,
            diverged=t.diverged,
            difference=differences.get(text),
            hurdle=find.hurdle,
            over_hurdle=find.over,
            p=p,
            detectable=least,
            p_worse=worse.get(text),
            unfair=find.unfair or t.unfair,
            paper=paper_numbers([text] if text in hurdles else [text, *same.get(text, ())], settings),
        )

    def order(row: Standing):
        return row.test is not None, not row.diverged, row.test.mean if row.test else row.validation or 0.0

    return sorted((standing(text, t) for text, t in trained.items()), key=order, reverse=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """What the trainings of one treatment gave; accuracies of selection and test in %."""

    rate: float | None
    at_edge: bool
    tried: dict[float, list[float | None]]
    unfair: str  # what its tuning lacks
    selected: list[float]
    tested: dict[int, float]  # by replicate
    diverged: int

    @property
    def tests(self) -> int:
        return len(self.tested) + self.diverged


def _trained(text: str, rows: Rows, initial: Sequence[float]) -> _Trained:
    grid = tried(rows, text)
    rate, edge = best_rate(grid), at_edge(initial, grid)
    unfair = ""
    if missing := [r for r in initial if r not in grid]:
        count = len(initial) - len(missing)
        unfair = f"{count} of {len(initial)} learning rates {'was' if count == 1 else 'were'} tried"
    elif rate is not None and edge:
        unfair = "the best learning rate lies at the edge of those tried"
    selected, tested = (rows.of(stage=stage, learning_rate=rate) for stage in (Stage.SELECTION, Stage.TEST))
    return _Trained(
        rate=rate,
        at_edge=rate is not None and edge,
        tried=grid,
        unfair=unfair,
        selected=[100 * e.accuracy for e in selected if e.accuracy is not None],
        tested={e.replicate: 100 * e.accuracy for e in tested if e.accuracy is not None},
        diverged=sum(e.accuracy is None for e in tested),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Find:
    """A rule against all controls."""

    p: float | None = None
    hurdle: str = ""
    over: Difference | None = None
    unfair: str = ""


def _against_controls(trained: Mapping[str, _Trained], hurdles: Iterable[str]) -> dict[str, _Find]:
    """The largest p-value of each tested rule, or why it has none."""
    hurdles = list(hurdles)
    missing = [text for text in hurdles if text not in trained or not _measured(trained[text])]
    limited = [text for text in hurdles if text in trained and trained[text].unfair]
    unfair = ""
    if missing:
        unfair = f"the controls {', '.join(missing)} have not been tested"
    elif limited:
        unfair = f"of the controls {', '.join(limited)} more learning rates would have to be tried"
    found = {}
    for text, t in trained.items():
        if text in hurdles or not (t.tested or t.diverged):
            continue
        late = [c for c in hurdles if c in trained and trained[c].rate is not None and trained[c].tests < t.tests]
        reason = t.unfair or unfair
        if late and not reason:
            reason = f"the controls {', '.join(late)} have not been tested on all its seeds yet"
        against = {} if reason or t.diverged else {c: paired(t.tested, trained[c].tested) for c in hurdles}
        over = {c: d for c, d in against.items() if d}
        if over:
            hardest = max(over, key=lambda c: (over[c].greater, -over[c].pairs.mean))
            found[text] = _Find(p=over[hardest].greater, hurdle=hardest, over=over[hardest])
        else:
            found[text] = _Find(unfair=reason)
    return found


def _measured(control: _Trained) -> bool:
    """Whether all is known of a control that will be: tested, or it diverges at every rate."""
    return bool(control.tested or control.diverged) or control.rate is None


def _corrected(p_values: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(p_values, significance.holm(list(p_values.values())), strict=True))


def _levels(p_values: Mapping[str, float]) -> dict[str, float]:
    return dict(zip(p_values, significance.holm_levels(list(p_values.values())), strict=True))


@functools.cache
def _kind(expression: Expression) -> str:
    return kind(expression)


def paper_numbers(texts: Iterable[str], settings: Mapping[str, Any]) -> str:
    """The paper's test accuracy of a Table 1 rule under any of its texts: of this scenario's column, else of the columns that
    have it; none on other data than the paper's."""
    if settings.get("dataset") != PAPER_DATA:
        return ""
    texts = set(texts)
    of = {name: PAPER[name] for name in PAPER if NAMED[name] in texts}
    column = f"{str(settings.get('scenario', '')).split('_')[0]}_{settings.get('optimizer', '')}_"
    own = {name: number for name, number in of.items() if name.startswith(column)}
    if own:
        return "; ".join(f"{mean:.2f} ± {spread:.2f}" for mean, spread in own.values())
    if column.split("_")[0] in PAPER_SETUPS:
        return ""
    elsewhere = {name.rpartition("_")[0]: mean for name, (mean, _) in of.items()}
    alike = {column: mean for column, mean in elsewhere.items() if column.endswith(f"_{settings.get('optimizer')}")}
    shown = {name.partition("_"): mean for name, mean in (alike or elsewhere).items()}
    return ", ".join(f"{setup.upper()} {optimizer} {mean:.2f}" for (setup, _, optimizer), mean in shown.items())


def number(s: Summary) -> str:
    """Mean ± sample standard deviation."""
    return f"{s.mean:.2f}" if s.n < 2 else f"{s.mean:.2f} ± {s.deviation:.2f}"
