"""The table of an evaluation: a row per treatment, with its tuned learning rate, test accuracy and verdict."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bpevo.evaluation.evaluation import tuned_rate
from bpevo.evaluation.significance import LEVEL, Difference, Summary, holm, paired, summary
from bpevo.evaluation.treatments import BACKPROP, BASELINES
from bpevo.rules import NAMED, PAPER
from bpevo.runs import Rows
from bpevo.workers import Stage

PAPER_SETUPS = ("a1", "a2", "a3", "b1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """A row; accuracies in %. `p` is corrected over all rows of the table."""

    text: str  # of the treatment
    kind: str  # baseline, named, found
    learning_rate: float | None  # None: diverged at every rate
    at_edge: bool  # the tuned rate is the smallest or largest of those tried
    tuning: dict[float, float]  # learning rate: mean validation accuracy; a training that diverged counts as 0
    selection: Summary | None  # fresh seeds, validation
    test: Summary | None
    diverged: int  # of the test trainings; they are in no mean, and such a row is never significant
    difference: Difference | None  # of the test accuracies to tuned backprop's
    p: float | None
    cost: float | None  # epoch time over backprop's
    paper: str

    @property
    def name(self) -> str:
        """What people call a baseline; empty for a rule."""
        return baseline_name(self.text) if self.kind == "baseline" else ""

    @property
    def validation(self) -> float | None:
        """Mean at the tuned rate, in the tuning."""
        return None if self.learning_rate is None else self.tuning[self.learning_rate]

    @property
    def better(self) -> bool:
        """Significantly better than tuned backprop: printed bold."""
        return self.p is not None and self.p < LEVEL and self.difference is not None and self.difference.pairs.mean > 0

    @property
    def worse(self) -> bool:
        return self.p is not None and self.p < LEVEL and not self.better


def baseline_name(text: str) -> str:
    names = {str(t): t.transform for t in BASELINES if t.transform}
    names |= {NAMED[name]: name for name in ("backprop", "zero_signal")}
    return names.get(text, "")


def standings(rows: Rows, costs: Mapping[str, float], settings: Mapping[str, Any]) -> list[Standing]:
    """The table of an evaluation: its treatments as far as they are tuned, without ablations.

    Args:
      rows: of the evaluation's database, in any order.
      costs: epoch time over backprop's, by treatment.
      settings: of the evaluation; `rules` and `found` name its treatments, `scenario` and `optimizer` the paper's column.

    Returns:
      Tested treatments first, best mean test accuracy first; then the others by validation.
    """
    baselines, named = {str(t) for t in BASELINES}, set(settings.get("rules", ()))
    shown = baselines | named | set(settings.get("found", ()))
    texts = dict.fromkeys(e.equation for e in rows.of(stage=Stage.TUNING) if e.equation in shown)
    trained = {text: _trained(text, rows.of(equation=text)) for text in texts}
    differences = _differences(trained)
    adjusted = dict(zip(differences, holm([d.p for d in differences.values()]), strict=True))
    table = [
        Standing(
            text=text,
            kind="baseline" if text in baselines else "named" if text in named else "found",
            learning_rate=t.rate,
            at_edge=len(t.tuning) > 1 and t.rate in (min(t.tuning), max(t.tuning)),
            tuning=t.tuning,
            selection=summary(t.selected) if t.selected else None,
            test=summary(list(t.tested.values())) if t.tested else None,
            diverged=t.diverged,
            difference=differences.get(text),
            p=adjusted.get(text),
            cost=costs.get(text),
            paper=paper_numbers(text, settings),
        )
        for text, t in trained.items()
    ]
    return sorted(
        table, key=lambda r: (r.test is not None, r.test.mean if r.test else r.validation or 0.0), reverse=True
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Trained:
    """What the trainings of one treatment gave; accuracies in %."""

    rate: float | None
    tuning: dict[float, float]
    selected: list[float]
    tested: dict[int, float]  # by replicate
    diverged: int


def _trained(text: str, rows: Rows) -> _Trained:
    rate = tuned_rate(rows, text)
    of_rate: dict[float, list[float]] = {}
    for e in rows.of(stage=Stage.TUNING):
        of_rate.setdefault(e.learning_rate, []).append(100 * (e.accuracy or 0.0))
    selected, tested = (rows.of(stage=stage, learning_rate=rate) for stage in (Stage.SELECTION, Stage.TEST))
    return _Trained(
        rate=rate,
        tuning={r: statistics.mean(values) for r, values in sorted(of_rate.items())},
        selected=[100 * e.accuracy for e in selected if e.accuracy is not None],
        tested={e.replicate: 100 * e.accuracy for e in tested if e.accuracy is not None},
        diverged=sum(e.accuracy is None for e in tested),
    )


def _differences(trained: Mapping[str, _Trained]) -> dict[str, Difference]:
    """Test accuracies against tuned backprop's, where no training diverged and two seeds are shared."""
    baseline = trained.get(str(BACKPROP))
    found: dict[str, Difference] = {}
    for text, t in trained.items():
        if text != str(BACKPROP) and baseline and not t.diverged:
            difference = paired(t.tested, baseline.tested)
            if difference:
                found[text] = difference
    return found


