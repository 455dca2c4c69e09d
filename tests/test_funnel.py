"""A funnel: its stages as text, what goes on and what it cost against figures taken from the rows by hand, continuing."""

import dataclasses
import json
import sqlite3
import statistics
import sys

import pytest
from test_launch import program
from test_runs import EPOCHS, StandIn

import bpevo
import bpevo.funnel
from bpevo.command import evaluating, funnelling, plans, selfcheck
from bpevo.command.plans import UsageError
from bpevo.evaluation import EvaluationPlan, FunnelStage, Passed, Treatment, passed, read_stages
from bpevo.evaluation.significance import Summary
from bpevo.evaluation.treatments import CONTROLS
from bpevo.report import funnel_notes, funnel_table
from bpevo.runs import Row, Rows
from bpevo.workers import LocalWorkers

NAMES = ("model", "epochs")


def test_stages_are_read_from_text():
    assert read_stages("keep=9;epochs=5 model=mlp-8  keep=4; keep=4", NAMES) == [
        FunnelStage({}, 9), FunnelStage({"epochs": "5", "model": "mlp-8"}, 4), FunnelStage({}, 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, message",
    [
        ("epochs=5", "stage 1, 'epochs=5', must say how many"),
        ("keep=3; keep=0", "stage 2, 'keep=0', must say how many"),
        ("keep=3; keep=-1", "must say how many"),
        ("keep=3;", "stage 2, '', must say how many"),
        ("keep=3 epoch=5", "stage 1 has no setting 'epoch': it may change model, epochs"),
        ("keep=3; epoch=5 rate=1 keep=2", "stage 2 has no setting 'epoch': it may"),
        ("keep=3 epochs=5 epochs=6", "stage 1 has a setting twice"),
        ("keep=3; keep=5", "keep must not grow from stage to stage, as 3, 5 does"),
    ],
)
def test_stages_that_are_none_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_stages(text, NAMES)


def row(stage: str, equation: str, accuracy: float | None, rate=0.1, replicate=0, epochs=2) -> Row:
    return Row(
        stage=stage, equation=equation, learning_rate=rate, replicate=replicate, proposal=None,
        status="done" if accuracy is not None else "diverged", reason="", accuracy=accuracy, rungs=0,
        curve={"eval_accuracy": [accuracy] * epochs}, seconds=1.0, finished="",
    )  # fmt: skip


def test_what_a_stage_showed_is_the_lead_over_tuned_backprop_paired_by_seed_at_the_tuned_rate():
    g, double, fa, dfa, best = map(Treatment.parse, ("g", "2.0*g", "fa", "dfa", "unit_fro(g)"))
    plan = EvaluationPlan(
        controls=(g, double), found=(fa, dfa, best), learning_rates=(0.1, 0.2), finalists=2, compared=True
    )
    tuning = {"g": (0.5, 0.75), "2.0*g": (0.5, 0.25), "fa": (0.5, 0.25), "dfa": (0.5, 0.25), "unit_fro(g)": (0.25, 0.5)}
    rows = [row("tuning", text, a, rate) for text, of in tuning.items() for rate, a in zip((0.1, 0.2), of, strict=True)]
    rows += [row("tuning", text, 0.0, rate) for text in tuning for rate in (0.05, 0.4)]  # so the best ones lie inside
    fresh = {  # on seeds 1 and 2, at the tuned rates
        ("g", 0.2): (0.5, 0.75), ("2.0*g", 0.1): (0.75, 0.75), ("fa", 0.1): (0.25, 0.75), ("dfa", 0.1): (1.0, None),
        ("unit_fro(g)", 0.2): (0.625, 1.0), ("g", 0.1): (0.0, 0.0),  # the last one at a rate that is not the tuned one
    }  # fmt: skip
    rows += [row("selection", t, a, rate, i + 1) for (t, rate), of in fresh.items() for i, a in enumerate(of)]
    shown = passed(Rows(rows), plan)
    leads = {text: (lead.mean, lead.n) for text, lead in shown.leads.items()}
    assert leads == {"2.0*g": (12.5, 2), "fa": (-12.5, 2), "unit_fro(g)": (18.75, 2)}
    assert shown.diverged == ("dfa",) and shown.closest == "2.0*g"
    assert shown.went_on == (best, fa)  # dfa diverged once, and stands behind what never did
    assert (shown.slot_epochs, shown.of_controls) == (2 * 32, 2 * (8 + 6))
    texts = {line.text: line.numbers[0] for line in funnel_table([shown]).lines}
    assert list(texts) == ["unit_fro(g)", "fa", "dfa", "control: 2.0*g"]
    assert texts["unit_fro(g)"].startswith("+18.75 ± 79.4") and texts["unit_fro(g)"].endswith(" >")
    assert texts["dfa"] == "diverged" and texts["control: 2.0*g"].startswith("+12.50 ±")
    assert shown.ahead == ()  # of unit_fro(g) over 2.0*g: -12.5 and 25
    later = [row("selection", t, a, 0.1, i) for t, a in (("2.0*g", 0.5), ("dfa", 0.5)) for i in (3, 4, 5)]
    later += [row("selection", "fa", a, 0.1, i) for i, a in enumerate((0.75, 0.76, 0.77), 3)]
    later += [row("selection", t, 0.25, 0.2, i) for t in ("g", "unit_fro(g)") for i in (3, 4, 5)]
    many = passed(Rows([r for r in rows if r.stage == "tuning"] + later), plan)
    assert many.ahead == ("fa",)  # 50 to 52 and 25 to 27 points; dfa is ahead of backprop alone
    cells = {line.text: line.numbers[0] for line in funnel_table([many]).lines}
    assert cells["fa"] == "+51.00 ± 2.48* >" and cells["dfa"] == "+25.00 ± 0.00 >"
    assert "2 of 3 rules went on, 64 slot-epochs, 28 of them of controls" in funnel_notes(["stage 1"], [shown])[0]


def test_a_rule_is_ahead_only_of_controls_that_it_leads_on_several_seeds_and_by_more_than_nothing():
    g, double, fa, dfa, h = map(Treatment.parse, ("g", "2.0*g", "fa", "dfa", "h"))
    plan = EvaluationPlan(controls=(g, double), found=(fa, dfa, h), learning_rates=(0.1,), compared=True)
    fresh = {
        "g": {1: 0.5, 2: 0.5}, "2.0*g": {1: 0.5, 2: None}, "h": {1: 0.5, 2: 0.5},
        "fa": {1: 0.75, 2: 0.77},  # over 2.0*g on one seed alone
        "dfa": {7: 1.0},  # on a seed of its own
    }  # fmt: skip
    rows = [row("tuning", text, a, rate) for text in fresh for rate, a in ((0.05, 0.0), (0.1, 0.5), (0.2, 0.0))]
    rows += [row("selection", text, a, replicate=seed) for text, of in fresh.items() for seed, a in of.items()]
    shown = passed(Rows(rows), plan)
    leads = {text: (lead.mean, lead.n) for text, lead in shown.leads.items()}
    assert leads == {"fa": (pytest.approx(26), 2), "h": (0.0, 2)} and (shown.diverged, shown.ahead) == (("2.0*g",), ())
    assert shown.at_edge == ()
    alone = dataclasses.replace(plan, controls=(g,))
    assert passed(Rows(rows), alone).ahead == ("fa",)  # h leads by 0 ± 0
    for limited, ahead in (("fa", ()), ("dfa", ("fa",)), ("g", ())):  # whose grid ends with its best rate
        found = passed(Rows(r for r in rows if (r.equation, r.learning_rate) != (limited, 0.2)), alone)
        assert (found.at_edge, found.ahead) == ((limited,), ahead)
    nothing = passed(Rows([row("tuning", "fa", None, 0.05)] + [r for r in rows if r.equation != "fa"]), alone)
    assert nothing.at_edge == () and nothing.diverged == ("fa",)  # at every rate
    assert set(nothing.went_on) == {dfa, h}
    assert "2 of 2 rules went on" in funnel_notes(["stage 1"], [nothing])[0]  # dfa shares no seed with a control
    same = [r for r in rows if (r.stage, r.equation) != ("selection", "fa")]
    same += [
        row("selection", "fa", 0.75 + i * 2**-26, replicate=1 + i) for i in (0, 1)
    ]  # leads differ by rounding alone
    assert passed(Rows(same), alone).ahead == ()


@pytest.mark.parametrize(
    "leads, closest",
    [({"2.0*g": 0.5, "g | lars": 0.25, "fa": 9.0}, "2.0*g"), ({"2.0*g": 0.0}, "g"), ({"2.0*g": -1.0}, "g"), ({}, "g")],
)
def test_the_closest_control_is_the_one_that_leads_backprop_by_most(leads, closest):
    shown = Passed(
        leads={text: Summary(n=2, mean=mean, deviation=1.0, margin=1.0) for text, mean in leads.items()},
        ahead=(), at_edge=(), diverged=(), controls=("g", "4.0*g", "2.0*g", "g | lars"), went_on=(), slot_epochs=0, of_controls=0,
    )  # fmt: skip
    assert shown.closest == closest


def stage(
    leads: dict, controls=("g", "2.0*g"), went_on=(), diverged=(), ahead=(), cost=(1000, 400), at_edge=("2.0*g",)
) -> Passed:
    """`leads`: means in points, with half the interval where there is one."""
    made = {
        text: Summary(n=2 if margin else 1, mean=mean, deviation=1.0, margin=margin)
        for text, (mean, margin) in leads.items()
    }
    return Passed(
        leads=made, ahead=ahead, at_edge=at_edge, diverged=diverged, controls=controls,
        went_on=tuple(map(Treatment.parse, went_on)), slot_epochs=cost[0], of_controls=cost[1],
    )  # fmt: skip


def test_a_table_of_stages_has_who_came_furthest_first_then_the_controls():
    first = stage(
        {"2.0*g": (-1.0, 0.5), "fa": (3.0, 0.25), "dfa": (1.0, 0), "h": (2.0, 0), "hp": (1.5, 0)},
        went_on=("fa", "dfa", "sgn(g)"), diverged=("sgn(g)", "gh"), ahead=("fa",),
    )  # fmt: skip
    second = stage(
        {"2.0*g": (0.5, 0), "fa": (1.0, 0), "dfa": (2.0, 0)},
        ("g", "2.0*g", "4.0*g"),
        ("dfa",),
        ("sgn(g)",),
        (),
        (2000, 500),
    )
    shown = funnel_table([first, second])
    assert (shown.title, shown.head) == ("lead over tuned backprop on fresh seeds, points", "rule")
    assert list(shown.columns) == ["stage 1", "stage 2"]
    assert [(line.text, *line.numbers, line.style) for line in shown.lines] == [
        ("dfa", "+1.00 >", "+2.00 >", ""), ("fa", "+3.00 ± 0.25* >", "+1.00", ""), ("sgn(g)", "diverged >", "diverged", ""),
        ("h", "+2.00", "", ""), ("hp", "+1.50", "", ""), ("gh", "diverged", "", ""),
        ("control: 2.0*g", "-1.00 ± 0.50!", "+0.50!", "dim"),
    ]  # fmt: skip
    notes = funnel_notes(["stage 1", "stage 2 (epochs=4)"], [first, second])
    assert notes[:2] == [
        "stage 1: 3 of 6 rules went on, 1,000 slot-epochs, 400 of them of controls; closest control: g.",
        "stage 2 (epochs=4): 1 of 3 rules went on, 2,000 slot-epochs, 500 of them of controls; closest control: 2.0*g.",
    ]
    assert notes[2].startswith("3,000 slot-epochs in all. ± half the 95 % interval") and len(notes) == 3


class _AllDifferent(dict):
    def __init__(self, treatments):
        super().__init__((t, t) for t in treatments)

    def __missing__(self, treatment):
        return treatment


RULES = "fa;dfa;unit_fro(g);unit_row2(g);sgn(g);clip(g, 0.5)"
SETTINGS = {
    "rules": RULES, "dataset": "digits", "train_examples": 64, "batch_size": 32, "model": "mlp-8", "epochs": EPOCHS,
    "learning_rates": [0.4, 0.1], "selection_repeats": 3, "repeats": 2, "slots": 4, "selfcheck": False,
    "stages": ["keep=4", "model=mlp-8-8 train_examples=128 keep=3", "learning_rates=0.2 keep=1"],
}  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch):
    """Evaluations on a stand-in for training; counts what it trains, and interrupts after so many epochs."""
    made = {"trained": 0, "left": float("inf")}

    class Place:
        def __init__(self, recipes):
            self._other = sum(map(ord, recipes._training.settings.model))

        def __call__(self, on_test, program):
            made["trainer"] = trainer = _Counting(4, interrupt_after=made["left"])
            trainer.other = self._other
            return LocalWorkers(trainer)

    class _Counting(StandIn):
        def start(self, slot, training, epoch=0, state=()):
            made["trained"] += 1
            super().start(slot, dataclasses.replace(training, replicate=training.replicate + self.other), epoch, state)

        def advance(self, meanwhile=lambda: None):
            made["left"] -= 1
            return super().advance(meanwhile)

    monkeypatch.setattr(evaluating, "LocalWorkplace", Place)
    # These cost seconds, and are not of interest here.
    monkeypatch.setattr(sys.modules["bpevo.evaluation.standings"], "kind", lambda _: "")
    for module in (plans, funnelling):
        monkeypatch.setattr(module, "Firsts", _AllDifferent)
    return made


