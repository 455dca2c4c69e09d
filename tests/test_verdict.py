"""What an evaluation says at every bound, worked out by hand: its verdict, rows, plan and early decisions."""

import math
import sys

import numpy as np
import pytest
from test_evaluate import treatments
from test_figures import curves, trained

from bpevo.evaluation import EvaluationPlan, Treatment, standings, verdict
from bpevo.evaluation.duplicates import Firsts
from bpevo.evaluation.early_decisions import early_decisions, final_curves, rank_correlations, successive_halving
from bpevo.evaluation.significance import Difference, Summary, paired, summary
from bpevo.evaluation.standings import Standing, number, paper_numbers
from bpevo.evaluation.treatments import stored, under
from bpevo.runs import Rows


@pytest.fixture(autouse=True)
def kinds_cost_seconds(monkeypatch):
    monkeypatch.setattr(sys.modules["bpevo.evaluation.standings"], "_kind", lambda _: "a kind")


def reached(mean: float) -> Summary:
    return Summary(n=4, mean=mean, deviation=1.0, margin=2.0)


def led(mean: float, margin: float) -> Difference:
    return Difference(pairs=Summary(n=4, mean=mean, deviation=1.0, margin=margin), greater=0.01, less=0.99)


def standing(text: str, role: str = "named", **changes) -> Standing:
    """A row that was tuned and says nothing else."""
    values = dict(
        text=text, role=role, kind="a kind", same=(), learning_rate=0.1, at_edge=False, tuning={0.1: 50.0, 0.3: 40.0},
        selection=None, test=None, diverged=0, difference=None, hurdle="", over_hurdle=None, p=None, detectable=None,
        p_worse=None, unfair="", paper="",
    )  # fmt: skip
    return Standing(**values | changes)


BASELINE = standing("g", "control", test=reached(80))
FIRST = "Backprop, tuned like every row (learning rate 0.1, 2 tried), reaches 80.00 ± 1.00 % on the test set (n = 4)."


def test_the_verdict_on_several_finds_and_several_controls():
    table = [
        standing("fa", test=reached(90), p=0.01, p_worse=1.0, hurdle="2.0*g", over_hurdle=led(3, 0.5), tuning={0.1: 60, 0.3: 70}),
        standing("dfa", "found", test=reached(88), p=0.04, hurdle="g", over_hurdle=led(2, 0.25), tuning={0.1: 50, 0.3: 40}),
        standing("2.0*g", "control", test=reached(85)),
        standing("0.5*g", "control", test=reached(84)),
        BASELINE,
        standing("h", "found", test=reached(70), p=0.2, detectable=2.5, p_worse=0.001, tuning={0.1: 40, 0.3: 52}),
        standing("dh", test=reached(69), p=0.9, detectable=1.25, p_worse=0.05, tuning={0.1: 10, 0.3: 8}),
        standing("4.0*g", "control", test=reached(95), diverged=1),
        standing("g - g", "control", tuning={0.1: 20.0}),
        standing("sgn(g)", diverged=4),  # none was left to test
        standing("g | lars", "control", learning_rate=None, tuning={}),
        standing("g | adam", "control", learning_rate=None, tuning={}),
    ]  # fmt: skip
    assert verdict(table) == [
        FIRST,
        "The best of the other controls, 2.0*g, reaches 85.00 ± 1.00 %.",
        "Diverged at every learning rate, so no hurdle: g | lars, g | adam.",
        "2 of 4 rules are finds: better than each of 4 controls (one-sided paired t-tests on shared seeds, the largest p counts; "
        "Holm over 4 rules, 5%).",
        "The best find, fa (a kind), leads 2.0*g, the control that comes closest, by 3.00 ± 0.50 points (95 % interval).",
        "Where no lead was found, these seeds would have shown one of 1.25 to 2.50 points with a chance of 80% (column "
        "detectable).",
        "Significantly worse than backprop: 1 of 3 rules.",
        "No verdict on sgn(g): some repetitions diverged.",
        # Together 170 at 0.3 and 160 at 0.1; dfa is as good there as backprop, so fa and h are ahead.
        "Without tuning, at the one learning rate that suits the rules best together (0.3), 2 of 4 rules would have been ahead "
        "of backprop's 40.00 % on validation; tuned, it has 50.00 %.",
    ]