def paper_numbers(text: str, settings: Mapping[str, Any]) -> str:
    """The paper's test accuracy of a Table 1 rule: of this scenario's column, else of the columns that have it."""
    of = {name: PAPER[name] for name in PAPER if NAMED[name] == text}
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


def verdict(table: Sequence[Standing]) -> list[str]:
    """What the standings say, in sentences; only what survives the correction is called better."""
    baseline = next((r for r in table if r.text == str(BACKPROP)), None)
    if baseline is None or baseline.test is None:
        return ["Backprop has not been tested yet: no verdict."]
    zero = next((r for r in table if r.name == "zero_signal"), None)
    rules = [r for r in table if r.kind != "baseline" and r.test is not None]
    better, worse = [r for r in rules if r.better], [r for r in rules if r.worse]
    said = [
        f"Backprop, tuned like every row (learning rate {baseline.learning_rate:g}), reaches {number(baseline.test)} % "
        f"on the test set (n = {baseline.test.n})."
    ]
    if zero and zero.test:
        said.append(f"Without any hidden signal the same network reaches {number(zero.test)} %.")
    if better:
        best = better[0]
        assert best.difference is not None
        said.append(
            f"{len(better)} of {len(rules)} rules are significantly better (two-sided paired t-test on shared seeds, Holm, "
            f"{LEVEL:.0%}); the best, {best.text}, by {best.difference.pairs.mean:.2f} ± "
            f"{best.difference.pairs.margin:.2f} points (95 % interval)."
        )
    else:
        said.append(
            f"None of {len(rules)} rules is significantly better (two-sided paired t-test on shared seeds, Holm, {LEVEL:.0%})."
        )
    said.append(f"Significantly worse: {len(worse)}.")
    said += _untuned(baseline, rules)
    cousins = [r for r in table if r.kind == "baseline" and r.better]
    if cousins:
        said.append(f"Significantly better is also, of the hand-made cousins, {' and '.join(r.name for r in cousins)}.")
    edges = [r.name or r.text for r in table if r.at_edge and r.test is not None]
    if edges:
        said.append(
            f"The tuned learning rate of {len(edges)} rows lies at the edge of those tried (marked *): more might be in them."
        )
    if baseline.test.n < 10:
        said.append(f"With n = {baseline.test.n}, only large differences can be told from noise.")
    return said


def _untuned(baseline: Standing, rules: Sequence[Standing]) -> list[str]:
    """What a comparison without tuning would have shown: every row at the rate that suits the rules best together."""
    rates = [rate for rate in baseline.tuning if all(rate in r.tuning for r in rules)]
    if not rules or len(rates) < 2:
        return []
    shared = max(rates, key=lambda rate: statistics.mean(r.tuning[rate] for r in rules))
    ahead = sum(r.tuning[shared] > baseline.tuning[shared] for r in rules)
    return [
        f"Without tuning, at the one learning rate that suits the rules best together ({shared:g}), {ahead} of {len(rules)} "
        f"rules would have been ahead of backprop's {baseline.tuning[shared]:.2f} % on validation; tuned, it has "
        f"{baseline.validation or 0.0:.2f} %."
    ]


def number(s: Summary) -> str:
    """Mean ± sample standard deviation."""
    return f"{s.mean:.2f}" if s.n < 2 else f"{s.mean:.2f} ± {s.deviation:.2f}"