def stored(folder) -> tuple[dict, list[tuple]]:
    with sqlite3.connect(folder / "run.sqlite") as c:
        settings = json.loads(c.execute("SELECT value FROM meta WHERE key = 'settings'").fetchone()[0])
        rows = c.execute(
            "SELECT stage, equation, learning_rate, replicate, accuracy, curve FROM evaluations"
        ).fetchall()
    return settings, sorted(rows)


def best(rows: list[tuple], rules: list[str], keep: int) -> list[str]:
    """The rules that do best on fresh seeds, from the rows alone."""
    worth = {}
    for text in rules:
        tuned = {r[2]: r[4] or 0.0 for r in rows if r[:2] == ("tuning", text)}
        fresh = [r[4] for r in rows if r[:2] == ("selection", text)]
        assert {r[2] for r in rows if r[:2] == ("selection", text)} == {
            max(tuned, key=lambda rate: (tuned[rate], rate))
        }
        worth[text] = None not in fresh, statistics.fmean(a or 0.0 for a in fresh)
    return sorted(rules, key=worth.__getitem__, reverse=True)[:keep]


def test_under_another_optimizer_a_stage_trains_no_rule_twice(tmp_path, stand_in):
    changes = {"rules": "fa;fa | adam;dfa | momentum", "stages": ["keep=3", "optimizer=adam keep=2"]}
    bpevo.Funnel(tmp_path, **SETTINGS | changes).run()
    settings, _ = stored(tmp_path / "funnel-2")
    assert sorted(settings["found"]) == ["dfa | momentum", "fa"] and "g" in settings["controls"]