def test_what_was_not_measured_is_not_spoken_of():
    assert verdict([standing("g", "control"), standing("fa", test=reached(90))]) == [
        "Backprop has not been tested yet: no verdict."
    ]
    assert verdict([BASELINE]) == [FIRST]
    # One rate in common is no tuning to do without.
    assert verdict([BASELINE, standing("fa", test=reached(90), tuning={0.1: 60, 0.2: 1})]) == [FIRST]


def test_up_to_three_rules_without_a_verdict_are_named():
    rules = [standing(text, unfair="a reason", diverged=1) for text in ("fa", "dfa", "h", "dh")]
    because = "the comparison is not fair, for a reason."
    assert verdict([BASELINE, *rules[:3]])[1] == f"No verdict on fa, dfa, h: {because}"
    assert verdict([BASELINE, *rules])[1:] == [f"No verdict on 4 rules: {because}"]


def test_significant_is_what_lies_below_the_level():
    at, below = standing("fa", p=0.05, p_worse=0.05), standing("fa", p=0.0499, p_worse=0.0499)
    assert (at.find, at.worse, below.find, below.worse) == (False, False, True, True)
    assert not standing("fa").find and not standing("fa").worse


def test_only_controls_go_by_a_name_and_what_diverged_has_no_validation():
    names = [standing(text, role).name for text in ("g", "g - g", "fa") for role in ("control", "named", "found")]
    assert names == ["backprop", "", "", "zero_signal", "", "", "", "", ""]
    assert standing("fa").validation == 50.0 and standing("fa", learning_rate=None, tuning={}).validation is None


@pytest.mark.parametrize("dataset", ["a.npz", "cifar10", "cifar100"])
def test_only_on_the_papers_data_are_there_numbers_of_the_paper(dataset):
    shown = paper_numbers(["unit_fro(g)"], {"scenario": "a1", "optimizer": "sgd", "dataset": dataset})
    assert shown == ("84.15 ± 0.66" if dataset == "cifar10" else "")


def test_a_single_value_has_no_deviation():
    assert number(summary([5.0])) == "5.00" and number(summary([5.0, 7.0])) == "6.00 ± 1.41"


def table_of(*rows: list, **settings) -> dict[str, Standing]:
    known = {"controls": ["g", "g - g"], "rules": ["fa", "dfa"], "learning_rates": [0.1, 0.2, 0.4]}
    return {s.text: s for s in standings(Rows(sum(rows, [])), known | settings)}


INSIDE = {0.1: (0.5,), 0.2: (0.6,), 0.4: (0.5,)}
ZERO = trained("g - g", INSIDE, (0.2, (0.1, 0.11, 0.12)))


def test_where_backprops_best_rate_lies_at_the_edge_nothing_is_called_worse_than_it():
    edge = trained("g", {0.1: (0.5,), 0.2: (0.6,), 0.4: (0.7,)}, (0.4, (0.8, 0.81, 0.83)))
    rule = trained("fa", INSIDE, (0.2, (0.9, 0.92, 0.91)))
    found = table_of(edge, ZERO, rule)
    assert {s.p_worse for s in found.values()} == {None} and not any(s.worse for s in found.values())
    assert found["fa"].unfair == "of the controls g more learning rates would have to be tried"
    inside = table_of(trained("g", INSIDE, (0.2, (0.8, 0.81, 0.83))), ZERO, rule)
    assert inside["g - g"].worse and inside["fa"].find


def test_a_row_says_how_many_of_the_rates_it_has():
    found = table_of(
        trained("g", INSIDE, (0.2, (0.8, 0.81))), ZERO, trained("fa", {0.1: (0.5,), 0.2: (0.6,)}, (0.2, (0.9, 0.9)))
    )
    assert found["fa"].unfair == "2 of 3 learning rates were tried"
    none = table_of(trained("g", INSIDE, (0.2, (0.8, 0.81))), trained("fa", {0.8: (0.5,)}, (0.8, (0.9, 0.9))))
    assert none["fa"].unfair == "0 of 3 learning rates were tried"


