"""What the table of an evaluation says, in sentences; only what survives every control and the correction is called a find."""

import statistics
from collections.abc import Sequence

from bpevo.evaluation.significance import LEVEL, POWER
from bpevo.evaluation.standings import Standing, number
from bpevo.evaluation.treatments import BACKPROP


def verdict(table: Sequence[Standing]) -> list[str]:
    """Sentences on a table of `standings`."""
    baseline = next((r for r in table if r.text == str(BACKPROP)), None)
    if baseline is None or baseline.test is None:
        return ["Backprop has not been tested yet: no verdict."]
    rules = [r for r in table if r.role != "control" and r.test is not None]
    return [
        *_controls(table, baseline),
        *_finds(table, [r for r in rules if r.p is not None]),
        *_worse(rules),
        *_without_verdict([r for r in table if r.role != "control" and (r.test is not None or r.diverged)]),
        *_untuned(baseline, rules),
        *_same(table),
    ]


def _controls(table: Sequence[Standing], baseline: Standing) -> list[str]:
    assert baseline.test is not None
    tuned = f"tuned like every row (learning rate {baseline.learning_rate:g}, {len(baseline.tuning)} tried)"
    if len(baseline.tuning) < 2:
        tuned = f"at the one learning rate {baseline.learning_rate:g}, not tuned"
    said = [f"Backprop, {tuned}, reaches {number(baseline.test)} % on the test set (n = {baseline.test.n})."]
    for r in table:
        if r.name == "zero_signal" and r.test:
            said.append(f"Without any hidden signal the same network reaches {number(r.test)} %.")
    others = [r for r in table if r.role == "control" and not r.name and r.test and not r.diverged]
    if others and others[0].test:  # the table is sorted
        said.append(f"The best of the other controls, {others[0].text}, reaches {number(others[0].test)} %.")
    if lost := [r.text for r in table if r.role == "control" and r.learning_rate is None]:
        said.append(f"Diverged at every learning rate, so no hurdle: {', '.join(lost)}.")
    zero = next((r.validation for r in table if r.name == "zero_signal"), None)
    idle = [r for r in table if r.role == "control" and r.name != "zero_signal" and r.validation is not None]
    if zero is not None and (low := [r.text for r in idle if (r.validation or 0.0) <= zero]):
        said.append(
            f"No better on validation than without a signal at any learning rate tried, so no hurdle: {', '.join(low)}."
        )
    return said


def _finds(table: Sequence[Standing], judged: Sequence[Standing]) -> list[str]:
    if not judged:
        return []
    hurdles = sum(r.role == "control" and r.test is not None for r in table)
    how = (
        f"better than each of {hurdles} controls (one-sided paired t-tests on shared seeds, the largest p counts; Holm over "
        f"{len(judged)} rules, {LEVEL:.0%})"
    )
    finds = [r for r in judged if r.find]
    if not finds:
        said = [f"None of {len(judged)} rules is a find: {how}."]
    else:
        best, over, are = finds[0], finds[0].over_hurdle, "is a find" if len(finds) == 1 else "are finds"
        assert over is not None
        said = [
            f"{len(finds)} of {len(judged)} rules {are}: {how}.",
            f"The best find, {best.text} ({best.kind}), leads {best.hurdle}, the control that comes closest, by "
            f"{over.pairs.mean:.2f} ± {over.pairs.margin:.2f} points (95 % interval).",
        ]
    least = sorted(r.detectable for r in judged if r.detectable is not None)
    if least:
        span = f"{least[0]:.2f}" if len(least) == 1 else f"{least[0]:.2f} to {least[-1]:.2f}"
        said.append(
            f"Where no lead was found, these seeds would have shown one of {span} points with a chance of {POWER:.0%} (column "
            "detectable)."
        )
    return said


def _worse(rules: Sequence[Standing]) -> list[str]:
    told = [r for r in rules if r.p_worse is not None]
    return [f"Significantly worse than backprop: {sum(r.worse for r in told)} of {len(told)} rules."] if told else []


def _without_verdict(rules: Sequence[Standing]) -> list[str]:
    """Why some rules are no find whatever they reached."""
    reasons: dict[str, list[str]] = {}
    for r in rules:
        if r.unfair:
            reasons.setdefault(f"the comparison is not fair, for {r.unfair}", []).append(r.text)
        elif r.diverged:
            reasons.setdefault("some repetitions diverged", []).append(r.text)
    return [f"No verdict on {_listed(texts)}: {reason}." for reason, texts in reasons.items()]


def _listed(texts: Sequence[str], most: int = 3) -> str:
    return ", ".join(texts) if len(texts) <= most else f"{len(texts)} rules"


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


def _same(table: Sequence[Standing]) -> list[str]:
    """What was trained once."""
    said = []
    if of_rules := [f"{text} = {r.text}" for r in table if r.role != "control" for text in r.same]:
        said.append(f"One function, trained and counted once: {'; '.join(of_rules)}.")
    if of_controls := [f"{text} = {r.text}" for r in table if r.role == "control" for text in r.same]:
        said.append(f"Trains like a control and is not counted as a rule: {'; '.join(of_controls)}.")
    return said