def test_a_funnel_tunes_controls_and_rules_in_every_stage_and_cuts_by_fresh_seeds(tmp_path, stand_in, capsys):
    last = bpevo.Funnel(tmp_path, **SETTINGS).run()
    printed = " ".join(capsys.readouterr().out.split())
    controls, rules, total = {str(t) for t in CONTROLS}, RULES.split(";"), 0
    seeds = set()
    for number, keep in ((1, 4), (2, 3), (3, 1)):
        settings, rows = stored(tmp_path / f"funnel-{number}")
        seeds.add(settings["seed"])
        assert {r[1] for r in rows if r[0] == "tuning"} == {*rules, *controls}
        fresh = [r for r in rows if r[0] == "selection"]
        assert len({r[3] for r in fresh}) == 3 == [r[1] for r in fresh].count("g | adam")
        of_stage = sum(len(json.loads(r[5])["eval_accuracy"]) for r in rows)
        of_controls = sum(len(json.loads(r[5])["eval_accuracy"]) for r in rows if r[1] in controls)
        entered, rules, total = len(rules), best(rows, rules, keep), total + of_stage
        assert (
            f"{keep} of {entered} rules went on, {of_stage:,} slot-epochs, {of_controls:,} of them of controls"
            in printed
        )
        assert {r[1] for r in rows if r[0] == "test"} == ({*rules, *controls} if number == 3 else set())
    assert len(seeds) == 3 and f"{total:,} slot-epochs in all" in printed
    assert (
        "stage 2 (model=mlp-8-8, train_examples=128)" in printed
        and "lead over tuned backprop on fresh seeds" in printed
    )
    first, second, third = (stored(tmp_path / f"funnel-{n}")[0] for n in (1, 2, 3))
    assert [s["model"] for s in (first, second, third)] == ["mlp-8", "mlp-8-8", "mlp-8-8"]  # what changed stays so
    assert [s["train_examples"] for s in (first, second, third)] == [64, 128, 128] and third["learning_rates"] == [0.2]
    assert last.settings["scenario"] == "funnel-3"