def test_untested_rows_stand_by_validation_and_what_always_diverged_below_all():
    found = table_of(
        trained("g", {0.1: (None,)}), trained("fa", {0.1: (0.005,)}), trained("dfa", {0.1: (0.006,)}),
        trained("g - g", {0.1: (0.2,)}),
    )  # fmt: skip
    assert list(found) == ["g - g", "dfa", "fa", "g"]


def test_one_common_seed_is_compared_with_nothing():
    found = table_of(
        trained("g", INSIDE, (0.2, (0.8,))), trained("g - g", INSIDE, (0.2, (0.1,))), trained("fa", INSIDE, (0.2, (0.9,)))
    )  # fmt: skip
    fa = found["fa"]
    assert (fa.difference, fa.p, fa.p_worse, fa.unfair, fa.hurdle) == (None, None, None, "", "")
    assert (fa.test.n, fa.test.mean, found["g - g"].p_worse) == (1, 90.0, None)


def test_what_was_tested_counts_in_the_correction_also_when_it_is_not_asked_for_any_more():
    texts = ("fa", "dfa", "h", "dh", "hp")
    own = [trained(t, INSIDE, (0.2, (0.8 + i / 1000, 0.82, 0.83 - i / 1000))) for i, t in enumerate(texts)]
    control = [trained("g", INSIDE, (0.2, (0.78, 0.79, 0.825))), ZERO]
    whole, less = (table_of(*control, *own, rules=list(rules)) for rules in (texts, texts[:1]))
    assert {t: s.p for t, s in less.items()} == {t: s.p for t, s in whole.items()} and less["fa"].p > 0.05
    assert [less[t].role for t in texts] == ["named"] + ["found"] * 4
    alone = table_of(*control, own[0], rules=["fa"])
    assert alone["fa"].p < less["fa"].p
    tuned_only = trained("sgn(g)", INSIDE)
    assert "sgn(g)" not in table_of(*control, *own, tuned_only)  # as an ablation is


def test_there_is_no_verdict_before_every_control_has_a_rules_seeds():
    backprop, rule = (trained(t, INSIDE, (0.2, a)) for t, a in (("g", (0.8, 0.81, 0.83)), ("fa", (0.9, 0.92, 0.91))))
    late = trained("g - g", INSIDE, (0.2, (0.99,)))
    fa = table_of(backprop, late, rule)["fa"]
    assert fa.p is None and fa.unfair == "the controls g - g have not been tested on all its seeds yet"
    assert table_of(backprop, ZERO, rule)["fa"].find


def test_a_control_that_learned_nothing_is_named():
    table = [
        BASELINE, standing("g - g", "control", tuning={0.1: 12.0}, test=reached(11)),
        standing("g | adam", "control", tuning={0.1: 12.0}, test=reached(10)),
        standing("g | lars", "control", tuning={0.1: 12.5}, test=reached(13)),
    ]  # fmt: skip
    said = [line for line in verdict(table) if line.startswith("No better on validation")]
    assert said == ["No better on validation than without a signal at any learning rate tried, so no hurdle: g | adam."]


def test_a_text_that_is_no_treatment_has_a_row_without_a_kind():
    found = table_of(trained("g", INSIDE), trained("what is this", INSIDE), rules=["what is this"])
    assert {text: (s.kind, s.role) for text, s in found.items()} == {
        "g": ("a kind", "control"),
        "what is this": ("", "named"),
    }
    assert stored("what is this") is None and stored("fa | lars") == Treatment.parse("fa | lars")


def test_differences_that_are_the_same_but_for_rounding_are_no_spread():
    """7.1 - 7 and 80.1 - 80 differ in the fifteenth digit."""
    d = paired({1: 7.1, 2: 80.1}, {1: 7.0, 2: 80.0})
    assert 7.1 - 7.0 != 80.1 - 80.0 and (d.greater, d.less) == (1.0, 1.0)