def test_a_funnel_continues_where_it_was_interrupted_and_trains_nothing_twice(tmp_path, stand_in, capsys):
    bpevo.Funnel(tmp_path / "whole", **SETTINGS).run()
    once = stand_in["trained"]
    stand_in |= {"trained": 0}
    interruptions = 0
    while True:
        stand_in["left"] = 60
        bpevo.Funnel(tmp_path / "parts", **SETTINGS).run()
        if "interrupted" not in capsys.readouterr().out:
            break
        interruptions += 1
    assert interruptions > 2
    for number in (1, 2, 3):
        assert stored(tmp_path / "parts" / f"funnel-{number}") == stored(tmp_path / "whole" / f"funnel-{number}")
    stand_in |= {"trained": 0, "left": float("inf")}
    bpevo.Funnel(tmp_path / "whole", **SETTINGS).run()
    assert stand_in["trained"] == 0 < once


def test_the_stages_are_evaluations_of_their_own_and_only_the_last_one_tests(tmp_path, stand_in):
    given = SETTINGS | {"seed": 2**32 - 2, "ablate": 3, "max_hours": 5.0, "scenario": "up"}
    made = funnelling.funnel_commands(bpevo.Funnel(tmp_path, **given)._values())
    assert list(made) == [
        "stage 1 (as given)",
        "stage 2 (model=mlp-8-8, train_examples=128)",
        "stage 3 (learning_rates=0.2)",
    ]
    evaluations = [c.evaluation for c in made.values()]
    assert [(e.finalists, e.repeats, e.ablate, e.compared) for e in evaluations] == [
        (4, 0, 0, True), (3, 0, 0, True), (1, 2, 3, True)
    ]  # fmt: skip
    assert all(e.named == () and [str(t) for t in e.found] == RULES.split(";") for e in evaluations)
    assert [c.training.seed for c in made.values()] == [2**32 - 1, 0, 1]
    assert [(c.folder.name, c.max_hours) for c in made.values()] == [("up-1", None), ("up-2", None), ("up-3", None)]