# Plans and treatments.


def test_a_run_records_what_its_evaluation_compares_with_these_defaults():
    plan = EvaluationPlan(
        controls=treatments("g"), named=treatments("fa"), found=treatments("dfa"), same={"gh * dh": "g"}, learning_rates=(0.1,)
    )  # fmt: skip
    assert plan.fingerprint() == {
        "semantics": 4, "controls": ["g"], "rules": ["fa"], "found": ["dfa"], "same": {"gh * dh": "g"}, "tuning_repeats": 1,
        "selection_repeats": 5, "finalists": 10, "repeats": 10, "ablate": 0,
    }  # fmt: skip
    assert plan.selected == [*treatments("dfa")]  # controls only where they are compared


def sum_of(parts: int) -> str:
    text = "g"
    for _ in range(parts):
        text = f"({text}) + fa"
    return text


@pytest.mark.parametrize("parts, program", [(1, 3), (3, 3), (4, 4), (8, 8), (9, 3)])
def test_chains_of_up_to_eight_parts_share_a_program(parts, program):
    assert EvaluationPlan(named=treatments(sum_of(parts)), learning_rates=(0.1,)).max_parts == program


def test_a_program_knows_the_transforms_that_stand_beside_its_optimizer():
    named = treatments("fa | lars", "dfa | grafted | adam", "dfa | clip_global_norm", "h | adam")
    plan = EvaluationPlan(controls=treatments("g"), named=named, learning_rates=(0.1,))
    assert [plan.transforms(o) for o in ("", "adam", "momentum")] == [("clip_global_norm", "lars"), ("grafted",), ()]


def test_only_the_evaluations_own_optimizer_is_not_named_again():
    fa = Treatment.parse("fa | momentum")
    assert [str(under(fa, o)) for o in ("adam", "momentum", "sgd")] == ["fa | momentum", "fa", "fa | momentum"]


def test_rules_without_any_signal_are_one_function():
    first, second = treatments("g - g", "(h - h) * dh")
    assert Firsts([first, second]) == {first: first, second: first}


# Early decisions.


def test_nine_configurations_and_two_epochs_are_the_least_that_tell_how_early_one_may_decide():
    """After the first of three epochs the three that will be worst go on, and the middle epoch ranks nothing."""
    found = early_decisions(curves(*([i / 10, 0.5, (9 - i) / 10] for i in range(9))), "fa")
    # Of 9, 8 and 7 tenths at the end for the first ones: 30 % is the best of the last three; 9 + 3·2 of 27 epochs.
    assert (found.best, found.picked, found.regret) == (pytest.approx(90), pytest.approx(30), pytest.approx(60))
    assert found.spent == pytest.approx(15 / 27)
    assert found.correlations == pytest.approx((-1, math.nan, 1), nan_ok=True)
    assert early_decisions(curves(*([i / 10, 0.5] for i in range(8))), "fa") is None


def test_rungs_stop_where_a_further_one_would_keep_none():
    """Nine configurations over 27 epochs are halved after 3 and 9: 9·3 + 3·6 + 18; four only after 9: 4·9 + 18."""
    ranked = np.tile(np.arange(9)[:, None] / 10, (1, 27))
    assert successive_halving(ranked, np.random.default_rng(0)) == (8, 63)
    assert successive_halving(ranked[:4], np.random.default_rng(0)) == (3, 54)


def test_what_is_missing_in_a_curve_and_the_epoch_that_diverged_count_as_nothing():
    rows = curves([None, 0.5, 0.75], [0.25, 0.5, None], [0.125])
    assert final_curves(rows, "fa").tolist() == [[0.0, 0.5, 0.75], [0.25, 0.5, 0.0], [0.125, 0.0, 0.0]]
    assert rank_correlations(np.array([[0.5, 0.5], [0.1, 0.5]]))[:1] == pytest.approx((math.nan,), nan_ok=True)