def test_the_self_check_is_the_first_stages(tmp_path, stand_in, monkeypatch, capsys):
    checks = []
    monkeypatch.setattr(selfcheck, "check", lambda: checks.append("checked"))
    few = SETTINGS | {"rules": "fa", "stages": ["keep=1", "keep=1"], "learning_rates": [0.1], "epochs": 1}
    bpevo.Funnel(tmp_path, **few | {"selfcheck": True}).run()
    printed = capsys.readouterr().out
    assert (
        checks == ["checked"] and "stage 1 (as given): 1 rules" in printed and "stage 2 (as given): 1 rules" in printed
    )


def test_the_funnel_is_a_program_with_the_flags_of_an_evaluation_and_its_stages(monkeypatch):
    (name, defined, run), named = program(monkeypatch, bpevo.funnel)
    assert (name, run, named) == ("bpevo.funnel", funnelling.run, {})
    assert [d.__name__ for d in defined] == ["define_common", "define_evaluation", "define_funnel"]


def test_flags_of_a_funnel_that_cannot_be_are_refused_before_anything_trains(tmp_path, stand_in):
    for change, message in (
        ({"stages": None}, "stages is needed"),
        ({"stages": "keep=3; model=mlp keep=2"}, "stage 2 of stages: no model 'mlp'"),
        ({"stages": "keep=3; epochs=none keep=2"}, "stage 2 of stages: .*epochs"),
        ({"stages": "keep=3; seed=4 scenario=x keep=2"}, "stages: stage 2 has no setting 'scenario'"),
        ({"model": "mlp-8;mlp-9"}, "stage 1 of stages: .*on one network"),
        ({"finalists": 2}, "finalists=2 is of an evaluation"),
    ):
        with pytest.raises(UsageError, match=message):
            bpevo.Funnel(tmp_path, **(SETTINGS | change)).run()
    assert stand_in["trained"] == 0 and not list(tmp_path.iterdir())
